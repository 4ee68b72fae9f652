// SPDX-License-Identifier: GPL-2.0-only
/*
 * The table line's words: parsing them into a target's extents, features and
 * uses of nodes, printing them back, and finding the extent of a sector.
 * Called by target.c. Never does I/O. Format: docs/table-line.md.
 */
#include <linux/ctype.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include "compat/compat.h"
#include "dm-dst.h"

#define DMDST_BLOCK_SIZE_MAX 4096U

static int dmdst_parse_name(const char *name)
{
	size_t len = strlen(name);
	size_t i;

	if (!len || len > DMDST_NAME_MAX)
		return -EINVAL;
	for (i = 0; i < len; i++)
		if (!isascii(name[i]) || (!isalnum(name[i]) && !strchr("._-", name[i])))
			return -EINVAL;
	return 0;
}

/* ---- uses ---- */

static struct dmdst_use *dmdst_use_find(struct dmdst_target *t, const char *name)
{
	unsigned int i;

	/* Lines mostly stay with one node for a while: newest first. */
	for (i = t->nr_uses; i-- > 0;)
		if (!strcmp(t->uses[i]->node->name, name))
			return t->uses[i];
	return NULL;
}

static struct dmdst_use *dmdst_use_create(struct dmdst_target *t, const char *name)
{
	struct dmdst_use *use = kzalloc(sizeof(*use), GFP_KERNEL);

	if (!use)
		return NULL;
	use->node = dmdst_node_get(name, true);
	if (!use->node) {
		kfree(use);
		return NULL;
	}
	use->target = t;
	INIT_LIST_HEAD(&use->list);
	INIT_LIST_HEAD(&use->sync.list);
	use->sync.target = t;
	t->uses[t->nr_uses++] = use;
	return use;
}

static void dmdst_use_free(struct dmdst_use *use)
{
	dmdst_node_del_use(use);
	dmdst_node_unuse(use->node);
	kfree(use);
}

/* ---- extents ---- */

static int dmdst_parse_extent(struct dmdst_target *t, char **argv, sector_t start)
{
	struct dm_target *ti = t->ti;
	struct dmdst_extent *extent = &t->extents[t->nr_extents];
	unsigned long long offset, len;
	struct dmdst_use *use;

	if (dmdst_parse_name(argv[0])) {
		ti->error = "Invalid node name: 1 to 63 of A-Z a-z 0-9 . _ -";
		return -EINVAL;
	}
	if (kstrtoull(argv[1], 10, &offset) || kstrtoull(argv[2], 10, &len) || !len ||
	    offset + len < offset || offset + len > (U64_MAX >> SECTOR_SHIFT)) {
		ti->error = "Invalid extent offset or length";
		return -EINVAL;
	}
	if (len > ti->len - start) {
		ti->error = "Extent lengths add up to more than the line's length";
		return -EINVAL;
	}
	use = dmdst_use_find(t, argv[0]) ?: dmdst_use_create(t, argv[0]);
	if (!use) {
		ti->error = "Cannot allocate node";
		return -ENOMEM;
	}
	extent->start = start;
	extent->len = len;
	extent->offset = offset;
	extent->use = use;
	use->need_size = max_t(u64, use->need_size, (offset + len) << SECTOR_SHIFT);
	t->nr_extents++;
	return 0;
}

static int dmdst_parse_extents(struct dmdst_target *t, struct dm_arg_set *as)
{
	static const struct dm_arg args[] = {
		{ 1, UINT_MAX / 3, "Invalid number of extents" },
	};
	struct dm_target *ti = t->ti;
	sector_t start = 0;
	unsigned int nr;
	int ret;

	ret = dm_read_arg(args, as, &nr, &ti->error);
	if (ret)
		return ret;
	if (as->argc / 3 < nr) {
		ti->error = "Fewer extents than announced";
		return -EINVAL;
	}
	t->extents = kvcalloc(nr, sizeof(*t->extents), GFP_KERNEL);
	t->uses = kvcalloc(nr, sizeof(*t->uses), GFP_KERNEL);
	if (!t->extents || !t->uses) {
		ti->error = "Cannot allocate extents";
		return -ENOMEM;
	}
	while (t->nr_extents < nr) {
		ret = dmdst_parse_extent(t, as->argv, start);
		if (ret)
			return ret;
		start += t->extents[t->nr_extents - 1].len;
		dm_consume_args(as, 3);
	}
	if (start != ti->len) {
		ti->error = "Extent lengths add up to less than the line's length";
		return -EINVAL;
	}
	return 0;
}

static int dmdst_cmp_on_node(const void *a, const void *b)
{
	const struct dmdst_extent *x = *(const struct dmdst_extent **)a;
	const struct dmdst_extent *y = *(const struct dmdst_extent **)b;

	if (x->use != y->use)
		return x->use < y->use ? -1 : 1;
	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return 0;
}

/* The same sector of a node at two places would be two truths. */
static int dmdst_check_overlap(struct dmdst_target *t)
{
	struct dmdst_extent **sorted;
	unsigned int i;
	int ret = 0;

	sorted = kvmalloc_array(t->nr_extents, sizeof(*sorted), GFP_KERNEL);
	if (!sorted) {
		t->ti->error = "Cannot allocate extents";
		return -ENOMEM;
	}
	for (i = 0; i < t->nr_extents; i++)
		sorted[i] = &t->extents[i];
	sort(sorted, t->nr_extents, sizeof(*sorted), dmdst_cmp_on_node, NULL);
	for (i = 1; i < t->nr_extents && !ret; i++) {
		if (sorted[i]->use != sorted[i - 1]->use ||
		    sorted[i]->offset >= sorted[i - 1]->offset + sorted[i - 1]->len)
			continue;
		t->ti->error = "Two extents overlap on their node";
		ret = -EINVAL;
	}
	kvfree(sorted);
	return ret;
}

/* The largest extent wins: a bio may begin and end at any block of any. */
static int dmdst_check_alignment(struct dmdst_target *t)
{
	sector_t mask = (t->block_size >> SECTOR_SHIFT) - 1;
	unsigned int i;

	for (i = 0; i < t->nr_extents; i++) {
		if (!((t->extents[i].offset | t->extents[i].len) & mask))
			continue;
		t->ti->error = "An extent's offset or length is no multiple of block_size";
		return -EINVAL;
	}
	if (t->ti->begin & mask) {
		t->ti->error = "The line's start is no multiple of block_size";
		return -EINVAL;
	}
	return 0;
}

/* ---- features ---- */

static int dmdst_parse_block_size(struct dmdst_target *t, struct dm_arg_set *as)
{
	const char *word = as->argc ? dm_shift_arg(as) : "";

	if (kstrtouint(word, 10, &t->block_size) || t->block_size < SECTOR_SIZE ||
	    t->block_size > DMDST_BLOCK_SIZE_MAX || !is_power_of_2(t->block_size)) {
		t->ti->error = "block_size must be 512, 1024, 2048 or 4096";
		return -EINVAL;
	}
	return 0;
}

static int dmdst_parse_features(struct dmdst_target *t, struct dm_arg_set *as)
{
	static const struct dm_arg args[] = {
		{ 0, 4, "Invalid number of feature words" },
	};
	struct dm_target *ti = t->ti;
	unsigned int nr;
	const char *word;
	int ret;

	t->block_size = SECTOR_SIZE;
	if (!as->argc)
		return 0;
	ret = dm_read_arg_group(args, as, &nr, &ti->error);
	if (ret)
		return ret;
	if (as->argc != nr) {
		ti->error = "More words than announced features";
		return -EINVAL;
	}
	while (as->argc) {
		word = dm_shift_arg(as);
		if (!strcmp(word, "block_size")) {
			ret = dmdst_parse_block_size(t, as);
			if (ret)
				return ret;
		} else if (!strcmp(word, "read_only")) {
			t->read_only = true;
		} else if (!strcmp(word, "no_discard")) {
			t->no_discard = true;
		} else {
			ti->error = "Unknown feature: block_size N, read_only, no_discard";
			return -EINVAL;
		}
	}
	return 0;
}

static int dmdst_check_mode(struct dmdst_target *t)
{
	if (t->read_only && dm_table_get_mode(t->ti->table) & DMDST_MODE_WRITE) {
		t->ti->error = "read_only needs a read-only table (dmsetup --readonly)";
		return -EINVAL;
	}
	return 0;
}

/* Last: from here on the nodes know of the line. */
static int dmdst_join_nodes(struct dmdst_target *t)
{
	char reason[DMDST_REASON_MAX];
	unsigned int i;
	int ret;

	for (i = 0; i < t->nr_uses; i++) {
		ret = dmdst_node_add_use(t->uses[i], reason);
		if (!ret)
			continue;
		DMERR("node %s: %s", t->uses[i]->node->name, reason);
		t->ti->error = ret == -ENOMEM ? "Cannot allocate a place at a node"
					      : "A live node's export doesn't fit the line";
		return ret;
	}
	return 0;
}

/* On error, and in the end, the caller calls dmdst_table_free(). */
int dmdst_table_parse(struct dmdst_target *t, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	int ret;

	ret = dmdst_parse_extents(t, &as);
	if (!ret)
		ret = dmdst_parse_features(t, &as);
	if (!ret)
		ret = dmdst_check_mode(t);
	if (!ret)
		ret = dmdst_check_alignment(t);
	if (!ret)
		ret = dmdst_check_overlap(t);
	if (!ret)
		ret = dmdst_join_nodes(t);
	return ret;
}

void dmdst_table_free(struct dmdst_target *t)
{
	while (t->nr_uses)
		dmdst_use_free(t->uses[--t->nr_uses]);
	kvfree(t->uses);
	kvfree(t->extents);
}

/* @sector is inside the line, and the extents cover it without a gap. */
struct dmdst_extent *dmdst_table_find(struct dmdst_target *t, sector_t sector)
{
	unsigned int low = 0, high = t->nr_extents - 1;

	while (low < high) {
		unsigned int mid = high - (high - low) / 2;

		if (t->extents[mid].start <= sector)
			low = mid;
		else
			high = mid - 1;
	}
	return &t->extents[low];
}

/* Exactly what the constructor takes. */
void dmdst_table_print(struct dmdst_target *t, char *result, unsigned int maxlen)
{
	unsigned int words = 2 + t->read_only + t->no_discard;
	unsigned int sz = 0, i;

	DMEMIT("%u", t->nr_extents);
	for (i = 0; i < t->nr_extents; i++)
		DMEMIT(" %s %llu %llu", t->extents[i].use->node->name,
		       (unsigned long long)t->extents[i].offset,
		       (unsigned long long)t->extents[i].len);
	DMEMIT(" %u block_size %u", words, t->block_size);
	if (t->read_only)
		DMEMIT(" read_only");
	if (t->no_discard)
		DMEMIT(" no_discard");
}
