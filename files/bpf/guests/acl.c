// SPDX-License-Identifier: GPL-2.0-only
/*
 * A small stateful access list, and an example of a guest (docs/guide/guests.md).
 *
 * It judges what comes in on the egress hook.  What belongs to a flow that was
 * begun on the other side passes, and so do the ICMP errors about it.  What
 * would open a flow needs a rule; what is invalid, or was not looked into, does
 * not pass at all.  Until acl_set says ACL_DROP it only counts.
 */

/* Index of acl_set. */
enum acl_setting {
	ACL_MODE,	/* enum acl_mode */
	ACL_FRAGMENTS,	/* 1: fragments pass, of which it is not known what they belong to */
	NR_ACL_SETTINGS,
};

enum acl_mode { ACL_COUNT = 0, ACL_DROP = 1 };

/* Index of acl_hits: why a packet does not pass, or would not. */
enum acl_hit {
	ACL_UNSOLICITED,	/* no rule lets it open a flow, and nobody answered it yet */
	ACL_FRAGMENT,
	ACL_UNCLEAR,		/* invalid, or not looked into */
	NR_ACL_HITS,
	ACL_PASS = NR_ACL_HITS,
};

/*
 * Who may open flows to what.  The longest prefix of protocol, port and source
 * decides, so a rule with a longer prefix is an exception from one with a shorter.
 */
struct acl_key {
	u32 prefix;	/* ACL_EXACT, plus the bits of the source that count */
	u8 proto;
	u8 reserved;	/* 0 */
	__be16 dport;	/* 0 where the protocol has none; ICMP queries: type << 8 | code */
	struct in6_addr source;	/* IPv4: ::ffff:a.b.c.d */
};

#define ACL_EXACT	32	/* bits of proto, reserved and dport */
#define ACL_ALL		(ACL_EXACT + 128)
#define ACL_RULES	1024

GUEST_MAP(acl_set, "array", int, u32, NR_ACL_SETTINGS, 0);
GUEST_MAP(acl_rules, "lpm_trie", struct acl_key, u32, ACL_RULES, BPF_F_NO_PREALLOC);	/* 1: may, 0: may not */
GUEST_MAP(acl_hits, "percpu_array", int, u64, NR_ACL_HITS, 0);

static __always_inline bool acl_is(int setting, u32 value)
{
	u32 *set = acl_set.lookup(&setting);

	return set && *set == value;
}

static __always_inline bool acl_allows(struct xdp_md *ctx, const struct flow *f)
{
	struct acl_key key = { .prefix = ACL_ALL, .proto = f->proto, .dport = f->dport };
	struct ipv6hdr *ip;
	u32 *may;

	if (f->bits & FLOW_V6) {
		ip = frame_at(ctx, f->l3_off, sizeof(*ip));
		if (!ip)
			return false;
		key.source = ip->saddr;
	} else {
		key.source.s6_addr32[2] = bpf_htonl(0xffff);
		key.source.s6_addr32[3] = f->sip;
	}
	may = acl_rules.lookup(&key);
	return may && *may;
}

/* The flow was begun on the other side, or is one that the other side answered. */
static __always_inline bool acl_solicited(const struct flow *f)
{
	return !(f->found.bits & FOUND_EGRESS) || f->found.bits & FOUND_SEEN_REPLY;
}

static __always_inline int acl_judge(struct xdp_md *ctx, const struct flow *f)
{
	switch (f->found.outcome) {
	case COUNT_TRACKED:
	case COUNT_RELATED:
	case COUNT_IGNORED_TCP_SYN:
	case COUNT_IGNORED_TCP_STATE:
	case COUNT_IGNORED_TCP_WINDOW:
	case COUNT_IGNORED_SCTP:
		return acl_solicited(f) || acl_allows(ctx, f) ? ACL_PASS : ACL_UNSOLICITED;
	case COUNT_FRAGMENT:
		return acl_is(ACL_FRAGMENTS, 1) ? ACL_PASS : ACL_FRAGMENT;
	case COUNT_UNTRACKED_NOT_IP:	/* ARP */
	case COUNT_UNTRACKED_ND:	/* and what IPv6 has in its place */
		return ACL_PASS;
	default:
		return ACL_UNCLEAR;
	}
}

GUEST(acl)
{
	int hit;
	u64 *n;

	if (!(f->bits & FLOW_EGRESS))
		return guest_next(ctx);
	hit = acl_judge(ctx, f);
	if (hit == ACL_PASS)
		return guest_next(ctx);
	n = acl_hits.lookup(&hit);
	if (n)
		(*n)++;
	if (!acl_is(ACL_MODE, ACL_DROP))
		return guest_next(ctx);
	return guest_drop(ctx, f);
}
