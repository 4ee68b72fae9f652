// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guards of a node: an array that is searched from end to end, for it is
 * short, searched only while something is ambiguous, and easy to be sure of.
 * Pure: see guards.h. The caller locks.
 */
#include <linux/bits.h>
#include <linux/string.h>
#include "guards.h"

static bool dmdst_overlaps(const struct dmdst_guard *guard, u64 start, u64 end)
{
	return guard->used && guard->start < end && start < guard->end;
}

/* Serial numbers that may wrap. */
static bool dmdst_before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

/* ---- old links ---- */

static unsigned int dmdst_oldest(const struct dmdst_guards *g, u64 among)
{
	unsigned int i, found = DMDST_OLD_LINKS;

	for (i = 0; i < DMDST_OLD_LINKS; i++) {
		if (!(among & BIT_ULL(i)))
			continue;
		if (found == DMDST_OLD_LINKS ||
		    dmdst_before(g->old[i].loss, g->old[found].loss))
			found = i;
	}
	return found;
}

static void dmdst_replace_old(u64 *old, unsigned int from, unsigned int to)
{
	if (*old & BIT_ULL(from))
		*old = (*old & ~BIT_ULL(from)) | BIT_ULL(to);
}

/* Makes room: the two oldest are one from here on, fenced when both are. */
static void dmdst_merge_oldest(struct dmdst_guards *g)
{
	unsigned int from = dmdst_oldest(g, g->old_used);
	unsigned int to = dmdst_oldest(g, g->old_used & ~BIT_ULL(from));
	struct dmdst_old_link *a = &g->old[from], *b = &g->old[to];
	unsigned int i;

	for (i = 0; i < g->top; i++)
		dmdst_replace_old(&g->all[i].old, from, to);
	dmdst_replace_old(&g->overflow, from, to);

	if (dmdst_before(b->generation, a->generation)) {
		b->generation = a->generation;
		b->slot = a->slot;
	}
	b->merged += a->merged + 1;
	b->heard &= a->heard;
	b->renewed &= a->renewed;
	if ((long)(a->heard_at - b->heard_at) > 0)
		b->heard_at = a->heard_at;
	g->old_used &= ~BIT_ULL(from);
}

/* A link is lost with writes in flight: the number that stands for it. */
unsigned int dmdst_guards_lost(struct dmdst_guards *g, u32 slot, u32 generation)
{
	unsigned int i;

	if (!(~g->old_used & ~DMDST_DETACHED))
		dmdst_merge_oldest(g);
	for (i = 0; g->old_used & BIT_ULL(i); i++)
		;
	g->old[i] = (struct dmdst_old_link) {
		.slot = slot,
		.generation = generation,
		.loss = ++g->losses,
	};
	g->old_used |= BIT_ULL(i);
	return i;
}

/* The one that stands for this link alone; 0: none does. */
u64 dmdst_guards_find(const struct dmdst_guards *g, u32 slot, u32 generation)
{
	unsigned int i;

	for (i = 0; i < DMDST_OLD_LINKS; i++)
		if (g->old_used & BIT_ULL(i) && !g->old[i].merged &&
		    g->old[i].slot == slot && g->old[i].generation == generation)
			return BIT_ULL(i);
	return 0;
}

/* ---- quiesce ---- */

/*
 * A link of @generation answered a request that was sent when @stamp losses
 * were known: the server ran after those. The first such answer starts the
 * clock; the first on a link younger than the lost one starts it anew.
 */
void dmdst_guards_heard(struct dmdst_guards *g, u32 stamp, u32 generation,
			unsigned long now)
{
	unsigned int i;

	for (i = 0; i < DMDST_OLD_LINKS; i++) {
		struct dmdst_old_link *old = &g->old[i];
		bool younger = dmdst_before(old->generation, generation);

		if (!(g->old_used & BIT_ULL(i)) || dmdst_before(stamp, old->loss) ||
		    (old->heard && (old->renewed || !younger)))
			continue;
		old->heard = true;
		old->renewed = younger;
		old->heard_at = now;
	}
}

/* Would an answer start a clock? @for_first: one that doesn't run yet. */
bool dmdst_guards_listening(const struct dmdst_guards *g, bool for_first)
{
	unsigned int i;

	for (i = 0; i < DMDST_OLD_LINKS; i++)
		if (g->old_used & BIT_ULL(i) &&
		    (!g->old[i].heard || (!for_first && !g->old[i].renewed)))
			return true;
	return false;
}

/* The old links that have been quiet for long enough. */
u64 dmdst_guards_quiet(const struct dmdst_guards *g, unsigned long now,
		       unsigned long quiesce)
{
	u64 quiet = 0;
	unsigned int i;

	for (i = 0; i < DMDST_OLD_LINKS; i++)
		if (g->old_used & BIT_ULL(i) && g->old[i].heard &&
		    (long)(now - g->old[i].heard_at - quiesce) >= 0)
			quiet |= BIT_ULL(i);
	return quiet;
}

/* ---- guards ---- */

/* Old links that may write to the range. */
static u64 dmdst_old_of_range(const struct dmdst_guards *g, u64 start, u64 end)
{
	u64 old = 0;
	unsigned int i;

	for (i = 0; i < g->top; i++)
		if (dmdst_overlaps(&g->all[i], start, end))
			old |= g->all[i].old;
	return old;
}

static struct dmdst_guard *dmdst_guard_of(const struct dmdst_guards *g, u16 owner)
{
	return owner ? &g->all[owner - 1] : NULL;
}

static struct dmdst_guard *dmdst_guard_new(struct dmdst_guards *g, u64 start,
					   u64 end, u16 *owner)
{
	bool shared = false;
	unsigned int i;

	for (i = 0; i < g->top; i++) {
		if (!dmdst_overlaps(&g->all[i], start, end))
			continue;
		g->all[i].shared = true;
		shared = true;
	}
	for (i = 0; i < g->nr && g->all[i].used; i++)
		;
	if (i == g->nr)
		return NULL;

	g->all[i] = (struct dmdst_guard) {
		.start = start,
		.end = end,
		.owner = owner,
		.used = true,
		.shared = shared,
	};
	g->shared |= shared;
	g->used++;
	if (i >= g->top)
		g->top = i + 1;
	*owner = i + 1;
	return &g->all[i];
}

/*
 * @old may still write the range. @owner: the number of the guard that the
 * request has, or 0; then it gets one if there is one. One that was detached
 * has one, and its link talks no more.
 */
void dmdst_guards_add(struct dmdst_guards *g, unsigned int old, u64 start, u64 end,
		      u16 *owner)
{
	struct dmdst_guard *guard = dmdst_guard_of(g, *owner);

	if (!guard)
		guard = dmdst_guard_new(g, start, end, owner);
	if (guard)
		guard->old = (guard->old & ~DMDST_DETACHED) | BIT_ULL(old);
	/* Without a guard nobody sees what overlaps: all wait for all of it. */
	if (!guard)
		g->overflow |= BIT_ULL(old) | dmdst_old_of_range(g, start, end);
	else if (g->overflow)
		g->overflow |= BIT_ULL(old);
}

/*
 * A write in flight on another link when guards came: where it overlaps one,
 * an old link can undo it although it has been answered.
 */
void dmdst_guards_contest(struct dmdst_guards *g, u64 start, u64 end, u16 *owner)
{
	u64 old;

	if (*owner)
		return;
	old = dmdst_old_of_range(g, start, end);
	if (old && !dmdst_guard_new(g, start, end, owner))
		g->overflow |= old;
}

/*
 * The request whose guard @from is (0: none yet) leaves its link, which still
 * talks and keeps the write: the guard is @to's, until dmdst_guards_answered()
 * or, if the link is lost first, dmdst_guards_add(). False: none is free.
 */
bool dmdst_guards_detach(struct dmdst_guards *g, u64 start, u64 end, u16 *from, u16 *to)
{
	struct dmdst_guard *guard = dmdst_guard_of(g, *from);

	if (guard) {
		guard->owner = to;
		*to = *from;
		*from = 0;
	} else {
		guard = dmdst_guard_new(g, start, end, to);
	}
	if (!guard)
		return false;
	guard->old |= DMDST_DETACHED;
	/* What has no guard may overlap it. */
	if (g->overflow)
		g->overflow |= DMDST_DETACHED;
	return true;
}

/* The request is done with its guard; the guard stays. */
void dmdst_guards_disown(struct dmdst_guards *g, u16 *owner)
{
	struct dmdst_guard *guard = dmdst_guard_of(g, *owner);

	if (guard)
		guard->owner = NULL;
	*owner = 0;
}

static void dmdst_guard_drop(struct dmdst_guards *g, struct dmdst_guard *guard)
{
	if (guard->owner)
		*guard->owner = 0;
	guard->used = false;
	g->used--;
}

/* Guards that need no fence, nor an answer, go. */
static void dmdst_guards_settle(struct dmdst_guards *g)
{
	struct dmdst_guard *guard;
	u64 detached = 0;
	unsigned int i;

	for (i = 0; i < g->top; i++)
		detached |= g->all[i].old & DMDST_DETACHED;
	g->overflow &= ~DMDST_DETACHED | detached;
	for (i = 0; i < g->top; i++) {
		guard = &g->all[i];
		if (guard->used && !guard->old &&
		    !(guard->shared && dmdst_old_of_range(g, guard->start, guard->end)))
			dmdst_guard_drop(g, guard);
	}
	while (g->top && !g->all[g->top - 1].used)
		g->top--;
	g->shared &= !!g->used;
}

/* These old links can't write any more. */
void dmdst_guards_fence(struct dmdst_guards *g, u64 old)
{
	unsigned int i;

	g->old_used &= ~old;
	g->overflow &= ~old;
	for (i = 0; i < g->top; i++)
		g->all[i].old &= ~old;
	dmdst_guards_settle(g);
}

/*
 * A detached write is answered by the link that kept it. Who waited in the
 * range that is returned may not have to any more.
 */
void dmdst_guards_answered(struct dmdst_guards *g, u16 *owner, u64 *start, u64 *end)
{
	struct dmdst_guard *guard = dmdst_guard_of(g, *owner);

	*start = g->overflow ? 0 : guard->start;
	*end = g->overflow ? ~0ULL : guard->end;
	guard->old &= ~DMDST_DETACHED;
	dmdst_guards_disown(g, owner);
	dmdst_guards_settle(g);
}

/* @room has @nr guards, more than now. Returns what the caller shall free. */
struct dmdst_guard *dmdst_guards_grow(struct dmdst_guards *g,
				      struct dmdst_guard *room, unsigned int nr)
{
	struct dmdst_guard *old = g->all;

	if (nr <= g->nr)
		return room;
	memset(room, 0, nr * sizeof(*room));
	if (g->top)
		memcpy(room, old, g->top * sizeof(*room));
	g->all = room;
	g->nr = nr;
	return old;
}

/* ---- what they forbid ---- */

/* Must a new WRITE, TRIM or WRITE_ZEROES wait? */
bool dmdst_guards_bar_write(const struct dmdst_guards *g, u64 start, u64 end)
{
	return g->overflow || dmdst_old_of_range(g, start, end);
}

static bool dmdst_is_contested(const struct dmdst_guards *g,
			       const struct dmdst_guard *guard, u64 start, u64 end)
{
	unsigned int i;

	for (i = 0; i < g->top; i++)
		if (&g->all[i] != guard && dmdst_overlaps(&g->all[i], start, end))
			return true;
	return false;
}

/* Must a read wait? Only where a guard overlaps another within its range. */
bool dmdst_guards_bar_read(const struct dmdst_guards *g, u64 start, u64 end)
{
	const struct dmdst_guard *guard;
	unsigned int i;

	if (g->overflow)
		return true;
	for (i = 0; g->shared && i < g->top; i++) {
		guard = &g->all[i];
		if (!guard->old || !guard->shared || !dmdst_overlaps(guard, start, end))
			continue;
		if (dmdst_is_contested(g, guard,
				       guard->start > start ? guard->start : start,
				       guard->end < end ? guard->end : end))
			return true;
	}
	return false;
}

/* May an old link still apply the write of the request that has this guard? */
bool dmdst_guards_ambiguous(const struct dmdst_guards *g, u16 owner)
{
	const struct dmdst_guard *guard = dmdst_guard_of(g, owner);

	return guard && guard->old;
}

/* Guards that wait for one of these old links. */
unsigned int dmdst_guards_count(const struct dmdst_guards *g, u64 old)
{
	unsigned int i, nr = 0;

	for (i = 0; i < g->top; i++)
		nr += g->all[i].used && g->all[i].old & old;
	return nr + !!(g->overflow & old);
}
