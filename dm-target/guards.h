/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which ranges of a node an old link's server may still write, and what that
 * forbids. No locks, no requests, no time of its own: fence.c brings those,
 * and tests/rules compiles this file in user space. Theory: docs/design.md,
 * "Loss, ambiguity, fences".
 */
#ifndef DMDST_GUARDS_H
#define DMDST_GUARDS_H

#include <linux/types.h>

/* Old links a node can tell apart; one bit each. */
#define DMDST_OLD_LINKS		63
/*
 * The bit beside theirs: a link that still talks has the write, and nobody
 * else does; its answer will say that it is done, or its loss that it may not.
 */
#define DMDST_DETACHED		(1ULL << DMDST_OLD_LINKS)

/* A lost link (or several, merged) whose requests may still be applied. */
struct dmdst_old_link {
	u32		slot;
	u32		generation;	/* the newest, where several were merged */
	u32		merged;		/* links it stands for beside itself */
	u32		loss;		/* its number; requests sent later bear it */
	bool		heard;		/* quiesce is being counted */
	bool		renewed;	/* from an answer on a younger link */
	unsigned long	heard_at;	/* the caller's clock */
};

/*
 * A range that @old may still write. With none it is a write that was in
 * flight elsewhere, or settled, and overlaps one that is ambiguous.
 */
struct dmdst_guard {
	u64	start;
	u64	end;
	u64	old;		/* not fenced yet, a bit each; or DMDST_DETACHED */
	u16	*owner;		/* where its request has our number; or NULL */
	bool	used;
	bool	shared;		/* overlaps another one */
};

struct dmdst_guards {
	struct dmdst_guard	*all;
	unsigned int		nr;	/* of all */
	unsigned int		top;	/* none from here on is used */
	unsigned int		used;
	bool			shared;	/* some may be */
	u64			overflow; /* old links with unguarded writes */
	u64			old_used;
	u32			losses;
	struct dmdst_old_link	old[DMDST_OLD_LINKS];
};

unsigned int dmdst_guards_lost(struct dmdst_guards *g, u32 slot, u32 generation);
void dmdst_guards_add(struct dmdst_guards *g, unsigned int old, u64 start, u64 end,
		      u16 *owner);
void dmdst_guards_contest(struct dmdst_guards *g, u64 start, u64 end, u16 *owner);
bool dmdst_guards_detach(struct dmdst_guards *g, u64 start, u64 end, u16 *from, u16 *to);
void dmdst_guards_answered(struct dmdst_guards *g, u16 *owner, u64 *start, u64 *end);
void dmdst_guards_disown(struct dmdst_guards *g, u16 *owner);
void dmdst_guards_fence(struct dmdst_guards *g, u64 old);
struct dmdst_guard *dmdst_guards_grow(struct dmdst_guards *g,
				      struct dmdst_guard *room, unsigned int nr);

bool dmdst_guards_bar_write(const struct dmdst_guards *g, u64 start, u64 end);
bool dmdst_guards_bar_read(const struct dmdst_guards *g, u64 start, u64 end);
bool dmdst_guards_ambiguous(const struct dmdst_guards *g, u16 owner);
unsigned int dmdst_guards_count(const struct dmdst_guards *g, u64 old);
u64 dmdst_guards_find(const struct dmdst_guards *g, u32 slot, u32 generation);

void dmdst_guards_heard(struct dmdst_guards *g, u32 stamp, u32 generation,
			unsigned long now);
bool dmdst_guards_listening(const struct dmdst_guards *g, bool for_first);
u64 dmdst_guards_quiet(const struct dmdst_guards *g, unsigned long now,
		       unsigned long quiesce);

static inline bool dmdst_guards_active(const struct dmdst_guards *g)
{
	return g->used || g->overflow;
}

#endif /* DMDST_GUARDS_H */
