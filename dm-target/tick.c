// SPDX-License-Identifier: GPL-2.0-only
/*
 * What passes with time: once a second a node that waits for something looks
 * for links that don't answer, for its policy's end, and for old links that
 * have been quiet long enough; where nobody asks the node anything it asks
 * itself, to hear an answer. Where there is nothing to wait for it rests until
 * the next request. Never ends anything with a lock held.
 */
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include "dm-dst.h"

/* Where answers go that nobody reads: to probes, and to what was detached. */
struct bio_vec dmdst_unread;

int dmdst_tick_module_init(void)
{
	dmdst_unread.bv_page = alloc_page(GFP_KERNEL);
	dmdst_unread.bv_len = PAGE_SIZE;
	return dmdst_unread.bv_page ? 0 : -ENOMEM;
}

void dmdst_tick_module_exit(void)
{
	__free_page(dmdst_unread.bv_page);
}

/* A queued tick holds a reference; nodes that are dead have none. */
void dmdst_tick_soon(struct dmdst_node *node)
{
	lockdep_assert_held(&node->lock);
	if (node->dead)
		return;
	WRITE_ONCE(node->ticking, true);
	kref_get(&node->ref);
	if (mod_delayed_work(dmdst_down_wq, &node->tick, 0))
		dmdst_node_put(node);	/* not the last: it was queued */
}

/* Unless somebody wants it sooner. */
static void dmdst_tick_again(struct dmdst_node *node)
{
	lockdep_assert_held(&node->lock);
	if (node->dead)
		return;
	dmdst_tick_wake(node);
}

/* The caller has a reference, through a link that isn't lost or a lock. */
void dmdst_tick_wake(struct dmdst_node *node)
{
	WRITE_ONCE(node->ticking, true);
	kref_get(&node->ref);
	if (!queue_delayed_work(dmdst_down_wq, &node->tick, round_jiffies_relative(HZ)))
		dmdst_node_put(node);	/* not the last, as above */
}

/* All its links are live and owe no answer, and nothing waits or is ambiguous. */
static bool dmdst_tick_is_calm(struct dmdst_node *node)
{
	struct dmdst_link *link;
	unsigned int links = 0;

	lockdep_assert_held(&node->lock);
	list_for_each_entry(link, &node->links, list) {
		/* Also to what was detached. */
		if (dmdst_link_in_flight(link))
			return false;
		links++;
	}
	return links == node->nr_live && !atomic_read(&node->on_link) &&
	       !atomic_read(&node->waiting) && !READ_ONCE(node->fences->active) &&
	       !READ_ONCE(node->fences->listening);
}

static bool dmdst_tick_goes_on(struct dmdst_node *node)
{
	if (node->down && !node->expired &&
	    node->conduct.policy == DMDST_POLICY_QUEUE_FOR)
		return true;
	return !list_empty(&node->links) && !dmdst_tick_is_calm(node);
}

/* For a node that is dead. */
void dmdst_tick_stop(struct dmdst_node *node)
{
	if (cancel_delayed_work_sync(&node->tick))
		dmdst_node_put(node);
}

/* Links that are lost by this leave node->links by themselves, later. */
static void dmdst_tick_links(struct dmdst_node *node)
{
	struct dmdst_link *link;

	spin_lock(&node->lock);
	list_for_each_entry(link, &node->links, list)
		dmdst_link_check_time(link, node->conduct.timeout);
	spin_unlock(&node->lock);
}

bool dmdst_policy_expired(const struct dmdst_node *node)
{
	const struct dmdst_conduct *conduct = &node->conduct;

	lockdep_assert_held(&node->lock);
	if (!node->down || conduct->policy == DMDST_POLICY_QUEUE)
		return false;
	return conduct->policy == DMDST_POLICY_ERROR ||
	       time_after_eq(jiffies, node->lost_at +
				      msecs_to_jiffies(conduct->queue_for));
}

static void dmdst_tick_policy(struct dmdst_node *node)
{
	bool expires, changed = false;

	spin_lock(&node->lock);
	expires = !node->expired && dmdst_policy_expired(node);
	if (expires) {
		WRITE_ONCE(node->expired, true);
		/* A mismatch stays one: it says more. */
		if (node->state == DMDST_NODE_LOST)
			changed = dmdst_node_set_state(node, DMDST_NODE_FAILED,
						       "no link, and the policy has expired");
	}
	spin_unlock(&node->lock);

	if (changed)
		dmdst_netlink_node_event(node);
	if (expires)
		dmdst_node_fail_waiting(node);
}

/*
 * One block: small, harmless, and every server must answer it. One that is
 * larger than our page fits no line; a part of it is refused, which is an
 * answer, too.
 */
static void dmdst_tick_probe(struct dmdst_node *node)
{
	struct dmdst_req *probe = &node->probe;

	if (!READ_ONCE(node->nr_live) || READ_ONCE(probe->state) != DMDST_REQ_DONE)
		return;
	dmdst_req_init(probe, node, NBDW_CMD_READ);
	probe->bvec = &dmdst_unread;
	probe->left = clamp_t(u32, node->export.min_block, SECTOR_SIZE, PAGE_SIZE);
	probe->iter.bi_size = probe->left;
	dmdst_node_submit(probe);
}

static void dmdst_tick_work(struct work_struct *work)
{
	struct dmdst_node *node = container_of(to_delayed_work(work),
					       struct dmdst_node, tick);
	unsigned int noio = memalloc_noio_save();

	dmdst_tick_links(node);
	dmdst_tick_policy(node);
	if (READ_ONCE(node->down))
		dmdst_fence_unbar(node);
	dmdst_fence_quiet(node);
	if (dmdst_fence_needs_probe(node))
		dmdst_tick_probe(node);

	spin_lock(&node->lock);
	WRITE_ONCE(node->ticking, false);
	/* Pairs with dmdst_link_take(): it sees this, or we see its request. */
	smp_mb();
	if (dmdst_tick_goes_on(node))
		dmdst_tick_again(node);
	spin_unlock(&node->lock);
	memalloc_noio_restore(noio);
	dmdst_node_put(node);
}

void dmdst_tick_init(struct dmdst_node *node)
{
	INIT_DELAYED_WORK(&node->tick, dmdst_tick_work);
	dmdst_req_init(&node->probe, node, NBDW_CMD_READ);
	node->probe.state = DMDST_REQ_DONE;
}
