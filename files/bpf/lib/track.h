// SPDX-License-Identifier: GPL-2.0-only
/* The tracker: finds or makes the packet's flow and moves it on.  ct and ct6 are this, once a family. */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/maps.h.j2"
#include "lib/packet.h"
#include "templates/events.h.j2"
#include "lib/entry.h"
#include "lib/inherit.h"
#include "lib/tcp.h"
#include "lib/sctp.h"

/* What the trackers decide: which outcome is counted, and what becomes of the entry. */
struct ct_result {
	u32 outcome;	/* enum ct_count */
	u32 timeout;	/* jiffies, when the packet is tracked */
	bool reopen;	/* the entry starts over with this packet */
	bool kill;
};

/* Whether the packet may open a flow; where not, why. */
static __always_inline u32 ct_may_open(const struct flow *f, const struct ct_settings *set)
{
	u8 class;

	switch (f->proto) {
	case IPPROTO_TCP:
		class = tcp_class(f->tcp_flags);
		if (class == CLASS_SYN || (class == CLASS_ACK && set->knob[KNOB_TCP_LOOSE]))
			return COUNT_TRACKED;
		return COUNT_INVALID_TCP_NEW;
	case IPPROTO_SCTP:
		return f->bits & FLOW_OPENS ? COUNT_TRACKED : COUNT_INVALID_SCTP_NEW;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return f->bits & FLOW_QUERY ? COUNT_TRACKED : COUNT_INVALID_ICMP_TYPE;
	default:
		return COUNT_TRACKED;
	}
}

static __always_inline void ct_tcp(struct ct_entry *e, u64 *ctl, u64 dir, const struct tcp_seg *seg,
				   u32 now, const struct ct_settings *set, struct ct_result *res)
{
	if ((*ctl & CTL_STATE) == TCP_NONE)
		tcp_open(e, seg);
	switch (tcp_track(e, ctl, dir, seg, now, set, &res->timeout)) {
	case TCP_TRACK:
		break;
	case TCP_TRACK_AND_KILL:
		res->kill = true;
		break;
	case TCP_REOPEN:
		res->reopen = true;
		break;
	case TCP_RETRANSMIT_SYN:
		res->outcome = COUNT_IGNORED_TCP_SYN;
		break;
	case TCP_IGNORE_STATE:
		res->outcome = COUNT_IGNORED_TCP_STATE;
		break;
	case TCP_IGNORE_WINDOW:
		res->outcome = COUNT_IGNORED_TCP_WINDOW;
		break;
	case TCP_BAD_STATE:
		res->outcome = COUNT_INVALID_TCP_STATE;
		break;
	case TCP_BAD_WINDOW:
		res->outcome = COUNT_INVALID_TCP_WINDOW;
		break;
	case TCP_BAD_RST:
		res->outcome = COUNT_INVALID_TCP_RST;
		break;
	}
}

static __always_inline void ct_sctp(struct ct_entry *e, u64 *ctl, u64 dir, const struct ct_settings *set,
				    struct ct_result *res)
{
	struct scratch *here = scratch_here();
	enum sctp_verdict verdict;

	if (!here)
		return;
	here->sctp.state = *ctl & CTL_STATE;
	if (here->sctp.state == SCTP_NONE)
		sctp_open(e, &here->sctp);
	verdict = sctp_track(e, dir, &here->sctp, set);
	if (here->sctp.established)
		*ctl |= CTL_ASSURED;
	*ctl = (*ctl & ~CTL_STATE) | (here->sctp.state & CTL_STATE);
	switch (verdict) {
	case SCTP_TRACK:
		res->timeout = sctp_timeout(here->sctp.state, set);
		break;
	case SCTP_IGNORE:
		res->outcome = COUNT_IGNORED_SCTP;
		break;
	case SCTP_BAD_TAG:
		res->outcome = COUNT_INVALID_SCTP_TAG;
		break;
	case SCTP_BAD_STATE:
		res->outcome = COUNT_INVALID_SCTP_STATE;
		break;
	}
}

/* nf_conntrack_udp_packet(): a stream once there was traffic both ways beyond two seconds. */
static __always_inline u32 ct_udp(struct ct_entry *e, u64 *ctl, u32 now, const struct ct_settings *set)
{
	bool late = *ctl & CTL_ASSURED || (s32)(now - e->last_end) > 0;

	if (!late || !(*ctl & CTL_SEEN_REPLY)) {
		if (late)
			e->last_end = now - 1;	/* else it seems to be ahead when half of the clock has gone by */
		return set->timeout[TIMEOUT_UDP];
	}
	*ctl |= CTL_ASSURED;
	return set->timeout[TIMEOUT_UDP_STREAM];
}

/* nf_conntrack_gre_packet() */
static __always_inline u32 ct_gre(u64 *ctl, const struct ct_settings *set)
{
	if (!(*ctl & CTL_SEEN_REPLY))
		return set->timeout[TIMEOUT_GRE];
	*ctl |= CTL_ASSURED;
	return set->timeout[TIMEOUT_GRE_STREAM];
}

/* Begin the flow anew with this packet; the entry is locked. */
static __always_inline void entry_begin(struct ct_entry *e, u64 jiffies, const struct ct_settings *set)
{
	__builtin_memset(e->half, 0, sizeof(e->half));
	__builtin_memset(&e->expires, 0, sizeof(*e) - offsetof(struct ct_entry, expires));
	e->created = jiffies / set->hz;
	e->last_end = (u32)jiffies + STREAM_SECONDS * set->hz;
}

/* Fractions of a jiffy that the rate guard reckons with. */
#define RATE_SHIFT	20

/*
 * Whether another flow may begin.  A bucket holds what one second allows; each
 * flow moves the time at which it would be empty on by what one costs, and none
 * begins that would move it beyond now.
 */
static __always_inline bool rate_allows(u64 jiffies, const struct ct_settings *set)
{
	u64 now = jiffies << RATE_SHIFT, second = (u64)set->hz << RATE_SHIFT, seen, cost, *word;
	u32 limit = set->knob[KNOB_NEW_FLOWS_PER_SECOND];

	if (!limit)
		return true;
	word = guard_word();
	if (!word)
		return true;
	cost = second / limit;
	seen = *(volatile u64 *)word;
	if (seen + second < now) {	/* full; whichever CPU is first says so */
		__sync_val_compare_and_swap(word, seen, now - second);
		seen = now - second;
	}
	if (seen + cost > now)
		return false;
	__sync_fetch_and_add(word, cost);
	return true;
}

/* Make the entry, locked, and return it; NULL where another CPU was first, or no room is left. */
static __always_inline struct ct_entry *entry_create(union any_key *key, u64 ctl, u64 jiffies,
						     const struct ct_settings *set, const bool v6)
{
	struct ct_entry blank, *e;

	__builtin_memset(&blank, 0, sizeof(blank));
	blank.ctl = ctl | CTL_LOCK;
	blank.expires = (u32)jiffies + set->hz;
	blank.created = jiffies / set->hz;
	blank.last_end = (u32)jiffies + STREAM_SECONDS * set->hz;
	if (table_create(key, &blank, v6, false))
		return NULL;
	e = table_lookup(key, v6, false);
	if (!e)
		return NULL;
	/* looked for there it was not assured yet, looked for here it was not here any more */
	if (table_lookup(key, v6, true)) {
		table_delete(key, v6, false);	/* stays locked */
		return NULL;
	}
	count(COUNT_CREATED);
	return e;
}

/* Find the entry and lock it.  NULL: *why says whether there is none or it stayed locked. */
static __always_inline struct ct_entry *entry_hold(union any_key *key, u64 *ctl, bool *assured, u32 *why, const bool v6)
{
	struct ct_entry *e;
	u32 try;

#pragma clang loop unroll(disable)
	for (try = 0; try < FIND_TRIES; try++) {
		OPAQUE(try);
		e = entry_find(key, v6, assured);
		if (!e) {
			*why = COUNT_UNTRACKED_NO_ENTRY;
			return NULL;
		}
		if (ctl_try_lock(&e->ctl, ctl))
			return e;
	}
	*why = COUNT_UNTRACKED_CONTENDED;
	return NULL;
}

/*
 * Return the packet's entry, locked, made if need be; its state is TCP_NONE and
 * its counters 0 when it begins with this packet.  *assured tells its table: a
 * flow that begins anew in the place of an assured one stays there, so nobody
 * takes more of that table than assured flows took.  NULL: *why is the outcome.
 */
static __always_inline struct ct_entry *entry_get(const struct flow *f, union any_key *key, u64 src_hi,
						  u64 jiffies, const struct ct_settings *set, u64 *ctl,
						  bool *assured, u32 *why, const bool v6)
{
	struct ct_entry *e = entry_hold(key, ctl, assured, why, v6);

	if (!e && *why == COUNT_UNTRACKED_NO_ENTRY) {
		if (!entry_inherit(key, jiffies, set, v6)) {
			*why = ct_may_open(f, set);
			if (*why != COUNT_TRACKED)
				return NULL;
			*why = COUNT_UNTRACKED_RATE;
			if (!rate_allows(jiffies, set))
				return NULL;
			*ctl = ctl_new(f, src_hi);
			e = entry_create(key, *ctl, jiffies, set, v6);
			if (e)
				return e;
		}
		e = entry_hold(key, ctl, assured, why, v6);
		if (!e && *why == COUNT_UNTRACKED_NO_ENTRY)
			count(COUNT_INSERT_FAILED);
	}
	if (!e)
		return NULL;
	if (!entry_over(e, jiffies, set))
		return e;
	*why = ct_may_open(f, set);
	if (*why != COUNT_TRACKED) {
		entry_delete(e, key, *ctl, COUNT_DELETED_EXPIRED, v6, *assured);
		return NULL;
	}
	count(COUNT_DELETED_EXPIRED);
	event_tell(EVENT_DESTROY, COUNT_DELETED_EXPIRED, e, *ctl, key, v6);
	entry_begin(e, jiffies, set);
	*ctl = ctl_new(f, src_hi);
	count(COUNT_CREATED);
	return e;
}

/* What guests are told of a flow; ctl is its control word. */
static __always_inline struct ct_found found_of(u32 reason, u64 ctl, u8 bits)
{
	struct ct_found found = { .outcome = reason, .state = ctl & CTL_STATE };

	found.bits = bits | FOUND_FLOW | (ctl & CTL_SEEN_REPLY) / CTL_SEEN_REPLY * FOUND_SEEN_REPLY |
		     (ctl & CTL_ASSURED) / CTL_ASSURED * FOUND_ASSURED |
		     (ctl & CTL_EGRESS) / CTL_EGRESS * FOUND_EGRESS;
	return found;
}

/*
 * Count an ICMP error, under the lock, since the entry may be moving, or, where
 * it stays locked, without: nothing else writes these.
 */
static __always_inline struct ct_found ct_related(struct flow *f, union any_key *key, u32 now,
						  const struct ct_settings *set, const bool v6)
{
	struct ct_found found = { .outcome = COUNT_INVALID_ICMP_ERROR };
	bool assured, locked = false;
	struct ct_entry *e = NULL;
	u64 ctl;
	u32 try;

	if (!entry_find(key, v6, &assured))
		entry_inherit(key, now, set, v6);
#pragma clang loop unroll(disable)
	for (try = 0; try < FIND_TRIES && !locked; try++) {
		OPAQUE(try);
		e = entry_find(key, v6, &assured);
		if (!e)
			return found;
		locked = ctl_try_lock(&e->ctl, &ctl);
	}
	if (!e)
		return found;
	if (!entry_over(e, now, set)) {
		__sync_fetch_and_add(&e->rel_packets, 1);
		__sync_fetch_and_add(&e->rel_bytes, f->bytes);
		found = found_of(COUNT_RELATED, ctl, 0);
	}
	if (locked)
		ctl_unlock(&e->ctl, ctl);
	return found;
}

/* Take away what was made for a packet that is not tracked; nobody was told of it, and it stays locked. */
static __always_inline void entry_discard(union any_key *key, const bool v6, bool assured)
{
	if (table_delete(key, v6, assured))
		return;		/* pushed out, or deleted by an operator, meanwhile */
	count(COUNT_DELETED_UNTRACKED);
	if (assured)
		count(COUNT_ASSURED_DELETED);
}

/*
 * 1 where both sides have one address and one port.  In the kernel's table both
 * tuples of such a flow are the same, and the reply's is found first: so whatever
 * comes after the first packet is a reply, which ct_dir() makes of this.
 */
static __always_inline u64 ends_alike(const union any_key *key, const bool v6)
{
	if (v6)
		return key->v6.lo_port == key->v6.hi_port && ipv6_equal(&key->v6.lo_ip, &key->v6.hi_ip);
	return key->v4.lo_port == key->v4.hi_port && key->v4.lo_ip == key->v4.hi_ip;
}

/*
 * 1 where the packet is longer than any that its interface can have received: what
 * generic mode shows are the stack's packets, which GRO has merged, or which a
 * local sender left to the card to cut up.  A datagram of fragments is longer, too.
 */
static __always_inline u64 aggregated(struct xdp_md *ctx, const struct flow *f)
{
	u32 mtu = 0;

	if (f->bytes <= ETH_DATA_LEN || f->bits & FLOW_WHOLE)
		return 0;
	bpf_check_mtu(ctx, 0, &mtu, 0, 0);	/* whatever it returns: what is asked for is the MTU */
	return f->bytes > (mtu ? mtu : 0xffff);
}

/* The packet's direction: an ICMP message tells it by its type, others by who began. */
static __always_inline u8 ct_dir(const struct flow *f, u64 ctl, u64 src_hi)
{
	if (f->bits & (FLOW_QUERY | FLOW_ANSWER))
		return (f->bits & FLOW_ANSWER) / FLOW_ANSWER;
	return src_hi ^ (ctl & CTL_ORIG_HI) / CTL_ORIG_HI;
}

/* Tell the flow's beginning or change; what ends is told where it is deleted. */
static __always_inline void ct_told(const struct ct_entry *e, const union any_key *key, u64 was, u64 ctl,
				    const struct ct_result *res, u8 new, const bool v6)
{
#if EVENTS
	if (res->kill)
		return;
	if (new) {
		if (res->outcome == COUNT_TRACKED)
			event_tell(EVENT_NEW, 0, e, ctl, key, v6);
	} else if ((was ^ ctl) & (CTL_STATE | CTL_SEEN_REPLY | CTL_ASSURED)) {
		event_tell(EVENT_UPDATE, 0, e, ctl, key, v6);
	}
#endif
}

/* templates/forward.h.j2: what becomes of a packet that counts, an enum forward_turn. */
static __always_inline u8 forward_turn(const struct ct_entry *e, const struct flow *f, u64 was, u64 *ctl, u64 dir,
				       u32 now, const struct ct_settings *set);

static __always_inline int ct_run(struct xdp_md *ctx, struct flow *f, union any_key *key, u64 src_hi,
				  const bool v6, const bool chained)
{
	struct ct_result res = { .outcome = COUNT_TRACKED };
	const struct ct_settings *set = settings_now();
	u64 jiffies = bpf_jiffies64(), ctl, was;
	u32 now = jiffies, why, attempt;
	struct scratch *here = scratch_here();
	struct ct_half *half;
	struct ct_entry *e;
	u64 dir;
	u8 new, before, turn = FORWARD_NOT;
	struct ct_found found;
	bool assured;

	if (!set || !here)
		return outcome(ctx, COUNT_UNTRACKED_NO_ENTRY, chained);
	if (chained && f->bits & FLOW_RELATED)	/* the fused entry leaves ICMP to the stages */
		return finish(ctx, ct_related(f, key, now, set, v6), chained);
	e = entry_get(f, key, src_hi, jiffies, set, &ctl, &assured, &why, v6);
	if (!e)
		return outcome(ctx, why, chained);
	was = ctl;
	dir = ct_dir(f, ctl, src_hi);
	before = (ctl & CTL_ASSURED) / CTL_ASSURED * FOUND_WAS_ASSURED;

	switch (f->proto) {
	case IPPROTO_TCP:
		/* twice when the tuple is used again: the second time it is a new connection */
#pragma clang loop unroll(disable)
		for (attempt = 0; attempt < 2; attempt++) {
			OPAQUE(attempt);
			ct_tcp(e, &ctl, dir, &here->seg, now, set, &res);
			if (!res.reopen)
				break;
			res.reopen = false;
			count(COUNT_REOPENED);
			event_tell(EVENT_DESTROY, COUNT_REOPENED, e, was, key, v6);
			entry_begin(e, jiffies, set);
			ctl = ctl_new(f, src_hi);
			dir = DIR_ORIG;
		}
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		res.timeout = ct_udp(e, &ctl, now, set);
		break;
	case IPPROTO_ICMP:
		res.timeout = set->timeout[v6 ? TIMEOUT_GENERIC : TIMEOUT_ICMP];
		break;
	case IPPROTO_ICMPV6:
		res.timeout = set->timeout[v6 ? TIMEOUT_ICMPV6 : TIMEOUT_GENERIC];
		break;
	case IPPROTO_GRE:
		res.timeout = ct_gre(&ctl, set);
		break;
	case IPPROTO_SCTP:
		if (chained)	/* the fused entry leaves it to the stages */
			ct_sctp(e, &ctl, dir, set, &res);
		break;
	default:
		res.timeout = set->timeout[TIMEOUT_GENERIC];
	}

	new = e->last_seen ? 0 : FOUND_NEW;
	if (new) {
		/* as nf_conntrack confirms no flow whose first packet it does not take */
		if (res.outcome != COUNT_TRACKED) {
			entry_discard(key, v6, assured);
			return outcome(ctx, res.outcome, chained);
		}
		ctl |= ends_alike(key, v6) * CTL_ORIG_HI;
	}
	if (res.outcome == COUNT_TRACKED) {
		turn = forward_turn(e, f, was, &ctl, dir, now, set);
		half = &e->half[dir & 1];
		half->packets++;
		half->bytes += f->bytes;
		e->expires = now + res.timeout;
		e->last_seen = now | !now;	/* 0 stands for never */
		ctl |= aggregated(ctx, f) * CTL_AGGREGATED;
	}
	/* the kernel sets this for packets that it ignores, too */
	if (dir == DIR_REPLY && (res.outcome == COUNT_TRACKED || res.outcome == COUNT_IGNORED_TCP_SYN ||
				 res.outcome == COUNT_IGNORED_TCP_STATE ||
				 res.outcome == COUNT_IGNORED_TCP_WINDOW ||
				 res.outcome == COUNT_IGNORED_SCTP))
		ctl |= CTL_SEEN_REPLY;
	ct_told(e, key, was, ctl, &res, new, v6);
	if (res.kill) {
		/* told as the kernel tells it: a reset is no reply */
		entry_delete(e, key, (ctl & ~CTL_SEEN_REPLY) | (was & CTL_SEEN_REPLY), COUNT_DELETED_RESET, v6, assured);
	} else if (!assured && ctl & CTL_ASSURED) {
		entry_promote(e, key, ctl, now, v6);
	} else {
		ctl_unlock(&e->ctl, ctl);
	}
	found = found_of(res.outcome, ctl, new | before | dir * FOUND_REPLY);
	found.forward = turn;
	return finish(ctx, found, chained);
}
