// SPDX-License-Identifier: GPL-2.0-only
/*
 * dst-planted.ko bug=NAME: does that bug once, when it is loaded, so that tests
 * can see that the debug kernel and the harness find it. Loaded by
 * tests/vm/cases/05-planted.sh only; built for the debug kernel only, and part
 * of nothing that is installed. Each bug harms no more than its own memory.
 */
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static char *bug = "";
module_param(bug, charp, 0444);
MODULE_PARM_DESC(bug, "which one");

/* A pointer that the compiler knows nothing of, so that it leaves us our bugs. */
static char *memory(void)
{
	char *p = kzalloc(64, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(p);
	return p;
}

static int use_after_free(void)
{
	char *p = memory();

	kfree(p);
	OPTIMIZER_HIDE_VAR(p);
	return p ? READ_ONCE(p[8]) : -ENOMEM;
}

static int out_of_bounds(void)
{
	char *p = memory();
	int byte;

	if (!p)
		return -ENOMEM;
	byte = READ_ONCE(p[64]);
	kfree(p);
	return byte;
}

static int double_free(void)
{
	char *p = memory();

	kfree(p);
	OPTIMIZER_HIDE_VAR(p);
	kfree(p);
	return 0;
}

/* Some, since an old pointer on a stack can hide one from kmemleak. */
static int leak(void)
{
	unsigned int i;

	for (i = 0; i < 16; i++)
		if (!memory())
			return -ENOMEM;
	return 0;
}

static DEFINE_MUTEX(planted_first);
static DEFINE_MUTEX(planted_second);

static int lock_inversion(void)
{
	mutex_lock(&planted_first);
	mutex_lock(&planted_second);
	mutex_unlock(&planted_second);
	mutex_unlock(&planted_first);

	mutex_lock(&planted_second);
	mutex_lock(&planted_first);
	mutex_unlock(&planted_first);
	mutex_unlock(&planted_second);
	return 0;
}

static DEFINE_SPINLOCK(planted_spin);

static void planted_timer_runs(struct timer_list *timer)
{
	spin_lock(&planted_spin);
	spin_unlock(&planted_spin);
}

/* A lock that a softirq takes, too, without keeping softirqs off. */
static int lock_in_softirq(void)
{
	struct timer_list timer;

	timer_setup_on_stack(&timer, planted_timer_runs, 0);
	mod_timer(&timer, jiffies + 1);
	msleep(200);
	timer_shutdown_sync(&timer);
	destroy_timer_on_stack(&timer);

	spin_lock(&planted_spin);
	spin_unlock(&planted_spin);
	return 0;
}

static int sleep_in_atomic(void)
{
	spin_lock(&planted_spin);
	mutex_lock(&planted_first);
	mutex_unlock(&planted_first);
	spin_unlock(&planted_spin);
	return 0;
}

struct planted_object {
	struct timer_list timer;
	struct work_struct work;
};

static int free_armed_timer(void)
{
	struct planted_object *object = kzalloc(sizeof(*object), GFP_KERNEL);

	if (!object)
		return -ENOMEM;
	timer_setup(&object->timer, planted_timer_runs, 0);
	mod_timer(&object->timer, jiffies + 600 * HZ);
	kfree(object);
	return 0;
}

static void planted_work_runs(struct work_struct *work)
{
	msleep(300);
}

static int free_queued_work(void)
{
	struct planted_object *object = kzalloc(sizeof(*object), GFP_KERNEL);
	struct workqueue_struct *queue;

	if (!object)
		return -ENOMEM;
	queue = alloc_ordered_workqueue("planted", 0);
	if (!queue) {
		kfree(object);
		return -ENOMEM;
	}
	/* the queue is busy with the first, so that the second waits in it */
	INIT_WORK(&object->work, planted_work_runs);
	queue_work(queue, &object->work);
	msleep(100);
	queue_work(queue, &object->work);
	kfree(object);
	destroy_workqueue(queue);
	return 0;
}

static int list_twice(void)
{
	LIST_HEAD(list);
	LIST_HEAD(entry);

	list_add(&entry, &list);
	list_del(&entry);
	list_del(&entry);
	return 0;
}

static int refcount_below_zero(void)
{
	refcount_t count = REFCOUNT_INIT(1);

	if (refcount_dec_and_test(&count))
		refcount_dec(&count);
	return 0;
}

static const struct {
	const char *name;
	int (*does)(void);
} bugs[] = {
	{ "use_after_free", use_after_free },
	{ "out_of_bounds", out_of_bounds },
	{ "double_free", double_free },
	{ "leak", leak },
	{ "lock_inversion", lock_inversion },
	{ "lock_in_softirq", lock_in_softirq },
	{ "sleep_in_atomic", sleep_in_atomic },
	{ "free_armed_timer", free_armed_timer },
	{ "free_queued_work", free_queued_work },
	{ "list_twice", list_twice },
	{ "refcount_below_zero", refcount_below_zero },
};

static int __init planted_init(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bugs); i++)
		if (!strcmp(bug, bugs[i].name)) {
			pr_info("dst-planted: %s gave %d\n", bug, bugs[i].does());
			return 0;
		}
	return -EINVAL;
}
module_init(planted_init);

static void __exit planted_exit(void)
{
}
module_exit(planted_exit);

MODULE_DESCRIPTION("Bugs on purpose, for the tests of the tests");
MODULE_LICENSE("GPL");
