// SPDX-License-Identifier: GPL-2.0-only
/* Keys, and the life of an entry: lock, begin, unlock. */

/*
 * How often a locked entry is tried again.  XDP runs with softirqs off, so a
 * holder is gone within some 50 ns, unless its virtual CPU was taken away.
 */
#define LOCK_TRIES	256

/* Fill in the canonical key; return whether the packet's source is the hi side. */
static __always_inline bool ct_key_of(const struct flow *f, struct ct_key *key)
{
	u64 src = (u64)bpf_ntohl(f->sip) << 16 | bpf_ntohs(f->sport);
	u64 dst = (u64)bpf_ntohl(f->dip) << 16 | bpf_ntohs(f->dport);
	bool src_hi = src > dst;

	key->lo_ip = src_hi ? f->dip : f->sip;
	key->hi_ip = src_hi ? f->sip : f->dip;
	key->lo_port = src_hi ? f->dport : f->sport;
	key->hi_port = src_hi ? f->sport : f->dport;
	key->proto = f->proto;
	/* who asks: the source of a query, the destination of an answer */
	key->role = (f->bits & FLOW_QUERY && src_hi) || (f->bits & FLOW_ANSWER && !src_hi);
	key->zone = 0;
	return src_hi;
}

static __always_inline bool entry_lock(struct ct_entry *e, u64 *ctl)
{
	u64 seen;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < LOCK_TRIES; i++) {
		seen = *(volatile u64 *)&e->ctl;
		if (seen & CTL_LOCK)
			continue;
		if (__sync_val_compare_and_swap(&e->ctl, seen, seen | CTL_LOCK) == seen) {
			*ctl = seen;
			return true;
		}
	}
	return false;
}

/* Publish ctl and let go.  Where stores may overtake each other the exchange orders them. */
static __always_inline void entry_unlock(struct ct_entry *e, u64 ctl)
{
#ifdef CT_STORES_IN_ORDER
	asm volatile("" ::: "memory");
	*(volatile u64 *)&e->ctl = ctl;
#else
	__sync_lock_test_and_set(&e->ctl, ctl);
#endif
}

/* The control word of a flow that this packet opens. */
static __always_inline u64 ctl_new(const struct flow *f, bool src_hi)
{
	u64 ctl = (u64)f->vlan[0] << CTL_VLAN_SHIFT |
		  (u64)f->vlan[1] << (CTL_VLAN_SHIFT + VLAN_VID_BITS) |
		  (u64)f->vlans << CTL_VLANS_SHIFT;

	if (src_hi)
		ctl |= CTL_ORIG_HI;
	if (f->bits & FLOW_EGRESS)
		ctl |= CTL_EGRESS;
	return ctl;
}

static __always_inline bool entry_expired(const struct ct_entry *e, u32 now)
{
	return (s32)(e->expires - now) <= 0;
}
