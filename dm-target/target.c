// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device-mapper target: what dm core calls. Makes a request of each bio,
 * cut to one extent, and fans a flush out to the nodes of the line. Called by
 * dm core, and by node.c when a node is live for the first time. Never knows
 * links; what a node does with a request is node.c's.
 */
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/slab.h>
#include "compat/compat.h"
#include "dm-dst.h"
#include "trace.h"

/* Words a node has in the status: append-only, docs/table-line.md. */
#define DMDST_STATUS_FIELDS 13

/* ---- ready: every node has been live once ---- */

/* Wakes udev: the rule kept scanners off until now. */
static void dmdst_ready_work(struct work_struct *work)
{
	struct dmdst_target *t = container_of(work, struct dmdst_target, ready_work);
	struct gendisk *disk = dm_disk(dm_table_get_md(t->ti->table));
	char *env[] = { "DM_DST_READY=1", NULL };

	kobject_uevent_env(&disk_to_dev(disk)->kobj, KOBJ_CHANGE, env);
}

void dmdst_target_node_is_live(struct dmdst_target *t)
{
	/* It allocates freely: none of our queues, which reclaim waits for. */
	if (atomic_dec_and_test(&t->not_yet_live))
		schedule_work(&t->ready_work);
}

/* ---- flush ---- */

/*
 * Flush bios of a line go in rounds: one round at a time waits for every node
 * of the line; the bios that come meanwhile are the next round. So the
 * contexts (one dmdst_use a node) need no allocation, and a burst of fsyncs
 * costs two rounds.
 */
static void dmdst_round_run(struct dmdst_target *t);

/*
 * dm core drops the error of a PREFLUSH with data behind it and sends the data:
 * a journal would commit what was lost. So that write is owed the error, too:
 * the next FUA write of a kernel thread, as dm and what stands on it send it;
 * a process's own O_DSYNC write is none. Where the node only had no link there
 * is nothing to owe: the write finds that itself.
 */
#define DMDST_OWED_FOR	(10 * HZ)

static void dmdst_target_owe(struct dmdst_target *t, blk_status_t status)
{
	unsigned int i;

	for (i = 0; i < t->nr_uses; i++) {
		WRITE_ONCE(t->uses[i]->seat->owed_until, jiffies + DMDST_OWED_FOR);
		/* Pairs with dmdst_target_pays(). */
		smp_store_release(&t->uses[i]->seat->owed, status);
	}
}

/* A FUA write to a node in whose @seat we are: the error it is owed. */
static blk_status_t dmdst_target_pays(struct dmdst_target *t,
				      const struct dmdst_seat *seat)
{
	/* Pairs with dmdst_target_owe(). */
	blk_status_t status = smp_load_acquire(&seat->owed);
	unsigned long until = READ_ONCE(seat->owed_until);
	unsigned int i;

	if (likely(!status) || !(current->flags & PF_KTHREAD))
		return BLK_STS_OK;
	for (i = 0; i < t->nr_uses; i++)
		WRITE_ONCE(t->uses[i]->seat->owed, BLK_STS_OK);
	return time_before(jiffies, until) ? status : BLK_STS_OK;
}

/* The fail-pendings so far of all its nodes. */
static u32 dmdst_target_fails(const struct dmdst_target *t)
{
	u32 fails = 0;
	unsigned int i;

	for (i = 0; i < t->nr_uses; i++)
		fails += READ_ONCE(t->uses[i]->node->fails);
	return fails;
}

/*
 * A round begins with the bios of @from that no fail-pending has met while they
 * waited, and is failed by those to come: dmdst_sync_is_over(). Others: @failed.
 */
static void dmdst_round_begin(struct dmdst_target *t, struct bio_list *from,
			      struct bio_list *failed)
{
	struct dmdst_req *req;
	struct bio *bio;
	u32 fails = 0;
	unsigned int i;

	lockdep_assert_held(&t->round_lock);
	for (i = 0; i < t->nr_uses; i++) {
		t->uses[i]->sync.fails = READ_ONCE(t->uses[i]->node->fails);
		fails += t->uses[i]->sync.fails;
	}
	bio_list_init(&t->round_now);
	while ((bio = bio_list_pop(from))) {
		req = dm_per_bio_data(bio, sizeof(*req));
		bio_list_add(req->fails == fails ? &t->round_now : failed, bio);
	}
	t->round_busy = !bio_list_empty(&t->round_now);
}

static void dmdst_end_bios(struct bio_list *bios, blk_status_t status)
{
	struct bio *bio;

	while ((bio = bio_list_pop(bios)))
		dmdst_bio_end(bio, status);
}

/* True: there is another one, or the same again, so that @t can't go. */
static bool dmdst_round_end(struct dmdst_target *t)
{
	blk_status_t status = t->round_status;
	struct bio_list failed = BIO_EMPTY_LIST;
	struct bio_list ended;
	bool again;

	/* The suspend was given up: nobody would take them back. Once more. */
	if (status == BLK_STS_DM_REQUEUE && !dm_noflush_suspending(t->ti))
		return true;
	if (status && status != BLK_STS_TRANSPORT && status != BLK_STS_DM_REQUEUE)
		dmdst_target_owe(t, status);

	spin_lock(&t->round_lock);
	ended = t->round_now;
	dmdst_round_begin(t, &t->round_next, &failed);
	again = t->round_busy;
	spin_unlock(&t->round_lock);

	dmdst_end_bios(&ended, status);
	dmdst_end_bios(&failed, BLK_STS_TRANSPORT);
	return again;
}

static void dmdst_round_node_done(struct dmdst_sync *sync)
{
	struct dmdst_use *use = container_of(sync, struct dmdst_use, sync);
	struct dmdst_target *t = use->target;

	/* A device is told of a loss once: that must not get lost with a suspend. */
	spin_lock(&t->round_lock);
	if (!t->round_status || t->round_status == BLK_STS_DM_REQUEUE)
		t->round_status = sync->status ?: t->round_status;
	spin_unlock(&t->round_lock);
	if (atomic_dec_and_test(&t->round_left) && dmdst_round_end(t))
		dmdst_round_run(t);
}

/* Loops, rather than recursing, while the nodes answer at once. */
static void dmdst_round_run(struct dmdst_target *t)
{
	unsigned int i;

	do {
		t->round_status = BLK_STS_OK;
		atomic_set(&t->round_left, t->nr_uses + 1);
		for (i = 0; i < t->nr_uses; i++) {
			t->uses[i]->sync.done = dmdst_round_node_done;
			dmdst_flush_wait(t->uses[i]->node, &t->uses[i]->sync);
		}
	} while (atomic_dec_and_test(&t->round_left) && dmdst_round_end(t));
}

static bool dmdst_target_is_clean(struct dmdst_target *t)
{
	unsigned int i;

	for (i = 0; i < t->nr_uses; i++)
		if (!dmdst_flush_is_clean(t->uses[i]->node, t->uses[i]->seat))
			return false;
	return true;
}

static void dmdst_map_flush(struct dmdst_target *t, struct bio *bio)
{
	struct dmdst_req *req = dm_per_bio_data(bio, sizeof(*req));
	struct bio_list failed = BIO_EMPTY_LIST;
	bool run;

	if (dmdst_target_is_clean(t)) {
		dmdst_bio_end(bio, BLK_STS_OK);
		return;
	}
	spin_lock(&t->round_lock);
	run = !t->round_busy;
	req->fails = dmdst_target_fails(t);
	bio_list_add(&t->round_next, bio);
	if (run) {
		dmdst_round_begin(t, &t->round_next, &failed);
		run = t->round_busy;
	}
	spin_unlock(&t->round_lock);
	dmdst_end_bios(&failed, BLK_STS_TRANSPORT);
	if (run)
		dmdst_round_run(t);
}

/* ---- bios ---- */

/* What one request may carry; a node that was never live has not said yet. */
static unsigned int dmdst_max_sectors(struct dmdst_node *node, enum req_op op)
{
	u32 bytes = DMDST_MAX_LENGTH;

	if (op == REQ_OP_READ || op == REQ_OP_WRITE)
		bytes = READ_ONCE(node->export.max_payload) ?: DMDST_MAX_LENGTH;
	return bytes >> SECTOR_SHIFT;
}

/* To what lies in @extent, from @sector of the line on, and one request may carry. */
static void dmdst_cut_bio(struct bio *bio, const struct dmdst_extent *extent, sector_t sector)
{
	sector_t rest = extent->start + extent->len - sector;
	sector_t most = min_t(sector_t, rest,
			      dmdst_max_sectors(extent->use->node, bio_op(bio)));

	if (bio_sectors(bio) <= most)
		return;
	trace_dmdst_split(bio, most, most == rest ? "extent" : "payload");
	dm_accept_partial_bio(bio, most);
}

static int dmdst_req_cmd(struct bio *bio, u16 *cmd)
{
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		*cmd = NBDW_CMD_READ;
		return 0;
	case REQ_OP_WRITE:
		*cmd = NBDW_CMD_WRITE;
		return 0;
	case REQ_OP_DISCARD:
		*cmd = NBDW_CMD_TRIM;
		return 0;
	case REQ_OP_WRITE_ZEROES:
		*cmd = NBDW_CMD_WRITE_ZEROES;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static int dmdst_map(struct dm_target *ti, struct bio *bio)
{
	struct dmdst_req *req = dm_per_bio_data(bio, sizeof(*req));
	struct dmdst_target *t = ti->private;
	sector_t sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	struct dmdst_extent *extent;
	blk_status_t owed;
	u16 cmd;

	trace_dmdst_submit(bio);
	if (bio->bi_opf & REQ_PREFLUSH && !bio_sectors(bio)) {
		dmdst_map_flush(t, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (dmdst_req_cmd(bio, &cmd) || (t->read_only && op_is_write(bio_op(bio)))) {
		trace_dmdst_end(bio, BLK_STS_IOERR);
		return DM_MAPIO_KILL;
	}

	extent = dmdst_table_find(t, sector);
	if (bio->bi_opf & REQ_FUA) {
		owed = dmdst_target_pays(t, extent->use->seat);
		if (owed) {
			dmdst_bio_end(bio, owed);
			return DM_MAPIO_SUBMITTED;
		}
	}
	dmdst_cut_bio(bio, extent, sector);

	dmdst_req_init(req, extent->use->node, cmd);
	req->bio = bio;
	req->target = t;
	req->sync.target = t;
	req->bvec = bio->bi_io_vec;
	req->iter = bio->bi_iter;
	req->offset = (extent->offset + sector - extent->start) << SECTOR_SHIFT;
	req->left = bio->bi_iter.bi_size;
	req->fua = bio->bi_opf & REQ_FUA;
	req->no_hole = cmd == NBDW_CMD_WRITE_ZEROES && bio->bi_opf & REQ_NOUNMAP;
	if (bio->bi_opf & REQ_NOWAIT)
		dmdst_node_submit(req);
	else
		dmdst_node_submit_now(req);
	return DM_MAPIO_SUBMITTED;
}

/* ---- suspend and resume ---- */

/*
 * A noflush suspend looks every so often at what it waits for. Looks are
 * counted, not time: links shall not be cut because this machine stood still.
 */
#define DMDST_SUSPEND_LOOK	(HZ / 10)
/* At this look, and from there on, what is on links is detached from them. */
#define DMDST_SUSPEND_DETACH	5
/* And from this one on links that need a bio's pages still are cut. */
#define DMDST_SUSPEND_CUT	8

static void dmdst_push_back(struct dmdst_target *t, enum dmdst_push_back how)
{
	unsigned int i;

	for (i = 0; i < t->nr_uses; i++)
		dmdst_node_push_back(t->uses[i]->node, t, how);
}

static void dmdst_suspend_work(struct work_struct *work)
{
	struct dmdst_target *t = container_of(to_delayed_work(work),
					      struct dmdst_target, suspend_work);

	if (!dm_noflush_suspending(t->ti))
		return;
	t->suspend_looks++;
	if (t->suspend_looks < DMDST_SUSPEND_DETACH)
		dmdst_push_back(t, DMDST_BACK_WAITING);
	else if (t->suspend_looks < DMDST_SUSPEND_CUT)
		dmdst_push_back(t, DMDST_BACK_DETACH);
	else
		dmdst_push_back(t, DMDST_BACK_CUT);
	queue_delayed_work(dmdst_down_wq, &t->suspend_work, DMDST_SUSPEND_LOOK);
}

/*
 * A noflush suspend takes back what waits; what finds no link later asks
 * dm_noflush_suspending() itself. What is on one has half a second to be
 * answered: what goes back, the server does for nothing.
 */
static void dmdst_presuspend(struct dm_target *ti)
{
	struct dmdst_target *t = ti->private;

	if (!dm_noflush_suspending(ti))
		return;
	t->suspend_looks = 0;
	dmdst_push_back(t, DMDST_BACK_WAITING);
	queue_delayed_work(dmdst_down_wq, &t->suspend_work, DMDST_SUSPEND_LOOK);
}

/* Suspended, or not after all. */
static void dmdst_suspend_over(struct dm_target *ti)
{
	struct dmdst_target *t = ti->private;

	cancel_delayed_work_sync(&t->suspend_work);
}

/*
 * dm core keeps the old limits of a device whose new table has no local
 * device, so a larger block size would never arrive.
 */
static int dmdst_preresume(struct dm_target *ti)
{
	struct dmdst_target *t = ti->private;
	struct gendisk *disk = dm_disk(dm_table_get_md(ti->table));
	unsigned int now = queue_logical_block_size(disk->queue);

	if (now < t->block_size) {
		DMERR("block_size %u: the device was made with %u and keeps that",
		      t->block_size, now);
		return -EINVAL;
	}
	return 0;
}

/* ---- status, limits ---- */

static const char *dmdst_cache_name(struct dmdst_node *node)
{
	if (!READ_ONCE(node->ever_live))
		return "unknown";
	if (READ_ONCE(node->export.flags) & NBDW_SEND_FLUSH)
		return "write_back";
	return "write_through";
}

static const char *dmdst_policy_name(const struct dmdst_conduct *conduct)
{
	static const char * const names[] = {
		[DMDST_POLICY_QUEUE]	 = "queue",
		[DMDST_POLICY_QUEUE_FOR] = "queue_for",
		[DMDST_POLICY_ERROR]	 = "error",
	};

	return names[conduct->policy];
}

/* How a restart of the server that loses data would be seen. */
static const char *dmdst_restart_name(struct dmdst_node *node)
{
	if (READ_ONCE(node->incarnation.len))
		return "known";
	return node->conduct.unknown_restart == DMDST_RESTART_EIO ? "eio" : "trust";
}

static unsigned int dmdst_status_node(struct dmdst_node *node, char *result,
				      unsigned int maxlen, unsigned int sz)
{
	char reason[DMDST_REASON_MAX];
	struct dmdst_conduct conduct;
	enum dmdst_node_state state;
	unsigned int live, wanted;
	u64 reconnects;

	spin_lock(&node->lock);
	state = node->state;
	live = node->nr_live;
	wanted = node->wanted;
	reconnects = node->reconnects;
	conduct = node->conduct;
	strscpy(reason, node->reason[0] ? node->reason : "-", sizeof(reason));
	spin_unlock(&node->lock);
	strreplace(reason, ' ', '_');

	DMEMIT(" %s %s %u/%u %d %d %u %llu %llu %s %s", node->name,
	       dmdst_node_state_name(state), live, wanted,
	       atomic_read(&node->on_link), atomic_read(&node->queued),
	       dmdst_fence_ambiguous(node, NULL),
	       (unsigned long long)atomic64_read(&node->errors),
	       (unsigned long long)reconnects, reason, dmdst_cache_name(node));
	DMEMIT(" %s", dmdst_policy_name(&conduct));
	if (conduct.policy == DMDST_POLICY_QUEUE_FOR)
		DMEMIT(":%u", conduct.queue_for);
	DMEMIT(" %s %d", dmdst_restart_name(node), atomic_read(&node->waiting));
	return sz;
}

static void dmdst_status(struct dm_target *ti, status_type_t type,
			 unsigned int flags, char *result, unsigned int maxlen)
{
	struct dmdst_target *t = ti->private;
	unsigned int sz = 0, i;

	switch (type) {
	case STATUSTYPE_INFO:
		DMEMIT("%u %u", t->nr_uses, DMDST_STATUS_FIELDS);
		for (i = 0; i < t->nr_uses; i++)
			sz = dmdst_status_node(t->uses[i]->node, result, maxlen, sz);
		break;
	case STATUSTYPE_TABLE:
		dmdst_table_print(t, result, maxlen);
		break;
	case STATUSTYPE_IMA:
		*result = '\0';
		break;
	}
}

static void dmdst_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct dmdst_target *t = ti->private;

	limits->logical_block_size = t->block_size;
	limits->physical_block_size = t->block_size;
	limits->io_min = t->block_size;
	limits->max_write_zeroes_sectors = DMDST_MAX_LENGTH >> SECTOR_SHIFT;
	dmdst_compat_no_wzeroes_unmap(limits);
	if (ti->num_discard_bios) {
		limits->max_hw_discard_sectors = DMDST_MAX_LENGTH >> SECTOR_SHIFT;
		limits->max_discard_sectors = DMDST_MAX_LENGTH >> SECTOR_SHIFT;
		limits->discard_granularity = t->block_size;
	}
	dmdst_compat_no_poll(limits);
}

/*
 * No local device to ask. It must exist all the same: without it dm core
 * takes the target for one that can't WRITE_ZEROES or NOWAIT.
 */
static int dmdst_iterate_devices(struct dm_target *ti,
				 iterate_devices_callout_fn fn, void *data)
{
	return 0;
}

/* ---- making and ending ---- */

static void dmdst_set_features(struct dm_target *ti, struct dmdst_target *t)
{
	bool discards = !t->no_discard && !t->read_only;

	ti->num_flush_bios = 1;
	ti->flush_supported = true;
	ti->num_discard_bios = discards;
	ti->discards_supported = discards;
	ti->num_write_zeroes_bios = !t->read_only;
	ti->per_io_data_size = sizeof(struct dmdst_req);
}

static int dmdst_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dmdst_target *t = kzalloc(sizeof(*t), GFP_KERNEL);
	int ret;

	if (!t) {
		ti->error = "Cannot allocate target";
		return -ENOMEM;
	}
	t->ti = ti;
	spin_lock_init(&t->round_lock);
	bio_list_init(&t->round_now);
	bio_list_init(&t->round_next);
	/* One too many, so that no event comes before the line is whole. */
	atomic_set(&t->not_yet_live, 1);
	INIT_WORK(&t->ready_work, dmdst_ready_work);
	INIT_DELAYED_WORK(&t->suspend_work, dmdst_suspend_work);

	ret = dmdst_table_parse(t, argc, argv);
	if (ret) {
		dmdst_table_free(t);
		kfree(t);
		return ret;
	}
	dmdst_set_features(ti, t);
	ti->private = t;
	/* All live already: resume makes the event that udev needs. */
	atomic_dec(&t->not_yet_live);
	return 0;
}

static void dmdst_dtr(struct dm_target *ti)
{
	struct dmdst_target *t = ti->private;

	cancel_delayed_work_sync(&t->suspend_work);
	dmdst_table_free(t);
	/* After the nodes forgot us nobody queues it any more. */
	cancel_work_sync(&t->ready_work);
	kfree(t);
}

static struct target_type dmdst_target_type = {
	.name		 = "dst",
	.version	 = { 1, 0, 0 },
	.features	 = DM_TARGET_NOWAIT,
	.module		 = THIS_MODULE,
	.ctr		 = dmdst_ctr,
	.dtr		 = dmdst_dtr,
	.map		 = dmdst_map,
	.presuspend	 = dmdst_presuspend,
	.presuspend_undo = dmdst_suspend_over,
	.postsuspend	 = dmdst_suspend_over,
	.preresume	 = dmdst_preresume,
	.status		 = dmdst_status,
	.io_hints	 = dmdst_io_hints,
	.iterate_devices = dmdst_iterate_devices,
};

int dmdst_target_register(void)
{
	return dm_register_target(&dmdst_target_type);
}

void dmdst_target_unregister(void)
{
	dm_unregister_target(&dmdst_target_type);
}
