/* SPDX-License-Identifier: GPL-2.0-only */
/* What latency.h needs of the kernel's header of this name. */
#ifndef RULES_BITOPS_H
#define RULES_BITOPS_H
static inline int fls64(unsigned long long x)
{
	return x ? 64 - __builtin_clzll(x) : 0;
}
#endif
