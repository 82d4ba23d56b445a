// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slot 18: fragments, in any order.  nf_conntrack reassembles a datagram before
 * it looks at it; here its fragments are only added up, and the one that
 * completes it goes on with what the first one said.
 */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/maps.h.j2"
#include "lib/packet.h"
#include "lib/ipv4.h"
#include "lib/ipv6.h"
#include "lib/l4.h"
#include "lib/entry.h"
#include "lib/sctp.h"
#include "templates/crc32c.h.j2"

/* How long the rest is waited for: IP_FRAG_TIME, IPV6_FRAG_TIMEOUT. */
#define FRAG_SECONDS	30
#define FRAG6_SECONDS	60

/* Where the fragment lies in its datagram's payload. */
struct frag_part {
	u32 start, end;
	u32 header;	/* bytes of the fragment's IP header */
	bool last;
	u8 ecn;		/* the bit of its ECN field's value (RFC 3168, 5) */
};

#define FRAG_UNIT	8	/* offsets are told in these (RFC 791, 3.1; RFC 8200, 4.5) */
#define FRAG_ECN_MASK	0x03
#define FRAG_NOT_ECT	0x01	/* the bit of "not ECN capable" */
#define IPV6_ECN_SHIFT	20	/* in the first word, host order */

/* Read what identifies the datagram and where the fragment lies; false where it can not be. */
static __always_inline bool frag_read(struct xdp_md *ctx, const struct flow *f, struct frag_key *key,
				      struct frag_part *part)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	u32 off;

	__builtin_memset(key, 0, sizeof(*key));
	if (f->bits & FLOW_V6) {
		ip6 = frame_at(ctx, f->l3_off, sizeof(*ip6));
		if (!ip6)
			return false;
		key->src = ip6->saddr;
		key->dst = ip6->daddr;
		key->id = f->sip;
		key->v6 = 1;
		off = f->dip & 0xffff;
		part->start = off & IPV6_FRAG_OFFSET;
		part->last = !(off & IPV6_MORE_FRAGS);
		part->header = (f->dip >> 16) - f->l3_off;
		part->end = part->start + f->bytes - part->header - sizeof(struct ipv6_fragment);
		part->ecn = 1 << (bpf_ntohl(*(__be32 *)ip6) >> IPV6_ECN_SHIFT & FRAG_ECN_MASK);
		return true;
	}
	ip = frame_at(ctx, f->l3_off, sizeof(*ip));
	if (!ip)
		return false;
	key->src.s6_addr32[0] = ip->saddr;
	key->dst.s6_addr32[0] = ip->daddr;
	key->id = ip->id;
	key->proto = ip->protocol;
	off = bpf_ntohs(ip->frag_off);
	part->start = (off & IPV4_FRAG_OFFSET) * FRAG_UNIT;
	part->last = !(off & IPV4_MORE_FRAGS);
	part->header = f->l4_off - f->l3_off;
	part->end = part->start + f->bytes - part->header;
	part->ecn = 1 << (ip->tos & FRAG_ECN_MASK);
	return true;
}

/* What a part is to its datagram. */
enum frag_fit {
	FRAG_NEW,
	FRAG_AGAIN,	/* lies within what came in one run */
	FRAG_LOST,	/* is thrown away, the others stay */
	FRAG_VOID,	/* voids the whole datagram */
};

/*
 * The checks of ip_frag_queue() and nf_ct_frag6_queue(), in their order: what they
 * learned of the length stays even where the part itself is not taken.
 */
static __always_inline bool frag_fits_length(struct frag_queue *q, const struct frag_part *part, u32 end)
{
	if (part->last) {
		if (q->total ? part->end != q->total : part->end < q->len * FRAG_UNIT)
			return false;
		q->total = part->end;
		q->len = end;
	} else if (q->total) {
		if (part->end > q->total)
			return false;
	} else if (end > q->len) {
		q->len = end;
	}
	return part->end > part->start;
}

static __always_inline void frag_range(struct frag_range *range, u32 start, u32 end)
{
	range->start = start;
	range->end = end;
}

/*
 * Add a part up, as inet_frag_queue_insert() does.  Parts that come in their order
 * are one run; what lies within a run came before, what lies across one voids the
 * datagram (RFC 5722).  range[0] is the run that reaches furthest.
 */
static __always_inline enum frag_fit frag_add(struct frag_queue *q, const struct frag_part *part, bool v6)
{
	u32 i, start = part->start / FRAG_UNIT, end = (part->end + FRAG_UNIT - 1) / FRAG_UNIT;
	bool furthest;

	if (!frag_fits_length(q, part, end))
		return v6 ? FRAG_LOST : FRAG_VOID;
	furthest = !q->ranges || end > q->range[0].end;
	if (!furthest) {
#pragma clang loop unroll(disable)
		for (i = 0; i < FRAG_RANGES; i++) {
			OPAQUE(i);
			if (i >= q->ranges)
				break;
			if (start >= q->range[i].end || end <= q->range[i].start)
				continue;
			return start >= q->range[i].start && end <= q->range[i].end ? FRAG_AGAIN : FRAG_VOID;
		}
	} else if (q->ranges && start < q->range[0].end) {
		return FRAG_VOID;
	}
	q->got += part->end - part->start;
	q->ecn |= part->ecn;
	if (furthest && q->ranges && start == q->range[0].end) {
		q->range[0].end = end;
		return FRAG_NEW;
	}
	i = q->ranges;
	if (i < FRAG_RANGES) {
		q->ranges = i + 1;
		if (furthest)
			q->range[i] = q->range[0];
		else
			frag_range(&q->range[i], start, end);
	}
	if (furthest)		/* where there is no room left, the run before is forgotten */
		frag_range(&q->range[0], start, end);
	return FRAG_NEW;
}

/* Keep what the first fragment says, and how many bytes of payload its transport header claims. */
static __always_inline bool frag_keep_first(struct xdp_md *ctx, const struct flow *f, struct frag_queue *q,
					    const struct frag_part *part)
{
	struct scratch *here = scratch_here();
	struct tcphdr *tcp;
	struct udphdr *udp;
	u32 claimed = 0;

	if (!here)
		return false;
	q->first = 1;
	q->header = part->header;
	q->flow = *f;
	q->flow.bits &= ~FLOW_FRAGMENT;
	switch (f->proto) {
	case IPPROTO_TCP:
		tcp = l4_at(ctx, f, sizeof(*tcp));
		if (!tcp)
			return false;
		claimed = tcp->doff * 4;
		q->seg = here->seg;
		q->seg.end -= part->end;	/* the whole payload is added when it is known */
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:	/* how much the checksum covers */
		udp = l4_at(ctx, f, sizeof(*udp));
		if (!udp)
			return false;
		claimed = bpf_ntohs(udp->len);
		break;
	case IPPROTO_SCTP:
		q->sctp = here->sctp;
		if (here->sctp.seen & (CHUNK_BIT(INIT) | CHUNK_BIT(INIT_ACK)))
			claimed = sizeof(struct sctp_header) + SCTP_INIT_BYTES;
		break;
	}
	claimed += part->end - l4_bytes(f);	/* IPv6 headers behind the fragment header */
	q->claimed = claimed > 0xffff ? 0xffff : claimed;
	return true;
}

/* What a datagram is counted as that is shorter than its transport header claims. */
static __always_inline u32 frag_short(const struct flow *f)
{
	switch (f->proto) {
	case IPPROTO_TCP:
		return COUNT_INVALID_TCP_HEADER;
	case IPPROTO_SCTP:
		return COUNT_INVALID_SCTP_CHUNKS;
	default:
		return COUNT_INVALID_L4_SHORT;
	}
}

/* Hand on the whole datagram in place of its last fragment. */
static __always_inline int frag_complete(struct xdp_md *ctx, struct flow *f, struct frag_queue *q,
					 const bool chained)
{
	struct scratch *here = scratch_here();
	u8 l3_off = f->l3_off;

	if (!here)
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	/* what is put together must fit an IP packet, whose length IPv6 counts without the first header */
	if (q->header - (f->bits & FLOW_V6 ? sizeof(struct ipv6hdr) : 0) + q->total > 0xffff)
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	/* some say that they know ECN, others that they do not: ip_frag_ecn_table (RFC 3168, 5.3) */
	if (q->ecn & FRAG_NOT_ECT && q->ecn & ~FRAG_NOT_ECT)
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	if (q->claimed > q->total)
		return outcome(ctx, frag_short(&q->flow), chained);
	if (q->flow.proto == IPPROTO_SCTP) {
		here->sctp = q->sctp;
	} else {
		here->seg = q->seg;
		here->seg.end += q->total;
	}
	*f = q->flow;
	f->l3_off = l3_off;
	f->bytes = q->header + q->total;
	f->bits |= FLOW_WHOLE;
	return track(ctx, f, chained);
}

/*
 * Whether the queue is not to be used again: its time is over, or another release
 * made it, for which its numbers mean something else.  More than the whole time
 * left is a clock that went round.
 */
static __always_inline bool frag_over(const struct frag_queue *q, u32 now, u32 time)
{
	return q->form != FRAG_FORM || q->expires - now - 1 >= time;
}

/* Return the datagram's queue, locked; NULL where there is no room or the lock is held. */
static __always_inline struct frag_queue *frag_get(struct frag_key *key, u32 now, const struct ct_settings *set)
{
	struct frag_queue *q = frags_lookup(key), blank;
	u32 time = (key->v6 ? FRAG6_SECONDS : FRAG_SECONDS) * set->hz;
	u64 ctl;

	__builtin_memset(&blank, 0, sizeof(blank));
	blank.ctl = CTL_LOCK;
	blank.expires = now + time;
	blank.form = FRAG_FORM;
	if (!q) {
		if (!frags_create(key, &blank))
			return frags_lookup(key);
		q = frags_lookup(key);
	}
	if (!q || !ctl_lock(&q->ctl, &ctl))
		return NULL;
	if (frag_over(q, now, time))
		*q = blank;
	return q;
}

/* Forget a datagram of which fragments came. */
static __always_inline void frag_forget(struct frag_key *key)
{
	struct frag_queue *q = frags_lookup(key);
	u64 ctl;

	if (q && ctl_lock(&q->ctl, &ctl))
		frags_delete(key);	/* stays locked */
}

STAGE(frag)
{
	const struct ct_settings *set = settings_now();
	struct frag_queue *q;
	struct frag_part part;
	struct frag_key key;
	enum frag_fit fit;

	if (!set || f->bits & FLOW_RELATED || !frag_read(ctx, f, &key, &part))
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	if (key.v6 && part.end > 0xffff)
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	if (key.v6 && !part.last && part.end % FRAG_UNIT) {
		/* nf_ct_frag6_queue() gives up waiting, and the fragment is looked at as it is */
		frag_forget(&key);
		f->bits &= ~FLOW_FRAGMENT;
		return part.start ? outcome(ctx, COUNT_INVALID_EXT_HEADERS, chained) : parse_l4(ctx, f, chained);
	}
	q = frag_get(&key, bpf_jiffies64(), set);
	if (!q)
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	fit = frag_add(q, &part, key.v6);
	if (fit == FRAG_NEW && !part.start && !frag_keep_first(ctx, f, q, &part))
		fit = FRAG_VOID;
	if (fit == FRAG_VOID) {
		frags_delete(&key);	/* stays locked */
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	}
	if (fit != FRAG_NEW || !q->first || !q->total || q->got != q->total) {
		ctl_unlock(&q->ctl, 0);
		return outcome(ctx, fit == FRAG_LOST || part.end > 0xffff ? COUNT_UNTRACKED_FRAGMENT : COUNT_FRAGMENT, chained);
	}
	frags_delete(&key);
	return frag_complete(ctx, f, q, chained);
}
