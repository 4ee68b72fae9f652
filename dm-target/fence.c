// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guards and fences of a node: guards.c under a lock, with the requests that
 * wait for them. Says which requests may be sent, keeps those that may not
 * and those whose pages an old socket has, and lets them go when an old link
 * is fenced. Called by send.c (may it go?), link.c (a loss), recv.c (an
 * answer), req.c (the end of a request), tick.c (quiesce) and netlink.c
 * (FENCED). Never ends a request with a lock held, never touches a socket.
 */
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/stringhash.h>
#include "dm-dst.h"
#include "trace.h"

/* Fences whose nodes no table names: under dmdst_nodes_lock, node.c's. */
static DEFINE_HASHTABLE(dmdst_graves, 6);

static u32 dmdst_name_hash(const char *name)
{
	return full_name_hash(NULL, name, strlen(name));
}

static void dmdst_fences_release(struct kref *ref)
{
	struct dmdst_fences *fences = container_of(ref, struct dmdst_fences, ref);

	kvfree(fences->guards.all);
	kfree(fences);
}

void dmdst_fences_put(struct dmdst_fences *fences)
{
	kref_put(&fences->ref, dmdst_fences_release);
}

/* What an earlier node of this name left, or new ones. */
struct dmdst_fences *dmdst_fences_get(const char *name)
{
	struct dmdst_fences *fences;

	hash_for_each_possible(dmdst_graves, fences, grave, dmdst_name_hash(name)) {
		if (strcmp(fences->name, name))
			continue;
		hash_del(&fences->grave);
		return fences;	/* with the grave's reference */
	}
	fences = kzalloc(sizeof(*fences), GFP_NOIO);
	if (!fences)
		return NULL;
	kref_init(&fences->ref);
	spin_lock_init(&fences->lock);
	INIT_LIST_HEAD(&fences->barred);
	INIT_LIST_HEAD(&fences->pinned);
	if (!dmdst_fences_grow(fences, 1))
		return fences;
	kfree(fences);
	return NULL;
}

/*
 * The last table that named the node is gone, and all its bios have ended.
 * Guards stay, for the next table that names it; links that still go down
 * only read what they find.
 */
void dmdst_fences_bury(struct dmdst_node *node)
{
	struct dmdst_fences *fences = node->fences;

	if (!READ_ONCE(fences->active))
		return;
	DMWARN("node %s: removed while %u ranges are ambiguous; kept for its return",
	       node->name, dmdst_fence_ambiguous(node, NULL));
	strscpy(fences->name, node->name, sizeof(fences->name));
	fences->generation = node->generation;
	fences->quiesce = READ_ONCE(node->conduct.quiesce);
	kref_get(&fences->ref);
	hash_add(dmdst_graves, &fences->grave, dmdst_name_hash(fences->name));
}

/* For the module's exit. */
void dmdst_fences_forget_all(void)
{
	struct dmdst_fences *fences;
	struct hlist_node *next;
	unsigned int bucket;

	hash_for_each_safe(dmdst_graves, bucket, next, fences, grave)
		dmdst_fences_put(fences);
}

/* So many that all writes of so many links can be lost at once. */
int dmdst_fences_grow(struct dmdst_fences *fences, unsigned int links)
{
	unsigned int nr = links * DMDST_DEPTH;
	struct dmdst_guard *room;

	if (nr <= READ_ONCE(fences->guards.nr))
		return 0;
	room = kvcalloc(nr, sizeof(*room), GFP_NOIO);
	if (!room)
		return -ENOMEM;
	spin_lock_bh(&fences->lock);
	room = dmdst_guards_grow(&fences->guards, room, nr);
	spin_unlock_bh(&fences->lock);
	kvfree(room);
	return 0;
}

/* What others read without the lock. */
static void dmdst_fences_update(struct dmdst_fences *fences)
{
	lockdep_assert_held(&fences->lock);
	WRITE_ONCE(fences->losses, fences->guards.losses);
	WRITE_ONCE(fences->active, dmdst_guards_active(&fences->guards));
	WRITE_ONCE(fences->listening, dmdst_guards_listening(&fences->guards, false));
}

/* ---- requests ---- */

/*
 * @req is the next of its link's send queue, link->lock held. True: it has to
 * wait and is off that queue. The one place that decides; a guard is there
 * before the loss is seen, so a request that has a slot by then is found by
 * dmdst_fence_contest().
 */
bool dmdst_fence_bars(struct dmdst_req *req)
{
	struct dmdst_fences *fences = req->node->fences;
	u64 start = req->offset, end = start + req->len;
	bool barred = false;

	if (likely(!READ_ONCE(fences->active)) || !req->bio)
		return false;

	spin_lock_bh(&fences->lock);
	if (!dmdst_req_is_write(req)) {
		barred = dmdst_guards_bar_read(&fences->guards, start, end);
	} else if (!dmdst_guards_ambiguous(&fences->guards, req->guard)) {
		/* Not a replay, or not any more. */
		dmdst_guards_disown(&fences->guards, &req->guard);
		barred = dmdst_guards_bar_write(&fences->guards, start, end);
	}
	if (barred) {
		trace_dmdst_wait(req, "ambiguous");
		dmdst_req_move(req, DMDST_REQ_BARRED);
		list_move_tail(&req->list, &fences->barred);
	}
	spin_unlock_bh(&fences->lock);
	return barred;
}

/* @req is answered. True: it has to wait for an old socket's sake, too. */
bool dmdst_fence_pins(struct dmdst_req *req)
{
	struct dmdst_fences *fences = req->node->fences;
	bool pinned;

	if (likely(!req->pages_out))
		return false;

	spin_lock_bh(&fences->lock);
	/* Both are set before dmdst_fence_take() looks: one of the two finds it. */
	pinned = dmdst_guards_ambiguous(&fences->guards, req->guard) &&
		 !dmdst_req_is_failed(req) && !READ_ONCE(req->node->expired);
	req->pages_out = pinned;
	if (pinned) {
		trace_dmdst_wait(req, "pages");
		dmdst_req_move(req, DMDST_REQ_PINNED);
		list_add_tail(&req->list, &fences->pinned);
	}
	spin_unlock_bh(&fences->lock);
	return pinned;
}

/* This write is over, for the caller; its guard isn't. */
void dmdst_fence_disown(struct dmdst_req *req)
{
	struct dmdst_fences *fences = req->node->fences;

	if (likely(!READ_ONCE(req->guard)))
		return;
	spin_lock_bh(&fences->lock);
	dmdst_guards_disown(&fences->guards, &req->guard);
	spin_unlock_bh(&fences->lock);
}

/* Whoever waits, of @target or (NULL) at all. */
void dmdst_fence_take(struct dmdst_node *node, const struct dmdst_target *target,
		      struct list_head *taken)
{
	struct dmdst_fences *fences = node->fences;
	struct dmdst_req *req, *next;

	spin_lock_bh(&fences->lock);
	list_splice_tail_init(&fences->pinned, &fences->barred);
	list_for_each_entry_safe(req, next, &fences->barred, list) {
		if (target && req->target != target) {
			if (req->state == DMDST_REQ_PINNED)
				list_move_tail(&req->list, &fences->pinned);
			continue;
		}
		dmdst_req_move(req, DMDST_REQ_HELD);
		list_move_tail(&req->list, taken);
	}
	spin_unlock_bh(&fences->lock);
}

/* Those that are barred in a range; they are judged again when they are to be sent. */
static void dmdst_fence_take_barred(struct dmdst_fences *fences, u64 start, u64 end,
				    struct list_head *barred)
{
	struct dmdst_req *req, *next;

	lockdep_assert_held(&fences->lock);
	list_for_each_entry_safe(req, next, &fences->barred, list) {
		if (req->offset >= end || req->offset + req->len <= start)
			continue;
		dmdst_req_move(req, DMDST_REQ_HELD);
		list_move_tail(&req->list, barred);
	}
}

/* ---- a loss ---- */

/* Writes that @link has and no request: their guards are all that is left. */
static bool dmdst_fence_has_detached(struct dmdst_link *link)
{
	unsigned int i;

	for (i = 0; i < DMDST_DEPTH; i++)
		if (link->slots[i].guard)
			return true;
	return false;
}

/*
 * @link is lost with @writes unanswered, and maybe with detached ones. Its lock
 * is held: who sees its slots empty sees the guards. True: it leaves some; the
 * caller has dmdst_fence_contest() called for all links before it submits
 * anything.
 */
bool dmdst_fence_lost(struct dmdst_link *link, struct list_head *writes)
{
	struct dmdst_fences *fences = link->node->fences;
	struct dmdst_req *req;
	unsigned int old, i;

	lockdep_assert_held(&link->lock);
	if (list_empty(writes) && !dmdst_fence_has_detached(link))
		return false;
	spin_lock_bh(&fences->lock);
	old = dmdst_guards_lost(&fences->guards, link->slot, link->generation);
	list_for_each_entry(req, writes, list) {
		dmdst_guards_add(&fences->guards, old, req->offset,
				 req->offset + req->len, &req->guard);
		req->pages_out |= req->spliced;
	}
	for (i = 0; i < DMDST_DEPTH; i++) {
		u16 *guard = &link->slots[i].guard;

		if (!*guard)
			continue;
		dmdst_guards_add(&fences->guards, old, 0, 0, guard);
		dmdst_guards_disown(&fences->guards, guard);
	}
	dmdst_fences_update(fences);
	spin_unlock_bh(&fences->lock);
	return true;
}

/* ---- detached writes: their link still talks ---- */

/*
 * The write in @slot goes back to device-mapper; the slot keeps its guard.
 * False: there is none. The caller calls dmdst_fence_contest(), as above.
 */
bool dmdst_fence_detach(struct dmdst_link *link, u16 slot)
{
	struct dmdst_fences *fences = link->node->fences;
	struct dmdst_req *req = link->slots[slot].req;
	bool guarded;

	lockdep_assert_held(&link->lock);
	spin_lock_bh(&fences->lock);
	guarded = dmdst_guards_detach(&fences->guards, req->offset,
				      req->offset + req->len, &req->guard,
				      &link->slots[slot].guard);
	dmdst_fences_update(fences);
	spin_unlock_bh(&fences->lock);
	return guarded;
}

/* The server has said that it is done with it: this is its fence. */
void dmdst_fence_answered(struct dmdst_link *link, u16 slot, struct list_head *freed)
{
	struct dmdst_fences *fences = link->node->fences;
	u64 start, end;

	lockdep_assert_held(&link->lock);
	if (!link->slots[slot].guard)
		return;
	spin_lock_bh(&fences->lock);
	dmdst_guards_answered(&fences->guards, &link->slots[slot].guard, &start, &end);
	dmdst_fences_update(fences);
	dmdst_fence_take_barred(fences, start, end, freed);
	spin_unlock_bh(&fences->lock);
}

/* Guards have come: which writes that @link carries overlap one? */
void dmdst_fence_contest(struct dmdst_link *link)
{
	struct dmdst_fences *fences = link->node->fences;
	struct dmdst_req *req;
	unsigned int i;

	spin_lock_bh(&link->lock);
	spin_lock_bh(&fences->lock);
	for (i = 0; i < DMDST_DEPTH; i++) {
		req = link->slots[i].req;
		if (req && dmdst_req_is_write(req))
			dmdst_guards_contest(&fences->guards, req->offset,
					     req->offset + req->len, &req->guard);
	}
	spin_unlock_bh(&fences->lock);
	spin_unlock_bh(&link->lock);
}

/* ---- fences ---- */

/* A request in @slot of @link is answered: quiesce counts from here. */
void dmdst_fence_heard(struct dmdst_link *link, u16 slot)
{
	struct dmdst_fences *fences = link->node->fences;

	if (likely(!READ_ONCE(fences->listening)))
		return;
	spin_lock_bh(&fences->lock);
	dmdst_guards_heard(&fences->guards, link->slots[slot].loss,
			   link->generation, jiffies);
	dmdst_fences_update(fences);
	spin_unlock_bh(&fences->lock);
}

bool dmdst_fence_needs_probe(struct dmdst_node *node)
{
	struct dmdst_fences *fences = node->fences;
	bool needs;

	if (!READ_ONCE(fences->listening) ||
	    READ_ONCE(node->conduct.quiesce) == DMDST_NEVER)
		return false;
	spin_lock_bh(&fences->lock);
	needs = dmdst_guards_listening(&fences->guards, true);
	spin_unlock_bh(&fences->lock);
	return needs;
}

static void dmdst_fence_take_unpinned(struct dmdst_fences *fences,
				      struct list_head *pinned)
{
	struct dmdst_req *req, *next;

	lockdep_assert_held(&fences->lock);
	list_for_each_entry_safe(req, next, &fences->pinned, list) {
		if (dmdst_guards_ambiguous(&fences->guards, req->guard))
			continue;
		dmdst_req_move(req, DMDST_REQ_HELD);
		list_move_tail(&req->list, pinned);
	}
}

/* Of old links that were fenced: who they are, and who waited for them. */
struct dmdst_lifted {
	u32			slots[DMDST_OLD_LINKS];
	u32			generations[DMDST_OLD_LINKS];
	unsigned int		nr;
	struct list_head	barred;
	struct list_head	pinned;
};

/*
 * These old links can't write any more. The caller has found them under the
 * same hold of the lock: once it is dropped their numbers may be others'.
 */
static void dmdst_fence_lift(struct dmdst_fences *fences, u64 old,
			     struct dmdst_lifted *lifted)
{
	unsigned int i;

	lockdep_assert_held(&fences->lock);
	INIT_LIST_HEAD(&lifted->barred);
	INIT_LIST_HEAD(&lifted->pinned);
	lifted->nr = 0;
	old &= fences->guards.old_used;
	if (!old)
		return;
	for (i = 0; i < DMDST_OLD_LINKS; i++) {
		if (!(old & BIT_ULL(i)))
			continue;
		lifted->slots[lifted->nr] = fences->guards.old[i].slot;
		lifted->generations[lifted->nr++] = fences->guards.old[i].generation;
	}
	dmdst_guards_fence(&fences->guards, old);
	dmdst_fences_update(fences);
	dmdst_fence_take_barred(fences, 0, U64_MAX, &lifted->barred);
	dmdst_fence_take_unpinned(fences, &lifted->pinned);
}

/* Tells of them, and lets go who waited. No locks. */
static void dmdst_fence_lifted(struct dmdst_node *node, struct dmdst_lifted *lifted,
			       const char *why)
{
	unsigned int i;

	for (i = 0; i < lifted->nr; i++)
		dmdst_netlink_fence_event(node, lifted->slots[i],
					  lifted->generations[i], 0, why);
	dmdst_reqs_answered(&lifted->pinned);
	dmdst_node_submit_all(&lifted->barred);
}

/* All of them: the operator's word. */
void dmdst_fence_all(struct dmdst_node *node)
{
	struct dmdst_fences *fences = node->fences;
	struct dmdst_lifted lifted;

	spin_lock_bh(&fences->lock);
	dmdst_fence_lift(fences, U64_MAX, &lifted);
	spin_unlock_bh(&fences->lock);
	dmdst_fence_lifted(node, &lifted, "fenced by the operator");
}

/* What stands for this one alone, if anything does. */
void dmdst_fence_one(struct dmdst_node *node, u32 slot, u32 generation)
{
	struct dmdst_fences *fences = node->fences;
	struct dmdst_lifted lifted;

	spin_lock_bh(&fences->lock);
	dmdst_fence_lift(fences, dmdst_guards_find(&fences->guards, slot, generation),
			 &lifted);
	spin_unlock_bh(&fences->lock);
	dmdst_fence_lifted(node, &lifted, "fenced by its server");
}

/* Those whose quiesce is over. */
void dmdst_fence_quiet(struct dmdst_node *node)
{
	u32 quiesce = READ_ONCE(node->conduct.quiesce);
	struct dmdst_fences *fences = node->fences;
	struct dmdst_lifted lifted;

	if (!READ_ONCE(fences->active) || quiesce == DMDST_NEVER)
		return;
	spin_lock_bh(&fences->lock);
	dmdst_fence_lift(fences, dmdst_guards_quiet(&fences->guards, jiffies,
						    msecs_to_jiffies(quiesce)),
			 &lifted);
	spin_unlock_bh(&fences->lock);
	dmdst_fence_lifted(node, &lifted, "quiesce is over");
}

/* The node has no link: who waits for a fence waits for a link, or must not. */
void dmdst_fence_unbar(struct dmdst_node *node)
{
	struct dmdst_fences *fences = node->fences;
	LIST_HEAD(barred);

	spin_lock_bh(&fences->lock);
	dmdst_fence_take_barred(fences, 0, U64_MAX, &barred);
	spin_unlock_bh(&fences->lock);
	dmdst_node_submit_all(&barred);
}

/* Ranges that are ambiguous; NULL: not only because of one link. */
unsigned int dmdst_fence_ambiguous(struct dmdst_node *node,
				   const struct dmdst_link *of)
{
	struct dmdst_fences *fences = node->fences;
	u64 old = U64_MAX;
	unsigned int nr;

	if (!READ_ONCE(fences->active))
		return 0;
	spin_lock_bh(&fences->lock);
	if (of)
		old = dmdst_guards_find(&fences->guards, of->slot, of->generation);
	nr = dmdst_guards_count(&fences->guards, old);
	spin_unlock_bh(&fences->lock);
	return nr;
}
