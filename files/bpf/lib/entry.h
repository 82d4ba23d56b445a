// SPDX-License-Identifier: GPL-2.0-only
/* Keys, and the life of an entry: lock, begin, unlock. */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/maps.h.j2"
#include "lib/packet.h"
#include "templates/events.h.j2"

/*
 * How often a locked entry is tried again.  XDP runs with softirqs off, so a
 * holder is gone within some 50 ns, unless its virtual CPU was taken away.
 */
#define LOCK_TRIES	256
/* A flow's entry is looked up each time, which takes some 20 ns: it may have moved. */
#define FIND_TRIES	16

/* The key of either family's tables; which one is known when the program is compiled. */
union any_key {
	struct ct_key v4;
	struct ct_key6 v6;
};

static __always_inline bool ipv6_equal(const struct in6_addr *a, const struct in6_addr *b)
{
	return a->s6_addr32[0] == b->s6_addr32[0] && a->s6_addr32[1] == b->s6_addr32[1] &&
	       a->s6_addr32[2] == b->s6_addr32[2] && a->s6_addr32[3] == b->s6_addr32[3];
}

/*
 * Keys are sorted without branches: they would be mispredicted half of the time,
 * and the verifier would follow both outcomes to the end.
 */

/* 1 when a is above b; both below 2^63. */
static __always_inline u64 above(u64 a, u64 b)
{
	return (b - a) >> 63;
}

static __always_inline u64 ipv6_above(const struct in6_addr *a, const struct in6_addr *b, u64 otherwise)
{
	u64 result = otherwise, x, y;
	s32 i;

#pragma unroll
	for (i = 3; i >= 0; i--) {
		x = bpf_ntohl(a->s6_addr32[i]);
		y = bpf_ntohl(b->s6_addr32[i]);
		result = above(x, y) | (result & ~above(y, x));
	}
	return result & 1;
}

/* Who asks: the source of a query, the destination of an answer; 1 when that is the hi side. */
static __always_inline u8 query_role(const struct flow *f, u64 src_hi)
{
	u64 query = (f->bits & FLOW_QUERY) / FLOW_QUERY, answer = (f->bits & FLOW_ANSWER) / FLOW_ANSWER;

	return (query & src_hi) | (answer & (src_hi ^ 1));
}

/* Put what belongs to the lower and to the higher side in its place. */
#define SORT(lo, hi, src, dst, src_hi)						\
	do {									\
		u32 swap = ((src) ^ (dst)) & -(u32)(src_hi);			\
		(lo) = (src) ^ swap;						\
		(hi) = (dst) ^ swap;						\
	} while (0)

/* Fill in the canonical key; return 1 when the packet's source is the hi side. */
static __always_inline u64 ct_key_of(const struct flow *f, struct ct_key *key)
{
	u64 src = (u64)bpf_ntohl(f->sip) << 16 | bpf_ntohs(f->sport);
	u64 dst = (u64)bpf_ntohl(f->dip) << 16 | bpf_ntohs(f->dport);
	u64 src_hi = above(src, dst);

	OPAQUE(src_hi);		/* else the compiler makes branches of it */
	SORT(key->lo_ip, key->hi_ip, f->sip, f->dip, src_hi);
	SORT(key->lo_port, key->hi_port, f->sport, f->dport, src_hi);
	key->proto = f->proto;
	key->role = query_role(f, src_hi);
	key->zone = 0;
	return src_hi;
}

static __always_inline u64 ct_key6_of(const struct flow *f, const struct ipv6hdr *ip, struct ct_key6 *key)
{
	u64 src_hi = ipv6_above(&ip->saddr, &ip->daddr, above(bpf_ntohs(f->sport), bpf_ntohs(f->dport)));
	u32 i;

	OPAQUE(src_hi);
#pragma unroll
	for (i = 0; i < 4; i++)
		SORT(key->lo_ip.s6_addr32[i], key->hi_ip.s6_addr32[i], ip->saddr.s6_addr32[i],
		     ip->daddr.s6_addr32[i], src_hi);
	SORT(key->lo_port, key->hi_port, f->sport, f->dport, src_hi);
	key->proto = f->proto;
	key->role = query_role(f, src_hi);
	key->zone = 0;
	return src_hi;
}

/*
 * Each family has two tables: one of assured flows, one of all others.  A flood
 * of new flows can only push out the like of itself.
 */
static __always_inline struct ct_entry *table_lookup(union any_key *key, const bool v6, const bool assured)
{
	if (v6)
		return assured ? ctt6_lookup(&key->v6) : ctt6_new_lookup(&key->v6);
	return assured ? ctt_lookup(&key->v4) : ctt_new_lookup(&key->v4);
}

static __always_inline int table_create(union any_key *key, struct ct_entry *entry, const bool v6, const bool assured)
{
	if (v6)
		return assured ? ctt6_create(&key->v6, entry) : ctt6_new_create(&key->v6, entry);
	return assured ? ctt_create(&key->v4, entry) : ctt_new_create(&key->v4, entry);
}

static __always_inline int table_delete(union any_key *key, const bool v6, bool assured)
{
	if (v6)
		return assured ? ctt6_delete(&key->v6) : ctt6_new_delete(&key->v6);
	return assured ? ctt_delete(&key->v4) : ctt_new_delete(&key->v4);
}

/* Take the lock in a control word, if it is free; *ctl is the word without it. */
static __always_inline bool ctl_try_lock(u64 *word, u64 *ctl)
{
	u64 seen = *(volatile u64 *)word;

	*ctl = seen;
	return !(seen & CTL_LOCK) && __sync_val_compare_and_swap(word, seen, seen | CTL_LOCK) == seen;
}

static __always_inline bool ctl_lock(u64 *word, u64 *ctl)
{
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < LOCK_TRIES; i++) {
		OPAQUE(i);
		if (ctl_try_lock(word, ctl))
			return true;
	}
	return false;
}

/* Publish ctl and let go.  Where stores may overtake each other the exchange orders them. */
static __always_inline void ctl_unlock(u64 *word, u64 ctl)
{
#ifdef CT_STORES_IN_ORDER
	asm volatile("" ::: "memory");
	*(volatile u64 *)word = ctl;
#else
	__sync_lock_test_and_set(word, ctl);
#endif
}

/* The control word of a flow that this packet opens. */
static __always_inline u64 ctl_new(const struct flow *f, u64 src_hi)
{
	u64 ctl = (u64)f->vlan[0] << CTL_VLAN_SHIFT |
		  (u64)f->vlan[1] << (CTL_VLAN_SHIFT + VLAN_VID_BITS) |
		  (u64)f->vlans << CTL_VLANS_SHIFT;

	return ctl | src_hi * CTL_ORIG_HI | (f->bits & FLOW_EGRESS) / FLOW_EGRESS * CTL_EGRESS;
}

/*
 * Whether the entry's time is over.  Its clocks have 32 bits: what seems to have
 * more left than any timeout, or than its last packet gave it, was over long
 * before, and the clock has gone round since.
 */
static __always_inline bool entry_over(const struct ct_entry *e, u32 now, const struct ct_settings *set)
{
	u64 left = (u32)(e->expires - now), whole = (u32)(e->expires - e->last_seen);

	return left - 1 >= (u64)LONGEST_TIMEOUT * set->hz || left > whole + (u64)CLOCK_SLACK * set->hz;
}

/* Where a flow is looked for, and in which order: what is established has one look-up to pay for. */
static __always_inline struct ct_entry *entry_find(union any_key *key, const bool v6, bool *assured)
{
	struct ct_entry *e = table_lookup(key, v6, true);

	*assured = e;
	return e ? e : table_lookup(key, v6, false);
}

/*
 * Delete the entry, which is locked, and stays so: nobody may write into what is
 * given back.  ctl is its control word.
 */
static __always_inline void entry_delete(struct ct_entry *e, union any_key *key, u64 ctl, u32 reason, const bool v6,
					 bool assured)
{
	struct event event;

	event_take(&event, e, ctl, key, v6);
	if (table_delete(key, v6, assured)) {
		event_leave(&event);	/* pushed out, or deleted by an operator, meanwhile */
		return;
	}
	count(reason);
	if (assured)
		count(COUNT_ASSURED_DELETED);
	event_send(&event, EVENT_DESTROY, reason);
}

/*
 * Move the entry, which is locked, to the table of assured flows.  The copy comes
 * first: whoever looks for the flow finds one of the two.  The old one stays
 * locked, so who found it looks again.  Where there is no room the flow stays,
 * and its next packet tries again.
 */
static __always_inline void entry_promote(struct ct_entry *e, union any_key *key, u64 ctl, u32 now, const bool v6)
{
	struct ct_entry copy = *e;

	copy.ctl = ctl;
	if (table_create(key, &copy, v6, true)) {
		count(COUNT_PROMOTE_FAILED);
		ctl_unlock(&e->ctl, ctl);
		return;
	}
	count(COUNT_PROMOTED);
	e->expires = now;	/* until it is deleted readers take it for one whose time is over */
	/* pushed out or deleted under our hands: counted as such, so what moved counts as made once more */
	if (table_delete(key, v6, false))
		count(COUNT_CREATED);
}
