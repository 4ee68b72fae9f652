// SPDX-License-Identifier: GPL-2.0-only
/*
 * A noflush suspend takes its requests off a link without ending it: what was
 * not sent leaves as if it had never come, what was sent leaves its slot
 * behind, which waits for the answer and, for a write, keeps a guard. Called
 * by node.c. Owns neither half of the link, so it holds both mutexes; never
 * takes a request whose pages the socket still needs, and ends none.
 */
#include <linux/tcp.h>
#include <net/sock.h>
#include <net/tcp.h>
#include "dm-dst.h"
#include "trace.h"

/*
 * The stream position up to which the socket has let go of spliced pages: what
 * the peer has acknowledged is never sent again. A Unix socket has no queue of
 * its own, and what lies in a peer's on this host no abort reaches, either.
 */
static u64 dmdst_link_acked(struct dmdst_link *link)
{
	struct sock *sk = link->sock->sk;
	u64 sent = link->tx.sent;
	u32 acked, queued;

	lockdep_assert_held(&link->lock);
	if (!sk_is_tcp(sk))
		return sent;
	acked = READ_ONCE(tcp_sk(sk)->snd_una);
	smp_rmb();	/* in this order: what comes in between makes less of it */
	queued = READ_ONCE(tcp_sk(sk)->write_seq) - acked;
	return sent > queued ? sent - queued : 0;
}

/* Where the request ends of which the socket has taken a part; else where it stands. */
static u64 dmdst_detach_boundary(struct dmdst_link *link)
{
	u64 boundary = link->tx.sent;
	struct dmdst_req *req;
	unsigned int i;

	for (i = 0; i < DMDST_DEPTH; i++) {
		req = link->slots[i].req;
		if (req && req->tx_start < link->tx.sent && req->tx_end > boundary)
			boundary = req->tx_end;
	}
	return boundary;
}

/* The batch ends at stream position @boundary, which no request spans. */
static void dmdst_detach_cut_batch(struct dmdst_link *link, u64 boundary)
{
	struct dmdst_tx *tx = &link->tx;
	u64 start = tx->sent - tx->skip;
	size_t keep = boundary - start;

	if (tx->req && tx->req->tx_start >= boundary)
		tx->req = NULL;
	tx->more = tx->req;
	if (boundary >= tx->gathered)
		return;
	while (tx->bytes > keep) {
		struct bio_vec *last = &tx->bv[tx->nr - 1];
		size_t less = min_t(size_t, last->bv_len, tx->bytes - keep);

		last->bv_len -= less;
		WRITE_ONCE(tx->bytes, tx->bytes - less);
		if (!last->bv_len)
			tx->nr--;
	}
	tx->gathered = boundary;
}

/* Has anything unsent been answered? No honest server could. */
static bool dmdst_detach_finds_a_lie(struct dmdst_link *link, u64 boundary)
{
	struct dmdst_req *req;
	unsigned int i;

	for (i = 0; i < DMDST_DEPTH; i++) {
		req = link->slots[i].req;
		if (req && req->tx_start >= boundary &&
		    (req->answered || link->rx.slot == &link->slots[i]))
			return true;
	}
	return false;
}

/*
 * The socket takes nothing, and a batch is gathered: what it has taken no byte
 * of leaves the batch. That of other targets is the next to be sent.
 */
static void dmdst_detach_unsent(struct dmdst_link *link,
				const struct dmdst_target *target, u64 boundary,
				struct list_head *back)
{
	struct dmdst_req *req, *next;
	unsigned int i;

	dmdst_detach_cut_batch(link, boundary);
	for (i = 0; i < DMDST_DEPTH; i++) {
		req = link->slots[i].req;
		if (!req || req->tx_start < boundary)
			continue;
		dmdst_link_vacate(link, i);
		trace_dmdst_requeue(req, link, true, "unsent");
		dmdst_req_move(req, DMDST_REQ_ON_LINK);
		list_add(&req->list, &link->sendq);
	}
	list_for_each_entry_safe(req, next, &link->sendq, list) {
		if (req->target != target)
			continue;
		dmdst_req_move(req, DMDST_REQ_HELD);
		list_move_tail(&req->list, back);
	}
}

/* Does the socket need nothing of the request's any more? */
static bool dmdst_detach_may(struct dmdst_link *link, const struct dmdst_req *req,
			     u64 acked)
{
	return !req->answered && req->tx_end <= (req->spliced ? acked : link->tx.sent);
}

/* True: a write was among them. */
static bool dmdst_detach_sent(struct dmdst_link *link, const struct dmdst_target *target,
			      struct list_head *back)
{
	u64 acked = dmdst_link_acked(link);
	struct dmdst_req *req;
	bool wrote = false;
	unsigned int i;

	for (i = 0; i < DMDST_DEPTH; i++) {
		req = link->slots[i].req;
		if (!req || req->target != target || !dmdst_detach_may(link, req, acked))
			continue;
		if (dmdst_req_is_write(req)) {
			if (!dmdst_fence_detach(link, i))
				continue;
			wrote = true;
		}
		trace_dmdst_requeue(req, link, true, "detached");
		link->slots[i].req = NULL;
		link->slots[i].detached = true;
		dmdst_req_move(req, DMDST_REQ_HELD);
		list_add_tail(&req->list, back);
	}
	return wrote;
}

/*
 * Moves to @back what @link carries for @target and can do without. True: that
 * left guards, and the caller sees to it that they are contested before it ends
 * anything.
 */
bool dmdst_link_detach(struct dmdst_link *link, const struct dmdst_target *target,
		       struct list_head *back)
{
	bool wrote = false, lies = false;
	u64 boundary;

	mutex_lock(&link->tx.mutex);
	if (link->tx.over) {
		/* The socket may be gone. */
		mutex_unlock(&link->tx.mutex);
		return false;
	}
	mutex_lock(&link->rx.mutex);
	/* Nor may TCP itself receive. */
	lock_sock(link->sock->sk);
	spin_lock_bh(&link->lock);
	/* Of a lost link down_work takes care, and may have done so. */
	if (dmdst_link_is_up(link->state)) {
		boundary = dmdst_detach_boundary(link);
		lies = dmdst_detach_finds_a_lie(link, boundary);
		if (!lies) {
			dmdst_detach_unsent(link, target, boundary, back);
			wrote = dmdst_detach_sent(link, target, back);
		}
	}
	spin_unlock_bh(&link->lock);
	release_sock(link->sock->sk);
	mutex_unlock(&link->rx.mutex);
	mutex_unlock(&link->tx.mutex);

	if (lies)
		dmdst_link_lose(link, EPROTO, "the server answered what was not asked");
	/* For what others have in the send queue; or nobody has anything. */
	dmdst_link_send_later(link, 0);
	dmdst_link_check_drained(link);
	return wrote;
}
