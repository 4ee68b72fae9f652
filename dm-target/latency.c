// SPDX-License-Identifier: GPL-2.0-only
/*
 * A node's latency: what its links have counted (recv.c), those that are gone
 * included, and how netlink.c tells it. Counters are a link's own, so that
 * who receives on one shares no cache line with another; they are added up when
 * somebody asks. Never called for a request.
 */
#include <net/netlink.h>
#include "dm-dst.h"

static void dmdst_latencies_add(struct dmdst_latencies *to,
				const struct dmdst_latencies *from)
{
	dmdst_latency_add(&to->read, &from->read);
	dmdst_latency_add(&to->write, &from->write);
}

/* @link is gone, and with it what it counted. Nothing is received there any more. */
void dmdst_latency_keep(struct dmdst_link *link)
{
	lockdep_assert_held(&link->node->lock);
	dmdst_latencies_add(&link->node->latency, &link->latency);
}

static int dmdst_latency_put_one(struct sk_buff *msg, int type,
				 const struct dmdst_latency *latency)
{
	struct nlattr *nest = nla_nest_start(msg, type);

	if (!nest ||
	    nla_put_u64_64bit(msg, DMDST_LAT_SUM, latency->sum, DMDST_LAT_PAD) ||
	    nla_put_64bit(msg, DMDST_LAT_COUNTS, sizeof(latency->counts),
			  latency->counts, DMDST_LAT_PAD))
		return -EMSGSIZE;
	nla_nest_end(msg, nest);
	return 0;
}

int dmdst_latency_put(struct sk_buff *msg, struct dmdst_node *node)
{
	struct dmdst_latencies all = node->latency;
	struct dmdst_link *link;

	lockdep_assert_held(&node->lock);
	list_for_each_entry(link, &node->links, list) {
		spin_lock_bh(&link->lock);
		dmdst_latencies_add(&all, &link->latency);
		spin_unlock_bh(&link->lock);
	}
	if (dmdst_latency_put_one(msg, DMDST_A_READ_LATENCY, &all.read) ||
	    dmdst_latency_put_one(msg, DMDST_A_WRITE_LATENCY, &all.write))
		return -EMSGSIZE;
	return 0;
}
