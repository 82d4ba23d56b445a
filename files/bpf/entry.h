// SPDX-License-Identifier: GPL-2.0-only
/* Keys, and the life of an entry: lock, begin, unlock. */

/*
 * How often a locked entry is tried again.  XDP runs with softirqs off, so a
 * holder is gone within some 50 ns, unless its virtual CPU was taken away.
 */
#define LOCK_TRIES	256

/* The key of either table; which one is known when the program is compiled. */
union any_key {
	struct ct_key v4;
	struct ct_key6 v6;
};

static __always_inline bool ipv6_equal(const struct in6_addr *a, const struct in6_addr *b)
{
	return a->s6_addr32[0] == b->s6_addr32[0] && a->s6_addr32[1] == b->s6_addr32[1] &&
	       a->s6_addr32[2] == b->s6_addr32[2] && a->s6_addr32[3] == b->s6_addr32[3];
}

static __always_inline bool ipv6_above(const struct in6_addr *a, const struct in6_addr *b)
{
	u32 i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		if (a->s6_addr32[i] != b->s6_addr32[i])
			return bpf_ntohl(a->s6_addr32[i]) > bpf_ntohl(b->s6_addr32[i]);
	}
	return false;
}

/* Who asks: the source of a query, the destination of an answer. */
static __always_inline u8 query_role(const struct flow *f, bool src_hi)
{
	return (f->bits & FLOW_QUERY && src_hi) || (f->bits & FLOW_ANSWER && !src_hi);
}

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
	key->role = query_role(f, src_hi);
	key->zone = 0;
	return src_hi;
}

static __always_inline bool ct_key6_of(const struct flow *f, const struct ipv6hdr *ip, struct ct_key6 *key)
{
	bool src_hi = ipv6_above(&ip->saddr, &ip->daddr) ||
		      (ipv6_equal(&ip->saddr, &ip->daddr) && bpf_ntohs(f->sport) > bpf_ntohs(f->dport));

	if (src_hi) {
		key->lo_ip = ip->daddr;
		key->hi_ip = ip->saddr;
	} else {
		key->lo_ip = ip->saddr;
		key->hi_ip = ip->daddr;
	}
	key->lo_port = src_hi ? f->dport : f->sport;
	key->hi_port = src_hi ? f->sport : f->dport;
	key->proto = f->proto;
	key->role = query_role(f, src_hi);
	key->zone = 0;
	return src_hi;
}

static __always_inline struct ct_entry *table_lookup(union any_key *key, const bool v6)
{
	return v6 ? ctt6_lookup(&key->v6) : ctt_lookup(&key->v4);
}

static __always_inline int table_create(union any_key *key, struct ct_entry *entry, const bool v6)
{
	return v6 ? ctt6_create(&key->v6, entry) : ctt_create(&key->v4, entry);
}

static __always_inline void table_delete(union any_key *key, const bool v6)
{
	if (v6)
		ctt6_delete(&key->v6);
	else
		ctt_delete(&key->v4);
}

/* Take the lock in a control word; *ctl is the word without it. */
static __always_inline bool ctl_lock(u64 *word, u64 *ctl)
{
	u64 seen;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < LOCK_TRIES; i++) {
		OPAQUE(i);
		seen = *(volatile u64 *)word;
		if (seen & CTL_LOCK)
			continue;
		if (__sync_val_compare_and_swap(word, seen, seen | CTL_LOCK) == seen) {
			*ctl = seen;
			return true;
		}
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

static __always_inline bool expired(u32 expires, u32 now)
{
	return (s32)(expires - now) <= 0;
}
