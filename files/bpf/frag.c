// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slot 18: fragments, in any order.  nf_conntrack reassembles a datagram before
 * it looks at it; here its fragments are only added up, and the one that
 * completes it goes on with what the first one said.
 */

/* How long the rest is waited for: IP_FRAG_TIME, IPV6_FRAG_TIMEOUT. */
#define FRAG_SECONDS	30
#define FRAG6_SECONDS	60

/* Where the fragment lies in its datagram's payload. */
struct frag_part {
	u32 start, end;
	u32 header;	/* bytes of the fragment's IP header */
	bool last;
};

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
	part->start = (off & IPV4_FRAG_OFFSET) * 8;
	part->last = !(off & IPV4_MORE_FRAGS);
	part->header = f->l4_off - f->l3_off;
	part->end = part->start + f->bytes - part->header;
	return true;
}

/* Add a part up: whether it is new, there already, or contradicts what is there. */
enum frag_fit { FRAG_NEW, FRAG_AGAIN, FRAG_BAD };

static __always_inline enum frag_fit frag_add(struct frag_queue *q, const struct frag_part *part)
{
	u32 i, end = part->end;

	/* overlapping fragments void the whole datagram (RFC 5722; net/ipv4/inet_fragment.c) */
#pragma clang loop unroll(disable)
	for (i = 0; i < FRAG_RANGES; i++) {
		OPAQUE(i);
		if (i >= q->ranges)
			break;
		if (q->range[i].start == part->start && q->range[i].end == end)
			return FRAG_AGAIN;
		if (part->start < q->range[i].end && end > q->range[i].start)
			return FRAG_BAD;
	}
	if (q->total && (end > q->total || (part->last && end != q->total)))
		return FRAG_BAD;
	if (part->last)
		q->total = end;
	i = q->ranges;
	if (i < FRAG_RANGES) {
		q->range[i].start = part->start;
		q->range[i].end = end;
		q->ranges = i + 1;
	}
	q->got += end - part->start;
	return FRAG_NEW;
}

/* Keep what the first fragment says. */
static __always_inline bool frag_keep_first(struct xdp_md *ctx, const struct flow *f, struct frag_queue *q,
					    const struct frag_part *part)
{
	struct scratch *here;
	struct udphdr *udp;

	q->first = 1;
	q->header = part->header;
	q->flow = *f;
	q->flow.bits &= ~FLOW_FRAGMENT;
	if (f->proto == IPPROTO_TCP) {
		here = scratch_here();
		if (!here)
			return false;
		q->seg = here->seg;
		q->seg.end -= part->end;	/* the whole payload is added when it is known */
	} else if (f->proto == IPPROTO_UDP) {
		udp = l4_at(ctx, f, sizeof(*udp));
		if (!udp)
			return false;
		q->l4_len = part->end - l4_bytes(f) + bpf_ntohs(udp->len);
	} else if (f->proto == IPPROTO_SCTP) {
		here = scratch_here();
		if (!here)
			return false;
		q->sctp = here->sctp;
	}
	return true;
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
	if (q->l4_len > q->total)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
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

/* Return the datagram's queue, locked; NULL where there is no room or the lock is held. */
static __always_inline struct frag_queue *frag_get(struct frag_key *key, u32 now, const struct ct_settings *set)
{
	struct frag_queue *q = frags_lookup(key), blank;
	u64 ctl;

	__builtin_memset(&blank, 0, sizeof(blank));
	blank.ctl = CTL_LOCK;
	blank.expires = now + (key->v6 ? FRAG6_SECONDS : FRAG_SECONDS) * set->hz;
	if (!q) {
		if (!frags_create(key, &blank))
			return frags_lookup(key);
		q = frags_lookup(key);
	}
	if (!q || !ctl_lock(&q->ctl, &ctl))
		return NULL;
	if (expired(q->expires, now))
		*q = blank;
	return q;
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
	if (part.end <= part.start || part.end > 0xffff || (!part.last && part.end & 7))
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	q = frag_get(&key, bpf_jiffies64(), set);
	if (!q)
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	fit = frag_add(q, &part);
	if (fit == FRAG_NEW && !part.start && !frag_keep_first(ctx, f, q, &part))
		fit = FRAG_BAD;
	if (fit == FRAG_BAD) {
		frags_delete(&key);	/* stays locked */
		return outcome(ctx, COUNT_UNTRACKED_FRAGMENT, chained);
	}
	if (fit == FRAG_AGAIN || !q->first || !q->total || q->got != q->total) {
		ctl_unlock(&q->ctl, 0);
		return outcome(ctx, COUNT_FRAGMENT, chained);
	}
	frags_delete(&key);
	return frag_complete(ctx, f, q, chained);
}
