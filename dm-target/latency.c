// SPDX-License-Identifier: GPL-2.0-only
/*
 * A node's latency: what its links have counted (recv.c), those that are gone
 * included, and how netlink.c tells it. Counters are a link's own, so that
 * who receives on one shares no cache line with another; they are added up when
 * somebody asks. And its queue time: how long requests waited outside of links
 * (req.c). Never called for a request that waits for nothing.
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

void dmdst_waits_init(struct dmdst_waits *waits)
{
	spin_lock_init(&waits->lock);
}

static void dmdst_waits_advance(struct dmdst_waits *waits)
{
	u64 now = ktime_get_ns();

	lockdep_assert_held(&waits->lock);
	waits->ns += waits->nr * (now - waits->at);
	waits->at = now;
}

/* A request begins to wait, or ends. */
void dmdst_waits_count(struct dmdst_waits *waits, bool begins)
{
	unsigned long flags;

	spin_lock_irqsave(&waits->lock, flags);
	dmdst_waits_advance(waits);
	if (begins) {
		waits->nr++;
		waits->count++;
	} else {
		waits->nr--;
	}
	spin_unlock_irqrestore(&waits->lock, flags);
}

/* The time goes on while requests wait: an outage is seen while it lasts. */
int dmdst_waits_put(struct sk_buff *msg, struct dmdst_waits *waits)
{
	unsigned long flags;
	u64 count, ns;

	spin_lock_irqsave(&waits->lock, flags);
	dmdst_waits_advance(waits);
	count = waits->count;
	ns = waits->ns;
	spin_unlock_irqrestore(&waits->lock, flags);
	if (nla_put_u64_64bit(msg, DMDST_A_QUEUE_WAITS, count, DMDST_A_PAD) ||
	    nla_put_u64_64bit(msg, DMDST_A_QUEUE_NS, ns, DMDST_A_PAD))
		return -EMSGSIZE;
	return 0;
}
