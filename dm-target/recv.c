// SPDX-License-Identifier: GPL-2.0-only
/*
 * The receiving half of a link: reads replies in batches, payloads straight
 * into the bios' pages, and believes nothing it reads. Runs as
 * link->recv_work, one at a time a link. Never sends, and ends no bio while
 * a lock or the socket is held.
 *
 * Where it stands in the stream follows from two counters: rx.slot with
 * rx.got (a payload with bytes missing), else rx.have bytes of a header.
 */
#include <linux/sched/mm.h>
#include <net/sock.h>
#include "compat/compat.h"
#include "dm-dst.h"

/* Receives after which other links' workers get the CPU. */
#define DMDST_RECV_BUDGET	64
#define DMDST_RX_SEGMENTS	64
#define DMDST_RX_HEADERS	64

struct dmdst_rx_vec {
	struct bio_vec	bv[DMDST_RX_SEGMENTS + 1];
	unsigned int	nr;
	size_t		bytes;
};

static void dmdst_rx_vec_add(struct dmdst_rx_vec *vec, struct page *page,
			     unsigned int len, unsigned int offset)
{
	vec->bv[vec->nr].bv_page = page;
	vec->bv[vec->nr].bv_len = len;
	vec->bv[vec->nr].bv_offset = offset;
	vec->nr++;
	vec->bytes += len;
}

/* The rest of a payload whose request was detached: to a page nobody reads. */
static bool dmdst_rx_vec_drop(struct dmdst_rx_vec *vec, u32 left)
{
	while (left && vec->nr < DMDST_RX_SEGMENTS) {
		u32 len = min_t(u32, left, PAGE_SIZE);

		dmdst_rx_vec_add(vec, dmdst_unread.bv_page, len, 0);
		left -= len;
	}
	return !left;
}

/* The pages that still miss payload. True: all of them fitted. */
static bool dmdst_rx_vec_payload(struct dmdst_rx *rx, struct dmdst_rx_vec *vec)
{
	struct dmdst_req *req = rx->slot->req;
	struct bio_vec *bvec;
	struct bvec_iter iter;

	if (!req)
		return dmdst_rx_vec_drop(vec, rx->slot->len - rx->got);
	bvec = req->bvec;
	iter = req->iter;
	iter.bi_size = req->len;
	bvec_iter_advance(bvec, &iter, rx->got);
	while (iter.bi_size && vec->nr < DMDST_RX_SEGMENTS) {
		struct bio_vec bv = mp_bvec_iter_bvec(bvec, iter);

		dmdst_rx_vec_add(vec, bv.bv_page, bv.bv_len, bv.bv_offset);
		bvec_iter_advance(bvec, &iter, bv.bv_len);
	}
	return !iter.bi_size;
}

/*
 * Room for the next headers. Where a read is unanswered its payload follows
 * its header, so one header is read at a time, that the payload may go to its
 * pages at once; else as many as there are answers to come. Guessing wrong
 * costs a copy, nothing more.
 */
static void dmdst_rx_vec_headers(struct dmdst_link *link, struct dmdst_rx_vec *vec)
{
	struct dmdst_rx *rx = &link->rx;
	unsigned int reads = READ_ONCE(link->nr_reads) - !!rx->slot;
	unsigned int want = 1;

	if (!reads)
		want = clamp(dmdst_link_in_flight(link), 1U, (u32)DMDST_RX_HEADERS);
	dmdst_rx_vec_add(vec, rx->page, want * sizeof(struct nbdw_reply) - rx->have,
			 rx->have);
}

static blk_status_t dmdst_rx_status(u32 error)
{
	switch (error) {
	case 0:			return BLK_STS_OK;
	case NBDW_ENOSPC:	return BLK_STS_NOSPC;
	case NBDW_ENOTSUP:	return BLK_STS_NOTSUPP;
	case NBDW_ENOMEM:	return BLK_STS_RESOURCE;
	default:		return BLK_STS_IOERR;
	}
}

/* @slot is answered. It ends now, or when its own last byte has been sent. */
static void dmdst_rx_answer(struct dmdst_link *link, struct dmdst_slot *slot,
			    blk_status_t status, struct list_head *done)
{
	struct dmdst_req *req = slot->req;
	u16 nr = slot - link->slots;

	lockdep_assert_held(&link->lock);
	dmdst_fence_heard(link, nr);
	if (!req) {
		dmdst_fence_answered(link, nr, &link->rx.freed);
		dmdst_link_free_slot(link, nr);
		return;
	}
	req->status = status;
	req->birth = link->birth;
	req->write_back = link->write_back;
	if (req->tx_end > link->tx.sent) {
		req->answered = true;
		link->tx.early++;
		return;
	}
	list_add_tail(&dmdst_link_vacate(link, nr)->list, done);
}

static struct dmdst_slot *dmdst_rx_find(struct dmdst_link *link, u64 cookie)
{
	u16 slot = cookie;
	struct dmdst_slot *s;

	if (slot >= DMDST_DEPTH || cookie >> 48 != (u16)link->generation)
		return NULL;
	s = &link->slots[slot];
	if (s->seq != (u32)(cookie >> 16) || s->refused)
		return NULL;
	if (s->req ? s->req->answered : !s->detached)
		return NULL;
	return s;
}

/* False: the stream can't be believed any more; the link is lost. */
static bool dmdst_rx_header(struct dmdst_link *link, const struct nbdw_reply *reply,
			    struct list_head *done)
{
	u32 error = be32_to_cpu(reply->error);
	struct dmdst_slot *slot;

	if (reply->magic != cpu_to_be32(NBDW_REPLY_MAGIC)) {
		dmdst_link_lose(link, EPROTO, "the server sent no NBD reply");
		return false;
	}

	spin_lock(&link->lock);
	slot = dmdst_rx_find(link, be64_to_cpu(reply->cookie));
	if (slot && slot->cmd == NBDW_CMD_READ && !error) {
		link->rx.slot = slot;
		link->rx.got = 0;
	} else if (slot && error == NBDW_ESHUTDOWN) {
		/* No answer: who knows what was done. It stays in its slot. */
		slot->refused = true;
		link->rx.shutdown = true;
	} else if (slot) {
		dmdst_rx_answer(link, slot, dmdst_rx_status(error), done);
	}
	spin_unlock(&link->lock);

	if (!slot)
		dmdst_link_lose(link, EPROTO, "the server answered what was not asked");
	return slot;
}

static void dmdst_rx_payload_end(struct dmdst_link *link, struct list_head *done)
{
	struct dmdst_rx *rx = &link->rx;

	if (rx->got < rx->slot->len)
		return;
	spin_lock(&link->lock);
	dmdst_rx_answer(link, rx->slot, BLK_STS_OK, done);
	spin_unlock(&link->lock);
	rx->slot = NULL;
}

/* Payload that was read behind a header, into our page. Returns its length. */
static unsigned int dmdst_rx_copy(struct dmdst_link *link, const u8 *from,
				  unsigned int bytes)
{
	struct dmdst_rx *rx = &link->rx;
	struct dmdst_rx_vec vec = { };
	struct iov_iter to;
	size_t copied;

	dmdst_rx_vec_payload(rx, &vec);
	bytes = min_t(size_t, bytes, vec.bytes);
	iov_iter_bvec(&to, ITER_DEST, vec.bv, vec.nr, vec.bytes);
	copied = copy_to_iter(from, bytes, &to);
	rx->got += copied;
	return copied;
}

/* What was received behind the payload: headers, or too much. */
static bool dmdst_rx_parse(struct dmdst_link *link, struct list_head *done)
{
	struct dmdst_rx *rx = &link->rx;
	const u8 *page = page_address(rx->page);
	unsigned int at = 0;

	for (;;) {
		if (rx->slot) {
			at += dmdst_rx_copy(link, page + at, rx->have - at);
			dmdst_rx_payload_end(link, done);
			if (rx->slot && at == rx->have)
				break;
			/* Many tiny segments: the copy ended before the page did. */
			if (rx->slot)
				continue;
		}
		if (rx->have - at < sizeof(struct nbdw_reply))
			break;
		if (!dmdst_rx_header(link, (const void *)(page + at), done)) {
			rx->broken = true;
			return false;
		}
		at += sizeof(struct nbdw_reply);
	}
	rx->have -= at;
	memmove(page_address(rx->page), page + at, rx->have);
	return true;
}

static bool dmdst_rx_account(struct dmdst_link *link, size_t bytes,
			     struct list_head *done)
{
	struct dmdst_rx *rx = &link->rx;
	u32 payload;

	rx->received += bytes;
	dmdst_link_heard(link);
	if (rx->slot) {
		payload = min_t(size_t, bytes, rx->slot->len - rx->got);
		rx->got += payload;
		bytes -= payload;
		dmdst_rx_payload_end(link, done);
	}
	rx->have += bytes;
	return dmdst_rx_parse(link, done);
}

static ssize_t dmdst_rx_receive(struct dmdst_link *link)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
	struct dmdst_rx_vec vec = { };
	unsigned int noreclaim;
	ssize_t ret;

	if (!link->rx.slot || dmdst_rx_vec_payload(&link->rx, &vec))
		dmdst_rx_vec_headers(link, &vec);
	iov_iter_bvec(&msg.msg_iter, ITER_DEST, vec.bv, vec.nr, vec.bytes);
	/* Not around the bios' ends: who owns them has no claim to the reserves. */
	noreclaim = memalloc_noreclaim_save();
	ret = sock_recvmsg(link->sock, &msg, msg.msg_flags);
	memalloc_noreclaim_restore(noreclaim);
	return ret;
}

static bool dmdst_rx_step(struct dmdst_link *link, struct list_head *done)
{
	bool more = false;
	ssize_t ret;

	/* The callbacks still queue us until down_work has restored them. */
	if (link->rx.broken || READ_ONCE(link->disbelieve))
		return false;

	ret = dmdst_rx_receive(link);
	if (ret > 0) {
		more = dmdst_rx_account(link, ret, done);
	} else if (ret == 0) {
		link->rx.eof = true;
		dmdst_link_lose(link, ESHUTDOWN, "the server closed the connection");
	} else if (ret != -EAGAIN) {
		dmdst_link_lose(link, -ret, "receive failed");
	}
	return more;
}

/* One receive. True: there may be more to read. */
bool dmdst_recv_some(struct dmdst_link *link)
{
	struct dmdst_rx *rx = &link->rx;
	bool more, shutdown;
	LIST_HEAD(done);
	LIST_HEAD(freed);

	mutex_lock(&rx->mutex);
	more = dmdst_rx_step(link, &done);
	list_splice_init(&rx->freed, &freed);
	shutdown = rx->shutdown;
	mutex_unlock(&rx->mutex);

	dmdst_link_answered(link, &done);
	dmdst_node_submit_all(&freed);
	if (shutdown)
		dmdst_node_retire_link(link, "the server is shutting down");
	return more;
}

void dmdst_recv_work(struct work_struct *work)
{
	struct dmdst_link *link = container_of(work, struct dmdst_link, recv_work);
	unsigned int noio = memalloc_noio_save();
	unsigned int budget = DMDST_RECV_BUDGET;

	while (dmdst_recv_some(link)) {
		if (--budget)
			continue;
		queue_work(dmdst_recv_wq, &link->recv_work);
		break;
	}
	memalloc_noio_restore(noio);
}
