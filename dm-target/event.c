// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the family "dm-dst" tells its listeners unasked: states of nodes and
 * links, ambiguity and its end, lost data. Called by whoever changes them,
 * with no lock held. Never waits and never fails: an event can be lost.
 */
#include <net/genetlink.h>
#include "dm-dst.h"
#include "trace.h"

/* GFP_NOWAIT: a lost link may be what reclaim waits for. Listeners re-sync. */
static struct sk_buff *dmdst_event_begin(struct dmdst_node *node, u8 cmd, void **hdr)
{
	struct sk_buff *msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_NOWAIT);

	if (!msg)
		return NULL;
	*hdr = genlmsg_put(msg, 0, 0, &dmdst_family, 0, cmd);
	if (*hdr && !nla_put_string(msg, DMDST_A_NODE, node->name))
		return msg;
	nlmsg_free(msg);
	return NULL;
}

static void dmdst_event_end(struct sk_buff *msg, void *hdr, int error)
{
	if (error) {
		nlmsg_free(msg);
		return;
	}
	genlmsg_end(msg, hdr);
	genlmsg_multicast(&dmdst_family, msg, 0, DMDST_GROUP_EVENTS, GFP_NOWAIT);
}

/* Tells the state as it is now: events may run together, none is wrong. */
void dmdst_netlink_node_event(struct dmdst_node *node)
{
	char reason[DMDST_REASON_MAX];
	enum dmdst_node_state state;
	struct sk_buff *msg;
	void *hdr;
	int ret;

	spin_lock(&node->lock);
	state = node->state;
	strscpy(reason, node->reason, sizeof(reason));
	spin_unlock(&node->lock);
	DMINFO("node %s: %s%s%s", node->name, dmdst_node_state_name(state),
	       reason[0] ? ": " : "", reason);

	msg = dmdst_event_begin(node, DMDST_CMD_NODE_EVENT, &hdr);
	if (!msg)
		return;
	ret = nla_put_u32(msg, DMDST_A_STATE, state);
	if (!ret && reason[0])
		ret = nla_put_string(msg, DMDST_A_REASON, reason);
	dmdst_event_end(msg, hdr, ret);
}

void dmdst_netlink_link_event(struct dmdst_link *link,
			      enum dmdst_link_state state, int err, const char *why)
{
	struct nlattr *nest;
	struct sk_buff *msg;
	void *hdr;
	int ret;

	msg = dmdst_event_begin(link->node, DMDST_CMD_LINK_EVENT, &hdr);
	if (!msg)
		return;
	nest = nla_nest_start(msg, DMDST_A_LINK);
	ret = !nest || nla_put_u32(msg, DMDST_LA_SLOT, link->slot) ||
	      nla_put_u32(msg, DMDST_LA_GENERATION, link->generation) ||
	      nla_put_u32(msg, DMDST_LA_STATE, state) ||
	      (err && nla_put_u32(msg, DMDST_LA_ERRNO, err)) ||
	      (why && nla_put_string(msg, DMDST_LA_REASON, why));
	if (!ret)
		nla_nest_end(msg, nest);
	dmdst_event_end(msg, hdr, ret);
}

/* An old link has left @ambiguous ranges; or none any more, and why. */
void dmdst_netlink_fence_event(struct dmdst_node *node, u32 slot, u32 generation,
			       unsigned int ambiguous, const char *why)
{
	struct nlattr *nest;
	struct sk_buff *msg;
	void *hdr;
	int ret;

	trace_dmdst_fence(node, slot, generation, ambiguous, why);
	DMINFO("node %s: link %u generation %u: %u ranges ambiguous: %s", node->name,
	       slot, generation, ambiguous, why);
	msg = dmdst_event_begin(node, DMDST_CMD_FENCE_EVENT, &hdr);
	if (!msg)
		return;
	nest = nla_nest_start(msg, DMDST_A_UNFENCED);
	ret = !nest || nla_put_u32(msg, DMDST_LA_SLOT, slot) ||
	      nla_put_u32(msg, DMDST_LA_GENERATION, generation) ||
	      nla_put_u32(msg, DMDST_LA_AMBIGUOUS, ambiguous) ||
	      nla_put_string(msg, DMDST_LA_REASON, why);
	if (!ret)
		nla_nest_end(msg, nest);
	dmdst_event_end(msg, hdr, ret);
}

void dmdst_netlink_data_lost_event(struct dmdst_node *node, u64 writes)
{
	struct sk_buff *msg;
	void *hdr;

	msg = dmdst_event_begin(node, DMDST_CMD_DATA_LOST_EVENT, &hdr);
	if (msg)
		dmdst_event_end(msg, hdr,
				nla_put_u64_64bit(msg, DMDST_A_WRITES, writes, DMDST_A_PAD));
}
