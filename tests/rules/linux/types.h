/* SPDX-License-Identifier: GPL-2.0-only */
/* What guards.c and rules.h need of the kernel's header of this name. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef RULES_TYPES_H
#define RULES_TYPES_H
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
#endif
