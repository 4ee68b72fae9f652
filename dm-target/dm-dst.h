/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of dm-dst.ko share: target (a table line), node, link and
 * request, and who may call whom. Theory of operation: docs/design.md.
 *
 * Locks, outermost first:
 *   dmdst_nodes_lock (mutex)	the registry of names
 *   node->conf (mutex)		tables and netlink changing one node
 *   tx.mutex, rx.mutex of a link	a batch, or a receive, as a whole
 *   node->lock (spin)		the node's state, queue and set of links
 *   link->lock (spin)		the link's state, slots and byte counters
 *   fences->lock (spin)	guards, old links, and who waits for them
 * Nothing that holds a spinlock here is called from softirq: the socket
 * callbacks only queue work.
 */
#ifndef DM_DST_H
#define DM_DST_H

#include <linux/atomic.h>
#include <linux/bio.h>
#include <linux/bvec.h>
#include <linux/device-mapper.h>
#include <linux/kref.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/net.h>
#include <linux/rcupdate.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <linux/dm-dst.h>
#include "guards.h"
#include "latency.h"
#include "nbd-wire.h"
#include "rules.h"

#define DM_MSG_PREFIX "dst"

/* Requests in flight on one link. */
#define DMDST_DEPTH		256
/* Segments gathered into one send. */
#define DMDST_TX_SEGMENTS	128
/* Of what is merged into one wire request: bytes, and requests. */
#define DMDST_MERGE_BYTES	(128 * 1024)
#define DMDST_MERGE_MOST	32
#define DMDST_NO_SLOT		U16_MAX
/* Largest chunk of one TRIM or WRITE_ZEROES: what fits the wire's 32 bits. */
#define DMDST_MAX_LENGTH	(U32_MAX & ~4095U)
/* A reason fits one line of a log and one word of the status. */
#define DMDST_REASON_MAX	96

struct genl_family;
struct dmdst_node;
struct dmdst_target;
struct dmdst_link;
struct dmdst_seat;
struct sk_buff;

/* ---- flush.c: waiting until a node's acknowledged writes are durable ---- */

struct dmdst_sync {
	struct list_head	list;	/* in the node's flush; node->lock */
	u64			need;	/* writes that must be durable */
	const struct dmdst_target *target; /* whose wait this is */
	struct dmdst_seat	*seat;	/* of a flush bio; NULL: a write with FUA */
	u32			fails;	/* the node's, when the wait came */
	u32			birth;	/* of that write's link */
	u32			losses;	/* the node's, when that was begun */
	bool			redo;	/* the write is lost: again */
	blk_status_t		status;
	void			(*done)(struct dmdst_sync *sync);
};

/* ---- req.c: one request, from map to the end of its bio ---- */

/* dm's per-bio data; also a node's own FLUSH and probe (then bio is NULL). */
struct dmdst_req {
	struct list_head	list;	/* of whoever owns it, see the states */
	struct bio		*bio;
	struct dmdst_node	*node;
	struct dmdst_target	*target; /* NULL for a node's own */
	struct bio_vec		*bvec;	/* the data, with iter */
	struct bvec_iter	iter;	/* data from this wire request on */
	u64			offset;	/* bytes, on the node */
	u64			left;	/* bytes, this wire request included */
	u64			tx_start; /* link stream position of its header */
	u64			tx_end;	/* and behind its last byte */
	u32			len;	/* bytes of this wire request */
	u16			cmd;
	u16			slot;
	u16			guard;	/* its number, or 0; fences->lock */
	u32			birth;	/* of the link that answered, as the next */
	bool			write_back;
	u32			fails;	/* the node's, when the bio came */
	enum dmdst_req_state	state;
	blk_status_t		status;
	bool			no_hole;
	bool			fua;
	bool			sync_after; /* FUA on a server without it */
	bool			noted;	/* counted, not yet forgotten */
	bool			answered; /* before its last byte was sent */
	bool			again;	/* what it was merged with failed: alone */
	bool			spliced; /* this time */
	bool			pages_out; /* an old socket may still have them */
	struct dmdst_sync	sync;
};

void dmdst_req_init(struct dmdst_req *req, struct dmdst_node *node, u16 cmd);
void dmdst_req_move(struct dmdst_req *req, enum dmdst_req_state to);
void dmdst_bio_end(struct bio *bio, blk_status_t status);
void dmdst_req_end(struct dmdst_req *req, blk_status_t status);
void dmdst_req_answered(struct dmdst_req *req);
void dmdst_reqs_answered(struct list_head *reqs);
bool dmdst_reqs_answered_now(struct dmdst_link *link, struct list_head *reqs);
void dmdst_req_again(struct dmdst_req *req);
bool dmdst_req_has_payload(const struct dmdst_req *req);
bool dmdst_req_is_write(const struct dmdst_req *req);
bool dmdst_req_is_failed(const struct dmdst_req *req);

/* ---- flush.c ---- */

struct dmdst_flush {
	struct list_head	waiting; /* for the next FLUSH */
	struct list_head	joined;	/* covered by the one under way */
	struct dmdst_seq	seq;
	atomic64_t		acked;	/* writes acknowledged */
	u32			birth;	/* changes with the incarnation */
	u32			losses;	/* links that were lost */
	struct dmdst_req	req;
};

void dmdst_flush_init(struct dmdst_node *node);
bool dmdst_flush_note_write(struct dmdst_node *node, u32 birth, bool durable);
bool dmdst_flush_is_clean(struct dmdst_node *node, const struct dmdst_seat *seat);
u64 dmdst_flush_dirty(struct dmdst_node *node);
void dmdst_flush_wait(struct dmdst_node *node, struct dmdst_sync *sync);
void dmdst_flush_done(struct dmdst_node *node, blk_status_t status);
void dmdst_flush_push_back(struct dmdst_node *node, const struct dmdst_target *target);
void dmdst_flush_redo(struct dmdst_node *node);
void dmdst_flush_lost(struct dmdst_node *node);
void dmdst_flush_fail(struct dmdst_node *node, blk_status_t status);

/* ---- fence.c ---- */

/* Belongs to a node; outlives it while something is ambiguous. */
struct dmdst_fences {
	struct kref		ref;	/* the node's, or the grave's */
	spinlock_t		lock;	/* of all but what is read without it */
	struct dmdst_guards	guards;
	struct list_head	barred;	/* requests that wait for a fence */
	struct list_head	pinned;	/* answered; pages in an old socket */
	bool			active;	/* there are guards; read without lock */
	bool			listening; /* an answer matters; the same */
	u32			losses;	/* the same */

	struct hlist_node	grave;	/* from here on: while there is no node */
	char			name[DMDST_NAME_MAX + 1];
	u32			generation;
	u32			quiesce;
};

struct dmdst_fences *dmdst_fences_get(const char *name);
void dmdst_fences_bury(struct dmdst_node *node);
void dmdst_fences_put(struct dmdst_fences *fences);
void dmdst_fences_forget_all(void);
int dmdst_fences_grow(struct dmdst_fences *fences, unsigned int links);
bool dmdst_fence_bars(struct dmdst_req *req);
bool dmdst_fence_pins(struct dmdst_req *req);
void dmdst_fence_disown(struct dmdst_req *req);
bool dmdst_fence_lost(struct dmdst_link *link, struct list_head *writes);
bool dmdst_fence_detach(struct dmdst_link *link, u16 slot);
void dmdst_fence_answered(struct dmdst_link *link, u16 slot, struct list_head *freed);
void dmdst_fence_contest(struct dmdst_link *link);
void dmdst_fence_heard(struct dmdst_link *link, u16 slot);
void dmdst_fence_all(struct dmdst_node *node);
void dmdst_fence_one(struct dmdst_node *node, u32 slot, u32 generation);
void dmdst_fence_quiet(struct dmdst_node *node);
void dmdst_fence_unbar(struct dmdst_node *node);
bool dmdst_fence_needs_probe(struct dmdst_node *node);
void dmdst_fence_take(struct dmdst_node *node, const struct dmdst_target *target,
		      struct list_head *taken);
unsigned int dmdst_fence_ambiguous(struct dmdst_node *node,
				   const struct dmdst_link *of);

/* ---- node.c ---- */

/* What dstd learnt in the handshake. */
struct dmdst_export {
	u64			size;	/* bytes */
	u32			flags;	/* NBDW_*: transmission flags */
	u32			min_block; /* bytes, as the next two */
	u32			pref_block;
	u32			max_payload; /* 0: not known yet */
	bool			zero_copy;
};

/* Of the thing behind a node; len 0: it doesn't say. */
struct dmdst_incarnation {
	unsigned int		len;
	u8			id[DMDST_INCARNATION_MAX];
};

/* What NODE_SET changes beside the number of links; all may change live. */
struct dmdst_conduct {
	enum dmdst_policy	policy;
	u32			queue_for; /* ms */
	u32			quiesce; /* ms, or DMDST_NEVER */
	u32			timeout; /* ms, or DMDST_NEVER */
	enum dmdst_restart	unknown_restart;
	bool			eof_fences;
};

/* What requests have waited outside of links: how often, and how long. */
struct dmdst_waits {
	spinlock_t		lock;	/* innermost; in any context */
	unsigned int		nr;	/* that wait now */
	u64			count;	/* begun so far */
	u64			ns;	/* of all, until @at */
	u64			at;	/* ktime_get_ns() */
};

struct dmdst_node {
	struct kref		ref;
	struct hlist_node	hash;	/* dmdst_nodes_lock */
	char			name[DMDST_NAME_MAX + 1];
	unsigned int		users;	/* table lines; dmdst_nodes_lock */

	struct mutex		conf;	/* of tables and netlink */
	struct list_head	uses;	/* conf */
	bool			has_session; /* conf */
	u8			session[DMDST_SESSION_LEN]; /* conf */
	u32			generation; /* conf: the newest link's */
	struct dmdst_incarnation incarnation; /* conf */
	struct list_head	seats;	/* conf */
	struct dmdst_fences	*fences;

	spinlock_t		lock;	/* of all from here on */
	enum dmdst_node_state	state;
	bool			ever_live;
	bool			dead;	/* no table names it any more */
	char			reason[DMDST_REASON_MAX];
	struct dmdst_export	export;	/* written under conf + lock */
	unsigned int		wanted;
	unsigned int		nr_live;
	struct dmdst_link __rcu	*live[DMDST_SLOTS_MAX]; /* packed */
	struct list_head	links;	/* until they are gone */
	struct dmdst_latencies	latency; /* of those that are */
	struct list_head	queue;	/* requests without a link */
	bool			had_loss;
	bool			suspect; /* a loss since links came last */
	bool			down;	/* since lost_at; the policy runs */
	bool			expired; /* the policy has; I/O fails */
	u32			fails;	/* fail-pendings so far */
	unsigned long		lost_at; /* jiffies: the last link's loss */
	u64			reconnects; /* links up since the first loss */
	unsigned long		heard;	/* jiffies: a byte on any link; no lock */
	unsigned long		gave_up; /* jiffies: nothing heard for a long time */
	struct dmdst_conduct	conduct;
	struct dmdst_flush	flush;
	struct dmdst_req	probe;	/* asks, to hear an answer */
	struct delayed_work	tick;	/* holds a reference while queued */
	bool			ticking; /* or it rests; dmdst_tick_work() */

	atomic_t		queued;
	atomic_t		on_link;
	atomic_t		waiting; /* for a fence: barred and pinned */
	atomic64_t		errors;
	atomic64_t		merged;	/* requests sent in another's wire request */
	struct dmdst_waits	waits;
};

/* A device's place at a node, shared by its lines and kept over reloads. */
struct dmdst_seat {
	struct list_head	list;	/* node->seats */
	const struct mapped_device *md;
	unsigned int		uses;	/* node->conf */
	u64			told;	/* losses of data; node->lock */
	blk_status_t		owed;	/* what the write behind a flush must end with, too */
	unsigned long		owed_until;
};

/* A table line's use of a node, one for each node it names. */
struct dmdst_use {
	struct dmdst_node	*node;
	struct dmdst_target	*target;
	struct dmdst_seat	*seat;
	struct list_head	list;	/* node->uses */
	u64			need_size; /* bytes: end of the furthest extent */
	bool			not_yet_live; /* node->conf */
	struct dmdst_sync	sync;	/* of the target's flush round */
};

/* What the table lines that name a node need of its export. */
struct dmdst_need {
	u64			size;	/* bytes: end of the furthest extent */
	u32			block;	/* bytes: the smallest block_size */
	bool			write;
};

/* What a noflush suspend takes back. */
enum dmdst_push_back {
	DMDST_BACK_WAITING,	/* what is on no link */
	DMDST_BACK_DETACH,	/* and what links can do without */
	DMDST_BACK_CUT,		/* and the rest, with its links */
};

struct dmdst_node *dmdst_node_get(const char *name, bool create);
void dmdst_node_put(struct dmdst_node *node);
void dmdst_node_unuse(struct dmdst_node *node);
unsigned int dmdst_nodes_seq(void);
struct dmdst_node *dmdst_node_nth(unsigned long n);
void dmdst_node_links_up(struct dmdst_node *node, struct list_head *fresh,
			 const struct dmdst_export *export,
			 const struct dmdst_incarnation *incarnation,
			 unsigned int wanted);
void dmdst_node_link_leaves(struct dmdst_link *link);
void dmdst_node_retire_link(struct dmdst_link *link, const char *why);
void dmdst_node_guarded(struct dmdst_link *link);
void dmdst_node_link_gone(struct dmdst_link *link);
void dmdst_node_set_wanted(struct dmdst_node *node, unsigned int wanted);
void dmdst_node_submit(struct dmdst_req *req);
void dmdst_node_submit_now(struct dmdst_req *req);
void dmdst_node_submit_all(struct list_head *reqs);
void dmdst_node_push_back(struct dmdst_node *node, struct dmdst_target *target,
			  enum dmdst_push_back how);
void dmdst_node_set_conduct(struct dmdst_node *node, const struct dmdst_conduct *conduct);
int dmdst_node_fenced(struct dmdst_node *node, u32 slot, u32 generation);
bool dmdst_node_set_state(struct dmdst_node *node, enum dmdst_node_state to,
			  const char *reason);
void dmdst_node_drop_links(struct dmdst_node *node, u32 slots, bool force);
void dmdst_node_fail_pending(struct dmdst_node *node);
void dmdst_node_fail_waiting(struct dmdst_node *node);
const char *dmdst_node_state_name(enum dmdst_node_state state);

/* ---- birth.c ---- */

void dmdst_birth_check(struct dmdst_node *node, const struct dmdst_export *export,
		       const struct dmdst_incarnation *now, u32 leaving);

/* ---- use.c ---- */

struct dmdst_need dmdst_node_need(struct dmdst_node *node);
int dmdst_node_add_use(struct dmdst_use *use, char *reason);
void dmdst_node_del_use(struct dmdst_use *use);
bool dmdst_node_fits(struct dmdst_node *node, const struct dmdst_export *export,
		     char *reason);
void dmdst_node_refuse(struct dmdst_node *node, const char *reason);
void dmdst_node_tell_uses(struct dmdst_node *node);

/* ---- tick.c: what a node looks at once a second ---- */

extern struct bio_vec dmdst_unread;

void dmdst_tick_init(struct dmdst_node *node);
void dmdst_tick_soon(struct dmdst_node *node);
void dmdst_tick_wake(struct dmdst_node *node);
void dmdst_tick_stop(struct dmdst_node *node);
bool dmdst_policy_expired(const struct dmdst_node *node);
int dmdst_tick_module_init(void);
void dmdst_tick_module_exit(void);

/* ---- link.c, send.c, recv.c ---- */

/*
 * A wire request is of one slot, or of several whose requests were merged: its
 * cookie is the first's, and its answer frees them all at once. For all else,
 * a loss above all, each slot stands for itself.
 */
struct dmdst_slot {
	struct dmdst_req	*req;	/* NULL: free, or detached */
	u64			sent_ns; /* ktime of its batch */
	u32			seq;	/* of its use: makes cookies unique */
	u32			loss;	/* losses known when it was used */
	u32			since;	/* jiffies */
	u32			len;	/* of its request, as the next */
	u16			cmd;
	u16			guard;	/* of a detached write; fences->lock */
	u32			total;	/* bytes of the wire request, of its first */
	u16			next;	/* of the wire request, or DMDST_NO_SLOT */
	bool			rides;	/* it is not the first */
	bool			detached; /* its answer is nobody's any more */
	bool			warned;	/* that it is slow */
	bool			refused; /* ESHUTDOWN: no other answer will come */
};

/* The batch being sent. */
struct dmdst_tx {
	struct mutex		mutex;	/* of all but what says link->lock */
	struct page		*headers; /* DMDST_DEPTH requests, by slot */
	struct bio_vec		bv[DMDST_TX_SEGMENTS];
	unsigned int		nr;
	size_t			bytes;	/* in the batch */
	size_t			skip;	/* of it, already taken by the socket */
	bool			splice;
	bool			payload; /* the batch has some */
	bool			more;	/* another batch follows at once */
	bool			corked;	/* the socket has been told so */
	bool			full;	/* the socket was: room is progress */
	bool			over;	/* the socket is taken from us */
	struct dmdst_req	*req;	/* partly gathered; link->lock */
	struct bvec_iter	iter;	/* what of it is not gathered yet */
	u64			gathered; /* stream position; link->lock */
	u64			sent;	/* stream position; link->lock */
	unsigned int		early;	/* answered before sent; link->lock */
	u64			now;	/* ktime of the batch; 0: not read yet */
};

/* What is being received. The state follows from the two counters. */
struct dmdst_rx {
	struct mutex		mutex;	/* of all of it; and TCP's socket lock */
	struct page		*page;	/* headers, and payload read too far */
	unsigned int		have;	/* bytes in page, not parsed yet */
	struct dmdst_slot	*slot;	/* whose payload is being read */
	u32			got;	/* bytes of it */
	bool			broken;	/* not what NBD says: read no further */
	bool			eof;
	bool			shutdown; /* the server said it goes away */
	struct list_head	freed;	/* who waited for a detached write */
	struct list_head	late;	/* answered, a worker goes on; link->lock */
	u64			received;
	u64			now;	/* ktime of the receive; 0: not read yet */
};

struct dmdst_link {
	struct kref		ref;
	struct rcu_head		rcu;
	struct list_head	list;	/* node->links; node->lock */
	struct dmdst_node	*node;
	struct socket		*sock;
	u32			slot;	/* of the node */
	u32			generation;

	spinlock_t		lock;	/* of state, slots and marked fields */
	unsigned int		lonely;	/* requests in a row that were alone; lock */
	enum dmdst_link_state	state;
	int			err;	/* of the loss, positive */
	const char		*why;
	struct list_head	sendq;	/* no slot yet */
	unsigned int		nr_free;
	unsigned int		nr_reads; /* on the wire */
	bool			fail;	/* when lost: fail what it carries */
	bool			fenced;	/* nothing it carried can be applied */
	bool			reset;	/* a send or receive said so */
	u32			birth;	/* node->flush.birth when it came */
	bool			write_back; /* what it acknowledges isn't durable */
	u16			free[DMDST_DEPTH];
	struct dmdst_slot	slots[DMDST_DEPTH];
	struct dmdst_latencies	latency; /* lock */

	struct dmdst_tx		tx;
	struct dmdst_rx		rx;

	struct kthread_worker	*sender; /* one of the module's */
	struct kthread_delayed_work send_work;
	struct work_struct	recv_work;
	struct work_struct	down_work;

	unsigned long		progress; /* jiffies; read without lock */
	u32			come;	/* TCP's stream position; node->lock */
	bool			disbelieve; /* its server's word is void */
	bool			started; /* in its node; callbacks may queue work */
	gfp_t			old_allocation;
	void			(*old_data_ready)(struct sock *sk);
	void			(*old_state_change)(struct sock *sk);
	void			(*old_write_space)(struct sock *sk);
};

/* The next of the wire request that @slot is of, or NULL. */
static inline struct dmdst_slot *dmdst_slot_next(struct dmdst_link *link,
						 const struct dmdst_slot *slot)
{
	return slot->next == DMDST_NO_SLOT ? NULL : &link->slots[slot->next];
}

extern struct workqueue_struct *dmdst_recv_wq;
extern struct workqueue_struct *dmdst_down_wq;

struct dmdst_link *dmdst_link_create(struct dmdst_node *node, struct socket *sock,
				     u32 slot, u32 generation, const char **why);
int dmdst_link_check_socket(struct socket *sock, const char **why);
void dmdst_link_discard(struct dmdst_link *link);
void dmdst_link_start(struct dmdst_link *link);
void dmdst_link_put(struct dmdst_link *link);
bool dmdst_link_take(struct dmdst_link *link, struct dmdst_req *req, bool *now);
void dmdst_link_drain(struct dmdst_link *link);
void dmdst_link_lose(struct dmdst_link *link, int err, const char *why);
void dmdst_link_cut(struct dmdst_link *link, const char *why);
void dmdst_link_fail(struct dmdst_link *link, bool only_busy, const char *why);
void dmdst_link_fenced(struct dmdst_link *link);
void dmdst_link_set_birth(struct dmdst_link *link, u32 birth, bool write_back);
bool dmdst_link_carries(struct dmdst_link *link, const struct dmdst_target *target);
void dmdst_link_heard(struct dmdst_link *link);
void dmdst_link_check_time(struct dmdst_link *link, u32 timeout);
void dmdst_link_check_drained(struct dmdst_link *link);
void dmdst_link_answered(struct dmdst_link *link, struct list_head *reqs);
void dmdst_link_send_later(struct dmdst_link *link, unsigned long delay);
void dmdst_link_free_slot(struct dmdst_link *link, u16 slot);
struct dmdst_req *dmdst_link_vacate(struct dmdst_link *link, u16 slot);
unsigned int dmdst_link_in_flight(struct dmdst_link *link);
int dmdst_link_module_init(void);
void dmdst_link_module_exit(void);

void dmdst_send_work(struct kthread_work *work);
void dmdst_send_now(struct dmdst_link *link);
void dmdst_send_disc(struct dmdst_link *link);
void dmdst_recv_work(struct work_struct *work);
bool dmdst_recv_now(struct dmdst_link *link);
bool dmdst_recv_some(struct dmdst_link *link);

/* ---- senders.c ---- */

extern const struct cred *dmdst_creds;

struct kthread_worker *dmdst_sender_next(void);
int dmdst_senders_module_init(void);
void dmdst_senders_module_exit(void);

/* ---- detach.c ---- */

bool dmdst_link_detach(struct dmdst_link *link, const struct dmdst_target *target,
		       struct list_head *back);

/* ---- latency.c ---- */

void dmdst_latency_keep(struct dmdst_link *link);
int dmdst_latency_put(struct sk_buff *msg, struct dmdst_node *node);
void dmdst_waits_init(struct dmdst_waits *waits);
void dmdst_waits_count(struct dmdst_waits *waits, bool begins);
int dmdst_waits_put(struct sk_buff *msg, struct dmdst_waits *waits);

/* ---- target.c, table.c ---- */

struct dmdst_extent {
	sector_t		start;	/* in the line */
	sector_t		len;
	sector_t		offset;	/* on the node */
	struct dmdst_use	*use;
};

struct dmdst_target {
	struct dm_target	*ti;
	unsigned int		block_size; /* bytes */
	bool			read_only;
	bool			no_discard;

	unsigned int		nr_extents;
	struct dmdst_extent	*extents; /* by start */
	unsigned int		nr_uses;
	struct dmdst_use	**uses;	/* in order of first mention */

	atomic_t		not_yet_live; /* uses; 0: ready */
	struct work_struct	ready_work;
	struct delayed_work	suspend_work; /* a noflush suspend's patience */
	unsigned int		suspend_looks;

	spinlock_t		round_lock; /* the flush round, see target.c */
	bool			round_busy;
	struct bio_list		round_next;
	struct bio_list		round_now;
	atomic_t		round_left;
	blk_status_t		round_status;
};

int dmdst_table_parse(struct dmdst_target *t, unsigned int argc, char **argv);
void dmdst_table_free(struct dmdst_target *t);
struct dmdst_extent *dmdst_table_find(struct dmdst_target *t, sector_t sector);
void dmdst_table_print(struct dmdst_target *t, char *result, unsigned int maxlen);
int dmdst_target_register(void);
void dmdst_target_unregister(void);
void dmdst_target_node_is_live(struct dmdst_target *t);

/* ---- netlink.c ---- */

/* Of the family's multicast groups. */
#define DMDST_GROUP_EVENTS	0

extern struct genl_family dmdst_family;

int dmdst_netlink_init(void);
void dmdst_netlink_exit(void);

/* ---- event.c ---- */

void dmdst_netlink_node_event(struct dmdst_node *node);
void dmdst_netlink_link_event(struct dmdst_link *link,
			      enum dmdst_link_state state, int err, const char *why);
void dmdst_netlink_fence_event(struct dmdst_node *node, u32 slot, u32 generation,
			       unsigned int ambiguous, const char *why);
void dmdst_netlink_data_lost_event(struct dmdst_node *node, u64 writes);

#endif /* DM_DST_H */
