#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Asks the compiler what this kernel's headers have and prints -DDMDST_HAVE_…
# flags. Called by Kbuild with CC and FLAGS; compat/compat.h is the one reader.
# Each probe compiles only if the thing is there.

try() {
	name=$1
	# shellcheck disable=SC2086 # FLAGS is a list of words
	printf '%s\n' "$2" | (cd "$PROBE_DIR" && $CC $FLAGS -DKBUILD_MODNAME='"probe"' \
		-DKBUILD_BASENAME='"probe"' -Werror -Wno-unused -fsyntax-only \
		-x c -) 2>/dev/null && printf ' -DDMDST_HAVE_%s' "$name"
}

PROBE_DIR=$(pwd)

# 6.5 (dc97391e6610 "sock: Remove ->sendpage*()"): before it, MSG_SPLICE_PAGES
# may be defined and is ignored by TCP; kernel_sendpage() is the way.
try KERNEL_SENDPAGE '#include <linux/net.h>
static int f(struct socket *s, struct page *p) { return kernel_sendpage(s, p, 0, 1, 0); }'

# 6.5 (05bdb9965305 "block: replace fmode_t with a block-specific type")
try BLK_OPEN_WRITE '#include <linux/blkdev.h>
blk_mode_t m = BLK_OPEN_WRITE;'

# 6.2 (98123866fcf3 "Treewide: Stop corrupting socket'\''s task_frag")
try SK_USE_TASK_FRAG '#include <net/sock.h>
static void f(struct sock *sk) { sk->sk_use_task_frag = false; }'

# 6.11 (1122c0c1cc71 "block: move cache control settings out of queue->flags")
try QUEUE_FEATURES '#include <linux/blkdev.h>
static void f(struct queue_limits *l) { l->features &= ~BLK_FEAT_POLL; }'

# 6.17 (0c40d7cb5ef3 "block: introduce max_{hw|user}_wzeroes_unmap_sectors")
try WZEROES_UNMAP '#include <linux/blkdev.h>
static void f(struct queue_limits *l) { l->max_hw_wzeroes_unmap_sectors = 0; }'

# 6.10 (2c92ca849fcc "tracing/treewide: Remove second parameter of __assign_str()")
try ASSIGN_STR_ALONE '#include <linux/bits.h>
#include <trace/stages/stage6_event_callback.h>
#define WORDS(...) #__VA_ARGS__
#define EXPANDED(...) WORDS(__VA_ARGS__)
static const char *f(void) { return EXPANDED(__assign_str(dst)); }'

echo
