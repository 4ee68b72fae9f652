/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tracepoints of dm-dst, group dm_dst: what becomes of a bio, step by step.
 * Fields, units and uses: docs/operations.md, "Tracepoints". Called by whoever
 * does the step, some in TCP's context: what is recorded is read under the locks
 * the caller has anyway, and only while somebody listens. Changes nothing.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM dm_dst

#if !defined(DMDST_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define DMDST_TRACE_H

#include <linux/tracepoint.h>
#include "compat/compat.h"
#include "dm-dst.h"

/* So that perf and others know the numbers that the names below stand for. */
TRACE_DEFINE_ENUM(NBDW_CMD_READ);
TRACE_DEFINE_ENUM(NBDW_CMD_WRITE);
TRACE_DEFINE_ENUM(NBDW_CMD_FLUSH);
TRACE_DEFINE_ENUM(NBDW_CMD_TRIM);
TRACE_DEFINE_ENUM(NBDW_CMD_WRITE_ZEROES);
TRACE_DEFINE_ENUM(DMDST_LINK_LIVE);
TRACE_DEFINE_ENUM(DMDST_LINK_DRAINING);
TRACE_DEFINE_ENUM(DMDST_LINK_LOST);
TRACE_DEFINE_ENUM(DMDST_LINK_GONE);

#define dmdst_show_op(op) __print_symbolic(op,		\
	{ NBDW_CMD_READ,		"READ" },		\
	{ NBDW_CMD_WRITE,		"WRITE" },		\
	{ NBDW_CMD_FLUSH,		"FLUSH" },		\
	{ NBDW_CMD_TRIM,		"TRIM" },		\
	{ NBDW_CMD_WRITE_ZEROES,	"WRITE_ZEROES" })

#define dmdst_show_link_state(state) __print_symbolic(state,	\
	{ DMDST_LINK_LIVE,		"live" },		\
	{ DMDST_LINK_DRAINING,		"draining" },		\
	{ DMDST_LINK_LOST,		"lost" },		\
	{ DMDST_LINK_GONE,		"gone" })

/* ---- bios: device, and sectors on it ---- */

TRACE_EVENT(dmdst_submit,
	TP_PROTO(const struct bio *bio),
	TP_ARGS(bio),

	TP_STRUCT__entry(
		__field(u32,	dev)
		__field(u16,	op)
		__field(u64,	sector)
		__field(u32,	nr_sector)
	),

	TP_fast_assign(
		__entry->dev = dmdst_trace_dev(bio);
		__entry->op = dmdst_trace_op(bio);
		__entry->sector = bio->bi_iter.bi_sector;
		__entry->nr_sector = bio_sectors(bio);
	),

	TP_printk("dev=%u,%u op=%s sector=%llu nr_sector=%u",
		  MAJOR(__entry->dev), MINOR(__entry->dev),
		  dmdst_show_op(__entry->op), __entry->sector, __entry->nr_sector)
);

/* It becomes @first sectors, and a new bio with the rest is submitted. */
TRACE_EVENT(dmdst_split,
	TP_PROTO(const struct bio *bio, u32 first, const char *why),
	TP_ARGS(bio, first, why),

	TP_STRUCT__entry(
		__field(u32,	dev)
		__field(u16,	op)
		__field(u64,	sector)
		__field(u32,	nr_sector)
		__field(u32,	first)
		__string(why,	why)
	),

	TP_fast_assign(
		__entry->dev = dmdst_trace_dev(bio);
		__entry->op = dmdst_trace_op(bio);
		__entry->sector = bio->bi_iter.bi_sector;
		__entry->nr_sector = bio_sectors(bio);
		__entry->first = first;
		dmdst_compat_assign_str(why, why);
	),

	TP_printk("dev=%u,%u op=%s sector=%llu nr_sector=%u first=%u why=%s",
		  MAJOR(__entry->dev), MINOR(__entry->dev),
		  dmdst_show_op(__entry->op), __entry->sector,
		  __entry->nr_sector, __entry->first, __get_str(why))
);

/* It ends, or goes back to device-mapper. */
TRACE_EVENT(dmdst_end,
	TP_PROTO(const struct bio *bio, blk_status_t status),
	TP_ARGS(bio, status),

	TP_STRUCT__entry(
		__field(u32,	dev)
		__field(u16,	op)
		__field(u64,	sector)
		__field(u32,	nr_sector)
		__field(u32,	error)
	),

	TP_fast_assign(
		__entry->dev = dmdst_trace_dev(bio);
		__entry->op = dmdst_trace_op(bio);
		__entry->sector = bio->bi_iter.bi_sector;
		__entry->nr_sector = bio_sectors(bio);
		__entry->error = -blk_status_to_errno(status);
	),

	TP_printk("dev=%u,%u op=%s sector=%llu nr_sector=%u error=%u",
		  MAJOR(__entry->dev), MINOR(__entry->dev),
		  dmdst_show_op(__entry->op), __entry->sector,
		  __entry->nr_sector, __entry->error)
);

/* ---- requests: a node, and bytes on it ---- */

/*
 * @slot's request is gathered for the socket. @merged: in the wire request of the
 * one before it, without a header or a cookie of its own. link->lock.
 */
TRACE_EVENT(dmdst_send,
	TP_PROTO(const struct dmdst_link *link, const struct dmdst_req *req),
	TP_ARGS(link, req),

	TP_STRUCT__entry(
		__string(node,	link->node->name)
		__field(u32,	slot)
		__field(u32,	generation)
		__field(u64,	cookie)
		__field(u16,	op)
		__field(u64,	offset)
		__field(u32,	length)
		__field(u32,	dev)
		__field(u64,	sector)
		__field(u8,	merged)
	),

	TP_fast_assign(
		dmdst_compat_assign_str(node, link->node->name);
		__entry->slot = link->slot;
		__entry->generation = link->generation;
		__entry->cookie = dmdst_trace_cookie(link, req->slot);
		__entry->op = req->cmd;
		__entry->offset = req->offset;
		__entry->length = req->len;
		__entry->dev = dmdst_trace_dev(req->bio);
		__entry->sector = dmdst_trace_sector(req);
		__entry->merged = link->slots[req->slot].rides;
	),

	TP_printk("node=%s slot=%u generation=%u cookie=0x%llx op=%s offset=%llu length=%u dev=%u,%u sector=%llu merged=%u",
		  __get_str(node), __entry->slot, __entry->generation,
		  __entry->cookie, dmdst_show_op(__entry->op), __entry->offset,
		  __entry->length, MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->sector, __entry->merged)
);

/*
 * The request in @slot is answered, with the wire's @error. What was asked is
 * read where the socket was given it: of a detached one no more is left.
 * link->lock, before the slot is freed.
 */
TRACE_EVENT(dmdst_reply,
	TP_PROTO(const struct dmdst_link *link, const struct dmdst_slot *slot, u32 error),
	TP_ARGS(link, slot, error),

	TP_STRUCT__entry(
		__string(node,	link->node->name)
		__field(u32,	slot)
		__field(u32,	generation)
		__field(u64,	cookie)
		__field(u16,	op)
		__field(u64,	offset)
		__field(u32,	length)
		__field(u32,	error)
		__field(u64,	latency)
	),

	TP_fast_assign(
		dmdst_compat_assign_str(node, link->node->name);
		__entry->slot = link->slot;
		__entry->generation = link->generation;
		__entry->cookie = dmdst_trace_cookie(link, slot - link->slots);
		__entry->op = slot->cmd;
		__entry->offset = dmdst_trace_offset(link, slot - link->slots);
		__entry->length = slot->len;
		__entry->error = error;
		__entry->latency = ktime_get_ns() - slot->sent_ns;
	),

	TP_printk("node=%s slot=%u generation=%u cookie=0x%llx op=%s offset=%llu length=%u error=%u latency=%llu",
		  __get_str(node), __entry->slot, __entry->generation,
		  __entry->cookie, dmdst_show_op(__entry->op), __entry->offset,
		  __entry->length, __entry->error, __entry->latency)
);

/*
 * @req is taken from where it was, unanswered. @link: from that one's send queue,
 * or, where it was @sent, from its slot.
 */
TRACE_EVENT(dmdst_requeue,
	TP_PROTO(const struct dmdst_req *req, const struct dmdst_link *link,
		 bool sent, const char *why),
	TP_ARGS(req, link, sent, why),

	TP_STRUCT__entry(
		__string(node,	req->node->name)
		__field(s32,	slot)
		__field(u32,	generation)
		__field(u64,	cookie)
		__field(u16,	op)
		__field(u64,	offset)
		__field(u64,	length)
		__field(u32,	dev)
		__field(u64,	sector)
		__string(why,	why)
	),

	TP_fast_assign(
		dmdst_compat_assign_str(node, req->node->name);
		__entry->slot = link ? (s32)link->slot : -1;
		__entry->generation = link ? link->generation : 0;
		__entry->cookie = sent ? dmdst_trace_cookie(link, req->slot) : 0;
		__entry->op = req->cmd;
		__entry->offset = req->offset;
		__entry->length = sent ? req->len : req->left;
		__entry->dev = dmdst_trace_dev(req->bio);
		__entry->sector = dmdst_trace_sector(req);
		dmdst_compat_assign_str(why, why);
	),

	TP_printk("node=%s slot=%d generation=%u cookie=0x%llx op=%s offset=%llu length=%llu dev=%u,%u sector=%llu why=%s",
		  __get_str(node), __entry->slot, __entry->generation,
		  __entry->cookie, dmdst_show_op(__entry->op), __entry->offset,
		  __entry->length, MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->sector, __get_str(why))
);

/* @req can't go on now. */
TRACE_EVENT(dmdst_wait,
	TP_PROTO(const struct dmdst_req *req, const char *why),
	TP_ARGS(req, why),

	TP_STRUCT__entry(
		__string(node,	req->node->name)
		__field(u16,	op)
		__field(u64,	offset)
		__field(u64,	length)
		__field(u32,	dev)
		__field(u64,	sector)
		__string(why,	why)
	),

	TP_fast_assign(
		dmdst_compat_assign_str(node, req->node->name);
		__entry->op = req->cmd;
		__entry->offset = req->offset;
		__entry->length = req->left;
		__entry->dev = dmdst_trace_dev(req->bio);
		__entry->sector = dmdst_trace_sector(req);
		dmdst_compat_assign_str(why, why);
	),

	TP_printk("node=%s op=%s offset=%llu length=%llu dev=%u,%u sector=%llu why=%s",
		  __get_str(node), dmdst_show_op(__entry->op), __entry->offset,
		  __entry->length, MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->sector, __get_str(why))
);

/* ---- links ---- */

/* Its state is another one from here on. */
TRACE_EVENT(dmdst_link,
	TP_PROTO(const struct dmdst_link *link),
	TP_ARGS(link),

	TP_STRUCT__entry(
		__string(node,	link->node->name)
		__field(u32,	slot)
		__field(u32,	generation)
		__field(u32,	state)
		__field(u32,	error)
		__string(why,	link->why ? link->why : "")
	),

	TP_fast_assign(
		dmdst_compat_assign_str(node, link->node->name);
		__entry->slot = link->slot;
		__entry->generation = link->generation;
		__entry->state = link->state;
		__entry->error = link->err;
		dmdst_compat_assign_str(why, link->why ? link->why : "");
	),

	TP_printk("node=%s slot=%u generation=%u state=%s error=%u why=%s",
		  __get_str(node), __entry->slot, __entry->generation,
		  dmdst_show_link_state(__entry->state), __entry->error,
		  __get_str(why))
);

/* An old link has left @ambiguous ranges; or none any more. */
TRACE_EVENT(dmdst_fence,
	TP_PROTO(const struct dmdst_node *node, u32 slot, u32 generation,
		 unsigned int ambiguous, const char *why),
	TP_ARGS(node, slot, generation, ambiguous, why),

	TP_STRUCT__entry(
		__string(node,	node->name)
		__field(u32,	slot)
		__field(u32,	generation)
		__field(u32,	ambiguous)
		__string(why,	why)
	),

	TP_fast_assign(
		dmdst_compat_assign_str(node, node->name);
		__entry->slot = slot;
		__entry->generation = generation;
		__entry->ambiguous = ambiguous;
		dmdst_compat_assign_str(why, why);
	),

	TP_printk("node=%s slot=%u generation=%u ambiguous=%u why=%s",
		  __get_str(node), __entry->slot, __entry->generation,
		  __entry->ambiguous, __get_str(why))
);

#endif /* DMDST_TRACE_H */

/* Not in the kernel's own tree: found by Kbuild's -I. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
