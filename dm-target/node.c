// SPDX-License-Identifier: GPL-2.0-only
/*
 * Nodes: the registry of names, each node's state, its set of live links and
 * the queue of requests that wait for one. A node exists while a table line
 * names it. Called by table.c (names), target.c (submit), netlink.c (links)
 * and link.c (loss). Never touches a socket, never looks into a request's data.
 */
#include <linux/hashtable.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/stringhash.h>
#include "dm-dst.h"
#include "trace.h"

/* The reasons: docs/failures.md. */
static const struct dmdst_conduct dmdst_conduct_default = {
	.policy		 = DMDST_POLICY_QUEUE,
	.quiesce	 = 10 * MSEC_PER_SEC,
	.timeout	 = 30 * MSEC_PER_SEC,
	.unknown_restart = DMDST_RESTART_TRUST,
};

static DEFINE_MUTEX(dmdst_nodes_lock);
static DEFINE_HASHTABLE(dmdst_nodes, 8);
static unsigned int dmdst_nodes_changes = 1; /* dmdst_nodes_lock */

/* ---- state ---- */

const char *dmdst_node_state_name(enum dmdst_node_state state)
{
	static const char * const names[] = {
		[DMDST_NODE_WAITING]	= "waiting",
		[DMDST_NODE_LIVE]	= "live",
		[DMDST_NODE_DEGRADED]	= "degraded",
		[DMDST_NODE_LOST]	= "lost",
		[DMDST_NODE_FAILED]	= "failed",
		[DMDST_NODE_MISMATCH]	= "mismatch",
	};

	return names[state];
}

/*
 * The one place a node's state changes; legal moves: rules.h. True: it did,
 * tell the listeners.
 */
bool dmdst_node_set_state(struct dmdst_node *node, enum dmdst_node_state to,
			  const char *reason)
{
	lockdep_assert_held(&node->lock);
	strscpy(node->reason, reason ?: "", sizeof(node->reason));
	if (node->state == to)
		return false;
	if (WARN_ON_ONCE(!dmdst_node_may_move(node->state, to)))
		return false;
	WRITE_ONCE(node->state, to);
	return true;
}

/* Derives the state from the links that are live. */
static bool dmdst_node_update_state(struct dmdst_node *node, const char *reason)
{
	lockdep_assert_held(&node->lock);
	if (node->nr_live >= node->wanted && node->nr_live)
		return dmdst_node_set_state(node, DMDST_NODE_LIVE, NULL);
	if (node->nr_live)
		return dmdst_node_set_state(node, DMDST_NODE_DEGRADED, reason);
	if (node->state != DMDST_NODE_LIVE && node->state != DMDST_NODE_DEGRADED)
		return false;
	/* From here on the policy runs. */
	node->down = true;
	node->lost_at = jiffies;
	dmdst_tick_soon(node);
	return dmdst_node_set_state(node, DMDST_NODE_LOST, reason);
}

/* ---- the registry ---- */

static struct dmdst_node *dmdst_node_find(const char *name)
{
	struct dmdst_node *node;

	lockdep_assert_held(&dmdst_nodes_lock);
	hash_for_each_possible(dmdst_nodes, node, hash,
			       full_name_hash(NULL, name, strlen(name)))
		if (!strcmp(node->name, name))
			return node;
	return NULL;
}

/* NOIO: reclaim may wait for a node whose links come in behind this lock. */
static struct dmdst_node *dmdst_node_create(const char *name)
{
	struct dmdst_node *node = kzalloc(sizeof(*node), GFP_NOIO);

	if (!node)
		return NULL;
	node->fences = dmdst_fences_get(name);
	if (!node->fences) {
		kfree(node);
		return NULL;
	}
	kref_init(&node->ref);
	strscpy(node->name, name, sizeof(node->name));
	mutex_init(&node->conf);
	INIT_LIST_HEAD(&node->uses);
	INIT_LIST_HEAD(&node->seats);
	spin_lock_init(&node->lock);
	dmdst_waits_init(&node->waits);
	node->state = DMDST_NODE_WAITING;
	node->wanted = 1;
	node->heard = jiffies;
	node->gave_up = node->heard;
	INIT_LIST_HEAD(&node->links);
	INIT_LIST_HEAD(&node->queue);
	node->conduct = dmdst_conduct_default;
	/*
	 * An earlier life's, where it left guards: no number comes twice, and
	 * what shall stand until the operator's word isn't lifted by a default.
	 */
	if (node->fences->generation) {
		node->generation = node->fences->generation;
		node->conduct.quiesce = node->fences->quiesce;
	}
	dmdst_flush_init(node);
	dmdst_tick_init(node);
	dmdst_nodes_changes++;
	hash_add(dmdst_nodes, &node->hash, full_name_hash(NULL, name, strlen(name)));
	return node;
}

/* With @create the reference is a use: give it back with dmdst_node_unuse(). */
struct dmdst_node *dmdst_node_get(const char *name, bool create)
{
	struct dmdst_node *node;

	mutex_lock(&dmdst_nodes_lock);
	node = dmdst_node_find(name);
	if (node)
		kref_get(&node->ref);
	else if (create)
		node = dmdst_node_create(name);
	if (node && create)
		node->users++;
	mutex_unlock(&dmdst_nodes_lock);
	return node;
}

/* Changes with the set of nodes: a dump that saw two values starts again. */
unsigned int dmdst_nodes_seq(void)
{
	unsigned int seq;

	mutex_lock(&dmdst_nodes_lock);
	seq = dmdst_nodes_changes;
	mutex_unlock(&dmdst_nodes_lock);
	return seq;
}

/* The @n-th node with a reference, or NULL: for dumps. */
struct dmdst_node *dmdst_node_nth(unsigned long n)
{
	struct dmdst_node *node, *found = NULL;
	unsigned int bucket;

	mutex_lock(&dmdst_nodes_lock);
	hash_for_each(dmdst_nodes, bucket, node, hash) {
		if (n--)
			continue;
		kref_get(&node->ref);
		found = node;
		break;
	}
	mutex_unlock(&dmdst_nodes_lock);
	return found;
}

static void dmdst_node_release(struct kref *ref)
{
	struct dmdst_node *node = container_of(ref, struct dmdst_node, ref);

	WARN_ON_ONCE(!list_empty(&node->queue) || !list_empty(&node->links));
	dmdst_fences_put(node->fences);
	kfree(node);
}

void dmdst_node_put(struct dmdst_node *node)
{
	kref_put(&node->ref, dmdst_node_release);
}

/* The links of @node that are in @slots, each with a reference. */
static unsigned int dmdst_node_hold_links(struct dmdst_node *node, u32 slots,
					  struct dmdst_link **held)
{
	struct dmdst_link *link;
	unsigned int nr = 0;

	lockdep_assert_held(&node->lock);
	for (unsigned int i = 0; i < node->nr_live; i++) {
		link = rcu_dereference_protected(node->live[i],
						 lockdep_is_held(&node->lock));
		if (!(slots & BIT(link->slot)))
			continue;
		kref_get(&link->ref);
		held[nr++] = link;
	}
	return nr;
}

/* Also those that drain. */
static void dmdst_node_cut_links(struct dmdst_node *node, u32 slots, const char *why)
{
	struct dmdst_link *link;

	spin_lock(&node->lock);
	list_for_each_entry(link, &node->links, list)
		if (slots & BIT(link->slot))
			dmdst_link_cut(link, why);
	spin_unlock(&node->lock);
}

/* With @only_busy, links that carry nothing stay. */
static void dmdst_node_fail_links(struct dmdst_node *node, bool only_busy,
				  const char *why)
{
	struct dmdst_link *link;

	spin_lock(&node->lock);
	list_for_each_entry(link, &node->links, list)
		dmdst_link_fail(link, only_busy, why);
	spin_unlock(&node->lock);
}

/* A table line lets go; with the last one the node and its links end. */
void dmdst_node_unuse(struct dmdst_node *node)
{
	bool last;

	mutex_lock(&dmdst_nodes_lock);
	last = !--node->users;
	if (last) {
		hash_del(&node->hash);
		dmdst_fences_bury(node);
		dmdst_nodes_changes++;
	}
	mutex_unlock(&dmdst_nodes_lock);

	if (last) {
		mutex_lock(&node->conf);
		spin_lock(&node->lock);
		node->dead = true;
		spin_unlock(&node->lock);
		/* Only the node's own requests can be left in queue and links. */
		dmdst_node_fail_pending(node);
		dmdst_node_fail_links(node, false, "no table names the node any more");
		mutex_unlock(&node->conf);
		dmdst_tick_stop(node);
	}
	dmdst_node_put(node);
}

/* ---- links come and go ---- */

static void dmdst_live_add(struct dmdst_node *node, struct dmdst_link *link)
{
	lockdep_assert_held(&node->lock);
	rcu_assign_pointer(node->live[node->nr_live], link);
	WRITE_ONCE(node->nr_live, node->nr_live + 1);
}

/* Readers may see a link twice or one that left: dmdst_link_take() decides. */
static bool dmdst_live_del(struct dmdst_node *node, struct dmdst_link *link)
{
	unsigned int i, last = node->nr_live - 1;

	lockdep_assert_held(&node->lock);
	for (i = 0; i < node->nr_live; i++) {
		if (rcu_access_pointer(node->live[i]) != link)
			continue;
		rcu_assign_pointer(node->live[i],
				   rcu_dereference_protected(node->live[last],
							     lockdep_is_held(&node->lock)));
		WRITE_ONCE(node->nr_live, last);
		/* A later nr_live can be seen before the link it is about. */
		RCU_INIT_POINTER(node->live[last], NULL);
		return true;
	}
	return false;
}

static void dmdst_node_take_queue(struct dmdst_node *node,
				  const struct dmdst_target *target,
				  struct list_head *taken)
{
	struct dmdst_req *req, *next;

	lockdep_assert_held(&node->lock);
	list_for_each_entry_safe(req, next, &node->queue, list) {
		if (target && req->target != target)
			continue;
		dmdst_req_move(req, DMDST_REQ_HELD);
		list_move_tail(&req->list, taken);
	}
}

/* The slots that a node with @wanted links doesn't have. */
static u32 dmdst_slots_from(unsigned int wanted)
{
	return wanted < DMDST_SLOTS_MAX ? U32_MAX << wanted : 0;
}

/* The slots whose links go when @fresh ones come: theirs, and those not wanted. */
static u32 dmdst_slots_leaving(struct list_head *fresh, unsigned int wanted)
{
	u32 slots = dmdst_slots_from(wanted);
	struct dmdst_link *link;

	list_for_each_entry(link, fresh, list)
		slots |= BIT(link->slot);
	return slots;
}

/* The new set is seen as a whole: @fresh in, who is in a @leaving slot out. */
static unsigned int dmdst_node_swap_links(struct dmdst_node *node,
					  struct list_head *fresh, u32 leaving,
					  struct dmdst_link **old)
{
	struct dmdst_link *link;
	unsigned int nr, i;

	lockdep_assert_held(&node->lock);
	nr = dmdst_node_hold_links(node, leaving, old);
	for (i = 0; i < nr; i++)
		dmdst_live_del(node, old[i]);
	list_for_each_entry(link, fresh, list) {
		link->birth = node->flush.birth;
		link->write_back = node->export.flags & NBDW_SEND_FLUSH;
		trace_dmdst_link(link);
		dmdst_live_add(node, link);
		if (node->had_loss)
			node->reconnects++;
	}
	return nr;
}

/* @fresh: links that fit, created and not started. */
void dmdst_node_links_up(struct dmdst_node *node, struct list_head *fresh,
			 const struct dmdst_export *export,
			 const struct dmdst_incarnation *incarnation,
			 unsigned int wanted)
{
	u32 leaving = dmdst_slots_leaving(fresh, wanted);
	struct dmdst_link *old[DMDST_SLOTS_MAX], *up[DMDST_SLOTS_MAX], *link;
	unsigned int nr_old, nr_up = 0, i;
	bool changed, first;
	LIST_HEAD(queue);

	lockdep_assert_held(&node->conf);
	dmdst_birth_check(node, export, incarnation, leaving);
	node->incarnation = *incarnation;

	spin_lock(&node->lock);
	node->export = *export;
	node->wanted = wanted;
	nr_old = dmdst_node_swap_links(node, fresh, leaving, old);
	list_for_each_entry(link, fresh, list) {
		kref_get(&link->ref);
		up[nr_up++] = link;
	}
	list_splice_tail_init(fresh, &node->links);
	first = !node->ever_live;
	node->ever_live = true;
	node->suspect = false;
	node->expired = false;
	node->down = false;
	WRITE_ONCE(node->heard, jiffies);
	dmdst_tick_soon(node);
	changed = dmdst_node_update_state(node, NULL);
	dmdst_node_take_queue(node, NULL, &queue);
	spin_unlock(&node->lock);

	for (i = 0; i < nr_up; i++) {
		dmdst_netlink_link_event(up[i], DMDST_LINK_LIVE, 0, NULL);
		dmdst_link_start(up[i]);
		dmdst_link_put(up[i]);
	}
	for (i = 0; i < nr_old; i++) {
		dmdst_link_drain(old[i]);
		dmdst_link_put(old[i]);
	}
	dmdst_node_submit_all(&queue);
	if (first)
		dmdst_node_tell_uses(node);
	if (changed)
		dmdst_netlink_node_event(node);
}

/* The link is lost or drained: no request finds it from here on. */
void dmdst_node_link_leaves(struct dmdst_link *link)
{
	struct dmdst_node *node = link->node;
	bool changed;

	spin_lock(&node->lock);
	dmdst_live_del(node, link);
	dmdst_tick_soon(node);
	if (link->err) {
		node->had_loss = true;
		node->suspect = true;
	}
	changed = dmdst_node_update_state(node, link->why);
	spin_unlock(&node->lock);

	if (link->err)
		dmdst_netlink_link_event(link, DMDST_LINK_LOST, link->err, link->why);
	if (changed)
		dmdst_netlink_node_event(node);
}

/* It still talks, but shall get no more: read until all is answered or it ends. */
void dmdst_node_retire_link(struct dmdst_link *link, const char *why)
{
	struct dmdst_node *node = link->node;
	bool changed;

	spin_lock(&node->lock);
	changed = dmdst_live_del(node, link) && dmdst_node_update_state(node, why);
	dmdst_tick_soon(node);
	spin_unlock(&node->lock);

	dmdst_link_drain(link);
	if (changed)
		dmdst_netlink_node_event(node);
}

/* There are new guards. Before anything else is sent: what else do they touch? */
static void dmdst_node_contest(struct dmdst_node *node)
{
	struct dmdst_link *link;

	spin_lock(&node->lock);
	list_for_each_entry(link, &node->links, list)
		dmdst_fence_contest(link);
	spin_unlock(&node->lock);
}

/* @lost, which carries nothing any more, left guards. */
void dmdst_node_guarded(struct dmdst_link *lost)
{
	struct dmdst_node *node = lost->node;

	dmdst_node_contest(node);
	dmdst_netlink_fence_event(node, lost->slot, lost->generation,
				  dmdst_fence_ambiguous(node, lost), lost->why);
}

/*
 * A link's server won't apply anything of it any more. One that still stands
 * ends by this, before or after which it leaves guards: so it comes first.
 */
int dmdst_node_fenced(struct dmdst_node *node, u32 slot, u32 generation)
{
	struct dmdst_link *link;

	lockdep_assert_held(&node->conf);
	if (generation > node->generation)
		return -ENOENT;
	spin_lock(&node->lock);
	list_for_each_entry(link, &node->links, list)
		if (link->slot == slot && link->generation == generation)
			dmdst_link_fenced(link);
	spin_unlock(&node->lock);

	dmdst_fence_one(node, slot, generation);
	return 0;
}

void dmdst_node_link_gone(struct dmdst_link *link)
{
	struct dmdst_node *node = link->node;

	spin_lock(&node->lock);
	list_del_init(&link->list);
	dmdst_latency_keep(link);
	spin_unlock(&node->lock);
	dmdst_netlink_link_event(link, DMDST_LINK_GONE, link->err, link->why);
}

/* @slots: a bit each. Drains them, or with @force cuts them. */
void dmdst_node_drop_links(struct dmdst_node *node, u32 slots, bool force)
{
	struct dmdst_link *held[DMDST_SLOTS_MAX];
	unsigned int nr, i;
	bool changed;

	lockdep_assert_held(&node->conf);
	spin_lock(&node->lock);
	nr = dmdst_node_hold_links(node, slots, held);
	for (i = 0; i < nr; i++)
		dmdst_live_del(node, held[i]);
	changed = dmdst_node_update_state(node, "links dropped on request");
	spin_unlock(&node->lock);

	if (force)
		dmdst_node_cut_links(node, slots, "dropped on request");
	for (i = 0; i < nr; i++) {
		dmdst_link_drain(held[i]);
		dmdst_link_put(held[i]);
	}
	if (changed)
		dmdst_netlink_node_event(node);
}

void dmdst_node_set_wanted(struct dmdst_node *node, unsigned int wanted)
{
	bool changed;

	lockdep_assert_held(&node->conf);
	spin_lock(&node->lock);
	node->wanted = wanted;
	changed = dmdst_node_update_state(node, "more links are wanted");
	spin_unlock(&node->lock);

	dmdst_node_drop_links(node, dmdst_slots_from(wanted), false);
	if (changed)
		dmdst_netlink_node_event(node);
}

/* A policy that has expired can be undone by another one; what failed can't. */
void dmdst_node_set_conduct(struct dmdst_node *node, const struct dmdst_conduct *conduct)
{
	bool changed = false;

	lockdep_assert_held(&node->conf);
	spin_lock(&node->lock);
	node->conduct = *conduct;
	if (node->expired && !dmdst_policy_expired(node)) {
		node->expired = false;
		if (node->state == DMDST_NODE_FAILED)
			changed = dmdst_node_set_state(node, DMDST_NODE_LOST,
						       "the policy was changed");
	}
	dmdst_tick_soon(node);
	spin_unlock(&node->lock);
	if (changed)
		dmdst_netlink_node_event(node);
}

/* ---- requests ---- */

/* No link takes @req: may it wait for one? */
static blk_status_t dmdst_node_may_queue(struct dmdst_node *node,
					 struct dmdst_req *req)
{
	lockdep_assert_held(&node->lock);
	if (node->dead)
		return BLK_STS_IOERR;
	if (node->expired || dmdst_req_is_failed(req))
		return BLK_STS_TRANSPORT;
	if (!req->bio)
		return BLK_STS_OK;
	if (dm_noflush_suspending(req->target->ti))
		return BLK_STS_DM_REQUEUE;
	if (req->bio->bi_opf & REQ_NOWAIT)
		return BLK_STS_AGAIN;
	if (req->bio->bi_opf & (REQ_FAILFAST_MASK | REQ_RAHEAD))
		return BLK_STS_TRANSPORT;
	return BLK_STS_OK;
}

static void dmdst_node_submit_slow(struct dmdst_req *req)
{
	struct dmdst_node *node = req->node;
	blk_status_t status = BLK_STS_OK;
	struct dmdst_link *link;
	bool flush = false;
	unsigned int i;

	spin_lock(&node->lock);
	for (i = 0; i < node->nr_live; i++) {
		link = rcu_dereference_protected(node->live[i],
						 lockdep_is_held(&node->lock));
		if (dmdst_link_take(link, req, NULL))
			goto unlock;
	}
	status = dmdst_node_may_queue(node, req);
	if (!status) {
		/* @req can be gone once the lock is dropped. */
		flush = !req->bio;
		trace_dmdst_wait(req, "no link");
		dmdst_req_move(req, DMDST_REQ_QUEUED);
		list_add_tail(&req->list, &node->queue);
	}
unlock:
	spin_unlock(&node->lock);
	if (status)
		dmdst_req_end(req, status);
	else if (flush)
		dmdst_flush_push_back(node, NULL);
}

/* A server's lack of a command is known once it has been live. */
static bool dmdst_node_lacks(struct dmdst_node *node, u16 cmd)
{
	u32 flags = READ_ONCE(node->export.flags);

	if (!READ_ONCE(node->ever_live))
		return false;
	return (cmd == NBDW_CMD_TRIM && !(flags & NBDW_SEND_TRIM)) ||
	       (cmd == NBDW_CMD_FLUSH && !(flags & NBDW_SEND_FLUSH)) ||
	       (cmd == NBDW_CMD_WRITE_ZEROES && !(flags & NBDW_SEND_WRITE_ZEROES));
}

static void dmdst_node_do_submit(struct dmdst_req *req, bool may_send)
{
	struct dmdst_node *node = req->node;
	bool taken = false, now = false;
	struct dmdst_link *link;
	unsigned int nr;

	if (dmdst_node_lacks(node, req->cmd)) {
		dmdst_req_end(req, req->bio ? BLK_STS_NOTSUPP : BLK_STS_IOERR);
		return;
	}
	rcu_read_lock();
	nr = READ_ONCE(node->nr_live);
	if (nr) {
		link = rcu_dereference(node->live[raw_smp_processor_id() % nr]);
		taken = link && dmdst_link_take(link, req, may_send ? &now : NULL);
	}
	rcu_read_unlock();
	if (!taken)
		dmdst_node_submit_slow(req);
	if (now) {
		dmdst_send_now(link);
		dmdst_link_put(link);
	}
}

/* @req is HELD; it goes on a link, into the queue, or ends. No locks held. */
void dmdst_node_submit(struct dmdst_req *req)
{
	dmdst_node_do_submit(req, false);
}

/* The same from where it may take its time, and sleep. */
void dmdst_node_submit_now(struct dmdst_req *req)
{
	dmdst_node_do_submit(req, true);
}

void dmdst_node_submit_all(struct list_head *reqs)
{
	struct dmdst_req *req, *next;

	list_for_each_entry_safe(req, next, reqs, list) {
		list_del_init(&req->list);
		dmdst_node_submit(req);
	}
}

static void dmdst_end_all(struct list_head *reqs, blk_status_t status)
{
	struct dmdst_req *req, *next;

	list_for_each_entry_safe(req, next, reqs, list) {
		list_del_init(&req->list);
		dmdst_req_end(req, status);
	}
}

/*
 * The link behind @prev, whose reference it takes over; the first one if that
 * is NULL, or gone meanwhile: the caller may meet some twice.
 */
static struct dmdst_link *dmdst_node_next_link(struct dmdst_node *node,
					       struct dmdst_link *prev)
{
	struct list_head *at = &node->links;
	struct dmdst_link *link = NULL;

	spin_lock(&node->lock);
	if (prev && !list_empty(&prev->list))
		at = &prev->list;
	if (!list_is_last(at, &node->links)) {
		link = list_entry(at->next, struct dmdst_link, list);
		kref_get(&link->ref);
	}
	spin_unlock(&node->lock);
	if (prev)
		dmdst_link_put(prev);
	return link;
}

static void dmdst_node_detach(struct dmdst_node *node,
			      const struct dmdst_target *target, bool cut,
			      struct list_head *back)
{
	struct dmdst_link *link = NULL;
	bool guarded = false;

	while ((link = dmdst_node_next_link(node, link))) {
		guarded |= dmdst_link_detach(link, target, back);
		if (cut && dmdst_link_carries(link, target))
			dmdst_link_cut(link, "a suspend can't wait for a write's pages");
	}
	if (guarded)
		dmdst_node_contest(node);
}

/* To device-mapper, if it still takes them: a suspend can be given up. */
static void dmdst_node_return_all(const struct dmdst_target *target,
				  struct list_head *reqs)
{
	if (dm_noflush_suspending(target->ti))
		dmdst_end_all(reqs, BLK_STS_DM_REQUEUE);
	else
		dmdst_node_submit_all(reqs);
}

/*
 * A noflush suspend of @target: what waits goes back to device-mapper, since
 * it could wait for long. So may what is on links.
 */
void dmdst_node_push_back(struct dmdst_node *node, struct dmdst_target *target,
			  enum dmdst_push_back how)
{
	LIST_HEAD(waiting);

	spin_lock(&node->lock);
	dmdst_node_take_queue(node, target, &waiting);
	spin_unlock(&node->lock);
	dmdst_fence_take(node, target, &waiting);
	if (how != DMDST_BACK_WAITING)
		dmdst_node_detach(node, target, how == DMDST_BACK_CUT, &waiting);

	dmdst_node_return_all(target, &waiting);
	dmdst_flush_push_back(node, how == DMDST_BACK_WAITING ? NULL : target);
}

/* All that waits for a link, a fence or a FLUSH fails. */
void dmdst_node_fail_waiting(struct dmdst_node *node)
{
	LIST_HEAD(waiting);

	spin_lock(&node->lock);
	dmdst_node_take_queue(node, NULL, &waiting);
	spin_unlock(&node->lock);
	dmdst_fence_take(node, NULL, &waiting);

	dmdst_end_all(&waiting, BLK_STS_TRANSPORT);
	dmdst_flush_fail(node, BLK_STS_TRANSPORT);
}

/* Everything that waits, is under way, or between the two, fails now. */
void dmdst_node_fail_pending(struct dmdst_node *node)
{
	spin_lock(&node->lock);
	WRITE_ONCE(node->fails, node->fails + 1);
	spin_unlock(&node->lock);
	dmdst_node_fail_links(node, true, "fail-pending");
	dmdst_node_fail_waiting(node);
}
