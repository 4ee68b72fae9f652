// SPDX-License-Identifier: GPL-2.0-only
/*
 * Incarnations: whether the links that come to a node lead to the thing that
 * acknowledged its writes, and what follows if not. Called by node.c, before
 * links come up; flush.c then tells the devices. Never brings a link up.
 */
#include "dm-dst.h"

/* Do the links to come lead to another thing than what acknowledged our writes? */
enum dmdst_birth { DMDST_BIRTH_NONE, DMDST_BIRTH_FEARED, DMDST_BIRTH_SURE };

static enum dmdst_birth dmdst_birth_of(struct dmdst_node *node,
				       const struct dmdst_export *export,
				       const struct dmdst_incarnation *now)
{
	const struct dmdst_incarnation *was = &node->incarnation;

	lockdep_assert_held(&node->conf);
	if (was->len && (was->len != now->len || memcmp(was->id, now->id, now->len)))
		return DMDST_BIRTH_SURE;
	/* There is no FLUSH any more: what one was still due for, none makes durable. */
	if (node->export.flags & ~export->flags & NBDW_SEND_FLUSH)
		return DMDST_BIRTH_FEARED;
	/* Nothing is lost with a link that was drained: but who is there now? */
	if (!was->len && node->conduct.unknown_restart == DMDST_RESTART_EIO &&
	    (READ_ONCE(node->suspect) || !READ_ONCE(node->nr_live)))
		return DMDST_BIRTH_FEARED;
	return DMDST_BIRTH_NONE;
}

/*
 * The links to come lead to another incarnation. What the old ones say is
 * void if that is sure. If it is only feared, what those that go on say is of
 * the new one; of the others, in @leaving slots or not live, it isn't.
 */
static void dmdst_birth_begin(struct dmdst_node *node, enum dmdst_birth how,
			      const struct dmdst_export *export, u32 leaving)
{
	struct dmdst_link *link;

	lockdep_assert_held(&node->conf);
	spin_lock(&node->lock);
	WRITE_ONCE(node->flush.birth, node->flush.birth + 1);
	list_for_each_entry(link, &node->links, list) {
		if (how == DMDST_BIRTH_SURE) {
			WRITE_ONCE(link->disbelieve, true);
			dmdst_link_cut(link, "the server is another incarnation now");
		} else if (READ_ONCE(link->state) == DMDST_LINK_LIVE &&
			   !(leaving & BIT(link->slot))) {
			dmdst_link_set_birth(link, node->flush.birth,
					     export->flags & NBDW_SEND_FLUSH);
		}
	}
	spin_unlock(&node->lock);
	/* First: what is lost counts as covered after that. */
	dmdst_flush_redo(node);
	dmdst_flush_lost(node);
}

/*
 * Before links come up, of which @export and @now are known, in place of all in
 * @leaving slots.
 */
void dmdst_birth_check(struct dmdst_node *node, const struct dmdst_export *export,
		       const struct dmdst_incarnation *now, u32 leaving)
{
	enum dmdst_birth birth = dmdst_birth_of(node, export, now);

	if (birth != DMDST_BIRTH_NONE)
		dmdst_birth_begin(node, birth, export, leaving);
}
