// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink family "dm-dst": how dstd sees nodes and hands over
 * sockets; how it hears of losses is event.c's. Checks privilege and every attribute, says in
 * an extack text why it refuses, and changes nothing when it does. Never
 * waits for I/O or for a link to end. Spec: docs/netlink/dm-dst.yaml.
 */
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <net/genetlink.h>
#include "compat/compat.h"
#include "dm-dst.h"

/* A node with all its links, as many that still drain, and all old ones. */
#define DMDST_NODE_MSG_SIZE	12288

/* ---- checks ---- */

static int dmdst_nl_allowed(struct sk_buff *skb, struct netlink_ext_ack *extack)
{
	if (netlink_capable(skb, CAP_SYS_ADMIN))
		return 0;
	NL_SET_ERR_MSG(extack, "CAP_SYS_ADMIN in the initial user namespace is needed");
	return -EPERM;
}

/* @text is not copied: a constant of this module. */
static void dmdst_nl_text(struct netlink_ext_ack *extack, const char *text)
{
	if (extack)
		extack->_msg = text;
}

/* The node that the request names, with a reference. */
static struct dmdst_node *dmdst_nl_node(struct sk_buff *skb, struct genl_info *info)
{
	char name[DMDST_NAME_MAX + 1];
	struct dmdst_node *node;
	int ret;

	ret = dmdst_nl_allowed(skb, info->extack);
	if (ret)
		return ERR_PTR(ret);
	if (!info->attrs[DMDST_A_NODE]) {
		GENL_SET_ERR_MSG(info, "which node? (NODE is missing)");
		return ERR_PTR(-EINVAL);
	}
	nla_strscpy(name, info->attrs[DMDST_A_NODE], sizeof(name));
	node = dmdst_node_get(name, false);
	if (!node) {
		GENL_SET_ERR_MSG(info, "no table names this node");
		return ERR_PTR(-ENOENT);
	}
	return node;
}

static int dmdst_nl_wanted(struct genl_info *info, u32 *wanted)
{
	struct nlattr *attr = info->attrs[DMDST_A_WANTED];

	if (!attr) {
		GENL_SET_ERR_MSG(info, "WANTED is missing");
		return -EINVAL;
	}
	*wanted = nla_get_u32(attr);
	if (!*wanted || *wanted > DMDST_SLOTS_MAX) {
		NL_SET_ERR_MSG_ATTR(info->extack, attr, "a node has 1 to 32 links");
		return -ERANGE;
	}
	return 0;
}

/* ---- answers ---- */

static int dmdst_put_u64(struct sk_buff *msg, int type, u64 value)
{
	return nla_put_u64_64bit(msg, type, value, DMDST_A_PAD);
}

static int dmdst_put_link(struct sk_buff *msg, struct dmdst_link *link)
{
	struct nlattr *nest = nla_nest_start(msg, DMDST_A_LINK);

	if (!nest)
		return -EMSGSIZE;
	if (nla_put_u32(msg, DMDST_LA_SLOT, link->slot) ||
	    nla_put_u32(msg, DMDST_LA_GENERATION, link->generation) ||
	    nla_put_u32(msg, DMDST_LA_STATE, READ_ONCE(link->state)) ||
	    nla_put_u32(msg, DMDST_LA_IN_FLIGHT, dmdst_link_in_flight(link)) ||
	    nla_put_u64_64bit(msg, DMDST_LA_SENT, READ_ONCE(link->tx.sent),
			      DMDST_LA_PAD) ||
	    nla_put_u64_64bit(msg, DMDST_LA_RECEIVED, READ_ONCE(link->rx.received),
			      DMDST_LA_PAD))
		return -EMSGSIZE;
	nla_nest_end(msg, nest);
	return 0;
}

static int dmdst_put_export(struct sk_buff *msg, const struct dmdst_export *export)
{
	if (dmdst_put_u64(msg, DMDST_A_SIZE, export->size) ||
	    nla_put_u32(msg, DMDST_A_FLAGS, export->flags) ||
	    nla_put_u32(msg, DMDST_A_MIN_BLOCK, export->min_block) ||
	    nla_put_u32(msg, DMDST_A_PREF_BLOCK, export->pref_block) ||
	    nla_put_u32(msg, DMDST_A_MAX_PAYLOAD, export->max_payload) ||
	    nla_put_u8(msg, DMDST_A_ZERO_COPY, export->zero_copy))
		return -EMSGSIZE;
	return 0;
}

static int dmdst_put_counters(struct sk_buff *msg, struct dmdst_node *node)
{
	if (nla_put_u32(msg, DMDST_A_IN_FLIGHT, atomic_read(&node->on_link)) ||
	    nla_put_u32(msg, DMDST_A_QUEUED, atomic_read(&node->queued)) ||
	    dmdst_put_u64(msg, DMDST_A_ERRORS, atomic64_read(&node->errors)) ||
	    dmdst_put_u64(msg, DMDST_A_MERGED, atomic64_read(&node->merged)) ||
	    dmdst_put_u64(msg, DMDST_A_WRITES, dmdst_flush_dirty(node)) ||
	    nla_put_u32(msg, DMDST_A_AMBIGUOUS, dmdst_fence_ambiguous(node, NULL)) ||
	    nla_put_u32(msg, DMDST_A_BARRED, atomic_read(&node->waiting)) ||
	    dmdst_waits_put(msg, &node->waits))
		return -EMSGSIZE;
	return 0;
}

/* The old link that has @number; the fences are locked. */
static int dmdst_put_old_link(struct sk_buff *msg, struct dmdst_node *node,
			      unsigned int number)
{
	const struct dmdst_guards *guards = &node->fences->guards;
	const struct dmdst_old_link *old = &guards->old[number];
	struct nlattr *nest = nla_nest_start(msg, DMDST_A_UNFENCED);
	unsigned long end = old->heard_at + msecs_to_jiffies(node->conduct.quiesce);

	lockdep_assert_held(&node->fences->lock);
	if (!nest || nla_put_u32(msg, DMDST_LA_SLOT, old->slot) ||
	    nla_put_u32(msg, DMDST_LA_GENERATION, old->generation) ||
	    nla_put_u32(msg, DMDST_LA_AMBIGUOUS,
			dmdst_guards_count(guards, BIT_ULL(number))) ||
	    nla_put_u32(msg, DMDST_LA_MERGED, old->merged))
		return -EMSGSIZE;
	if (old->heard && node->conduct.quiesce != DMDST_NEVER &&
	    nla_put_u32(msg, DMDST_LA_QUIET_IN,
			time_before(jiffies, end) ? jiffies_to_msecs(end - jiffies) : 0))
		return -EMSGSIZE;
	nla_nest_end(msg, nest);
	return 0;
}

static int dmdst_put_old_links(struct sk_buff *msg, struct dmdst_node *node)
{
	struct dmdst_fences *fences = node->fences;
	unsigned int i;
	int ret = 0;

	spin_lock_bh(&fences->lock);
	for (i = 0; i < DMDST_OLD_LINKS && !ret; i++)
		if (fences->guards.old_used & BIT_ULL(i))
			ret = dmdst_put_old_link(msg, node, i);
	spin_unlock_bh(&fences->lock);
	return ret;
}

static int dmdst_put_conduct(struct sk_buff *msg, const struct dmdst_conduct *conduct)
{
	if (nla_put_u32(msg, DMDST_A_POLICY, conduct->policy) ||
	    nla_put_u32(msg, DMDST_A_POLICY_MS, conduct->queue_for) ||
	    nla_put_u32(msg, DMDST_A_QUIESCE, conduct->quiesce) ||
	    nla_put_u8(msg, DMDST_A_EOF_FENCES, conduct->eof_fences) ||
	    nla_put_u32(msg, DMDST_A_UNKNOWN_RESTART, conduct->unknown_restart) ||
	    nla_put_u32(msg, DMDST_A_TIMEOUT, conduct->timeout))
		return -EMSGSIZE;
	return 0;
}

static int dmdst_put_state(struct sk_buff *msg, struct dmdst_node *node)
{
	struct dmdst_link *link;

	lockdep_assert_held(&node->lock);
	if (nla_put_u32(msg, DMDST_A_STATE, node->state) ||
	    nla_put_u32(msg, DMDST_A_WANTED, node->wanted) ||
	    nla_put_u32(msg, DMDST_A_LIVE, node->nr_live) ||
	    dmdst_put_u64(msg, DMDST_A_RECONNECTS, node->reconnects))
		return -EMSGSIZE;
	if (node->reason[0] && nla_put_string(msg, DMDST_A_REASON, node->reason))
		return -EMSGSIZE;
	if (node->export.max_payload && dmdst_put_export(msg, &node->export))
		return -EMSGSIZE;
	list_for_each_entry(link, &node->links, list)
		if (dmdst_put_link(msg, link))
			return -EMSGSIZE;
	return dmdst_latency_put(msg, node);
}

static int dmdst_put_conf(struct sk_buff *msg, struct dmdst_node *node)
{
	struct dmdst_need need;

	lockdep_assert_held(&node->conf);
	need = dmdst_node_need(node);
	if (nla_put_u32(msg, DMDST_A_GENERATION, node->generation) ||
	    dmdst_put_u64(msg, DMDST_A_NEED_SIZE, need.size) ||
	    nla_put_u32(msg, DMDST_A_NEED_BLOCK, need.block) ||
	    nla_put_u8(msg, DMDST_A_NEED_WRITE, need.write))
		return -EMSGSIZE;
	if (node->has_session &&
	    nla_put(msg, DMDST_A_SESSION, DMDST_SESSION_LEN, node->session))
		return -EMSGSIZE;
	if (node->incarnation.len &&
	    nla_put(msg, DMDST_A_INCARNATION, node->incarnation.len, node->incarnation.id))
		return -EMSGSIZE;
	return dmdst_put_conduct(msg, &node->conduct);
}

/* Everything NODE_GET says of a node. */
static int dmdst_put_node(struct sk_buff *msg, struct dmdst_node *node,
			  u32 portid, u32 seq, struct netlink_callback *dump)
{
	void *hdr = genlmsg_put(msg, portid, seq, &dmdst_family,
				dump ? NLM_F_MULTI : 0, DMDST_CMD_NODE_GET);
	int ret;

	lockdep_assert_held(&node->conf);
	if (!hdr)
		return -EMSGSIZE;
	if (dump)
		genl_dump_check_consistent(dump, hdr);
	ret = nla_put_string(msg, DMDST_A_NODE, node->name);
	if (!ret)
		ret = dmdst_put_conf(msg, node);
	if (!ret)
		ret = dmdst_put_counters(msg, node);
	if (!ret) {
		spin_lock(&node->lock);
		ret = dmdst_put_state(msg, node);
		spin_unlock(&node->lock);
	}
	if (!ret)
		ret = dmdst_put_old_links(msg, node);
	if (ret) {
		genlmsg_cancel(msg, hdr);
		return ret;
	}
	genlmsg_end(msg, hdr);
	return 0;
}

static int dmdst_nl_reply_node(struct genl_info *info, struct dmdst_node *node)
{
	/* Under node->conf, which the links that reclaim waits for need. */
	struct sk_buff *msg = nlmsg_new(DMDST_NODE_MSG_SIZE, GFP_NOIO);
	int ret;

	lockdep_assert_held(&node->conf);
	if (!msg)
		return -ENOMEM;
	ret = dmdst_put_node(msg, node, info->snd_portid, info->snd_seq, NULL);
	if (ret) {
		nlmsg_free(msg);
		return ret;
	}
	return genlmsg_reply(msg, info);
}

/* ---- commands ---- */

static int dmdst_nl_node_get(struct sk_buff *skb, struct genl_info *info)
{
	struct dmdst_node *node = dmdst_nl_node(skb, info);
	int ret;

	if (IS_ERR(node))
		return PTR_ERR(node);
	mutex_lock(&node->conf);
	ret = dmdst_nl_reply_node(info, node);
	mutex_unlock(&node->conf);
	dmdst_node_put(node);
	return ret;
}

/* A message without room for one node would end the dump. */
static int dmdst_nl_node_dump_start(struct netlink_callback *cb)
{
	cb->min_dump_alloc = DMDST_NODE_MSG_SIZE;
	return 0;
}

static int dmdst_nl_node_dump(struct sk_buff *msg, struct netlink_callback *cb)
{
	unsigned long start = cb->args[0];
	struct dmdst_node *node;
	int ret;

	ret = dmdst_nl_allowed(cb->skb, cb->extack);
	if (ret)
		return ret;
	cb->seq = dmdst_nodes_seq();
	while ((node = dmdst_node_nth(cb->args[0]))) {
		mutex_lock(&node->conf);
		ret = dmdst_put_node(msg, node, NETLINK_CB(cb->skb).portid,
				     cb->nlh->nlmsg_seq, cb);
		mutex_unlock(&node->conf);
		dmdst_node_put(node);
		if (ret)
			return cb->args[0] == start ? ret : msg->len;
		cb->args[0]++;
	}
	return msg->len;
}

/* What the request changes of @conduct. True: something. */
static bool dmdst_nl_conduct(struct genl_info *info, struct dmdst_conduct *conduct)
{
	struct nlattr **a = info->attrs;

	if (a[DMDST_A_POLICY])
		conduct->policy = nla_get_u32(a[DMDST_A_POLICY]);
	if (a[DMDST_A_POLICY_MS])
		conduct->queue_for = nla_get_u32(a[DMDST_A_POLICY_MS]);
	if (a[DMDST_A_QUIESCE])
		conduct->quiesce = nla_get_u32(a[DMDST_A_QUIESCE]);
	if (a[DMDST_A_EOF_FENCES])
		conduct->eof_fences = nla_get_u8(a[DMDST_A_EOF_FENCES]);
	if (a[DMDST_A_UNKNOWN_RESTART])
		conduct->unknown_restart = nla_get_u32(a[DMDST_A_UNKNOWN_RESTART]);
	if (a[DMDST_A_TIMEOUT])
		conduct->timeout = nla_get_u32(a[DMDST_A_TIMEOUT]);
	return a[DMDST_A_POLICY] || a[DMDST_A_POLICY_MS] || a[DMDST_A_QUIESCE] ||
	       a[DMDST_A_EOF_FENCES] || a[DMDST_A_UNKNOWN_RESTART] || a[DMDST_A_TIMEOUT];
}

/* WANTED may be left out where something else is set. */
static int dmdst_nl_do_node_set(struct dmdst_node *node, struct genl_info *info)
{
	struct dmdst_conduct conduct = node->conduct;
	bool conducts = dmdst_nl_conduct(info, &conduct);
	u32 wanted = node->wanted;
	int ret = 0;

	lockdep_assert_held(&node->conf);
	if (info->attrs[DMDST_A_WANTED] || !conducts)
		ret = dmdst_nl_wanted(info, &wanted);
	if (!ret && wanted > 1 && node->ever_live &&
	    !(node->export.flags & NBDW_CAN_MULTI_CONN)) {
		GENL_SET_ERR_MSG(info, "the server doesn't allow more than one link");
		ret = -EOPNOTSUPP;
	}
	if (ret)
		return ret;
	if (conducts)
		dmdst_node_set_conduct(node, &conduct);
	if (info->attrs[DMDST_A_WANTED])
		dmdst_node_set_wanted(node, wanted);
	/* It is set, whether or not the answer gets out. */
	dmdst_nl_reply_node(info, node);
	return 0;
}

static int dmdst_nl_node_set(struct sk_buff *skb, struct genl_info *info)
{
	struct dmdst_node *node = dmdst_nl_node(skb, info);
	int ret;

	if (IS_ERR(node))
		return PTR_ERR(node);
	mutex_lock(&node->conf);
	ret = dmdst_nl_do_node_set(node, info);
	mutex_unlock(&node->conf);
	dmdst_node_put(node);
	return ret;
}

static const struct nla_policy dmdst_link_policy[DMDST_LA_MAX + 1] = {
	[DMDST_LA_SLOT]		= NLA_POLICY_MAX(NLA_U32, DMDST_SLOTS_MAX - 1),
	[DMDST_LA_FD]		= { .type = NLA_S32 },
	[DMDST_LA_GENERATION]	= NLA_POLICY_MIN(NLA_U32, 1),
};

static int dmdst_nl_export(struct genl_info *info, struct dmdst_export *export)
{
	struct nlattr **a = info->attrs;
	u32 whole;

	if (!a[DMDST_A_SIZE] || !a[DMDST_A_FLAGS] || !a[DMDST_A_MIN_BLOCK] ||
	    !a[DMDST_A_PREF_BLOCK] || !a[DMDST_A_MAX_PAYLOAD] || !a[DMDST_A_ZERO_COPY]) {
		GENL_SET_ERR_MSG(info,
				 "one of SIZE, FLAGS, MIN_BLOCK, PREF_BLOCK, MAX_PAYLOAD, ZERO_COPY is missing");
		return -EINVAL;
	}
	export->size = nla_get_u64(a[DMDST_A_SIZE]);
	export->flags = nla_get_u32(a[DMDST_A_FLAGS]);
	export->min_block = nla_get_u32(a[DMDST_A_MIN_BLOCK]);
	export->pref_block = nla_get_u32(a[DMDST_A_PREF_BLOCK]);
	export->max_payload = nla_get_u32(a[DMDST_A_MAX_PAYLOAD]);
	export->zero_copy = nla_get_u8(a[DMDST_A_ZERO_COPY]);

	if (!(export->flags & NBDW_HAS_FLAGS)) {
		NL_SET_ERR_MSG_ATTR(info->extack, a[DMDST_A_FLAGS],
				    "transmission flags without HAS_FLAGS");
		return -EINVAL;
	}
	if (!is_power_of_2(export->min_block) || export->max_payload < SECTOR_SIZE) {
		GENL_SET_ERR_MSG(info,
				 "MIN_BLOCK must be a power of two, MAX_PAYLOAD at least 512");
		return -EINVAL;
	}
	/* Parts of a bio must end at a block, of any size that a line can have. */
	whole = export->max_payload >= PAGE_SIZE ? PAGE_SIZE : SECTOR_SIZE;
	whole = max(whole, export->min_block);
	export->max_payload = round_down(export->max_payload, whole);
	return 0;
}

static struct socket *dmdst_nl_socket(struct nlattr *attr,
				      struct netlink_ext_ack *extack)
{
	struct socket *sock;
	const char *why;
	int ret;

	sock = sockfd_lookup(nla_get_s32(attr), &ret);
	if (!sock) {
		why = ret == -ENOTSOCK ? "the descriptor is not a socket"
				       : "no such descriptor";
		goto refuse;
	}
	ret = dmdst_link_check_socket(sock, &why);
	if (!ret)
		return sock;
	sockfd_put(sock);
refuse:
	dmdst_nl_text(extack, why);
	NL_SET_BAD_ATTR(extack, attr);
	return ERR_PTR(ret);
}

/* One LINK nest: a link that is made, but not yet in the node. */
static struct dmdst_link *dmdst_nl_link(struct dmdst_node *node, struct nlattr *nest,
					u32 wanted, u32 *generation,
					struct netlink_ext_ack *extack)
{
	struct nlattr *a[DMDST_LA_MAX + 1];
	struct dmdst_link *link;
	struct socket *sock;
	const char *why;
	int ret;

	ret = nla_parse_nested(a, DMDST_LA_MAX, nest, dmdst_link_policy, extack);
	if (ret)
		return ERR_PTR(ret);
	if (!a[DMDST_LA_SLOT] || !a[DMDST_LA_FD] || !a[DMDST_LA_GENERATION]) {
		NL_SET_ERR_MSG_ATTR(extack, nest, "a link needs SLOT, FD and GENERATION");
		return ERR_PTR(-EINVAL);
	}
	if (nla_get_u32(a[DMDST_LA_SLOT]) >= wanted) {
		NL_SET_ERR_MSG_ATTR(extack, a[DMDST_LA_SLOT], "the slot is not below WANTED");
		return ERR_PTR(-ERANGE);
	}
	if (nla_get_u32(a[DMDST_LA_GENERATION]) <= *generation) {
		NL_SET_ERR_MSG_ATTR(extack, a[DMDST_LA_GENERATION],
				    "the generation is not above every earlier one");
		return ERR_PTR(-ESTALE);
	}
	sock = dmdst_nl_socket(a[DMDST_LA_FD], extack);
	if (IS_ERR(sock))
		return ERR_CAST(sock);

	*generation = nla_get_u32(a[DMDST_LA_GENERATION]);
	link = dmdst_link_create(node, sock, nla_get_u32(a[DMDST_LA_SLOT]),
				 *generation, &why);
	if (IS_ERR(link)) {
		dmdst_nl_text(extack, why);
		NL_SET_BAD_ATTR(extack, a[DMDST_LA_FD]);
		sockfd_put(sock);
	}
	return link;
}

static void dmdst_nl_discard(struct list_head *fresh)
{
	struct dmdst_link *link, *next;

	list_for_each_entry_safe(link, next, fresh, list) {
		struct socket *sock = link->sock;

		list_del_init(&link->list);
		dmdst_link_discard(link);
		sockfd_put(sock);
	}
}

/* All links of the request, or none. */
static int dmdst_nl_links(struct dmdst_node *node, struct genl_info *info,
			  u32 wanted, u32 *generation, struct list_head *fresh)
{
	struct dmdst_link *link;
	struct nlattr *nest;
	u32 slots = 0;
	int rem, ret = 0;

	nlmsg_for_each_attr(nest, info->nlhdr, GENL_HDRLEN, rem) {
		if (nla_type(nest) != DMDST_A_LINK)
			continue;
		link = dmdst_nl_link(node, nest, wanted, generation, info->extack);
		if (IS_ERR(link)) {
			ret = PTR_ERR(link);
			break;
		}
		list_add_tail(&link->list, fresh);
		if (slots & BIT(link->slot)) {
			NL_SET_ERR_MSG_ATTR(info->extack, nest, "the slot is named twice");
			ret = -EINVAL;
			break;
		}
		slots |= BIT(link->slot);
	}
	if (!ret && list_empty(fresh)) {
		GENL_SET_ERR_MSG(info, "no LINK: nothing to set");
		ret = -EINVAL;
	}
	if (ret)
		dmdst_nl_discard(fresh);
	return ret;
}

static int dmdst_nl_check_links_set(struct dmdst_node *node, struct genl_info *info,
				    struct dmdst_export *export, u32 *wanted)
{
	char reason[DMDST_REASON_MAX];
	int ret;

	ret = dmdst_nl_export(info, export);
	if (!ret)
		ret = dmdst_nl_wanted(info, wanted);
	if (ret)
		return ret;
	if (*wanted > 1 && !(export->flags & NBDW_CAN_MULTI_CONN)) {
		GENL_SET_ERR_MSG(info, "the server doesn't allow more than one link");
		return -EOPNOTSUPP;
	}
	if (READ_ONCE(node->dead)) {
		GENL_SET_ERR_MSG(info, "no table names this node");
		return -ENOENT;
	}
	if (!dmdst_node_fits(node, export, reason)) {
		dmdst_node_refuse(node, reason);
		DMDST_COMPAT_EXTACK_COPY(info->extack, reason,
					 "the export doesn't fit; NODE_GET has the reason");
		return -EMEDIUMTYPE;
	}
	return 0;
}

static int dmdst_nl_do_links_set(struct dmdst_node *node, struct genl_info *info)
{
	struct nlattr *session = info->attrs[DMDST_A_SESSION];
	struct nlattr *id = info->attrs[DMDST_A_INCARNATION];
	struct dmdst_incarnation incarnation = { };
	struct dmdst_export export = { };
	u32 generation = node->generation;
	LIST_HEAD(fresh);
	u32 wanted;
	int ret;

	lockdep_assert_held(&node->conf);
	ret = dmdst_nl_check_links_set(node, info, &export, &wanted);
	if (ret)
		return ret;
	if (dmdst_fences_grow(node->fences, wanted)) {
		GENL_SET_ERR_MSG(info, "no memory for the guards of so many links");
		return -ENOMEM;
	}
	ret = dmdst_nl_links(node, info, wanted, &generation, &fresh);
	if (ret)
		return ret;

	if (id)
		incarnation.len = nla_memcpy(incarnation.id, id, sizeof(incarnation.id));
	node->generation = generation;
	if (session) {
		nla_memcpy(node->session, session, sizeof(node->session));
		node->has_session = true;
	}
	dmdst_node_links_up(node, &fresh, &export, &incarnation, wanted);
	/* The links are in, whether or not the answer gets out. */
	dmdst_nl_reply_node(info, node);
	return 0;
}

static int dmdst_nl_links_set(struct sk_buff *skb, struct genl_info *info)
{
	struct dmdst_node *node = dmdst_nl_node(skb, info);
	unsigned int noio;
	int ret;

	if (IS_ERR(node))
		return PTR_ERR(node);
	/* Reclaim may wait for the very links that come in here. */
	noio = memalloc_noio_save();
	mutex_lock(&node->conf);
	ret = dmdst_nl_do_links_set(node, info);
	mutex_unlock(&node->conf);
	memalloc_noio_restore(noio);
	dmdst_node_put(node);
	return ret;
}

/* The slots that the LINK nests name; all where there is none. */
static int dmdst_nl_slots(struct genl_info *info, u32 *slots)
{
	struct nlattr *a[DMDST_LA_MAX + 1], *nest;
	int rem, ret;

	*slots = 0;
	nlmsg_for_each_attr(nest, info->nlhdr, GENL_HDRLEN, rem) {
		if (nla_type(nest) != DMDST_A_LINK)
			continue;
		ret = nla_parse_nested(a, DMDST_LA_MAX, nest, dmdst_link_policy,
				       info->extack);
		if (ret)
			return ret;
		if (!a[DMDST_LA_SLOT]) {
			NL_SET_ERR_MSG_ATTR(info->extack, nest, "which link? (SLOT is missing)");
			return -EINVAL;
		}
		*slots |= BIT(nla_get_u32(a[DMDST_LA_SLOT]));
	}
	if (!*slots)
		*slots = U32_MAX;
	return 0;
}

static int dmdst_nl_links_drop(struct sk_buff *skb, struct genl_info *info)
{
	struct dmdst_node *node = dmdst_nl_node(skb, info);
	u32 slots;
	int ret;

	if (IS_ERR(node))
		return PTR_ERR(node);
	mutex_lock(&node->conf);
	ret = dmdst_nl_slots(info, &slots);
	if (!ret)
		dmdst_node_drop_links(node, slots, info->attrs[DMDST_A_FORCE]);
	mutex_unlock(&node->conf);
	dmdst_node_put(node);
	return ret;
}

/* The old links that the request names, or with FORCE all. */
static int dmdst_nl_do_fenced(struct dmdst_node *node, struct genl_info *info)
{
	struct nlattr *session = info->attrs[DMDST_A_SESSION];
	struct nlattr *a[DMDST_LA_MAX + 1], *nest = info->attrs[DMDST_A_LINK];
	int ret;

	lockdep_assert_held(&node->conf);
	if (session && (!node->has_session ||
			memcmp(nla_data(session), node->session, DMDST_SESSION_LEN))) {
		NL_SET_ERR_MSG_ATTR(info->extack, session, "the links are of another session");
		return -ESTALE;
	}
	if (info->attrs[DMDST_A_FORCE]) {
		dmdst_fence_all(node);
		return 0;
	}
	if (!nest) {
		GENL_SET_ERR_MSG(info, "which old link? (LINK is missing, and FORCE)");
		return -EINVAL;
	}
	ret = nla_parse_nested(a, DMDST_LA_MAX, nest, dmdst_link_policy, info->extack);
	if (ret)
		return ret;
	if (!a[DMDST_LA_SLOT] || !a[DMDST_LA_GENERATION]) {
		NL_SET_ERR_MSG_ATTR(info->extack, nest, "a fence needs SLOT and GENERATION");
		return -EINVAL;
	}
	ret = dmdst_node_fenced(node, nla_get_u32(a[DMDST_LA_SLOT]),
				nla_get_u32(a[DMDST_LA_GENERATION]));
	if (ret)
		NL_SET_ERR_MSG_ATTR(info->extack, nest, "the node never had this link");
	return ret;
}

static int dmdst_nl_fenced(struct sk_buff *skb, struct genl_info *info)
{
	struct dmdst_node *node = dmdst_nl_node(skb, info);
	unsigned int noio;
	int ret;

	if (IS_ERR(node))
		return PTR_ERR(node);
	noio = memalloc_noio_save();
	mutex_lock(&node->conf);
	ret = dmdst_nl_do_fenced(node, info);
	/* It is done, whether or not the answer gets out. */
	if (!ret)
		dmdst_nl_reply_node(info, node);
	mutex_unlock(&node->conf);
	memalloc_noio_restore(noio);
	dmdst_node_put(node);
	return ret;
}

/* Without node->conf: it must work when everything else hangs. */
static int dmdst_nl_fail_pending(struct sk_buff *skb, struct genl_info *info)
{
	struct dmdst_node *node = dmdst_nl_node(skb, info);

	if (IS_ERR(node))
		return PTR_ERR(node);
	dmdst_node_fail_pending(node);
	dmdst_node_put(node);
	return 0;
}

/* ---- the family ---- */

static const struct genl_multicast_group dmdst_groups[] = {
	[DMDST_GROUP_EVENTS] = {
		.name	= DMDST_MCGRP_EVENTS,
		.flags	= GENL_MCAST_CAP_SYS_ADMIN,
	},
};

static const struct nla_policy dmdst_policy[DMDST_A_MAX + 1] = {
	[DMDST_A_NODE]		= { .type = NLA_NUL_STRING, .len = DMDST_NAME_MAX },
	[DMDST_A_SESSION]	= NLA_POLICY_EXACT_LEN(DMDST_SESSION_LEN),
	[DMDST_A_SIZE]		= { .type = NLA_U64 },
	[DMDST_A_FLAGS]		= { .type = NLA_U32 },
	[DMDST_A_MIN_BLOCK]	= { .type = NLA_U32 },
	[DMDST_A_PREF_BLOCK]	= { .type = NLA_U32 },
	[DMDST_A_MAX_PAYLOAD]	= { .type = NLA_U32 },
	[DMDST_A_WANTED]	= { .type = NLA_U32 },
	[DMDST_A_ZERO_COPY]	= NLA_POLICY_MAX(NLA_U8, 1),
	[DMDST_A_LINK]		= { .type = NLA_NESTED },
	[DMDST_A_FORCE]		= { .type = NLA_FLAG },
	[DMDST_A_POLICY]	= NLA_POLICY_MAX(NLA_U32, DMDST_POLICY_ERROR),
	[DMDST_A_POLICY_MS]	= { .type = NLA_U32 },
	[DMDST_A_QUIESCE]	= { .type = NLA_U32 },
	[DMDST_A_EOF_FENCES]	= NLA_POLICY_MAX(NLA_U8, 1),
	[DMDST_A_UNKNOWN_RESTART] = NLA_POLICY_MAX(NLA_U32, DMDST_RESTART_EIO),
	[DMDST_A_TIMEOUT]	= NLA_POLICY_MIN(NLA_U32, MSEC_PER_SEC),
	[DMDST_A_INCARNATION]	= { .type = NLA_BINARY, .len = DMDST_INCARNATION_MAX },
};

static const struct genl_ops dmdst_dump_ops[] = {
	{
		.cmd	= DMDST_CMD_NODE_GET,
		.doit	= dmdst_nl_node_get,
		.start	= dmdst_nl_node_dump_start,
		.dumpit	= dmdst_nl_node_dump,
	},
};

static const struct genl_small_ops dmdst_ops[] = {
	{ .cmd = DMDST_CMD_NODE_SET, .doit = dmdst_nl_node_set },
	{ .cmd = DMDST_CMD_LINKS_SET, .doit = dmdst_nl_links_set },
	{ .cmd = DMDST_CMD_LINKS_DROP, .doit = dmdst_nl_links_drop },
	{ .cmd = DMDST_CMD_FAIL_PENDING, .doit = dmdst_nl_fail_pending },
	{ .cmd = DMDST_CMD_FENCED, .doit = dmdst_nl_fenced },
};

struct genl_family dmdst_family __ro_after_init = {
	.name		= DMDST_FAMILY_NAME,
	.version	= DMDST_FAMILY_VERSION,
	.maxattr	= DMDST_A_MAX,
	.policy		= dmdst_policy,
	.module		= THIS_MODULE,
	.parallel_ops	= true,
	.ops		= dmdst_dump_ops,
	.n_ops		= ARRAY_SIZE(dmdst_dump_ops),
	.small_ops	= dmdst_ops,
	.n_small_ops	= ARRAY_SIZE(dmdst_ops),
	.resv_start_op	= DMDST_CMD_MAX + 1,
	.mcgrps		= dmdst_groups,
	.n_mcgrps	= ARRAY_SIZE(dmdst_groups),
};

int dmdst_netlink_init(void)
{
	return genl_register_family(&dmdst_family);
}

void dmdst_netlink_exit(void)
{
	genl_unregister_family(&dmdst_family);
}
