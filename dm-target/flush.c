// SPDX-License-Identifier: GPL-2.0-only
/*
 * Acknowledged is not durable: counts a node's acknowledged writes and sends
 * it a FLUSH when somebody must know them durable. One FLUSH a node is under
 * way at a time, so its context is allocated with the node. Who asks while it
 * is under way waits for the next one, which all of them then share.
 * Called by target.c (flush bios), req.c (FUA on a server without it) and
 * node.c. Never decides which nodes a flush bio is about.
 */
#include "dm-dst.h"

void dmdst_flush_init(struct dmdst_node *node)
{
	struct dmdst_flush *flush = &node->flush;

	INIT_LIST_HEAD(&flush->waiting);
	INIT_LIST_HEAD(&flush->joined);
	atomic64_set(&flush->acked, 0);
	dmdst_req_init(&flush->req, node, NBDW_CMD_FLUSH);
	flush->req.state = DMDST_REQ_DONE;
}

/* A server without SEND_FLUSH is write-through: nothing to make durable. */
void dmdst_flush_note_write(struct dmdst_node *node, bool durable)
{
	if (!durable && READ_ONCE(node->export.flags) & NBDW_SEND_FLUSH)
		atomic64_inc(&node->flush.acked);
}

/* Writes acknowledged that no FLUSH has covered. */
u64 dmdst_flush_dirty(struct dmdst_node *node)
{
	u64 durable = READ_ONCE(node->flush.durable);

	return (u64)atomic64_read(&node->flush.acked) - durable;
}

bool dmdst_flush_is_clean(struct dmdst_node *node)
{
	return !dmdst_flush_dirty(node);
}

/* Returns true if the caller must submit flush->req, lock dropped. */
static bool dmdst_flush_begin(struct dmdst_node *node)
{
	struct dmdst_flush *flush = &node->flush;

	lockdep_assert_held(&node->lock);
	if (flush->busy || list_empty(&flush->waiting))
		return false;

	flush->busy = true;
	flush->covers = atomic64_read(&flush->acked);
	list_splice_tail_init(&flush->waiting, &flush->joined);
	dmdst_req_move(&flush->req, DMDST_REQ_HELD);
	return true;
}

static void dmdst_syncs_done(struct list_head *syncs, blk_status_t status)
{
	struct dmdst_sync *sync, *next;

	list_for_each_entry_safe(sync, next, syncs, list) {
		list_del_init(&sync->list);
		sync->status = status;
		sync->done(sync);
	}
}

/* A noflush suspend must not wait for a node that has nobody to ask. */
static bool dmdst_sync_goes_back(struct dmdst_node *node, struct dmdst_sync *sync)
{
	lockdep_assert_held(&node->lock);
	return !node->nr_live && dm_noflush_suspending(sync->target->ti);
}

/* sync->done() runs, maybe before this returns, with no lock held. */
void dmdst_flush_wait(struct dmdst_node *node, struct dmdst_sync *sync)
{
	struct dmdst_flush *flush = &node->flush;
	bool covered, pushed, begin = false;

	spin_lock(&node->lock);
	sync->need = atomic64_read(&flush->acked);
	covered = sync->need <= flush->durable;
	pushed = !covered && dmdst_sync_goes_back(node, sync);
	if (!covered && !pushed) {
		list_add_tail(&sync->list, &flush->waiting);
		begin = dmdst_flush_begin(node);
	}
	spin_unlock(&node->lock);

	if (covered || pushed) {
		sync->status = covered ? BLK_STS_OK : BLK_STS_DM_REQUEUE;
		sync->done(sync);
	}
	if (begin)
		dmdst_node_submit(&flush->req);
}

static void dmdst_flush_take_covered(struct dmdst_flush *flush,
				     struct list_head *covered)
{
	struct dmdst_sync *sync, *next;

	list_for_each_entry_safe(sync, next, &flush->waiting, list)
		if (sync->need <= flush->durable)
			list_move_tail(&sync->list, covered);
}

static void dmdst_flush_take_back(struct dmdst_node *node, struct list_head *from,
				  struct list_head *taken)
{
	struct dmdst_sync *sync, *next;

	list_for_each_entry_safe(sync, next, from, list)
		if (dmdst_sync_goes_back(node, sync))
			list_move_tail(&sync->list, taken);
}

/* The FLUSH was answered, or can't be: a failed one leaves the node dirty. */
void dmdst_flush_done(struct dmdst_node *node, blk_status_t status)
{
	struct dmdst_flush *flush = &node->flush;
	LIST_HEAD(ended);
	LIST_HEAD(covered);
	bool begin;

	if (status)
		atomic64_inc(&node->errors);

	spin_lock(&node->lock);
	list_splice_init(&flush->joined, &ended);
	if (!status) {
		WRITE_ONCE(flush->durable, flush->covers);
		dmdst_flush_take_covered(flush, &covered);
	}
	flush->busy = false;
	begin = dmdst_flush_begin(node);
	spin_unlock(&node->lock);

	dmdst_syncs_done(&ended, status);
	dmdst_syncs_done(&covered, BLK_STS_OK);
	if (begin)
		dmdst_node_submit(&flush->req);
}

/*
 * For a noflush suspend: its targets give up waiting if the node can't answer.
 * When the suspend begins, and when the node's FLUSH has to wait for a link.
 */
void dmdst_flush_push_back(struct dmdst_node *node)
{
	LIST_HEAD(pushed);

	spin_lock(&node->lock);
	dmdst_flush_take_back(node, &node->flush.waiting, &pushed);
	dmdst_flush_take_back(node, &node->flush.joined, &pushed);
	spin_unlock(&node->lock);

	dmdst_syncs_done(&pushed, BLK_STS_DM_REQUEUE);
}

/* Ends every wait, for fail-pending. The FLUSH itself is in a queue or link. */
void dmdst_flush_fail(struct dmdst_node *node, blk_status_t status)
{
	LIST_HEAD(failed);

	spin_lock(&node->lock);
	list_splice_init(&node->flush.waiting, &failed);
	list_splice_tail_init(&node->flush.joined, &failed);
	spin_unlock(&node->lock);

	dmdst_syncs_done(&failed, status);
}
