// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who uses a node: the table lines that name it, what they need of its
 * export, and the places of their devices, which outlive a table. Called by
 * table.c (a line comes or goes), netlink.c (does the export fit?) and node.c.
 * Never touches links or requests.
 */
#include <linux/slab.h>
#include "dm-dst.h"

/* ---- does the export fit the lines that use it? ---- */

static bool dmdst_use_fits(const struct dmdst_use *use,
			   const struct dmdst_export *export, char *reason)
{
	const struct dmdst_target *t = use->target;

	if (export->size < use->need_size)
		snprintf(reason, DMDST_REASON_MAX,
			 "the export has %llu bytes, its extents need %llu",
			 export->size, use->need_size);
	else if (export->min_block > t->block_size)
		snprintf(reason, DMDST_REASON_MAX,
			 "the export's minimum block is %u bytes, the line's block_size %u",
			 export->min_block, t->block_size);
	else if (export->max_payload < t->block_size)
		snprintf(reason, DMDST_REASON_MAX,
			 "the export takes %u bytes at most, the line's block_size is %u",
			 export->max_payload, t->block_size);
	else if (export->flags & NBDW_READ_ONLY && !t->read_only)
		snprintf(reason, DMDST_REASON_MAX,
			 "the export is read-only, the line lacks read_only");
	else
		return true;
	return false;
}

bool dmdst_node_fits(struct dmdst_node *node, const struct dmdst_export *export,
		     char *reason)
{
	struct dmdst_use *use;

	lockdep_assert_held(&node->conf);
	list_for_each_entry(use, &node->uses, list)
		if (!dmdst_use_fits(use, export, reason))
			return false;
	return true;
}

/*
 * A device that is new to the node has nothing to be told of; lines of one
 * that isn't, in its old table or this one, share what it was told.
 */
static struct dmdst_seat *dmdst_seat_take(struct dmdst_node *node,
					  const struct mapped_device *md)
{
	struct dmdst_seat *seat;

	lockdep_assert_held(&node->conf);
	list_for_each_entry(seat, &node->seats, list)
		if (seat->md == md) {
			seat->uses++;
			return seat;
		}
	seat = kzalloc(sizeof(*seat), GFP_NOIO);
	if (!seat)
		return NULL;
	seat->md = md;
	seat->uses = 1;
	seat->told = READ_ONCE(node->flush.seq.lost);
	list_add_tail(&seat->list, &node->seats);
	return seat;
}

static void dmdst_seat_leave(struct dmdst_seat *seat)
{
	if (!seat || --seat->uses)
		return;
	list_del(&seat->list);
	kfree(seat);
}

/* A use of a node that is live must fit it; else the node finds out later. */
int dmdst_node_add_use(struct dmdst_use *use, char *reason)
{
	struct dmdst_node *node = use->node;
	int ret = 0;

	mutex_lock(&node->conf);
	use->seat = dmdst_seat_take(node, dm_table_get_md(use->target->ti->table));
	use->sync.seat = use->seat;
	if (!use->seat) {
		strscpy(reason, "out of memory", DMDST_REASON_MAX);
		ret = -ENOMEM;
	} else if (READ_ONCE(node->nr_live) &&
		   !dmdst_use_fits(use, &node->export, reason)) {
		ret = -EINVAL;
	} else {
		use->not_yet_live = !node->ever_live;
		if (use->not_yet_live)
			atomic_inc(&use->target->not_yet_live);
		list_add_tail(&use->list, &node->uses);
	}
	mutex_unlock(&node->conf);
	return ret;
}

void dmdst_node_del_use(struct dmdst_use *use)
{
	mutex_lock(&use->node->conf);
	list_del_init(&use->list);
	dmdst_seat_leave(use->seat);
	mutex_unlock(&use->node->conf);
}

struct dmdst_need dmdst_node_need(struct dmdst_node *node)
{
	struct dmdst_need need = { };
	struct dmdst_use *use;

	lockdep_assert_held(&node->conf);
	list_for_each_entry(use, &node->uses, list) {
		need.size = max(need.size, use->need_size);
		if (!need.block || use->target->block_size < need.block)
			need.block = use->target->block_size;
		need.write |= !use->target->read_only;
	}
	return need;
}

/* The export doesn't fit. A node with live links goes on with them. */
void dmdst_node_refuse(struct dmdst_node *node, const char *reason)
{
	bool changed = false;

	DMWARN("node %s: mismatch: %s", node->name, reason);
	spin_lock(&node->lock);
	if (!node->nr_live)
		changed = dmdst_node_set_state(node, DMDST_NODE_MISMATCH, reason);
	spin_unlock(&node->lock);
	if (changed)
		dmdst_netlink_node_event(node);
}

/* Live for the first time. */
void dmdst_node_tell_uses(struct dmdst_node *node)
{
	struct dmdst_use *use;

	lockdep_assert_held(&node->conf);
	list_for_each_entry(use, &node->uses, list) {
		if (!use->not_yet_live)
			continue;
		use->not_yet_live = false;
		dmdst_target_node_is_live(use->target);
	}
}
