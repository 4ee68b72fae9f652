/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The NBD transmission phase as dm-dst speaks it: simple replies, 28-byte
 * requests. Source: "Transmission phase" and "Values" in the NBD project's
 * doc/proto.md. The handshake is dstd's; nothing of it is here.
 */
#ifndef DMDST_NBD_WIRE_H
#define DMDST_NBD_WIRE_H

#include <linux/types.h>

#define NBDW_REQUEST_MAGIC	0x25609513
#define NBDW_REPLY_MAGIC	0x67446698

enum nbdw_cmd {
	NBDW_CMD_READ		= 0,
	NBDW_CMD_WRITE		= 1,
	NBDW_CMD_DISC		= 2,
	NBDW_CMD_FLUSH		= 3,
	NBDW_CMD_TRIM		= 4,
	NBDW_CMD_WRITE_ZEROES	= 6,
};

#define NBDW_CMDF_FUA		BIT(0)
#define NBDW_CMDF_NO_HOLE	BIT(1)

/* Transmission flags */
#define NBDW_HAS_FLAGS		BIT(0)
#define NBDW_READ_ONLY		BIT(1)
#define NBDW_SEND_FLUSH		BIT(2)
#define NBDW_SEND_FUA		BIT(3)
#define NBDW_SEND_TRIM		BIT(5)
#define NBDW_SEND_WRITE_ZEROES	BIT(6)
#define NBDW_CAN_MULTI_CONN	BIT(8)

/* Errors on the wire; they need not be this machine's errnos. */
enum nbdw_error {
	NBDW_EPERM	= 1,
	NBDW_EIO	= 5,
	NBDW_ENOMEM	= 12,
	NBDW_EINVAL	= 22,
	NBDW_ENOSPC	= 28,
	NBDW_EOVERFLOW	= 75,
	NBDW_ENOTSUP	= 95,
	NBDW_ESHUTDOWN	= 108,
};

struct nbdw_request {
	__be32 magic;
	__be16 flags;
	__be16 type;
	__be64 cookie;
	__be64 offset;
	__be32 length;
} __packed;

struct nbdw_reply {
	__be32 magic;
	__be32 error;
	__be64 cookie;
} __packed;

#endif /* DMDST_NBD_WIRE_H */
