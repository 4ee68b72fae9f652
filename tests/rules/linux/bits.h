/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef RULES_BITS_H
#define RULES_BITS_H
#define BIT(n)		(1UL << (n))
#define BIT_ULL(n)	(1ULL << (n))
#endif
