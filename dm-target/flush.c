// SPDX-License-Identifier: GPL-2.0-only
/*
 * Acknowledged is not durable: counts a node's acknowledged writes and sends
 * it a FLUSH when somebody must know them durable. One FLUSH a node is under
 * way at a time, so its context is allocated with the node. Who asks while it
 * is under way waits for the next one, which all of them then share.
 * Where what was acknowledged is lost, it sees to it that each device is told
 * once. Called by target.c (flush bios), req.c (FUA on a server without it)
 * and node.c. Never decides which nodes a flush bio is about.
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

static void dmdst_syncs_done(struct list_head *syncs, blk_status_t status)
{
	struct dmdst_sync *sync, *next;

	list_for_each_entry_safe(sync, next, syncs, list) {
		list_del_init(&sync->list);
		sync->status = status;
		sync->done(sync);
	}
}

/* Who waits: flush bios, or else writes with FUA. */
static void dmdst_flush_take_kind(struct dmdst_flush *flush, bool bios,
				  struct list_head *taken)
{
	struct dmdst_sync *sync, *next;

	list_for_each_entry_safe(sync, next, &flush->joined, list)
		if (!sync->seat != bios)
			list_move_tail(&sync->list, taken);
	list_for_each_entry_safe(sync, next, &flush->waiting, list)
		if (!sync->seat != bios)
			list_move_tail(&sync->list, taken);
}

/*
 * Tells the device, by @sync, that acknowledged writes are lost. False: it might
 * not hear it, since dm core takes a bio back for a noflush suspend whatever
 * else became of it; the flush shall come again.
 */
static bool dmdst_sync_tell(struct dmdst_node *node, struct dmdst_sync *sync)
{
	lockdep_assert_held(&node->lock);
	if (dm_noflush_suspending(sync->target->ti))
		return false;
	sync->seat->told = node->flush.seq.lost;
	return true;
}

/* The acknowledged writes that no FLUSH has covered are lost. */
static void dmdst_flush_forget(struct dmdst_node *node)
{
	struct dmdst_flush *flush = &node->flush;
	struct dmdst_sync *sync, *next;
	LIST_HEAD(told);
	LIST_HEAD(back);
	u64 lost;

	spin_lock(&node->lock);
	lost = dmdst_seq_lose(&flush->seq, atomic64_read(&flush->acked));
	if (lost)
		dmdst_flush_take_kind(flush, true, &told);
	list_for_each_entry_safe(sync, next, &told, list)
		if (!dmdst_sync_tell(node, sync))
			list_move_tail(&sync->list, &back);
	spin_unlock(&node->lock);
	if (!lost)
		return;

	DMERR("node %s: %llu acknowledged writes are lost with the server's incarnation; each device fails a flush",
	      node->name, lost);
	dmdst_netlink_data_lost_event(node, lost);
	dmdst_syncs_done(&told, BLK_STS_IOERR);
	dmdst_syncs_done(&back, BLK_STS_DM_REQUEUE);
}

/* Another incarnation from here on: writes that links with an older birth ack are lost. */
void dmdst_flush_lost(struct dmdst_node *node)
{
	/* Pairs with dmdst_flush_note_write(): it sees the birth, or we the write. */
	smp_mb();
	dmdst_flush_forget(node);
}

/*
 * A link of @birth has acknowledged a write; what is durable by that isn't counted.
 * Takes no lock. False: that link is of another incarnation, the write is lost, and
 * must not end before dmdst_flush_lost().
 */
bool dmdst_flush_note_write(struct dmdst_node *node, u32 birth, bool durable)
{
	if (durable)
		return true;
	atomic64_inc(&node->flush.acked);
	smp_mb__after_atomic();	/* see dmdst_flush_lost() */
	return likely(birth == READ_ONCE(node->flush.birth));
}

/* Writes acknowledged that no FLUSH has covered. */
u64 dmdst_flush_dirty(struct dmdst_node *node)
{
	return dmdst_seq_dirty(&node->flush.seq, atomic64_read(&node->flush.acked));
}

/* Nothing to make durable, and nothing that @seat must be told. */
bool dmdst_flush_is_clean(struct dmdst_node *node, const struct dmdst_seat *seat)
{
	return !dmdst_flush_dirty(node) &&
	       READ_ONCE(seat->told) == READ_ONCE(node->flush.seq.lost);
}

/* Returns true if the caller must submit flush->req, lock dropped. */
static bool dmdst_flush_begin(struct dmdst_node *node)
{
	struct dmdst_flush *flush = &node->flush;

	lockdep_assert_held(&node->lock);
	if (flush->seq.busy || list_empty(&flush->waiting))
		return false;

	dmdst_seq_begin(&flush->seq, atomic64_read(&flush->acked));
	list_splice_tail_init(&flush->waiting, &flush->joined);
	dmdst_req_move(&flush->req, DMDST_REQ_HELD);
	return true;
}

/* A noflush suspend must not wait for a node that has nobody to ask. */
static bool dmdst_sync_goes_back(struct dmdst_node *node, struct dmdst_sync *sync)
{
	lockdep_assert_held(&node->lock);
	return !node->nr_live && dm_noflush_suspending(sync->target->ti);
}

/* Has there been a fail-pending since, which found it nowhere? */
static bool dmdst_sync_is_failed(struct dmdst_node *node, struct dmdst_sync *sync)
{
	lockdep_assert_held(&node->lock);
	return sync->fails != node->fails;
}

/* True: @sync is over at once, with its status, or its write is lost. */
static bool dmdst_sync_is_over(struct dmdst_node *node, struct dmdst_sync *sync)
{
	struct dmdst_flush *flush = &node->flush;

	lockdep_assert_held(&node->lock);
	sync->need = atomic64_read(&flush->acked);
	sync->redo = !sync->seat && (sync->birth != flush->birth ||
				     sync->losses != flush->losses);
	if (sync->redo)
		return true;
	if (sync->seat && sync->seat->told != flush->seq.lost) {
		sync->status = dmdst_sync_tell(node, sync) ? BLK_STS_IOERR :
							     BLK_STS_DM_REQUEUE;
		return true;
	}
	if (sync->need <= flush->seq.durable) {
		sync->status = BLK_STS_OK;
		return true;
	}
	if (dmdst_sync_is_failed(node, sync)) {
		sync->status = BLK_STS_TRANSPORT;
		return true;
	}
	sync->status = BLK_STS_DM_REQUEUE;
	return dmdst_sync_goes_back(node, sync);
}

/* sync->done() runs, maybe before this returns, with no lock held. */
void dmdst_flush_wait(struct dmdst_node *node, struct dmdst_sync *sync)
{
	struct dmdst_flush *flush = &node->flush;
	bool over, begin = false;

	spin_lock(&node->lock);
	over = dmdst_sync_is_over(node, sync);
	if (!over) {
		list_add_tail(&sync->list, &flush->waiting);
		begin = dmdst_flush_begin(node);
	}
	spin_unlock(&node->lock);

	if (over)
		sync->done(sync);
	if (begin)
		dmdst_node_submit(&flush->req);
}

static void dmdst_flush_take_covered(struct dmdst_flush *flush,
				     struct list_head *covered)
{
	struct dmdst_sync *sync, *next;

	list_for_each_entry_safe(sync, next, &flush->waiting, list)
		if (sync->need <= flush->seq.durable)
			list_move_tail(&sync->list, covered);
}

/*
 * @target: all of its syncs, if it is being suspended still; NULL: those that
 * would wait for a link.
 */
static void dmdst_flush_take_back(struct dmdst_node *node,
				  const struct dmdst_target *target,
				  struct list_head *from, struct list_head *taken)
{
	struct dmdst_sync *sync, *next;

	if (target && !dm_noflush_suspending(target->ti))
		return;
	list_for_each_entry_safe(sync, next, from, list)
		if (target ? sync->target == target : dmdst_sync_goes_back(node, sync))
			list_move_tail(&sync->list, taken);
}

/* The FLUSH was answered, or can't be: a failed one leaves the node dirty. */
void dmdst_flush_done(struct dmdst_node *node, blk_status_t status)
{
	struct dmdst_flush *flush = &node->flush;
	LIST_HEAD(ended);
	LIST_HEAD(covered);
	bool begin;

	/* "Not supported" is as good as done, for who asked a block device. */
	if (status == BLK_STS_NOTSUPP)
		status = BLK_STS_IOERR;
	if (status)
		atomic64_inc(&node->errors);

	spin_lock(&node->lock);
	list_splice_init(&flush->joined, &ended);
	dmdst_seq_end(&flush->seq, !status);
	if (!status)
		dmdst_flush_take_covered(flush, &covered);
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
void dmdst_flush_push_back(struct dmdst_node *node, const struct dmdst_target *target)
{
	LIST_HEAD(pushed);

	spin_lock(&node->lock);
	dmdst_flush_take_back(node, target, &node->flush.waiting, &pushed);
	dmdst_flush_take_back(node, target, &node->flush.joined, &pushed);
	spin_unlock(&node->lock);

	dmdst_syncs_done(&pushed, BLK_STS_DM_REQUEUE);
}

/*
 * A link was lost: what FUA writes wait for may be lost with it. They write
 * again, and then wait again; so do those that don't wait yet, for they have
 * parts to be sent or pages in an old socket: dmdst_sync_is_over().
 */
void dmdst_flush_redo(struct dmdst_node *node)
{
	struct dmdst_sync *sync, *next;
	LIST_HEAD(again);

	spin_lock(&node->lock);
	WRITE_ONCE(node->flush.losses, node->flush.losses + 1);
	dmdst_flush_take_kind(&node->flush, false, &again);
	spin_unlock(&node->lock);

	list_for_each_entry_safe(sync, next, &again, list) {
		list_del_init(&sync->list);
		dmdst_req_again(container_of(sync, struct dmdst_req, sync));
	}
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
