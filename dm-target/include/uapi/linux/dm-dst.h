/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The netlink contract between dm-dst.ko and user space: generic netlink
 * family "dm-dst". The one header both sides share; it holds numbers only.
 * What each command does, field by field: docs/netlink/dm-dst.yaml.
 * Numbers are append-only: nothing is ever renumbered or reused.
 */
#ifndef _UAPI_LINUX_DM_DST_H
#define _UAPI_LINUX_DM_DST_H

#define DMDST_FAMILY_NAME	"dm-dst"
#define DMDST_FAMILY_VERSION	1
#define DMDST_MCGRP_EVENTS	"events"

/* Without the terminating NUL. */
#define DMDST_NAME_MAX		63
/* Client id (16 bytes) and nonce (16 bytes); opaque to the kernel. */
#define DMDST_SESSION_LEN	32
/* Slots a node can have, and so links. */
#define DMDST_SLOTS_MAX		32
/* Bytes of an incarnation; opaque to the kernel, which compares them. */
#define DMDST_INCARNATION_MAX	64
/* Of a latency: up to 1, 2, 4 ... 2^24 microseconds, and the rest. */
#define DMDST_LATENCY_BUCKETS	26
/* For QUIESCE and TIMEOUT. */
#define DMDST_NEVER		0xffffffffU

enum dmdst_cmd {
	DMDST_CMD_UNSPEC,
	DMDST_CMD_NODE_GET,	/* do: one node; dump: all */
	DMDST_CMD_NODE_SET,
	DMDST_CMD_LINKS_SET,
	DMDST_CMD_LINKS_DROP,
	DMDST_CMD_FAIL_PENDING,
	DMDST_CMD_NODE_EVENT,	/* kernel to user, group "events" */
	DMDST_CMD_LINK_EVENT,	/* kernel to user, group "events" */
	DMDST_CMD_FENCED,
	DMDST_CMD_FENCE_EVENT,	/* kernel to user, group "events" */
	DMDST_CMD_DATA_LOST_EVENT, /* kernel to user, group "events" */

	__DMDST_CMD_MAX,
	DMDST_CMD_MAX = __DMDST_CMD_MAX - 1,
};

enum dmdst_node_state {
	DMDST_NODE_WAITING,	/* never live yet; I/O queues */
	DMDST_NODE_LIVE,	/* every wanted link is live */
	DMDST_NODE_DEGRADED,	/* some links are live */
	DMDST_NODE_LOST,	/* no link is live; the policy runs */
	DMDST_NODE_FAILED,	/* the policy has expired */
	DMDST_NODE_MISMATCH,	/* the export doesn't fit its extents */
};

enum dmdst_link_state {
	DMDST_LINK_LIVE,	/* takes requests */
	DMDST_LINK_DRAINING,	/* takes none; read until all are answered */
	DMDST_LINK_LOST,	/* broken; its requests are being moved on */
	DMDST_LINK_GONE,	/* the socket is released (events only) */
};

/* What I/O does while its node has no live link. */
enum dmdst_policy {
	DMDST_POLICY_QUEUE,	/* waits, for ever */
	DMDST_POLICY_QUEUE_FOR,	/* waits POLICY_MS from the loss of the last link */
	DMDST_POLICY_ERROR,	/* fails */
};

/* A server that doesn't say who it is, after a link was lost. */
enum dmdst_restart {
	DMDST_RESTART_TRUST,	/* is the one it was, its cache whole */
	DMDST_RESTART_EIO,	/* may have lost what was not flushed */
};

enum dmdst_attr {
	DMDST_A_UNSPEC,
	DMDST_A_PAD,
	DMDST_A_NODE,		/* string: the node's name */
	DMDST_A_STATE,		/* u32: enum dmdst_node_state */
	DMDST_A_REASON,		/* string: why, one line */
	DMDST_A_SESSION,	/* binary, DMDST_SESSION_LEN bytes */
	DMDST_A_SIZE,		/* u64, bytes: the export's size */
	DMDST_A_FLAGS,		/* u32: NBD transmission flags */
	DMDST_A_MIN_BLOCK,	/* u32, bytes: the server's minimum block */
	DMDST_A_PREF_BLOCK,	/* u32, bytes: the server's preferred block */
	DMDST_A_MAX_PAYLOAD,	/* u32, bytes: largest READ or WRITE */
	DMDST_A_WANTED,		/* u32: links the node should have */
	DMDST_A_ZERO_COPY,	/* u8: 1 = splice pages, 0 = copy */
	DMDST_A_LIVE,		/* u32: links that are live */
	DMDST_A_IN_FLIGHT,	/* u32: requests on links */
	DMDST_A_QUEUED,		/* u32: requests waiting for a link */
	DMDST_A_ERRORS,		/* u64: requests that ended in an error */
	DMDST_A_RECONNECTS,	/* u64: links that came after the first loss */
	DMDST_A_GENERATION,	/* u32: the newest link generation */
	DMDST_A_NEED_SIZE,	/* u64, bytes: end of the furthest extent */
	DMDST_A_NEED_BLOCK,	/* u32, bytes: smallest block_size of its lines */
	DMDST_A_NEED_WRITE,	/* u8: 1 if a writable line uses the node */
	DMDST_A_LINK,		/* nest, repeated: enum dmdst_link_attr */
	DMDST_A_FORCE,		/* flag: cut the links, don't drain them */
	DMDST_A_WRITES,		/* u64: acknowledged and not yet known durable: 0 = clean */
	DMDST_A_POLICY,		/* u32: enum dmdst_policy */
	DMDST_A_POLICY_MS,	/* u32, ms: for QUEUE_FOR */
	DMDST_A_QUIESCE,	/* u32, ms: DMDST_NEVER = only a proof fences */
	DMDST_A_EOF_FENCES,	/* u8: 1 = end of file proves that a link's writes are done */
	DMDST_A_UNKNOWN_RESTART, /* u32: enum dmdst_restart */
	DMDST_A_TIMEOUT,	/* u32, ms: for a request without progress */
	DMDST_A_INCARNATION,	/* binary, up to DMDST_INCARNATION_MAX bytes */
	DMDST_A_AMBIGUOUS,	/* u32: ranges that an old link may still write */
	DMDST_A_BARRED,		/* u32: requests that wait for a fence */
	DMDST_A_UNFENCED,	/* nest, repeated: enum dmdst_link_attr, of old links */
	DMDST_A_READ_LATENCY,	/* nest: enum dmdst_latency_attr, of READs */
	DMDST_A_WRITE_LATENCY,	/* nest: enum dmdst_latency_attr, of WRITEs */
	DMDST_A_MERGED,		/* u64: requests sent in another's wire request */
	DMDST_A_QUEUE_WAITS,	/* u64: waits for a link, a fence or pages, so far */
	DMDST_A_QUEUE_NS,	/* u64: how long those took, that go on included */

	__DMDST_A_MAX,
	DMDST_A_MAX = __DMDST_A_MAX - 1,
};

enum dmdst_link_attr {
	DMDST_LA_UNSPEC,
	DMDST_LA_PAD,
	DMDST_LA_SLOT,		/* u32: 0 .. DMDST_SLOTS_MAX - 1 */
	DMDST_LA_FD,		/* s32: a connected stream socket */
	DMDST_LA_GENERATION,	/* u32: above every earlier one of the node */
	DMDST_LA_STATE,		/* u32: enum dmdst_link_state */
	DMDST_LA_ERRNO,		/* u32: positive errno of the loss, 0 if none */
	DMDST_LA_REASON,	/* string: why the link was lost */
	DMDST_LA_IN_FLIGHT,	/* u32 */
	DMDST_LA_SENT,		/* u64, bytes */
	DMDST_LA_RECEIVED,	/* u64, bytes */
	DMDST_LA_AMBIGUOUS,	/* u32: ranges it may still write; 0 = fenced */
	DMDST_LA_MERGED,	/* u32: older links that this entry stands for, too */
	DMDST_LA_QUIET_IN,	/* u32, ms: until it is taken as fenced; absent: not counted yet */

	__DMDST_LA_MAX,
	DMDST_LA_MAX = __DMDST_LA_MAX - 1,
};

/* From when a request is gathered to be sent until it is answered. */
enum dmdst_latency_attr {
	DMDST_LAT_UNSPEC,
	DMDST_LAT_PAD,
	DMDST_LAT_SUM,		/* u64, ns: of all requests together */
	DMDST_LAT_COUNTS,	/* binary, a u64 for each bucket; the last has no bound */

	__DMDST_LAT_MAX,
	DMDST_LAT_MAX = __DMDST_LAT_MAX - 1,
};

#endif /* _UAPI_LINUX_DM_DST_H */
