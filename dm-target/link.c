// SPDX-License-Identifier: GPL-2.0-only
/*
 * A link: one connected socket in a slot of a node, from the moment netlink
 * hands it over until the socket is released. Owns the link's state, its
 * request slots and the socket callbacks. send.c and recv.c move the bytes;
 * node.c decides which link gets a request. Never sends or receives itself.
 */
#include <linux/file.h>
#include <linux/sched/mm.h>
#include <linux/tcp.h>
#include <linux/wait.h>
#include <net/inet_connection_sock.h>
#include <net/sock.h>
#include <net/tcp.h>
#include "compat/compat.h"
#include "dm-dst.h"
#include "trace.h"

#define DMDST_HEADERS_ORDER get_order(DMDST_DEPTH * sizeof(struct nbdw_request))

/* A request that takes so long is worth a warning. */
#define DMDST_SLOW		(10 * HZ)
/* For TRIM, WRITE_ZEROES and FLUSH, by which a server may do a lot. */
#define DMDST_LONG_FACTOR	10

static atomic_t dmdst_links_alive = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(dmdst_links_gone);
static struct socket *dmdst_memalloc;
static struct lock_class_key dmdst_sk_lock_key;

/* Legal moves: rules.h. False, and nothing done: it isn't legal (any more). */
static bool dmdst_link_move(struct dmdst_link *link, enum dmdst_link_state to)
{
	lockdep_assert_held(&link->lock);
	if (!dmdst_link_may_move(link->state, to))
		return false;
	link->state = to;
	return true;
}

static void dmdst_link_release(struct kref *ref)
{
	struct dmdst_link *link = container_of(ref, struct dmdst_link, ref);

	__free_pages(link->tx.headers, DMDST_HEADERS_ORDER);
	__free_page(link->rx.page);
	dmdst_node_put(link->node);
	/* dmdst_node_submit() looks at links under RCU. */
	kfree_rcu(link, rcu);
}

void dmdst_link_put(struct dmdst_link *link)
{
	kref_put(&link->ref, dmdst_link_release);
}

/* ---- the socket: checks, callbacks ---- */

/* Of the kinds of socket that can carry a link; whose it is, is seen later. */
int dmdst_link_check_socket(struct socket *sock, const char **why)
{
	struct sock *sk = sock->sk;
	bool tcp = sk_is_tcp(sk);

	if (sock->type != SOCK_STREAM || !(tcp || sk->sk_family == AF_UNIX)) {
		*why = "only TCP and Unix stream sockets can be links";
		return -EINVAL;
	}
	if (READ_ONCE(sk->sk_state) != TCP_ESTABLISHED) {
		*why = "the socket is not connected";
		return -ENOTCONN;
	}
	if (tcp && inet_csk(sk)->icsk_ulp_ops) {
		*why = "the socket has an upper layer protocol that was not asked for";
		return -EOPNOTSUPP;
	}
	return 0;
}

static void dmdst_link_data_ready(struct sock *sk)
{
	struct dmdst_link *link;

	read_lock_bh(&sk->sk_callback_lock);
	link = sk->sk_user_data;
	if (link && READ_ONCE(link->started) && !dmdst_recv_now(link))
		queue_work(dmdst_recv_wq, &link->recv_work);
	read_unlock_bh(&sk->sk_callback_lock);
}

/* Reading finds out what happened, after what came before it. */
static void dmdst_link_state_change(struct sock *sk)
{
	struct dmdst_link *link;

	read_lock_bh(&sk->sk_callback_lock);
	link = sk->sk_user_data;
	if (link) {
		if (READ_ONCE(link->started))
			queue_work(dmdst_recv_wq, &link->recv_work);
		link->old_state_change(sk);
	}
	read_unlock_bh(&sk->sk_callback_lock);
}

static void dmdst_link_write_space(struct sock *sk)
{
	struct dmdst_link *link;

	read_lock_bh(&sk->sk_callback_lock);
	link = sk->sk_user_data;
	if (link && sk_stream_is_writeable(sk)) {
		clear_bit(SOCK_NOSPACE, &link->sock->flags);
		if (READ_ONCE(link->tx.skip) < READ_ONCE(link->tx.bytes))
			kthread_mod_delayed_work(link->sender, &link->send_work, 0);
	}
	read_unlock_bh(&sk->sk_callback_lock);
}

static bool dmdst_link_own_socket(struct dmdst_link *link)
{
	struct sock *sk = link->sock->sk;
	bool free;

	write_lock_bh(&sk->sk_callback_lock);
	free = !sk->sk_user_data;
	if (free) {
		sk->sk_user_data = link;
		link->old_data_ready = sk->sk_data_ready;
		link->old_state_change = sk->sk_state_change;
		link->old_write_space = sk->sk_write_space;
		sk->sk_data_ready = dmdst_link_data_ready;
		sk->sk_state_change = dmdst_link_state_change;
		sk->sk_write_space = dmdst_link_write_space;
	}
	write_unlock_bh(&sk->sk_callback_lock);
	if (!free)
		return false;

	/*
	 * Writing out memory may need this socket: it must not wait for memory.
	 * Socket flags are no atomic bits: only under the socket's lock.
	 */
	/*
	 * Who submits takes this lock with those of file systems held; those of
	 * programs' own sockets are taken before them, by a page fault.
	 */
	lockdep_set_class_and_name(&sk->sk_lock, &dmdst_sk_lock_key, "sk_lock-dst");
	lock_sock(sk);
	link->old_allocation = sk->sk_allocation;
	sk->sk_allocation = GFP_NOIO;
	dmdst_compat_no_task_frag(sk);
	sk_set_memalloc(sk);
	release_sock(sk);
	if (sk_is_tcp(sk))
		tcp_sock_set_nodelay(sk);
	return true;
}

static void dmdst_link_disown_socket(struct dmdst_link *link)
{
	struct sock *sk = link->sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	sk->sk_data_ready = link->old_data_ready;
	sk->sk_state_change = link->old_state_change;
	sk->sk_write_space = link->old_write_space;
	sk->sk_user_data = NULL;
	write_unlock_bh(&sk->sk_callback_lock);
	/*
	 * Flags and sk_forward_alloc change only under the socket's lock; and who
	 * took an old pointer under it is done after this.
	 */
	lock_sock(sk);
	sk_clear_memalloc(sk);
	sk->sk_allocation = link->old_allocation;
	release_sock(sk);
}

/* ---- the end ---- */

/*
 * What the socket still holds must not be sent any more: its pages belong to
 * bios that end now. Aborting drops TCP's write queue; closing alone doesn't.
 */
static void dmdst_link_close_socket(struct dmdst_link *link)
{
	if (!link->err)
		dmdst_send_disc(link);
	else if (sk_is_tcp(link->sock->sk))
		tcp_abort(link->sock->sk, ECONNABORTED);
	kernel_sock_shutdown(link->sock, SHUT_RDWR);
}

static void dmdst_link_take_sendq(struct dmdst_link *link, struct list_head *unsent,
				  const char *why)
{
	struct dmdst_req *req;

	lockdep_assert_held(&link->lock);
	list_for_each_entry(req, &link->sendq, list) {
		trace_dmdst_requeue(req, link, false, why);
		dmdst_req_move(req, DMDST_REQ_HELD);
	}
	list_splice_tail_init(&link->sendq, unsent);
}

/*
 * Did the server close the connection in order? Who reads on after a reset, a
 * time-out or an abort finds end of file, too; only a FIN sets SOCK_DONE.
 */
static bool dmdst_link_was_closed(struct dmdst_link *link)
{
	struct sock *sk = link->sock->sk;

	lockdep_assert_held(&link->lock);
	return link->rx.eof &&
	       (sk_is_tcp(sk) ? sock_flag(sk, SOCK_DONE) : !link->reset);
}

/* May a write that was not answered be applied after this? No: it's fenced. */
static bool dmdst_link_is_fenced(struct dmdst_link *link)
{
	return link->fenced || (READ_ONCE(link->node->conduct.eof_fences) &&
				dmdst_link_was_closed(link));
}

/*
 * Empties the link. @moved: what was not sent, or can be asked again without
 * a trace. @writes: what the server may have, or get, and apply. @freed: others'
 * requests, that waited for what the link had. True: guards are left.
 */
static bool dmdst_link_collect(struct dmdst_link *link, struct list_head *moved,
			       struct list_head *writes, struct list_head *freed)
{
	struct dmdst_req *req;
	bool fenced, guarded;
	unsigned int i;

	spin_lock_bh(&link->lock);
	dmdst_link_take_sendq(link, moved, "link lost");
	for (i = 0; i < DMDST_DEPTH; i++) {
		if (!link->slots[i].req)
			continue;
		req = dmdst_link_vacate(link, i);
		trace_dmdst_requeue(req, link, true, "link lost");
		if (req->tx_start >= link->tx.sent || !dmdst_req_is_write(req))
			list_add_tail(&req->list, moved);
		else
			list_add_tail(&req->list, writes);
	}
	link->tx.req = NULL;
	fenced = dmdst_link_is_fenced(link);
	if (fenced)
		list_splice_tail_init(writes, moved);
	for (i = 0; fenced && i < DMDST_DEPTH; i++)
		dmdst_fence_answered(link, i, freed);
	guarded = dmdst_fence_lost(link, writes);
	for (i = 0; i < DMDST_DEPTH; i++)
		if (link->slots[i].detached)
			dmdst_link_free_slot(link, i);
	spin_unlock_bh(&link->lock);
	return guarded;
}

/*
 * What the link carried goes on elsewhere, back to device-mapper, or ends.
 * "Would block" is no answer any more for what a server may have done.
 */
static void dmdst_link_move_on(struct dmdst_link *link, struct list_head *reqs)
{
	bool fail = READ_ONCE(link->fail);
	struct dmdst_req *req, *next;

	list_for_each_entry_safe(req, next, reqs, list) {
		list_del_init(&req->list);
		if (req->bio)
			req->bio->bi_opf &= ~REQ_NOWAIT;
		if (fail)
			dmdst_req_end(req, BLK_STS_TRANSPORT);
		else if (req->bio && dm_noflush_suspending(req->target->ti))
			dmdst_req_end(req, BLK_STS_DM_REQUEUE);
		else
			dmdst_node_submit(req);
	}
}

/*
 * Runs once a link, when it is lost or drained. Everything it carried goes to
 * another link or the queue; writes that were in flight leave guards, since
 * nobody knows whether the server will still apply them.
 */
static void dmdst_link_down_work(struct work_struct *work)
{
	struct dmdst_link *link = container_of(work, struct dmdst_link, down_work);
	unsigned int noio = memalloc_noio_save();
	LIST_HEAD(moved);
	LIST_HEAD(writes);
	LIST_HEAD(freed);
	bool guarded;

	dmdst_node_link_leaves(link);
	dmdst_link_disown_socket(link);
	kthread_cancel_delayed_work_sync(&link->send_work);
	cancel_work_sync(&link->recv_work);
	/* A submitter that sends by itself is done, or finds this. */
	mutex_lock(&link->tx.mutex);
	link->tx.over = true;
	mutex_unlock(&link->tx.mutex);

	/* Answers that came before the loss are good answers. */
	while (dmdst_recv_some(link))
		cond_resched();

	dmdst_link_close_socket(link);
	guarded = dmdst_link_collect(link, &moved, &writes, &freed);
	/* Before any bio ends: its pages may be in there. */
	sockfd_put(link->sock);
	if (guarded)
		dmdst_node_guarded(link);
	if (link->err)
		dmdst_flush_redo(link->node);
	list_splice_tail(&moved, &writes);
	dmdst_link_move_on(link, &writes);
	dmdst_node_submit_all(&freed);

	spin_lock_bh(&link->lock);
	dmdst_link_move(link, DMDST_LINK_GONE);
	trace_dmdst_link(link);
	spin_unlock_bh(&link->lock);
	dmdst_node_link_gone(link);
	dmdst_link_put(link);
	memalloc_noio_restore(noio);

	if (atomic_dec_and_test(&dmdst_links_alive))
		wake_up_all(&dmdst_links_gone);
}

/*
 * The first socket with SOCK_MEMALLOC has the kernel's text patched on all
 * CPUs, and so has the end of the last. Links come and go: this one stays.
 */
int dmdst_link_module_init(void)
{
	int ret = sock_create_kern(&init_net, PF_INET, SOCK_DGRAM, 0, &dmdst_memalloc);

	if (ret)
		return ret;
	sk_set_memalloc(dmdst_memalloc->sk);
	return 0;
}

/* After this no link, and no callback into our code, is left. */
void dmdst_link_module_exit(void)
{
	wait_event(dmdst_links_gone, !atomic_read(&dmdst_links_alive));
	synchronize_net();
	/*
	 * A Unix peer calls sk_data_ready with no lock held, RCU's neither: it may
	 * have been preempted on its way, or inside, and has to sleep once.
	 */
	synchronize_rcu_tasks();
	sk_clear_memalloc(dmdst_memalloc->sk);
	sock_release(dmdst_memalloc);
}

static void dmdst_link_do_lose(struct dmdst_link *link, int err, const char *why)
{
	lockdep_assert_held(&link->lock);
	link->reset |= err == ECONNRESET;
	if (!dmdst_link_move(link, DMDST_LINK_LOST))
		return;
	link->err = err;
	link->why = why;
	trace_dmdst_link(link);
	if (err)
		DMWARN("node %s: link %u generation %u lost: %s (%d)",
		       link->node->name, link->slot, link->generation, why, -err);
	queue_work(dmdst_down_wq, &link->down_work);
}

/* Any context that may take link->lock. Positive @err; 0 is an orderly end. */
void dmdst_link_lose(struct dmdst_link *link, int err, const char *why)
{
	spin_lock_bh(&link->lock);
	dmdst_link_do_lose(link, err, why);
	spin_unlock_bh(&link->lock);
}

static bool dmdst_link_is_idle(struct dmdst_link *link)
{
	lockdep_assert_held(&link->lock);
	return link->nr_free == DMDST_DEPTH && list_empty(&link->sendq);
}

/* No new requests from here on; ends by itself when all are answered. */
void dmdst_link_drain(struct dmdst_link *link)
{
	LIST_HEAD(unsent);
	bool idle = false;

	spin_lock_bh(&link->lock);
	if (dmdst_link_move(link, DMDST_LINK_DRAINING)) {
		trace_dmdst_link(link);
		dmdst_link_take_sendq(link, &unsent, "link drains");
		idle = dmdst_link_is_idle(link);
	}
	spin_unlock_bh(&link->lock);

	dmdst_node_submit_all(&unsent);
	if (idle)
		dmdst_link_lose(link, 0, "drained");
}

/*
 * Ends the link now. What it carries moves on. An orderly end is one of a link
 * that carries nothing; no request may come in between.
 */
void dmdst_link_cut(struct dmdst_link *link, const char *why)
{
	spin_lock_bh(&link->lock);
	dmdst_link_do_lose(link, dmdst_link_is_idle(link) ? 0 : ECANCELED, why);
	spin_unlock_bh(&link->lock);
}

/* The same, and what it carries fails; @only_busy: if it carries something. */
void dmdst_link_fail(struct dmdst_link *link, bool only_busy, const char *why)
{
	bool idle;

	spin_lock_bh(&link->lock);
	idle = dmdst_link_is_idle(link);
	if (!idle)
		WRITE_ONCE(link->fail, true);
	if (!idle || !only_busy)
		dmdst_link_do_lose(link, idle ? 0 : ECANCELED, why);
	spin_unlock_bh(&link->lock);
}

/* Its server has closed it and won't apply anything it carried. */
void dmdst_link_fenced(struct dmdst_link *link)
{
	spin_lock_bh(&link->lock);
	link->fenced = true;
	dmdst_link_do_lose(link, ECONNRESET, "fenced by its server");
	spin_unlock_bh(&link->lock);
}

/* What it acknowledges from here on is of this incarnation. */
void dmdst_link_set_birth(struct dmdst_link *link, u32 birth, bool write_back)
{
	spin_lock_bh(&link->lock);
	link->birth = birth;
	link->write_back = write_back;
	spin_unlock_bh(&link->lock);
}

/* ---- time ---- */

/*
 * Any byte is life. Room in a socket that was full is, too, but only this
 * link's: a dead server's buffers take in what other links carried.
 */
void dmdst_link_heard(struct dmdst_link *link)
{
	WRITE_ONCE(link->progress, jiffies);
	if (READ_ONCE(link->node->heard) != jiffies)
		WRITE_ONCE(link->node->heard, jiffies);
}

/*
 * A node of which nothing was heard for a link's long time gets it on no other,
 * until it is heard: a dead one is not waited for once a link.
 */
static bool dmdst_link_may_take_long(const struct dmdst_link *link)
{
	const struct dmdst_node *node = link->node;

	lockdep_assert_held(&node->lock);
	return !time_after(node->gave_up, READ_ONCE(node->heard));
}

/* Has TCP something that it doesn't call us for yet, dmdst_rx_set_mark()? */
static void dmdst_link_look_for_life(struct dmdst_link *link)
{
	u32 come;

	lockdep_assert_held(&link->lock);
	/* A lost link's socket may be gone. */
	if (!dmdst_link_is_up(link->state) || !sk_is_tcp(link->sock->sk))
		return;
	come = READ_ONCE(tcp_sk(link->sock->sk)->rcv_nxt);
	/* What was read was heard then. */
	if (come != link->come && come != READ_ONCE(tcp_sk(link->sock->sk)->copied_seq))
		dmdst_link_heard(link);
	link->come = come;
}

/*
 * In jiffies, how long the oldest request has been unanswered. @slow: is there
 * one that a server may take long for?
 */
static u32 dmdst_link_oldest(struct dmdst_link *link, bool *slow)
{
	struct dmdst_slot *slot, *end = link->slots + DMDST_DEPTH;
	u32 age, oldest = 0;

	lockdep_assert_held(&link->lock);
	for (slot = link->slots; slot < end; slot++) {
		if (!slot->req && !slot->detached)
			continue;
		*slow |= slot->cmd != NBDW_CMD_READ && slot->cmd != NBDW_CMD_WRITE;
		age = (u32)jiffies - slot->since;
		oldest = max(oldest, age);
		if (age < DMDST_SLOW || slot->warned || slot->detached)
			continue;
		slot->warned = true;
		DMWARN_LIMIT("node %s: link %u: no answer for %u s to command %u at byte %llu",
			     link->node->name, link->slot, age / HZ,
			     slot->req->cmd, slot->req->offset);
	}
	return oldest;
}

/*
 * @timeout in ms, or DMDST_NEVER; what a server may take long for gets ten
 * times that, and so does what may wait behind it.
 */
void dmdst_link_check_time(struct dmdst_link *link, u32 timeout)
{
	u64 patience = (u64)timeout * HZ / MSEC_PER_SEC;
	bool slow = false;
	u32 oldest, quiet;

	lockdep_assert_held(&link->node->lock);
	spin_lock_bh(&link->lock);
	dmdst_link_look_for_life(link);
	oldest = dmdst_link_oldest(link, &slow);
	spin_unlock_bh(&link->lock);

	quiet = min(oldest, (u32)jiffies - (u32)READ_ONCE(link->progress));
	slow &= dmdst_link_may_take_long(link);
	if (slow)
		patience *= DMDST_LONG_FACTOR;
	if (timeout == DMDST_NEVER || quiet <= patience)
		return;
	if (slow && jiffies - READ_ONCE(link->node->heard) > patience)
		link->node->gave_up = jiffies;
	dmdst_link_lose(link, ETIMEDOUT, "no answer in time");
}

/* Does it hold up a suspend of @target? */
bool dmdst_link_carries(struct dmdst_link *link, const struct dmdst_target *target)
{
	struct dmdst_req *req;
	bool found = false;
	unsigned int i;

	spin_lock_bh(&link->lock);
	for (i = 0; i < DMDST_DEPTH && !found; i++)
		found = link->slots[i].req && link->slots[i].req->target == target;
	list_for_each_entry(req, &link->sendq, list)
		found |= req->target == target;
	spin_unlock_bh(&link->lock);
	return found;
}

/* ---- requests and slots ---- */

/* Requests in a row that were alone on the link, until the next is taken for one. */
#define DMDST_LONELY		3

/*
 * False: the link takes no more. @now, where it isn't NULL: the caller sends it
 * and puts the link; it is for requests that come one at a time.
 */
bool dmdst_link_take(struct dmdst_link *link, struct dmdst_req *req, bool *now)
{
	bool taken;

	spin_lock_bh(&link->lock);
	link->lonely = dmdst_link_is_idle(link) ? link->lonely + 1 : 0;
	taken = link->state == DMDST_LINK_LIVE && !dmdst_req_is_failed(req);
	if (taken) {
		dmdst_req_move(req, DMDST_REQ_ON_LINK);
		/* Pairs with dmdst_tick_work(). */
		smp_mb__after_atomic();
		if (unlikely(!READ_ONCE(link->node->ticking)))
			dmdst_tick_wake(link->node);
		list_add_tail(&req->list, &link->sendq);
		/* Under the lock: after LOST nothing may queue this work. */
		if (now && link->lonely > DMDST_LONELY) {
			kref_get(&link->ref);
			*now = true;
		} else {
			kthread_queue_delayed_work(link->sender, &link->send_work, 0);
		}
	}
	spin_unlock_bh(&link->lock);
	return taken;
}

void dmdst_link_free_slot(struct dmdst_link *link, u16 slot)
{
	struct dmdst_slot *s = &link->slots[slot];

	lockdep_assert_held(&link->lock);
	if (s->cmd == NBDW_CMD_READ && !s->rides)
		link->nr_reads--;
	s->req = NULL;
	s->detached = false;
	link->free[link->nr_free++] = slot;

	if (!list_empty(&link->sendq) && dmdst_link_is_up(link->state))
		kthread_queue_delayed_work(link->sender, &link->send_work, 0);
}

/* Frees @slot; its request is the caller's. */
struct dmdst_req *dmdst_link_vacate(struct dmdst_link *link, u16 slot)
{
	struct dmdst_req *req = link->slots[slot].req;

	dmdst_link_free_slot(link, slot);
	dmdst_req_move(req, DMDST_REQ_HELD);
	return req;
}

/* A draining link ends when it carries nothing any more. No locks. */
void dmdst_link_check_drained(struct dmdst_link *link)
{
	bool drained;

	if (READ_ONCE(link->state) == DMDST_LINK_LIVE)
		return;
	spin_lock_bh(&link->lock);
	drained = link->state == DMDST_LINK_DRAINING && dmdst_link_is_idle(link);
	spin_unlock_bh(&link->lock);
	if (drained)
		dmdst_link_lose(link, 0, "drained");
}

/* Ends what was answered; what was detached is in no list. */
void dmdst_link_answered(struct dmdst_link *link, struct list_head *reqs)
{
	dmdst_reqs_answered(reqs);
	dmdst_link_check_drained(link);
}

void dmdst_link_send_later(struct dmdst_link *link, unsigned long delay)
{
	spin_lock_bh(&link->lock);
	/* After LOST nothing may queue this work. */
	if (dmdst_link_is_up(link->state))
		kthread_queue_delayed_work(link->sender, &link->send_work, delay);
	spin_unlock_bh(&link->lock);
}

unsigned int dmdst_link_in_flight(struct dmdst_link *link)
{
	return DMDST_DEPTH - READ_ONCE(link->nr_free);
}

/* ---- making one ---- */

static void dmdst_link_init(struct dmdst_link *link)
{
	unsigned int i;

	kref_init(&link->ref);
	INIT_LIST_HEAD(&link->list);
	INIT_LIST_HEAD(&link->sendq);
	INIT_LIST_HEAD(&link->rx.freed);
	INIT_LIST_HEAD(&link->rx.late);
	mutex_init(&link->tx.mutex);
	mutex_init(&link->rx.mutex);
	spin_lock_init(&link->lock);
	kthread_init_delayed_work(&link->send_work, dmdst_send_work);
	link->sender = dmdst_sender_next();
	INIT_WORK(&link->recv_work, dmdst_recv_work);
	INIT_WORK(&link->down_work, dmdst_link_down_work);
	link->state = DMDST_LINK_LIVE;
	for (i = 0; i < DMDST_DEPTH; i++)
		link->free[i] = DMDST_DEPTH - 1 - i;
	link->nr_free = DMDST_DEPTH;
}

/*
 * Takes over the caller's reference to @sock if it succeeds. The link does
 * nothing until dmdst_link_start(); dmdst_link_discard() undoes it before.
 */
struct dmdst_link *dmdst_link_create(struct dmdst_node *node, struct socket *sock,
				     u32 slot, u32 generation, const char **why)
{
	struct dmdst_link *link;
	int ret = -ENOMEM;

	*why = "out of memory";
	link = kzalloc(sizeof(*link), GFP_KERNEL);
	if (!link)
		return ERR_PTR(ret);
	dmdst_link_init(link);
	link->slot = slot;
	link->generation = generation;
	link->sock = sock;

	link->tx.headers = alloc_pages(GFP_KERNEL | __GFP_COMP, DMDST_HEADERS_ORDER);
	if (!link->tx.headers)
		goto err_free;
	link->rx.page = alloc_page(GFP_KERNEL);
	if (!link->rx.page)
		goto err_headers;

	kref_get(&node->ref);
	link->node = node;

	ret = -EBUSY;
	*why = "the socket belongs to somebody already";
	if (!dmdst_link_own_socket(link))
		goto err_node;

	atomic_inc(&dmdst_links_alive);
	return link;

err_node:
	dmdst_node_put(node);
	__free_page(link->rx.page);
err_headers:
	__free_pages(link->tx.headers, DMDST_HEADERS_ORDER);
err_free:
	kfree(link);
	return ERR_PTR(ret);
}

/* A link that was never started. The caller keeps its socket. */
void dmdst_link_discard(struct dmdst_link *link)
{
	dmdst_link_disown_socket(link);
	dmdst_link_put(link);
	if (atomic_dec_and_test(&dmdst_links_alive))
		wake_up_all(&dmdst_links_gone);
}

/* What came before the callbacks were ours must be read, too. */
void dmdst_link_start(struct dmdst_link *link)
{
	spin_lock_bh(&link->lock);
	/* Its first send may have failed already: after LOST nobody cancels. */
	if (dmdst_link_is_up(link->state)) {
		WRITE_ONCE(link->started, true);
		queue_work(dmdst_recv_wq, &link->recv_work);
	}
	spin_unlock_bh(&link->lock);
}
