// SPDX-License-Identifier: GPL-2.0-only
/*
 * The senders: the module's threads in which links send. Threads of our own and
 * no workqueue, because they are SCHED_BATCH: one that is woken doesn't preempt
 * the task that submits, so it runs when that has no more to submit, or another
 * CPU has nothing to do, and sends all there is at once. Made with the module:
 * a link that comes back while memory is short must not wait for a new thread.
 * link.c gives each link one of them; send.c is what runs there. And the kernel's
 * credentials, with which whoever sends is judged, also a task that submits.
 */
#include <linux/cpumask.h>
#include <linux/cred.h>
#include <linux/init_task.h>
#include <linux/sched.h>
#include <uapi/linux/sched/types.h>
#include "compat/compat.h"
#include "dm-dst.h"

#define DMDST_MOST_SENDERS	32

static struct kthread_worker *dmdst_senders[DMDST_MOST_SENDERS];
static unsigned int dmdst_nr_senders;
const struct cred *dmdst_creds;
static atomic_t dmdst_senders_given = ATOMIC_INIT(0);

/* In turn, so that the links of a node have different ones. */
struct kthread_worker *dmdst_sender_next(void)
{
	unsigned int nr = atomic_inc_return(&dmdst_senders_given);

	return dmdst_senders[nr % dmdst_nr_senders];
}

/* No link is left. */
void dmdst_senders_module_exit(void)
{
	while (dmdst_nr_senders)
		kthread_destroy_worker(dmdst_senders[--dmdst_nr_senders]);
	put_cred(dmdst_creds);
}

int dmdst_senders_module_init(void)
{
	const struct sched_attr batch = {
		.size = sizeof(batch),
		.sched_policy = SCHED_BATCH,
	};
	unsigned int wanted = min_t(unsigned int, num_online_cpus(), DMDST_MOST_SENDERS);
	struct kthread_worker *sender;
	int ret;

	dmdst_creds = prepare_kernel_cred(&init_task);
	if (!dmdst_creds)
		return -ENOMEM;
	while (dmdst_nr_senders < wanted) {
		sender = kthread_create_worker(0, "dmdst_send/%u", dmdst_nr_senders);
		if (IS_ERR(sender)) {
			ret = PTR_ERR(sender);
			goto err;
		}
		dmdst_senders[dmdst_nr_senders++] = sender;
		dmdst_compat_start_worker(sender);
		ret = sched_setattr_nocheck(sender->task, &batch);
		if (ret)
			goto err;
	}
	return 0;

err:
	dmdst_senders_module_exit();
	return ret;
}
