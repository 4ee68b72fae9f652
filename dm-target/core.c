// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loading and unloading of dm-dst.ko: workqueues, senders, the netlink family
 * and the device-mapper target, in that order and back. Nothing else.
 */
#include <linux/module.h>
#include "dm-dst.h"

/*
 * Two, because each must get on while workers of the other are busy, also when
 * memory is short: a lost link is taken down by cancelling its receive.
 */
struct workqueue_struct *dmdst_recv_wq;
struct workqueue_struct *dmdst_down_wq;

static void dmdst_destroy_workqueues(void)
{
	if (dmdst_down_wq)
		destroy_workqueue(dmdst_down_wq);
	if (dmdst_recv_wq)
		destroy_workqueue(dmdst_recv_wq);
}

static int dmdst_create_workqueues(void)
{
	const unsigned int flags = WQ_MEM_RECLAIM | WQ_UNBOUND;

	dmdst_recv_wq = alloc_workqueue("dmdst_recv", flags | WQ_HIGHPRI, 0);
	dmdst_down_wq = alloc_workqueue("dmdst_down", flags, 0);
	if (dmdst_recv_wq && dmdst_down_wq)
		return 0;
	dmdst_destroy_workqueues();
	return -ENOMEM;
}

static int __init dmdst_init(void)
{
	int ret;

	ret = dmdst_create_workqueues();
	if (ret)
		return ret;
	ret = dmdst_senders_module_init();
	if (ret)
		goto err_workqueues;
	ret = dmdst_tick_module_init();
	if (ret)
		goto err_senders;
	ret = dmdst_link_module_init();
	if (ret)
		goto err_tick;
	ret = dmdst_netlink_init();
	if (ret)
		goto err_link;
	ret = dmdst_target_register();
	if (ret)
		goto err_netlink;
	return 0;

err_netlink:
	dmdst_netlink_exit();
err_link:
	dmdst_link_module_exit();
err_tick:
	dmdst_tick_module_exit();
err_senders:
	dmdst_senders_module_exit();
err_workqueues:
	dmdst_destroy_workqueues();
	return ret;
}

/* No table is left, so no node: only links whose sockets are being released. */
static void __exit dmdst_exit(void)
{
	dmdst_target_unregister();
	/* They tell of their end: the family must still be there. */
	dmdst_link_module_exit();
	dmdst_netlink_exit();
	dmdst_fences_forget_all();
	dmdst_tick_module_exit();
	dmdst_senders_module_exit();
	dmdst_destroy_workqueues();
}

module_init(dmdst_init);
module_exit(dmdst_exit);

MODULE_DESCRIPTION(DM_NAME " target joining extents of remote nodes (NBD)");
MODULE_AUTHOR("The DST authors");
MODULE_LICENSE("GPL");
MODULE_ALIAS("dm-dst");
