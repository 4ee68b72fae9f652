// SPDX-License-Identifier: GPL-2.0-only
/*
 * A request's life: the one place that moves it between its states, goes on
 * with its next wire request, and ends its bio. Called by node.c, link.c,
 * send.c, recv.c and flush.c. Never touches a socket and takes no lock.
 */
#include "dm-dst.h"
#include "trace.h"

/* How many of the node's requests are in @state; NULL where nobody counts. */
static atomic_t *dmdst_req_counter(struct dmdst_node *node,
				   enum dmdst_req_state state)
{
	switch (state) {
	case DMDST_REQ_QUEUED:
		return &node->queued;
	case DMDST_REQ_ON_LINK:
		return &node->on_link;
	case DMDST_REQ_BARRED:
	case DMDST_REQ_PINNED:
		return &node->waiting;
	default:
		return NULL;
	}
}

/* The caller owns @req, or holds the lock of the list it is in. */
void dmdst_req_move(struct dmdst_req *req, enum dmdst_req_state to)
{
	atomic_t *from_count = dmdst_req_counter(req->node, req->state);
	atomic_t *to_count = dmdst_req_counter(req->node, to);

	if (WARN_ON_ONCE(!dmdst_req_may_move(req->state, to)))
		DMERR("node %s: request moved from state %u to %u",
		      req->node->name, req->state, to);
	if (from_count)
		atomic_dec(from_count);
	if (to_count)
		atomic_inc(to_count);
	if (dmdst_req_waits(req->state) != dmdst_req_waits(to))
		dmdst_waits_count(&req->node->waits, dmdst_req_waits(to));
	req->state = to;
}

static void dmdst_req_synced(struct dmdst_sync *sync)
{
	struct dmdst_req *req = container_of(sync, struct dmdst_req, sync);

	if (sync->redo) {
		dmdst_req_again(req);
		return;
	}
	dmdst_req_move(req, DMDST_REQ_HELD);
	dmdst_req_end(req, sync->status);
}

void dmdst_req_init(struct dmdst_req *req, struct dmdst_node *node, u16 cmd)
{
	memset(req, 0, sizeof(*req));
	INIT_LIST_HEAD(&req->list);
	INIT_LIST_HEAD(&req->sync.list);
	req->sync.done = dmdst_req_synced;
	req->node = node;
	req->cmd = cmd;
	req->state = DMDST_REQ_HELD;
	req->fails = READ_ONCE(node->fails);
}

bool dmdst_req_has_payload(const struct dmdst_req *req)
{
	return req->cmd == NBDW_CMD_WRITE;
}

/* The one way that a bio of ours ends. No lock may be held, as below. */
void dmdst_bio_end(struct bio *bio, blk_status_t status)
{
	trace_dmdst_end(bio, status);
	bio->bi_status = status;
	bio_endio(bio);
}

/* No lock may be held: the bio's owner may send the next one from here. */
void dmdst_req_end(struct dmdst_req *req, blk_status_t status)
{
	struct dmdst_node *node = req->node;
	struct bio *bio = req->bio;

	dmdst_fence_disown(req);
	dmdst_req_move(req, DMDST_REQ_DONE);
	if (req == &node->probe)
		return;	/* it was heard already, or can't be */
	if (!bio) {
		dmdst_flush_done(node, status);
		return;
	}
	if (status && status != BLK_STS_DM_REQUEUE && status != BLK_STS_AGAIN)
		atomic64_inc(&node->errors);
	if (status == BLK_STS_DM_REQUEUE)
		trace_dmdst_requeue(req, NULL, false, "suspend");
	dmdst_bio_end(bio, status);	/* @req is gone */
}

/*
 * A bio that was mapped before its node's limits were known can be longer
 * than one wire request; its parts go one after the other.
 */
static bool dmdst_req_next_part(struct dmdst_req *req)
{
	req->left -= req->len;
	req->offset += req->len;
	if (!req->left)
		return false;

	if (req->cmd == NBDW_CMD_READ || req->cmd == NBDW_CMD_WRITE)
		bio_advance_iter(req->bio, &req->iter, req->len);
	dmdst_node_submit(req);
	return true;
}

/*
 * A FUA write on a server without FUA: a link was lost between the write and
 * the end of its FLUSH, and maybe the server's cache with it. From the start.
 */
void dmdst_req_again(struct dmdst_req *req)
{
	dmdst_req_move(req, DMDST_REQ_HELD);
	req->iter = req->bio->bi_iter;
	req->offset -= req->iter.bi_size - req->left;
	req->left = req->iter.bi_size;
	trace_dmdst_requeue(req, NULL, false, "redo");
	dmdst_node_submit(req);
}

bool dmdst_req_is_write(const struct dmdst_req *req)
{
	return req->cmd == NBDW_CMD_WRITE || req->cmd == NBDW_CMD_TRIM ||
	       req->cmd == NBDW_CMD_WRITE_ZEROES;
}

/*
 * Has there been a fail-pending since its bio came? Asked under the lock of
 * what would take it: a request that fail-pending found nowhere was on its way.
 */
bool dmdst_req_is_failed(const struct dmdst_req *req)
{
	return req->bio && req->fails != READ_ONCE(req->node->fails);
}

/* Once a part: who comes after TCP's context only forgets. */
static void dmdst_req_note(struct dmdst_req *req)
{
	bool durable = !req->write_back || (req->fua && !req->sync_after);

	if (req->noted || !dmdst_flush_note_write(req->node, req->birth, durable))
		dmdst_flush_lost(req->node);
	req->noted = false;
}

/* req->status is the server's answer, or why there is none. HELD, no locks. */
void dmdst_req_answered(struct dmdst_req *req)
{
	struct dmdst_node *node = req->node;

	if (dmdst_fence_pins(req))
		return;
	dmdst_fence_disown(req);
	if (req->again) {
		/*
		 * Whose error it is, only each by itself can tell. "Would block"
		 * is no answer any more for what a server may have done.
		 */
		trace_dmdst_requeue(req, NULL, false, "merged");
		req->bio->bi_opf &= ~REQ_NOWAIT;
		dmdst_node_submit(req);
		return;
	}
	if (req->status || req->cmd == NBDW_CMD_FLUSH) {
		dmdst_req_end(req, req->status);
		return;
	}

	/* Before the bio ends: a FLUSH sent after that must see this write. */
	if (dmdst_req_is_write(req))
		dmdst_req_note(req);

	if (dmdst_req_next_part(req))
		return;

	if (req->sync_after) {
		dmdst_req_move(req, DMDST_REQ_SYNCING);
		req->sync.birth = req->birth;
		req->sync.fails = req->fails;
		dmdst_flush_wait(node, &req->sync);
		return;
	}
	dmdst_req_end(req, BLK_STS_OK);
}

void dmdst_reqs_answered(struct list_head *reqs)
{
	struct dmdst_req *req, *next;

	list_for_each_entry_safe(req, next, reqs, list) {
		list_del_init(&req->list);
		dmdst_req_answered(req);
	}
}

/* Its end takes no lock: it is not guarded, the last part, and needs no FLUSH. */
static bool dmdst_req_is_plain(struct dmdst_req *req)
{
	return req->bio && !req->status && !req->pages_out && !READ_ONCE(req->guard) &&
	       !req->sync_after && req->left == req->len;
}

/*
 * As above, in TCP's context. False: what a worker has to go on with is in
 * link->rx.late.
 */
bool dmdst_reqs_answered_now(struct dmdst_link *link, struct list_head *reqs)
{
	struct dmdst_req *req, *next;
	bool all;

	list_for_each_entry_safe(req, next, reqs, list) {
		if (!dmdst_req_is_plain(req))
			continue;
		req->noted = dmdst_req_is_write(req) &&
			     !dmdst_flush_note_write(req->node, req->birth,
						     !req->write_back || req->fua);
		if (req->noted)
			continue;
		list_del_init(&req->list);
		dmdst_req_end(req, BLK_STS_OK);
	}
	all = list_empty(reqs);
	if (!all) {
		spin_lock_bh(&link->lock);
		list_splice_tail(reqs, &link->rx.late);
		spin_unlock_bh(&link->lock);
	}
	dmdst_link_check_drained(link);
	return all;
}
