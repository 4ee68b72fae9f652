/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rules that need no kernel: which state may follow which, and what a FLUSH
 * has made durable. tests/rules compiles this file in user space.
 */
#ifndef DMDST_RULES_H
#define DMDST_RULES_H

#include <linux/bits.h>
#include <linux/types.h>
#include <linux/dm-dst.h>

/* ---- a request ---- */

/*
 *       QUEUED      BARRED ◄─────┐
 *   (node->queue)  (for a fence) │
 *          ▲  │       │          │
 *          │  ▼       ▼          │
 *         HELD ──────────► ON_LINK (sendq, then a slot)
 *         ▲ │ ▲ ◄────────────────┘ answered, or the link is lost
 *         │ │ └──► SYNCING (written, its FLUSH is not answered)
 *         │ └────► PINNED  (answered, its pages are in an old socket)
 *         ▼
 *        DONE
 *
 * HELD means: in no list, owned by the function that has the pointer.
 */
enum dmdst_req_state {
	DMDST_REQ_HELD,
	DMDST_REQ_QUEUED,
	DMDST_REQ_ON_LINK,
	DMDST_REQ_BARRED,
	DMDST_REQ_PINNED,
	DMDST_REQ_SYNCING,
	DMDST_REQ_DONE,
	DMDST_REQ_NR_STATES,
};

static inline bool dmdst_req_may_move(enum dmdst_req_state from,
				      enum dmdst_req_state to)
{
	static const u8 moves[DMDST_REQ_NR_STATES] = {
		[DMDST_REQ_HELD]	= BIT(DMDST_REQ_QUEUED) | BIT(DMDST_REQ_ON_LINK) |
					  BIT(DMDST_REQ_PINNED) | BIT(DMDST_REQ_SYNCING) |
					  BIT(DMDST_REQ_DONE),
		[DMDST_REQ_QUEUED]	= BIT(DMDST_REQ_HELD),
		[DMDST_REQ_ON_LINK]	= BIT(DMDST_REQ_HELD) | BIT(DMDST_REQ_BARRED),
		[DMDST_REQ_BARRED]	= BIT(DMDST_REQ_HELD),
		[DMDST_REQ_PINNED]	= BIT(DMDST_REQ_HELD),
		[DMDST_REQ_SYNCING]	= BIT(DMDST_REQ_HELD),
		/* a node's own request, again */
		[DMDST_REQ_DONE]	= BIT(DMDST_REQ_HELD),
	};

	return moves[from] & BIT(to);
}

/* It goes nowhere by itself: a link, a fence or its pages must come first. */
static inline bool dmdst_req_waits(enum dmdst_req_state state)
{
	return BIT(state) & (BIT(DMDST_REQ_QUEUED) | BIT(DMDST_REQ_BARRED) |
			     BIT(DMDST_REQ_PINNED));
}

/* ---- a link ---- */

/*
 *   LIVE ──► DRAINING
 *     │         │  (unanswered: 0)
 *     └──► LOST ◄┘
 *           │  socket released
 *           ▼
 *          GONE
 */
static inline bool dmdst_link_may_move(enum dmdst_link_state from,
				       enum dmdst_link_state to)
{
	static const u8 moves[] = {
		[DMDST_LINK_LIVE]	= BIT(DMDST_LINK_DRAINING) | BIT(DMDST_LINK_LOST),
		[DMDST_LINK_DRAINING]	= BIT(DMDST_LINK_LOST),
		[DMDST_LINK_LOST]	= BIT(DMDST_LINK_GONE),
		[DMDST_LINK_GONE]	= 0,
	};

	return moves[from] & BIT(to);
}

/* Its socket is there, and its works may be queued. */
static inline bool dmdst_link_is_up(enum dmdst_link_state state)
{
	return state == DMDST_LINK_LIVE || state == DMDST_LINK_DRAINING;
}

/* ---- a node ---- */

/*
 *   WAITING ──────► LIVE ◄──► DEGRADED
 *      │              │           │
 *      ▼              └──► LOST ◄─┘      LOST, FAILED and MISMATCH go to
 *   MISMATCH ◄─────────────┤  ▲           LIVE or DEGRADED when links that
 *         ▲                ▼  │ (policy   fit come
 *         └───────────── FAILED  changed)
 */
static inline bool dmdst_node_may_move(enum dmdst_node_state from,
				       enum dmdst_node_state to)
{
	static const u8 moves[] = {
		[DMDST_NODE_WAITING]	= BIT(DMDST_NODE_LIVE) | BIT(DMDST_NODE_DEGRADED) |
					  BIT(DMDST_NODE_MISMATCH),
		[DMDST_NODE_LIVE]	= BIT(DMDST_NODE_DEGRADED) | BIT(DMDST_NODE_LOST),
		[DMDST_NODE_DEGRADED]	= BIT(DMDST_NODE_LIVE) | BIT(DMDST_NODE_LOST),
		[DMDST_NODE_LOST]	= BIT(DMDST_NODE_LIVE) | BIT(DMDST_NODE_DEGRADED) |
					  BIT(DMDST_NODE_MISMATCH) | BIT(DMDST_NODE_FAILED),
		[DMDST_NODE_FAILED]	= BIT(DMDST_NODE_LIVE) | BIT(DMDST_NODE_DEGRADED) |
					  BIT(DMDST_NODE_MISMATCH) | BIT(DMDST_NODE_LOST),
		[DMDST_NODE_MISMATCH]	= BIT(DMDST_NODE_LIVE) | BIT(DMDST_NODE_DEGRADED),
	};

	return moves[from] & BIT(to);
}

/* ---- what is durable ---- */

/*
 * Acknowledged writes are counted by the caller (@acked). One FLUSH a node is
 * under way at a time; it covers what was acknowledged before it was sent.
 */
struct dmdst_seq {
	bool	busy;		/* a FLUSH is under way */
	u64	covers;		/* writes it covers */
	u64	durable;	/* writes a FLUSH has covered, or that are lost */
	u64	lost;		/* times that acknowledged writes were lost */
};

static inline void dmdst_seq_begin(struct dmdst_seq *seq, u64 acked)
{
	seq->busy = true;
	seq->covers = acked;
}

/* A failed FLUSH leaves the node as dirty as it was. */
static inline void dmdst_seq_end(struct dmdst_seq *seq, bool ok)
{
	seq->busy = false;
	if (ok && seq->covers > seq->durable)
		seq->durable = seq->covers;
}

static inline u64 dmdst_seq_dirty(const struct dmdst_seq *seq, u64 acked)
{
	return acked > seq->durable ? acked - seq->durable : 0;
}

/* The server that acknowledged them is gone. Returns how many are lost. */
static inline u64 dmdst_seq_lose(struct dmdst_seq *seq, u64 acked)
{
	u64 dirty = dmdst_seq_dirty(seq, acked);

	if (dirty) {
		seq->durable = acked;
		seq->lost++;
	}
	return dirty;
}

#endif /* DMDST_RULES_H */
