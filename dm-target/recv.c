// SPDX-License-Identifier: GPL-2.0-only
/*
 * The receiving half of a link: reads replies in batches, payloads straight
 * into the bios' pages, and believes nothing it reads. Runs as
 * link->recv_work, one at a time a link, or for little in TCP's context. Never
 * sends, and ends no bio with a spinlock of ours held.
 *
 * Where it stands in the stream follows from two counters: rx.slot with
 * rx.got (a payload with bytes missing), else rx.have bytes of a header.
 */
#include <linux/sched/mm.h>
#include <net/sock.h>
#include <net/tcp.h>
#include "compat/compat.h"
#include "dm-dst.h"
#include "trace.h"

/* Receives after which other links' workers get the CPU. */
#define DMDST_RECV_BUDGET	64
#define DMDST_RX_SEGMENTS	64
#define DMDST_RX_HEADERS	64
/* Of one look into TCP's queue; the bios end behind it. */
#define DMDST_RX_BYTES		(512 * 1024)
/* What is copied at once, where it comes in; more is a worker's, on another CPU. */
#define DMDST_RX_NOW		(16 * 1024)
/* Of a large payload so much has to come before somebody is woken for it. */
#define DMDST_RX_ENOUGH		(128 * 1024)

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

/* Of @slot's payload, from byte @got on. False: not all of it fitted. */
static bool dmdst_rx_vec_slot(struct dmdst_rx_vec *vec, const struct dmdst_slot *slot,
			      u32 got)
{
	struct dmdst_req *req = slot->req;
	struct bio_vec *bvec = req ? req->bvec : NULL;
	struct bvec_iter iter = { .bi_size = slot->len - got };

	if (req) {
		iter = req->iter;
		iter.bi_size = req->len;
		bvec_iter_advance(bvec, &iter, got);
	}
	while (iter.bi_size && vec->nr < DMDST_RX_SEGMENTS) {
		/* Detached: to a page nobody reads. */
		u32 len = min_t(u32, iter.bi_size, PAGE_SIZE);
		struct bio_vec bv = { .bv_page = dmdst_unread.bv_page, .bv_len = len };

		if (req) {
			bv = mp_bvec_iter_bvec(bvec, iter);
			bvec_iter_advance(bvec, &iter, bv.bv_len);
		} else {
			iter.bi_size -= len;
		}
		dmdst_rx_vec_add(vec, bv.bv_page, bv.bv_len, bv.bv_offset);
	}
	return !iter.bi_size;
}

/* Whose payload the next byte is: of the wire request's slots, and its byte @got. */
static struct dmdst_slot *dmdst_rx_reads(struct dmdst_link *link, u32 *got)
{
	struct dmdst_slot *slot = link->rx.slot;

	for (*got = link->rx.got; *got >= slot->len; slot = dmdst_slot_next(link, slot))
		*got -= slot->len;
	return slot;
}

/* The pages that still miss payload. True: all of them fitted. */
static bool dmdst_rx_vec_payload(struct dmdst_link *link, struct dmdst_rx_vec *vec)
{
	struct dmdst_slot *slot;
	u32 got;

	for (slot = dmdst_rx_reads(link, &got); slot; slot = dmdst_slot_next(link, slot)) {
		if (!dmdst_rx_vec_slot(vec, slot, got))
			return false;
		got = 0;
	}
	return true;
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

/* One reading of the clock is good for all that a receive finds. */
static void dmdst_rx_count(struct dmdst_link *link, const struct dmdst_slot *slot)
{
	struct dmdst_rx *rx = &link->rx;

	lockdep_assert_held(&link->lock);
	if (!rx->now)
		rx->now = ktime_get_ns();
	if (slot->cmd == NBDW_CMD_READ)
		dmdst_latency_count(&link->latency.read, slot->sent_ns, rx->now);
	else if (slot->cmd == NBDW_CMD_WRITE)
		dmdst_latency_count(&link->latency.write, slot->sent_ns, rx->now);
}

/* @slot is answered. It ends now, or when its own last byte has been sent. */
static void dmdst_rx_answer_slot(struct dmdst_link *link, struct dmdst_slot *slot,
				 u32 error, bool again, struct list_head *done)
{
	struct dmdst_req *req = slot->req;
	u16 nr = slot - link->slots;

	lockdep_assert_held(&link->lock);
	trace_dmdst_reply(link, slot, error);
	dmdst_rx_count(link, slot);
	dmdst_fence_heard(link, nr);
	if (!req) {
		dmdst_fence_answered(link, nr, &link->rx.freed);
		dmdst_link_free_slot(link, nr);
		return;
	}
	req->status = dmdst_rx_status(error);
	req->again = again;
	req->birth = link->birth;
	req->write_back = link->write_back;
	if (req->tx_end > link->tx.sent) {
		req->answered = true;
		link->tx.early++;
		return;
	}
	list_add_tail(&dmdst_link_vacate(link, nr)->list, done);
}

/* The same for all of the wire request whose first is @slot. */
static void dmdst_rx_answer(struct dmdst_link *link, struct dmdst_slot *slot,
			    u32 error, struct list_head *done)
{
	bool again = error && slot->next != DMDST_NO_SLOT;
	struct dmdst_slot *next;

	for (; slot; slot = next) {
		next = dmdst_slot_next(link, slot);
		dmdst_rx_answer_slot(link, slot, error, again, done);
	}
}

static struct dmdst_slot *dmdst_rx_find(struct dmdst_link *link, u64 cookie)
{
	u16 slot = cookie;
	struct dmdst_slot *s;

	if (slot >= DMDST_DEPTH || cookie >> 48 != (u16)link->generation)
		return NULL;
	s = &link->slots[slot];
	if (s->seq != (u32)(cookie >> 16) || s->refused || s->rides)
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

	spin_lock_bh(&link->lock);
	slot = dmdst_rx_find(link, be64_to_cpu(reply->cookie));
	if (slot && slot->cmd == NBDW_CMD_READ && !error) {
		link->rx.slot = slot;
		link->rx.got = 0;
	} else if (slot && error == NBDW_ESHUTDOWN) {
		/* No answer: who knows what was done. It stays in its slot. */
		trace_dmdst_reply(link, slot, error);
		slot->refused = true;
		link->rx.shutdown = true;
	} else if (slot) {
		dmdst_rx_answer(link, slot, error, done);
	}
	spin_unlock_bh(&link->lock);

	if (!slot)
		dmdst_link_lose(link, EPROTO, "the server answered what was not asked");
	return slot;
}

static void dmdst_rx_payload_end(struct dmdst_link *link, struct list_head *done)
{
	struct dmdst_rx *rx = &link->rx;

	if (rx->got < rx->slot->total)
		return;
	spin_lock_bh(&link->lock);
	dmdst_rx_answer(link, rx->slot, 0, done);
	spin_unlock_bh(&link->lock);
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

	dmdst_rx_vec_payload(link, &vec);
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

	rx->now = 0;
	rx->received += bytes;
	dmdst_link_heard(link);
	if (rx->slot) {
		payload = min_t(size_t, bytes, rx->slot->total - rx->got);
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

	if (!link->rx.slot || dmdst_rx_vec_payload(link, &vec))
		dmdst_rx_vec_headers(link, &vec);
	iov_iter_bvec(&msg.msg_iter, ITER_DEST, vec.bv, vec.nr, vec.bytes);
	/* Not around the bios' ends: who owns them has no claim to the reserves. */
	noreclaim = memalloc_noreclaim_save();
	ret = sock_recvmsg(link->sock, &msg, msg.msg_flags);
	memalloc_noreclaim_restore(noreclaim);
	return ret;
}

/* ---- TCP: parsed where it lies ---- */

/*
 * Where payload is in the socket's own buffers, a copy to the bio's pages is all
 * that is to be done, whatever comes next: so all that has come is read at once,
 * under one lock of the socket.
 */
struct dmdst_rx_look {
	struct dmdst_link	*link;
	struct list_head	*done;
	bool			now;	/* in TCP's own context: only what is plain */
	bool			stopped; /* at a header that isn't */
};

/* The part of the bio's data from byte @got on. */
static void dmdst_rx_iter(struct dmdst_req *req, u32 got, size_t bytes,
			  struct iov_iter *to)
{
	struct bvec_iter iter = req->iter;
	const struct bio_vec *bv;
	size_t left;
	unsigned int nr;

	iter.bi_size = req->len;
	bvec_iter_advance(req->bvec, &iter, got);
	bv = __bvec_iter_bvec(req->bvec, iter);
	left = iter.bi_bvec_done + bytes;
	for (nr = 0; left; nr++)
		left -= min_t(size_t, left, bv[nr].bv_len);
	iov_iter_bvec(to, ITER_DEST, bv, nr, iter.bi_bvec_done + bytes);
	iov_iter_advance(to, iter.bi_bvec_done);
}

/* How much of @skb was payload of the slot that is being read; 0: it failed. */
static size_t dmdst_rx_skb_payload(struct dmdst_link *link, struct sk_buff *skb,
				   unsigned int offset, size_t len,
				   struct list_head *done)
{
	struct dmdst_rx *rx = &link->rx;
	struct dmdst_slot *slot;
	struct iov_iter to;
	u32 got;

	slot = dmdst_rx_reads(link, &got);
	len = min_t(size_t, len, slot->len - got);
	if (slot->req) {
		dmdst_rx_iter(slot->req, got, len, &to);
		if (skb_copy_datagram_iter(skb, offset, &to, len)) {
			dmdst_link_lose(link, EIO, "what was received can't be copied");
			return 0;
		}
	}
	rx->got += len;
	dmdst_rx_payload_end(link, done);
	return len;
}

/* Nothing to read, and no end or error to be told of by a receive. */
static bool dmdst_rx_is_quiet(const struct sock *sk)
{
	return !READ_ONCE(sk->sk_err) && !(READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN) &&
	       !sock_flag(sk, SOCK_DONE) && READ_ONCE(sk->sk_state) == TCP_ESTABLISHED;
}

/*
 * An answer that ends nothing but its own request, and no lock but link->lock is
 * needed to believe it.
 */
static bool dmdst_rx_is_plain(struct dmdst_link *link, const struct nbdw_reply *reply)
{
	struct dmdst_slot *slot;
	bool plain;

	if (reply->magic != cpu_to_be32(NBDW_REPLY_MAGIC) || reply->error)
		return false;
	spin_lock_bh(&link->lock);
	slot = dmdst_rx_find(link, be64_to_cpu(reply->cookie));
	plain = slot && slot->cmd != NBDW_CMD_FLUSH;
	for (; plain && slot; slot = dmdst_slot_next(link, slot))
		plain = slot->req;
	spin_unlock_bh(&link->lock);
	return plain;
}

/* The same of a header, which may come in pieces. */
static size_t dmdst_rx_skb_header(struct dmdst_rx_look *look, struct sk_buff *skb,
				  unsigned int offset, size_t len)
{
	struct dmdst_link *link = look->link;
	struct dmdst_rx *rx = &link->rx;
	void *page = page_address(rx->page);

	len = min_t(size_t, len, sizeof(struct nbdw_reply) - rx->have);
	if (skb_copy_bits(skb, offset, page + rx->have, len)) {
		dmdst_link_lose(link, EIO, "what was received can't be copied");
		return 0;
	}
	rx->have += len;
	if (rx->have < sizeof(struct nbdw_reply))
		return len;
	look->stopped = look->now && !dmdst_rx_is_plain(link, page);
	if (look->stopped)
		return len;
	rx->have = 0;
	return dmdst_rx_header(link, page, look->done) ? len : 0;
}

static int dmdst_rx_skb(read_descriptor_t *desc, struct sk_buff *skb,
			unsigned int offset, size_t len)
{
	struct dmdst_rx_look *look = desc->arg.data;
	struct dmdst_link *link = look->link;
	size_t left = len, read;

	while (left && !link->rx.broken && !look->stopped) {
		if (link->rx.slot)
			read = dmdst_rx_skb_payload(link, skb, offset, left, look->done);
		else
			read = dmdst_rx_skb_header(look, skb, offset, left);
		link->rx.broken = !read;
		offset += read;
		left -= read;
	}
	link->rx.received += len - left;
	desc->count -= min(desc->count, len - left);
	if (look->stopped)
		desc->count = 0;
	return len - left;
}

/*
 * When TCP is to call us next: at the end of the payload that is being read, not
 * at each of its segments; in good time before the window is full.
 */
static void dmdst_rx_set_mark(struct dmdst_link *link)
{
	const struct dmdst_rx *rx = &link->rx;
	struct sock *sk = link->sock->sk;
	u32 enough = 1;

	if (rx->slot)
		enough = min3(rx->slot->total - rx->got, (u32)DMDST_RX_ENOUGH,
			      tcp_sk(sk)->rcv_wnd / 2);
	WRITE_ONCE(sk->sk_rcvlowat, max(enough, 1U));
}

/* True: something was read. */
static bool dmdst_rx_look(struct dmdst_link *link, struct list_head *done)
{
	struct dmdst_rx_look look = { .link = link, .done = done };
	read_descriptor_t desc = { .arg.data = &look, .count = DMDST_RX_BYTES };
	struct dmdst_rx *rx = &link->rx;
	struct sock *sk = link->sock->sk;
	unsigned int noreclaim = memalloc_noreclaim_save();
	bool left_over, urgent;
	int ret = 0;

	lock_sock(sk);
	rx->now = 0;
	left_over = rx->have == sizeof(struct nbdw_reply);
	if (left_over) {
		rx->have = 0;
		rx->broken = !dmdst_rx_header(link, page_address(rx->page), done);
	}
	if (!rx->broken)
		ret = tcp_read_sock(sk, &desc, dmdst_rx_skb);
	urgent = tcp_sk(sk)->urg_data;
	dmdst_rx_set_mark(link);
	release_sock(sk);
	memalloc_noreclaim_restore(noreclaim);
	if (ret > 0)
		dmdst_link_heard(link);
	if (urgent) {
		/* It would be read around, and the rest not without it. */
		rx->broken = true;
		dmdst_link_lose(link, EPROTO, "the server sent urgent data");
	}
	return ret > 0 || left_over;
}

/*
 * What has come is taken where it comes in, in TCP's context: the socket is
 * locked, and nothing may sleep or take another lock than link->lock. Bios end
 * there as they do in any driver's interrupt. False: a worker is needed.
 */
bool dmdst_recv_now(struct dmdst_link *link)
{
	struct sock *sk = link->sock->sk;
	LIST_HEAD(done);
	struct dmdst_rx_look look = { .link = link, .done = &done, .now = true };
	read_descriptor_t desc = { .arg.data = &look, .count = DMDST_RX_NOW };
	struct dmdst_rx *rx = &link->rx;

	if (!sk_is_tcp(sk) || rx->broken || READ_ONCE(link->disbelieve) ||
	    rx->have == sizeof(struct nbdw_reply) ||
	    READ_ONCE(link->node->fences->listening) || tcp_sk(sk)->urg_data ||
	    tcp_sk(sk)->rcv_nxt - tcp_sk(sk)->copied_seq > DMDST_RX_NOW)
		return false;

	rx->now = 0;
	if (tcp_read_sock(sk, &desc, dmdst_rx_skb) > 0)
		dmdst_link_heard(link);
	dmdst_rx_set_mark(link);
	return dmdst_reqs_answered_now(link, &done) && !look.stopped && !rx->broken &&
	       dmdst_rx_is_quiet(sk);
}

/* Is there data after all, or an end, or an error? */
static ssize_t dmdst_rx_peek(struct dmdst_link *link)
{
	u8 byte;
	struct kvec kv = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = { };

	return kernel_recvmsg(link->sock, &msg, &kv, 1, 1, MSG_PEEK | MSG_DONTWAIT);
}

static bool dmdst_rx_step(struct dmdst_link *link, struct list_head *done)
{
	struct sock *sk = link->sock->sk;
	bool more = false;
	ssize_t ret;

	/* The callbacks still queue us until down_work has restored them. */
	if (link->rx.broken || READ_ONCE(link->disbelieve))
		return false;

	if (sk_is_tcp(sk)) {
		if (dmdst_rx_look(link, done))
			return !link->rx.broken;
		if (link->rx.broken || dmdst_rx_is_quiet(sk))
			return false;
		ret = dmdst_rx_peek(link);
		more = ret > 0;
	} else {
		ret = dmdst_rx_receive(link);
		if (ret > 0)
			more = dmdst_rx_account(link, ret, done);
	}
	if (ret == 0) {
		link->rx.eof = true;
		dmdst_link_lose(link, ESHUTDOWN, "the server closed the connection");
	} else if (ret < 0 && ret != -EAGAIN) {
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

	spin_lock_bh(&link->lock);
	list_splice_tail_init(&rx->late, &done);
	spin_unlock_bh(&link->lock);

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
