// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tries guards.c, rules.h and latency.h against models that are too slow and too simple
 * to be wrong. rules ROUNDS [SEED]; the seed is printed, and a failure says
 * in which round of it. Ends with "N passed, N failed, N skipped".
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <linux/string.h>
#include "guards.h"
#include "latency.h"
#include "rules.h"

static u64 rnd_state;

static u32 rnd(u32 below)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 7;
	rnd_state ^= rnd_state << 17;
	return (u32)(rnd_state >> 16) % below;
}

static const char *failure;

#define CHECK(ok, text) do { if (!(ok) && !failure) failure = text; } while (0)

static void guards_init(struct dmdst_guards *g, unsigned int nr)
{
	memset(g, 0, sizeof(*g));
	free(dmdst_guards_grow(g, calloc(nr, sizeof(*g->all)), nr));
}

/* ---- guards against a list of sets of sectors ---- */

#define M_SECTORS	40
#define M_ENTRIES	600
#define M_LINKS		400

/* What dmdst_guard is, with sectors as a bit mask and links never merged. */
struct entry {
	bool	used;
	bool	kept;		/* with no old link left: until its pair is settled */
	u64	sectors;
	bool	old[M_LINKS];
	u16	number;		/* of its guard, while owned */
	bool	owned;
};

struct model {
	struct entry	e[M_ENTRIES];
	bool		lost[M_LINKS];	/* and not fenced */
	unsigned int	nr_lost;
	bool		exact;		/* nothing merged, nothing overflowed */
};

static u64 sectors_of(u64 start, u64 end)
{
	return (~0ULL >> (64 - (end - start))) << start;
}

static bool ambiguous(const struct entry *e)
{
	for (int i = 0; i < M_LINKS; i++)
		if (e->old[i])
			return e->used;
	return false;
}

static bool model_bars_write(const struct model *m, u64 sectors)
{
	for (int i = 0; i < M_ENTRIES; i++)
		if (m->e[i].used && m->e[i].sectors & sectors && ambiguous(&m->e[i]))
			return true;
	return false;
}

static bool model_bars_read(const struct model *m, u64 sectors)
{
	for (int i = 0; i < M_ENTRIES; i++) {
		if (!m->e[i].used || !(m->e[i].sectors & sectors) || !ambiguous(&m->e[i]))
			continue;
		for (int j = 0; j < M_ENTRIES; j++)
			if (j != i && m->e[j].used &&
			    m->e[j].sectors & m->e[i].sectors & sectors)
				return true;
	}
	return false;
}

static void model_settle(struct model *m)
{
	for (int i = 0; i < M_ENTRIES; i++) {
		struct entry *e = &m->e[i];
		bool keep = ambiguous(e);

		for (int j = 0; e->used && !keep && j < M_ENTRIES; j++)
			keep = j != i && m->e[j].used && m->e[j].sectors & e->sectors &&
			       ambiguous(&m->e[j]);
		e->kept = keep;
	}
	for (int i = 0; i < M_ENTRIES; i++)
		m->e[i].used &= m->e[i].kept;
}

static struct entry *model_new(struct model *m)
{
	for (int i = 0; i < M_ENTRIES; i++)
		if (!m->e[i].used && !m->e[i].owned) {
			memset(&m->e[i], 0, sizeof(m->e[i]));
			return &m->e[i];
		}
	return NULL;
}

static void compare(const struct dmdst_guards *g, const struct model *m)
{
	for (int n = 0; n < 20; n++) {
		u64 start = rnd(M_SECTORS), end = start + 1 + rnd(M_SECTORS - start);
		u64 sectors = sectors_of(start, end);
		bool w = dmdst_guards_bar_write(g, start, end);
		bool r = dmdst_guards_bar_read(g, start, end);

		CHECK(w || !model_bars_write(m, sectors), "a write passed a guard");
		CHECK(r || !model_bars_read(m, sectors), "a read passed two guards");
		if (!m->exact)
			continue;
		CHECK(!w || model_bars_write(m, sectors), "a write waits for nothing");
		CHECK(!r || model_bars_read(m, sectors), "a read waits for nothing");
	}
	CHECK(g->used <= g->nr && g->top <= g->nr, "more guards than there are");
}

static void lose_link(struct dmdst_guards *g, struct model *m)
{
	unsigned int link = m->nr_lost++, old = dmdst_guards_lost(g, link % 32, link);

	if (g->old[old].merged || !(~g->old_used & ~DMDST_DETACHED))
		m->exact = false;
	for (int n = rnd(4); n >= 0; n--) {
		u64 start = rnd(M_SECTORS), end = start + 1 + rnd(6);
		struct entry *e = NULL;

		/* a replay that is lost again, or another write */
		for (int i = rnd(M_ENTRIES); !e && rnd(2) && i < M_ENTRIES; i++)
			if (m->e[i].used && m->e[i].owned)
				e = &m->e[i];
		end = end > M_SECTORS ? M_SECTORS : end;
		if (!e)
			e = model_new(m);
		if (!e)
			return;
		if (!e->used) {
			e->used = true;
			e->owned = true;
			e->sectors = sectors_of(start, end);
		} else {
			start = __builtin_ctzll(e->sectors);
			end = 64 - __builtin_clzll(e->sectors);
		}
		dmdst_guards_add(g, old, start, end, &e->number);
		e->old[link] = true;
		m->lost[link] = true;
		if (!e->number) {
			m->exact = false;
			e->owned = false;
		}
	}
}

static void contest(struct dmdst_guards *g, struct model *m)
{
	u64 start = rnd(M_SECTORS), end = start + 1 + rnd(M_SECTORS - start);
	struct entry *e = model_new(m);

	if (!e)
		return;
	e->sectors = sectors_of(start, end);
	dmdst_guards_contest(g, start, end, &e->number);
	if (m->exact)
		CHECK(!e->number == !model_bars_write(m, e->sectors) || g->overflow,
		      "a contest that is none");
	e->used = model_bars_write(m, e->sectors);
	e->owned = e->used && e->number;
	if (e->used && !e->number)
		m->exact = false;
	if (!e->used && e->number)
		dmdst_guards_disown(g, &e->number);
}

static void fence(struct dmdst_guards *g, struct model *m, unsigned int link)
{
	u64 old = dmdst_guards_find(g, link % 32, link);

	if (!m->lost[link] || !old)
		return;
	m->lost[link] = false;
	for (int i = 0; i < M_ENTRIES; i++)
		m->e[i].old[link] = false;
	dmdst_guards_fence(g, old);
	model_settle(m);
	for (int i = 0; i < M_ENTRIES; i++) {
		if (m->e[i].owned && m->exact)
			CHECK(!!m->e[i].number == m->e[i].used, "an owner's number is wrong");
		m->e[i].owned &= m->e[i].used && m->e[i].number;
	}
}

static void guards_round(unsigned int room, unsigned int steps)
{
	static struct model m;
	struct dmdst_guards g;

	memset(&m, 0, sizeof(m));
	m.exact = true;
	guards_init(&g, room);
	for (unsigned int n = 0; n < steps && !failure; n++) {
		u32 what = rnd(10);

		if (what < 3 && m.nr_lost < M_LINKS)
			lose_link(&g, &m);
		else if (what < 4)
			contest(&g, &m);
		else if (what < 8 && m.nr_lost)
			fence(&g, &m, rnd(m.nr_lost));
		else if (what < 9)
			for (int i = 0; i < 5; i++) {
				struct entry *e = &m.e[rnd(M_ENTRIES)];

				if (!e->owned)
					continue;
				dmdst_guards_disown(&g, &e->number);
				e->owned = false;
			}
		else if (room < 300 && rnd(20) == 0)
			free(dmdst_guards_grow(&g, calloc(room * 2, sizeof(*g.all)), room * 2));
		if (n % 4 == 0)
			compare(&g, &m);
	}
	/* the operator's word on everything */
	dmdst_guards_fence(&g, ~0ULL);
	CHECK(!dmdst_guards_active(&g) && !g.top && !g.shared, "a fence of all left something");
	free(g.all);
}

/* ---- the product: does what was acknowledged stay? ---- */

/*
 * A node with a few sectors and links. Servers apply writes whenever they
 * like, those of lost links too, until the link is fenced. Where no write to
 * a sector is open, its value must not change, and is that of the last write
 * if nothing else was open beside it.
 */
#define S_SECTORS	4
#define S_WRITES	5
#define S_LINKS		3
#define S_COPIES	4096
#define S_KEPT		4

/* What a round does without, to see that it is missed. */
#define NO_GUARDS	BIT(0)
#define NO_CONTEST	BIT(1)
#define NO_DETACHED	BIT(2)

struct copy {			/* of a write, on one link */
	int	write;		/* its value; 0: unused */
	u64	start, end;
	int	link;		/* serial of the link */
	bool	applied;
};

struct write {
	bool	used;
	bool	alone;		/* no other was open with it, ever */
	bool	failed;		/* upward: open until its guard goes */
	bool	contested;
	int	value;
	u64	start, end;
	int	copy;		/* in flight; -1: to be sent again */
	u16	number;
};

struct kept {			/* a copy whose write was pushed back */
	bool	used;
	int	copy;
	u16	number;
};

struct sim {
	struct dmdst_guards g;
	struct kept	k[S_KEPT];
	struct write	w[S_WRITES];
	struct copy	c[S_COPIES];
	unsigned int	nr_copies;
	int		disk[S_SECTORS];
	int		known[S_SECTORS]; /* 0: not yet */
	int		link[S_LINKS];	/* serials */
	bool		fenced[S_COPIES];
	int		serial;
	int		value;
	unsigned int	off;
	const char	*stale;
};

static bool sim_open(const struct sim *s, unsigned int sector, const struct write *but)
{
	for (int i = 0; i < S_WRITES; i++)
		if (&s->w[i] != but && s->w[i].used && s->w[i].start <= sector &&
		    sector < s->w[i].end)
			return true;
	return false;
}

static void sim_send(struct sim *s, struct write *w)
{
	if (s->nr_copies == S_COPIES)
		return;
	w->copy = s->nr_copies++;
	s->c[w->copy] = (struct copy) {
		.write = w->value, .start = w->start, .end = w->end,
		.link = s->link[rnd(S_LINKS)],
	};
}

static void sim_write(struct sim *s)
{
	struct write *w = NULL;
	u64 start = rnd(S_SECTORS), end = start + 1 + rnd(S_SECTORS - start);

	for (int i = 0; i < S_WRITES && !w; i++)
		if (!s->w[i].used)
			w = &s->w[i];
	if (!w || (!(s->off & NO_GUARDS) && dmdst_guards_bar_write(&s->g, start, end)))
		return;
	*w = (struct write) {
		.used = true, .value = ++s->value, .start = start, .end = end, .alone = true,
	};
	for (u64 sector = start; sector < end; sector++) {
		s->known[sector] = 0;
		for (int i = 0; i < S_WRITES; i++)
			if (&s->w[i] != w && s->w[i].used && s->w[i].start <= sector &&
			    sector < s->w[i].end)
				w->alone = s->w[i].alone = false;
	}
	sim_send(s, w);
}

static void sim_apply(struct sim *s)
{
	unsigned int recent = s->nr_copies < 12 ? s->nr_copies : 12;
	struct copy *c = recent ? &s->c[s->nr_copies - 1 - rnd(recent)] : NULL;

	if (!c || c->applied || s->fenced[c->link])
		return;
	c->applied = true;
	for (u64 sector = c->start; sector < c->end; sector++)
		s->disk[sector] = c->write;
}

static bool sim_live(const struct sim *s, int link)
{
	for (int i = 0; i < S_LINKS; i++)
		if (s->link[i] == link)
			return true;
	return false;
}

static void sim_close(struct sim *s, struct write *w)
{
	for (u64 sector = w->start; sector < w->end; sector++)
		s->known[sector] = w->alone && !w->failed ? w->value : 0;
	dmdst_guards_disown(&s->g, &w->number);
	w->used = false;
}

static void sim_answer(struct sim *s)
{
	struct write *w = &s->w[rnd(S_WRITES)];

	if (!w->used || w->failed || w->copy < 0 || !s->c[w->copy].applied ||
	    !sim_live(s, s->c[w->copy].link))
		return;
	sim_close(s, w);
}

static void sim_contest(struct sim *s)
{
	for (int i = 0; !(s->off & NO_CONTEST) && i < S_WRITES; i++)
		if (s->w[i].used && !s->w[i].failed && s->w[i].copy >= 0)
			dmdst_guards_contest(&s->g, s->w[i].start, s->w[i].end, &s->w[i].number);
}

/* A write is pushed back: from here on it is a new one, and its link keeps a copy. */
static void sim_detach(struct sim *s)
{
	struct write *w = &s->w[rnd(S_WRITES)];
	struct kept *k = &s->k[rnd(S_KEPT)];

	if (k->used || !w->used || w->failed || w->copy < 0 ||
	    !sim_live(s, s->c[w->copy].link))
		return;
	if (s->off & NO_DETACHED)
		dmdst_guards_disown(&s->g, &w->number);
	else if (!dmdst_guards_detach(&s->g, w->start, w->end, &w->number, &k->number))
		return;
	k->used = !(s->off & NO_DETACHED);
	k->copy = w->copy;
	w->copy = -1;
	sim_contest(s);
}

static void sim_answer_kept(struct sim *s)
{
	struct kept *k = &s->k[rnd(S_KEPT)];
	u64 start, end;

	if (!k->used || !s->c[k->copy].applied || !sim_live(s, s->c[k->copy].link))
		return;
	dmdst_guards_answered(&s->g, &k->number, &start, &end);
	CHECK(start <= s->c[k->copy].start && end >= s->c[k->copy].end,
	      "not all who waited are asked again");
	k->used = false;
}

/* With all answered and fenced nothing is left. */
static void sim_end(struct sim *s)
{
	u64 start, end;

	for (int i = 0; i < S_KEPT; i++)
		if (s->k[i].used)
			dmdst_guards_answered(&s->g, &s->k[i].number, &start, &end);
	dmdst_guards_fence(&s->g, s->g.old_used);
	CHECK(!dmdst_guards_active(&s->g), "a guard stayed for ever");
	free(s->g.all);
}

static void sim_lose(struct sim *s)
{
	int *link = &s->link[rnd(S_LINKS)], lost = *link, old = -1;

	*link = ++s->serial;
	for (int i = 0; i < S_WRITES; i++) {
		struct write *w = &s->w[i];

		if (!w->used || w->failed || w->copy < 0 || s->c[w->copy].link != lost)
			continue;
		if (old < 0)
			old = dmdst_guards_lost(&s->g, 0, lost);
		dmdst_guards_add(&s->g, old, w->start, w->end, &w->number);
		w->copy = -1;
		w->failed = rnd(6) == 0;
	}
	for (int i = 0; i < S_KEPT; i++) {
		struct kept *k = &s->k[i];

		if (!k->used || s->c[k->copy].link != lost)
			continue;
		if (old < 0)
			old = dmdst_guards_lost(&s->g, 0, lost);
		dmdst_guards_add(&s->g, old, 0, 0, &k->number);
		dmdst_guards_disown(&s->g, &k->number);
		k->used = false;
	}
	if (old >= 0)
		sim_contest(s);
}

static void sim_replay(struct sim *s)
{
	struct write *w = &s->w[rnd(S_WRITES)];

	if (!w->used || w->copy >= 0)
		return;
	if (w->failed) {
		/* may take effect until it is fenced, never after */
		if (!dmdst_guards_ambiguous(&s->g, w->number))
			sim_close(s, w);
		return;
	}
	if (s->off & NO_GUARDS || dmdst_guards_ambiguous(&s->g, w->number) ||
	    !dmdst_guards_bar_write(&s->g, w->start, w->end)) {
		if (!dmdst_guards_ambiguous(&s->g, w->number))
			dmdst_guards_disown(&s->g, &w->number);
		sim_send(s, w);
	}
}

static void sim_fence(struct sim *s)
{
	int lost = rnd(s->serial + 1);
	u64 old = dmdst_guards_find(&s->g, 0, lost);

	if (sim_live(s, lost) || !old)
		return;
	s->fenced[lost] = true;
	dmdst_guards_fence(&s->g, old);
}

static void sim_read(struct sim *s)
{
	unsigned int sector = rnd(S_SECTORS);

	if (!(s->off & NO_GUARDS) && dmdst_guards_bar_read(&s->g, sector, sector + 1))
		return;
	if (sim_open(s, sector, NULL))
		return;
	if (s->known[sector] && s->known[sector] != s->disk[sector])
		s->stale = "an acknowledged write was undone";
	s->known[sector] = s->disk[sector];
}

static const char *sim_round(unsigned int off, unsigned int room)
{
	static struct sim s;

	memset(&s, 0, sizeof(s));
	guards_init(&s.g, room);
	s.off = off;
	for (int i = 0; i < S_LINKS; i++)
		s.link[i] = ++s.serial;
	for (int n = 0; n < 3000 && !s.stale; n++) {
		u32 what = rnd(27);

		if (what < 4)
			sim_write(&s);
		else if (what < 7)
			sim_apply(&s);
		else if (what < 13)
			sim_answer(&s);
		else if (what < 14 && s.serial < S_COPIES - 1)
			sim_lose(&s);
		else if (what < 18)
			sim_replay(&s);
		else if (what < 19)
			sim_fence(&s);
		else if (what < 20)
			sim_detach(&s);
		else if (what < 22)
			sim_answer_kept(&s);
		else
			sim_read(&s);
	}
	sim_end(&s);
	return s.stale;
}

static void stale_round(void)
{
	for (int n = 0; n < 10; n++) {
		CHECK(!sim_round(0, 64), "an acknowledged write was undone");
		CHECK(!sim_round(0, 2), "undone where guards ran out");
	}
}

/* ---- quiesce ---- */

static void quiesce_round(void)
{
	struct dmdst_guards g;
	u16 a = 0, b = 0;

	guards_init(&g, 8);
	g.losses = rnd(2) ? ~0U : rnd(100);	/* the serial number wraps */
	u32 before = g.losses;
	unsigned int old = dmdst_guards_lost(&g, 1, 7);

	dmdst_guards_add(&g, old, 0, 8, &a);
	CHECK(!dmdst_guards_quiet(&g, 1000, 10), "quiet before anybody answered");
	dmdst_guards_heard(&g, before, 5, 1000);
	CHECK(!dmdst_guards_quiet(&g, 2000, 10), "an answer to an older request counted");
	CHECK(dmdst_guards_listening(&g, true), "the clock runs");
	dmdst_guards_heard(&g, g.losses, 5, 1000);
	CHECK(!dmdst_guards_listening(&g, true), "the clock doesn't run");
	CHECK(dmdst_guards_listening(&g, false), "a younger link is not waited for");
	CHECK(!dmdst_guards_quiet(&g, 1009, 10), "too early");
	CHECK(dmdst_guards_quiet(&g, 1010, 10), "too late");
	dmdst_guards_heard(&g, g.losses, 5, 1005);
	CHECK(dmdst_guards_quiet(&g, 1010, 10), "every answer starts the clock anew");
	dmdst_guards_heard(&g, g.losses, 8, 1008);
	CHECK(!dmdst_guards_quiet(&g, 1010, 10), "a younger link doesn't start it anew");
	dmdst_guards_heard(&g, g.losses, 9, 1012);
	CHECK(dmdst_guards_quiet(&g, 1018, 10), "a second younger link started it anew");
	CHECK(!dmdst_guards_listening(&g, false), "still listening");

	/* a second loss isn't quiet because the first is */
	old = dmdst_guards_lost(&g, 1, 9);
	dmdst_guards_add(&g, old, 0, 8, &b);
	dmdst_guards_heard(&g, g.losses - 1, 10, 1018);
	CHECK(dmdst_guards_quiet(&g, 2000, 10) == BIT_ULL(old ^ 1), "the wrong one is quiet");
	dmdst_guards_fence(&g, dmdst_guards_quiet(&g, 2000, 10));
	CHECK(a && b, "a guard left while its pair is ambiguous");
	CHECK(dmdst_guards_bar_read(&g, 0, 1), "a read passed two versions");
	dmdst_guards_fence(&g, BIT_ULL(old));
	CHECK(!a && !b && !dmdst_guards_active(&g), "a guard stayed");

	/* 70 links: the oldest are one, and it keeps all of their guards */
	for (u32 n = 0; n < 70; n++) {
		a = 0;
		dmdst_guards_add(&g, dmdst_guards_lost(&g, n % 32, 100 + n), n, n + 1, &a);
	}
	CHECK(!dmdst_guards_find(&g, 0, 100), "a merged link was found alone");
	CHECK(dmdst_guards_find(&g, 69 % 32, 169), "the newest link is not found");
	for (u32 n = 0; n < 8; n++)
		CHECK(dmdst_guards_bar_write(&g, n, n + 1), "a merged link's guard is gone");
	free(g.all);
}

/* ---- FLUSH ---- */

/* A server that forgets what was not flushed when it is born again. */
static void flush_round(void)
{
	struct dmdst_seq seq = { };
	u64 acked = 0, safe = 0, gone = 0, reported = 0, flying = 0;

	for (int n = 0; n < 2000 && !failure; n++) {
		switch (rnd(6)) {
		case 0:
		case 1:
			acked++;
			break;
		case 2:
			if (!seq.busy) {
				dmdst_seq_begin(&seq, acked);
				flying = acked;
			}
			break;
		case 3:
			if (seq.busy) {
				bool ok = rnd(3);

				safe = ok && flying > safe ? flying : safe;
				dmdst_seq_end(&seq, ok);
			}
			break;
		case 4:
			if (rnd(8) == 0) {
				bool dirty = acked > safe;
				u64 before = seq.lost;

				CHECK(dmdst_seq_lose(&seq, acked) == acked - safe,
				      "the wrong number of writes is lost");
				CHECK((seq.lost != before) == dirty, "a loss, or none");
				gone += dirty;
				safe = acked;
			}
			break;
		default:
			/* fsync: silent success only if all is safe and told */
			if (reported != seq.lost)
				reported = seq.lost;
			CHECK(gone == reported || seq.lost == gone, "a loss nobody is told of");
			CHECK(dmdst_seq_dirty(&seq, acked) == acked - safe, "dirty is wrong");
		}
	}
}

/* ---- moves ---- */

static void moves_round(void)
{
	bool reached[DMDST_REQ_NR_STATES] = { [DMDST_REQ_HELD] = true };
	enum dmdst_req_state at = DMDST_REQ_HELD;

	for (int n = 0; n < 2000; n++) {
		enum dmdst_req_state to = rnd(DMDST_REQ_NR_STATES);

		CHECK(!dmdst_req_may_move(at, at), "a move to itself");
		if (!dmdst_req_may_move(at, to))
			continue;
		/* two lists never know of one request: between them it is held */
		CHECK(at == DMDST_REQ_HELD || to == DMDST_REQ_HELD ||
		      (at == DMDST_REQ_ON_LINK && to == DMDST_REQ_BARRED), "not held between");
		reached[to] = true;
		at = to;
	}
	for (int i = 0; i < DMDST_REQ_NR_STATES; i++)
		CHECK(reached[i], "a state that is never reached");
	for (int to = 0; to <= DMDST_LINK_GONE; to++)
		CHECK(!dmdst_link_may_move(DMDST_LINK_GONE, to), "a gone link moves");
	for (int from = 0; from <= DMDST_NODE_MISMATCH; from++) {
		CHECK(!dmdst_node_may_move(from, DMDST_NODE_WAITING), "back to waiting");
		CHECK(from == DMDST_NODE_LIVE || dmdst_node_may_move(from, DMDST_NODE_LIVE),
		      "a state that links can't end");
	}
}

/* ---- the checker itself: it must see what guards prevent ---- */

static bool found_without(unsigned int what, unsigned int rounds)
{
	for (unsigned int n = 0; n < rounds; n++)
		if (sim_round(what, 64))
			return true;
	return false;
}

/* ---- latency against a list of times ---- */

/* The bucket that a time belongs to, as the header says it. */
static unsigned int bucket_of(u64 ns)
{
	unsigned int bucket = 0;

	while (bucket < DMDST_LATENCY_BUCKETS - 1 && ns > 1000ULL << bucket)
		bucket++;
	return bucket;
}

static void latency_round(void)
{
	struct dmdst_latency half[2] = { }, all = { };
	u64 counts[DMDST_LATENCY_BUCKETS] = { }, sum = 0;

	for (unsigned int i = 0; i < 1000; i++) {
		/* Near a bound, or anywhere. */
		u64 ns = i % 2 ? (1000ULL << rnd(28)) + rnd(3) - 1
			       : ((u64)rnd(1 << 30) << 24 | rnd(1 << 24)) >> rnd(54);
		u64 since = rnd(1000);
		bool early = !rnd(20);

		dmdst_latency_count(&half[rnd(2)], since, early ? 0 : since + ns);
		ns = early ? 0 : ns;
		counts[bucket_of(ns)]++;
		sum += ns;
	}
	dmdst_latency_add(&all, &half[0]);
	dmdst_latency_add(&all, &half[1]);
	CHECK(!memcmp(all.counts, counts, sizeof(counts)), "a time is in another bucket");
	CHECK(all.sum == sum, "the sum is another");
}

static void checker_round(void)
{
	static bool done;

	if (done)
		return;
	done = true;
	CHECK(found_without(NO_GUARDS, 2000), "the checker sees no stale write without guards");
	CHECK(found_without(NO_CONTEST, 10000), "the checker sees none without contests");
	CHECK(found_without(NO_DETACHED, 2000), "the checker sees none where nothing detached is guarded");
}

static void guards_rounds(void)
{
	guards_round(512, 300);
	guards_round(6, 300);
	guards_round(128, 1500);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*round)(void);
	} tests[] = {
		{ "moves", moves_round },
		{ "guards against sets of sectors", guards_rounds },
		{ "quiesce", quiesce_round },
		{ "latency", latency_round },
		{ "flush", flush_round },
		{ "no acknowledged write is undone", stale_round },
		{ "and without guards it would be", checker_round },
	};
	unsigned int rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 100;
	u64 seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (u64)time(NULL) * 1000003;
	unsigned int failed = 0, nr = sizeof(tests) / sizeof(tests[0]);

	printf("rules: seed %llu\n", (unsigned long long)seed);
	for (unsigned int i = 0; i < nr; i++) {
		failure = NULL;
		rnd_state = seed | 1;
		unsigned int n;

		for (n = 0; n < rounds && !failure; n++)
			tests[i].round();
		failed += !!failure;
		if (failure)
			printf("FAILED %s: %s (round %u)\n", tests[i].name, failure, n - 1);
	}
	printf("%u passed, %u failed, 0 skipped\n", nr - failed, failed);
	return !!failed;
}
