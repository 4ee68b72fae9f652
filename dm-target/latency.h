/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long a node's server takes to answer, as histograms: reads and writes
 * apart, buckets of powers of two of microseconds. recv.c counts, latency.c adds
 * up and tells. No locks and no clock of its own; tests/rules compiles this file
 * in user space.
 */
#ifndef DMDST_LATENCY_H
#define DMDST_LATENCY_H

#include <linux/bitops.h>
#include <linux/math64.h>
#include <linux/types.h>
#include <linux/dm-dst.h>

struct dmdst_latency {
	u64	sum;	/* ns */
	u64	counts[DMDST_LATENCY_BUCKETS];
};

struct dmdst_latencies {
	struct dmdst_latency	read;
	struct dmdst_latency	write;
};

/* Up to 2^n microseconds, and more than half of that; the last: all the rest. */
static inline unsigned int dmdst_latency_bucket(u64 ns)
{
	unsigned int bucket = ns ? fls64(div_u64(ns - 1, 1000)) : 0;

	return bucket < DMDST_LATENCY_BUCKETS ? bucket : DMDST_LATENCY_BUCKETS - 1;
}

/* Both clocks are read once for many requests: @until can be before @since. */
static inline void dmdst_latency_count(struct dmdst_latency *latency, u64 since, u64 until)
{
	u64 ns = until > since ? until - since : 0;

	latency->sum += ns;
	latency->counts[dmdst_latency_bucket(ns)]++;
}

static inline void dmdst_latency_add(struct dmdst_latency *to,
				     const struct dmdst_latency *from)
{
	unsigned int i;

	to->sum += from->sum;
	for (i = 0; i < DMDST_LATENCY_BUCKETS; i++)
		to->counts[i] += from->counts[i];
}

#endif /* DMDST_LATENCY_H */
