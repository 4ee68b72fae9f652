// SPDX-License-Identifier: GPL-2.0-only
/*
 * The sending half of a link: gathers requests into batches of segments and
 * gives them to the socket without waiting. Runs as link->send_work in one of
 * the module's senders, or in who submits a request that is alone. Where the
 * socket is full it ends, and the write-space callback starts it again. Never
 * waits for anything the receiving half needs.
 */
#include <linux/cred.h>
#include <linux/sched/mm.h>
#include <linux/tcp.h>
#include <net/sock.h>
#include "compat/compat.h"
#include "dm-dst.h"
#include "trace.h"

/* Bytes after which other links' workers get the CPU. */
#define DMDST_SEND_BUDGET	(1024 * 1024)
/* The socket had room but no memory: nobody will call when there is some. */
#define DMDST_NOMEM_DELAY	msecs_to_jiffies(10)

static u64 dmdst_cookie(struct dmdst_link *link, u16 slot)
{
	return (u64)(u16)link->generation << 48 |
	       (u64)link->slots[slot].seq << 16 | slot;
}

static struct bio_vec dmdst_req_segment(struct dmdst_req *req, struct bvec_iter iter)
{
	return mp_bvec_iter_bvec(req->bvec, iter);
}

/* Slab pages and the like can't be kept by a socket: they are copied. */
static bool dmdst_req_may_splice(struct dmdst_req *req, struct bvec_iter iter)
{
	while (iter.bi_size) {
		struct bio_vec bv = dmdst_req_segment(req, iter);
		unsigned int i, nr = DIV_ROUND_UP(bv.bv_offset + bv.bv_len, PAGE_SIZE);

		for (i = bv.bv_offset >> PAGE_SHIFT; i < nr; i++)
			if (!sendpage_ok(bv.bv_page + i))
				return false;
		bvec_iter_advance(req->bvec, &iter, bv.bv_len);
	}
	return true;
}

/* Of a write; of what one wire request may carry. */
static bool dmdst_req_wants_splice(struct dmdst_req *req)
{
	struct bvec_iter iter = req->iter;

	iter.bi_size = req->len;
	return READ_ONCE(req->node->export.zero_copy) && dmdst_req_may_splice(req, iter);
}

static void dmdst_tx_add(struct dmdst_tx *tx, struct page *page,
			 unsigned int len, unsigned int offset)
{
	tx->bv[tx->nr].bv_page = page;
	tx->bv[tx->nr].bv_len = len;
	tx->bv[tx->nr].bv_offset = offset;
	tx->nr++;
	tx->bytes += len;
	tx->gathered += len;
}

static void dmdst_tx_add_header(struct dmdst_link *link, struct dmdst_req *req)
{
	struct nbdw_request *headers = page_address(link->tx.headers);
	struct nbdw_request *header = &headers[req->slot];
	u16 flags = 0;

	if (req->fua && !req->sync_after)
		flags |= NBDW_CMDF_FUA;
	if (req->no_hole)
		flags |= NBDW_CMDF_NO_HOLE;

	header->magic = cpu_to_be32(NBDW_REQUEST_MAGIC);
	header->flags = cpu_to_be16(flags);
	header->type = cpu_to_be16(req->cmd);
	header->length = cpu_to_be32(link->slots[req->slot].total);
	dmdst_tx_add(&link->tx, link->tx.headers, sizeof(*header),
		     req->slot * sizeof(*header));
}

/* What one wire request may carry depends on what the node said last. */
static void dmdst_req_set_part(struct dmdst_req *req)
{
	const struct dmdst_export *export = &req->node->export;
	u64 most = DMDST_MAX_LENGTH;

	if (req->cmd == NBDW_CMD_READ || req->cmd == NBDW_CMD_WRITE)
		most = READ_ONCE(export->max_payload);
	/* A guard is about what was sent, not more. */
	if (READ_ONCE(req->guard))
		most = min_t(u64, most, req->len);
	req->len = min(req->left, most);
	if (req->bio && req->left == req->bio->bi_iter.bi_size)
		req->sync.losses = READ_ONCE(req->node->flush.losses);
	/* Once needed it stays: a part sent without FUA must be flushed, too. */
	if (req->fua && !(READ_ONCE(export->flags) & NBDW_SEND_FUA))
		req->sync_after = true;
}

static void dmdst_tx_give_slot(struct dmdst_link *link, struct dmdst_req *req)
{
	u16 slot = link->free[--link->nr_free];

	list_del_init(&req->list);
	req->slot = slot;
	req->answered = false;
	req->spliced = false;
	link->slots[slot].req = req;
	link->slots[slot].cmd = req->cmd;
	link->slots[slot].len = req->len;
	link->slots[slot].seq++;
	link->slots[slot].loss = READ_ONCE(req->node->fences->losses);
	link->slots[slot].since = jiffies;
	if (!link->tx.now)
		link->tx.now = ktime_get_ns();
	link->slots[slot].sent_ns = link->tx.now;
	link->slots[slot].warned = false;
	link->slots[slot].refused = false;
	link->slots[slot].total = req->len;
	link->slots[slot].next = DMDST_NO_SLOT;
	link->slots[slot].rides = false;
}

/* Only what is asked once and whole, of which no old link knows. */
static bool dmdst_req_may_merge(const struct dmdst_req *req)
{
	return (req->cmd == NBDW_CMD_READ || req->cmd == NBDW_CMD_WRITE) &&
	       req->bio && req->left == req->len && !req->fua && !req->again &&
	       !READ_ONCE(req->guard) && !READ_ONCE(req->node->fences->active);
}

/* The next of the send queue if it goes on where @last ends, or NULL. */
static struct dmdst_req *dmdst_tx_next_to_merge(struct dmdst_link *link,
						const struct dmdst_req *last,
						u32 total, bool splice)
{
	struct dmdst_req *req;
	u32 most;

	req = list_first_entry_or_null(&link->sendq, struct dmdst_req, list);
	if (!req || req->offset != last->offset + last->len || req->cmd != last->cmd ||
	    req->target != last->target || !link->nr_free)
		return NULL;
	most = min_t(u32, READ_ONCE(req->node->export.max_payload), DMDST_MERGE_BYTES);
	dmdst_req_set_part(req);
	if (!dmdst_req_may_merge(req) || total + req->len > most)
		return NULL;
	if (dmdst_req_has_payload(req) && splice != dmdst_req_wants_splice(req))
		return NULL;
	return req;
}

/* To @first, which has its slot, and whose header isn't made yet. */
static void dmdst_tx_merge(struct dmdst_link *link, struct dmdst_req *first)
{
	struct dmdst_slot *head = &link->slots[first->slot];
	struct dmdst_req *last = first, *req;
	unsigned int nr;

	if (!dmdst_req_may_merge(first))
		return;
	for (nr = 1; nr < DMDST_MERGE_MOST; nr++) {
		req = dmdst_tx_next_to_merge(link, last, head->total, first->spliced);
		if (!req)
			break;
		dmdst_tx_give_slot(link, req);
		req->spliced = first->spliced;
		link->slots[req->slot].rides = true;
		link->slots[last->slot].next = req->slot;
		head->total += req->len;
		last = req;
	}
	if (nr > 1)
		atomic64_add(nr - 1, &link->node->merged);
}

/*
 * All of a wire request begin and end with it: they are sent, or lost, together.
 * A rider's header isn't sent, but the tracepoints read it.
 */
static void dmdst_tx_set_ends(struct dmdst_link *link, struct dmdst_req *first)
{
	struct nbdw_request *headers = page_address(link->tx.headers), *header;
	struct dmdst_slot *head = &link->slots[first->slot], *slot;
	u64 end = link->tx.gathered + sizeof(struct nbdw_request);

	if (dmdst_req_has_payload(first))
		end += head->total;
	for (slot = head; slot; slot = dmdst_slot_next(link, slot)) {
		slot->req->tx_start = link->tx.gathered;
		slot->req->tx_end = end;
		header = &headers[slot->req->slot];
		header->cookie = cpu_to_be64(dmdst_cookie(link, slot->req->slot));
		header->offset = cpu_to_be64(slot->req->offset);
		trace_dmdst_send(link, slot->req);
	}
}

static void dmdst_tx_begin_payload(struct dmdst_tx *tx, struct dmdst_req *req)
{
	tx->req = req;
	tx->iter = req->iter;
	tx->iter.bi_size = req->len;
}

/* Header and, for a write, where its payload begins. False: not now. */
static bool dmdst_tx_begin_req(struct dmdst_link *link, struct dmdst_req *req)
{
	struct dmdst_tx *tx = &link->tx;
	bool splice = false;

	if (dmdst_req_has_payload(req)) {
		splice = dmdst_req_wants_splice(req);
		/* A batch's payloads are spliced or copied as a whole. */
		if (tx->payload && splice != tx->splice)
			return false;
		tx->payload = true;
		tx->splice = splice;
	}

	dmdst_tx_give_slot(link, req);
	req->spliced = splice;
	dmdst_tx_merge(link, req);
	if (req->cmd == NBDW_CMD_READ)
		link->nr_reads++;
	dmdst_tx_set_ends(link, req);
	dmdst_tx_add_header(link, req);
	if (dmdst_req_has_payload(req))
		dmdst_tx_begin_payload(tx, req);
	return true;
}

static void dmdst_tx_add_payload(struct dmdst_link *link)
{
	struct dmdst_tx *tx = &link->tx;
	struct dmdst_slot *next;

	while (tx->req && tx->nr < DMDST_TX_SEGMENTS) {
		struct bio_vec bv = dmdst_req_segment(tx->req, tx->iter);

		dmdst_tx_add(tx, bv.bv_page, bv.bv_len, bv.bv_offset);
		bvec_iter_advance(tx->req->bvec, &tx->iter, bv.bv_len);
		if (tx->iter.bi_size)
			continue;
		next = dmdst_slot_next(link, &link->slots[tx->req->slot]);
		tx->req = NULL;
		if (next)
			dmdst_tx_begin_payload(tx, next->req);
	}
}

/* Fills the empty batch. False: there is nothing to send. */
static bool dmdst_tx_gather(struct dmdst_link *link)
{
	struct dmdst_tx *tx = &link->tx;
	struct dmdst_req *req;

	tx->nr = 0;
	WRITE_ONCE(tx->skip, 0);
	WRITE_ONCE(tx->bytes, 0);

	spin_lock_bh(&link->lock);
	tx->now = 0;
	if (link->state == DMDST_LINK_LOST)
		goto out;
	tx->payload = tx->req;
	if (tx->req)
		dmdst_tx_add_payload(link);
	else
		tx->splice = false;
	while (!tx->req && tx->nr < DMDST_TX_SEGMENTS && link->nr_free) {
		req = list_first_entry_or_null(&link->sendq, struct dmdst_req, list);
		if (!req)
			break;
		dmdst_req_set_part(req);
		if (dmdst_fence_bars(req))
			continue;
		if (!dmdst_tx_begin_req(link, req))
			break;
		if (tx->req)
			dmdst_tx_add_payload(link);
	}
	tx->more = tx->req || (!list_empty(&link->sendq) && link->nr_free);
out:
	spin_unlock_bh(&link->lock);
	return tx->nr;
}

/* Answers that overtook our own send of the request they answer. */
static void dmdst_tx_collect_early(struct dmdst_link *link, struct list_head *done)
{
	struct dmdst_req *req;
	unsigned int i;

	for (i = 0; i < DMDST_DEPTH && link->tx.early; i++) {
		req = link->slots[i].req;
		if (!req || !req->answered || req->tx_end > link->tx.sent)
			continue;
		link->tx.early--;
		list_add_tail(&dmdst_link_vacate(link, i)->list, done);
	}
}

static void dmdst_tx_progress(struct dmdst_link *link, size_t bytes,
			      struct list_head *done)
{
	WRITE_ONCE(link->tx.skip, link->tx.skip + bytes);
	spin_lock_bh(&link->lock);
	link->tx.sent += bytes;
	dmdst_tx_collect_early(link, done);
	spin_unlock_bh(&link->lock);
}

/* One send. Bytes taken, or a negative errno. */
static ssize_t dmdst_tx_push(struct dmdst_link *link, struct list_head *done)
{
	struct dmdst_tx *tx = &link->tx;
	unsigned int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (tx->more ? MSG_MORE : 0);
	unsigned int noreclaim = memalloc_noreclaim_save();
	const struct cred *creds = override_creds(dmdst_creds);
	ssize_t ret;

	ret = dmdst_compat_send(link->sock, tx->bv, tx->nr, tx->skip, tx->bytes,
				tx->splice, flags);
	revert_creds(creds);
	memalloc_noreclaim_restore(noreclaim);
	/* Room in a socket that was full: the peer reads. */
	if (ret > 0 && tx->full)
		WRITE_ONCE(link->progress, jiffies);
	tx->full = ret == -EAGAIN;
	if (ret > 0)
		tx->corked = tx->more;
	if (ret > 0)
		dmdst_tx_progress(link, ret, done);
	return ret ? ret : -EIO;
}

/* The socket takes no more now: will the write-space callback start us again? */
static bool dmdst_tx_will_be_called(struct dmdst_link *link, ssize_t err)
{
	struct sock *sk = link->sock->sk;

	lockdep_assert_held(&link->tx.mutex);
	return err == -EAGAIN && !(sk_is_tcp(sk) && sk_stream_is_writeable(sk));
}

static bool dmdst_tx_is_short(ssize_t err)
{
	return err == -EAGAIN || err == -ENOBUFS || err == -ENOMEM;
}

/*
 * What was to follow has to wait, or has been taken back. The socket would keep
 * the last segment for some 200 ms.
 */
static void dmdst_tx_uncork(struct dmdst_link *link)
{
	if (link->tx.corked && sk_is_tcp(link->sock->sk))
		tcp_sock_set_nodelay(link->sock->sk);
	link->tx.corked = false;
}

/*
 * What is left of the batch, or a new one. 0: there is nothing to send.
 * @called: it goes on without us. The socket is only ours under the mutex, while
 * it isn't over: the caller may be no worker that down_work waits for.
 */
static ssize_t dmdst_send_some(struct dmdst_link *link, bool *called)
{
	struct dmdst_tx *tx = &link->tx;
	LIST_HEAD(done);
	ssize_t ret = 0;

	mutex_lock(&tx->mutex);
	if (tx->over)
		ret = 0;
	else if (tx->skip < tx->bytes || dmdst_tx_gather(link))
		ret = dmdst_tx_push(link, &done);
	else
		dmdst_tx_uncork(link);
	*called = dmdst_tx_is_short(ret) && dmdst_tx_will_be_called(link, ret);
	mutex_unlock(&tx->mutex);

	dmdst_link_answered(link, &done);
	return ret;
}

static void dmdst_send_batches(struct dmdst_link *link)
{
	ssize_t ret, budget = DMDST_SEND_BUDGET;
	bool called;

	while ((ret = dmdst_send_some(link, &called))) {
		if (dmdst_tx_is_short(ret)) {
			if (!called)
				dmdst_link_send_later(link, DMDST_NOMEM_DELAY);
			return;
		}
		if (ret < 0) {
			dmdst_link_lose(link, -ret, "send failed");
			return;
		}
		budget -= ret;
		if (budget <= 0) {
			dmdst_link_send_later(link, 0);
			return;
		}
	}
}

void dmdst_send_work(struct kthread_work *work)
{
	struct dmdst_link *link = container_of(work, struct dmdst_link, send_work.work);
	unsigned int noio = memalloc_noio_save();

	dmdst_send_batches(link);
	memalloc_noio_restore(noio);
}

/*
 * By the submitter itself, who takes care of a reference to the link: cheaper
 * than a worker where there is nothing to gather.
 */
void dmdst_send_now(struct dmdst_link *link)
{
	unsigned int noio = memalloc_noio_save();

	dmdst_send_batches(link);
	memalloc_noio_restore(noio);
}

/* A polite end: best effort, on a link that has nothing else to send. */
void dmdst_send_disc(struct dmdst_link *link)
{
	struct nbdw_request disc = {
		.magic = cpu_to_be32(NBDW_REQUEST_MAGIC),
		.type = cpu_to_be16(NBDW_CMD_DISC),
	};
	struct kvec kv = { .iov_base = &disc, .iov_len = sizeof(disc) };
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };

	kernel_sendmsg(link->sock, &msg, &kv, 1, sizeof(disc));
}
