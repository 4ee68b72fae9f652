// SPDX-License-Identifier: GPL-2.0-only
/*
 * The one place that makes the tracepoints of trace.h, and what they read that
 * isn't a field of anything. Runs only while somebody listens; takes no lock,
 * never sleeps.
 */
#include "compat/compat.h"
#include "dm-dst.h"

/* 0: the node's own. */
static inline u32 dmdst_trace_dev(const struct bio *bio)
{
	return bio ? bio_dev(bio) : 0;
}

/* In the words that the wire has for it, since the events of requests use them. */
static inline u16 dmdst_trace_op(const struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return NBDW_CMD_READ;
	case REQ_OP_DISCARD:
		return NBDW_CMD_TRIM;
	case REQ_OP_WRITE_ZEROES:
		return NBDW_CMD_WRITE_ZEROES;
	case REQ_OP_WRITE:
		if (bio_sectors(bio))
			return NBDW_CMD_WRITE;
		fallthrough;
	case REQ_OP_FLUSH:
		return NBDW_CMD_FLUSH;
	default:
		return U16_MAX;
	}
}

/* Of the device, where what is left of the request's bio begins. */
static inline u64 dmdst_trace_sector(const struct dmdst_req *req)
{
	const struct bio *bio = req->bio;

	if (!bio)
		return 0;
	return bio->bi_iter.bi_sector + ((bio->bi_iter.bi_size - req->left) >> SECTOR_SHIFT);
}

/* A slot's header is as it was sent until the slot is used again. */
static inline const struct nbdw_request *
dmdst_trace_header(const struct dmdst_link *link, u16 slot)
{
	const struct nbdw_request *headers = page_address(link->tx.headers);

	return &headers[slot];
}

static inline u64 dmdst_trace_cookie(const struct dmdst_link *link, u16 slot)
{
	return be64_to_cpu(dmdst_trace_header(link, slot)->cookie);
}

static inline u64 dmdst_trace_offset(const struct dmdst_link *link, u16 slot)
{
	return be64_to_cpu(dmdst_trace_header(link, slot)->offset);
}

#define CREATE_TRACE_POINTS
#include "trace.h"
