/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The one place that knows kernels differ (6.1 … 7.2). Each shim names the
 * version and commit that made it needed; compat/probe.sh finds out by
 * compiling. Nothing else in dm-target tests for a kernel's age.
 */
#ifndef DMDST_COMPAT_H
#define DMDST_COMPAT_H

#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/device-mapper.h>
#include <linux/kthread.h>
#include <linux/net.h>
#include <linux/netlink.h>
#include <linux/uio.h>
#include <net/sock.h>

/* Both were changed in 6.5: a kernel with neither means a probe that failed. */
#if !defined(DMDST_HAVE_KERNEL_SENDPAGE) && !defined(DMDST_HAVE_BLK_OPEN_WRITE)
#error "compat/probe.sh could not compile its probes"
#endif

/* 6.5, 05bdb9965305: block modes got a type and names of their own. */
#ifdef DMDST_HAVE_BLK_OPEN_WRITE
#define DMDST_MODE_WRITE BLK_OPEN_WRITE
#else
#define DMDST_MODE_WRITE FMODE_WRITE
#endif

/*
 * 6.2, 51c352bdbcd2: an extack text can be made at run time. Before it only
 * constants can be told. (A macro, so the preprocessor may be asked.)
 */
#ifdef NL_SET_ERR_MSG_FMT
#define DMDST_COMPAT_EXTACK_COPY(extack, text, constant) do {	\
	(void)sizeof(constant);					\
	NL_SET_ERR_MSG_FMT(extack, "%s", text);			\
} while (0)
#else
#define DMDST_COMPAT_EXTACK_COPY(extack, text, constant) do {	\
	(void)(text);						\
	NL_SET_ERR_MSG(extack, constant);			\
} while (0)
#endif

/* 6.2, 98123866fcf3: sockets used in reclaim must leave task_frag alone. */
static inline void dmdst_compat_no_task_frag(struct sock *sk)
{
#ifdef DMDST_HAVE_SK_USE_TASK_FRAG
	sk->sk_use_task_frag = false;
#endif
}

/*
 * 6.14, b04e317b5226: who creates a worker has to wake it, too. Before, one more
 * waking does nothing.
 */
static inline void dmdst_compat_start_worker(struct kthread_worker *worker)
{
	wake_up_process(worker->task);
}

/*
 * 6.11, 1122c0c1cc71: queue features live in the limits. A target without
 * devices is given BLK_FEAT_POLL, which it can't keep: dm polls clones only.
 */
static inline void dmdst_compat_no_poll(struct queue_limits *limits)
{
#ifdef DMDST_HAVE_QUEUE_FEATURES
	limits->features &= ~BLK_FEAT_POLL;
#endif
}

/*
 * 6.17, 0c40d7cb5ef3: a second limit for WRITE_ZEROES that surely unmap, which
 * no NBD server promises. Stacking starts it at UINT_MAX, and limits where it
 * is neither 0 nor max_write_zeroes_sectors are refused (-EINVAL on resume).
 */
static inline void dmdst_compat_no_wzeroes_unmap(struct queue_limits *limits)
{
#ifdef DMDST_HAVE_WZEROES_UNMAP
	limits->max_hw_wzeroes_unmap_sectors = 0;
#endif
}

/*
 * 6.10, 2c92ca849fcc: __assign_str() knows its source from __string(). Before, both
 * must say the same.
 */
#ifdef DMDST_HAVE_ASSIGN_STR_ALONE
#define dmdst_compat_assign_str(dst, src) do {	\
	(void)(src);				\
	__assign_str(dst);			\
} while (0)
#else
#define dmdst_compat_assign_str(dst, src) __assign_str(dst, src)
#endif

/*
 * Give @nr segments, from byte @skip on, to @sock. @splice: the pages may be
 * kept by the socket. Returns the bytes taken or a negative errno; flags as
 * for sendmsg.
 */
#ifdef DMDST_HAVE_KERNEL_SENDPAGE
/* 6.5, dc97391e6610: before it pages are spliced one by one. */
static inline ssize_t dmdst_compat_sendpages(struct socket *sock,
					     struct bio_vec *bv, unsigned int nr,
					     size_t skip, unsigned int flags)
{
	ssize_t sent = 0;
	unsigned int i;

	for (i = 0; i < nr; i++) {
		size_t off = bv[i].bv_offset + skip;
		size_t left = bv[i].bv_len;

		if (skip >= left) {
			skip -= left;
			continue;
		}
		left -= skip;
		skip = 0;
		while (left) {
			struct page *page = bv[i].bv_page + (off >> PAGE_SHIFT);
			size_t len = min_t(size_t, left,
					   PAGE_SIZE - offset_in_page(off));
			bool last = i == nr - 1 && len == left;
			int ret = kernel_sendpage(sock, page, offset_in_page(off), len,
						  last ? flags : flags | MSG_MORE);

			if (ret <= 0)
				return sent ? sent : ret;
			sent += ret;
			off += ret;
			left -= ret;
		}
	}
	return sent;
}
#endif

static inline ssize_t dmdst_compat_send(struct socket *sock, struct bio_vec *bv,
					unsigned int nr, size_t skip, size_t bytes,
					bool splice, unsigned int flags)
{
	struct msghdr msg = { .msg_flags = flags };

	if (splice) {
#ifdef DMDST_HAVE_KERNEL_SENDPAGE
		return dmdst_compat_sendpages(sock, bv, nr, skip, flags);
#else
		msg.msg_flags |= MSG_SPLICE_PAGES;
#endif
	}
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, bv, nr, bytes);
	iov_iter_advance(&msg.msg_iter, skip);
	return sock_sendmsg(sock, &msg);
}

#endif /* DMDST_COMPAT_H */
