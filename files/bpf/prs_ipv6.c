// SPDX-License-Identifier: GPL-2.0-only
/* Slot 15: IPv6 with extension headers.  Checks what net/ipv6/ip6_input.c checks before conntrack. */

/* Whether nf_ct_frag6_gather() refuses to wait for the rest, so that the fragment is looked at as it is. */
static __always_inline bool ipv6_stands_alone(const struct ipv6_end *found, u32 end)
{
	u32 offset = found->frag & IPV6_FRAG_OFFSET, bytes = end - found->frag_off - sizeof(struct ipv6_fragment);

	return (!offset && found->off >= end) ||	/* no transport header: ipv6frag_thdr_truncated() */
	       (found->frag & IPV6_MORE_FRAGS && bytes & 7) || offset + bytes > 0xffff;
}

STAGE(prs_ipv6)
{
	struct ipv6_end end;
	struct ipv6hdr *ip;
	u32 off, bytes;
	bool jumbo, later;

	off = f->l3_off;
	ip = frame_at(ctx, off, sizeof(*ip));
	if (!ip || ip->version != 6 || ipv6_refused(ip))
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	bytes = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	/* as a jumbogram (RFC 2675), whether the option is there or not */
	jumbo = !ip->payload_len && ip->nexthdr == NEXT_HOP;
	if (jumbo)
		bytes = frame_left(ctx, off);
	if (frame_left(ctx, off) < bytes)
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	f->bits |= FLOW_V6;
	f->bytes = bytes;
	if (!ipv6_walk(ctx, off + sizeof(*ip), ip->nexthdr, off + bytes, &end))
		return outcome(ctx, COUNT_INVALID_EXT_HEADERS, chained);
	f->proto = end.proto;
	f->l4_off = end.off;
	later = end.frag & IPV6_FRAG_OFFSET;
	if (end.fragment && (jumbo || ipv6_stands_alone(&end, off + bytes))) {
		if (later)
			return outcome(ctx, COUNT_INVALID_EXT_HEADERS, chained);
	} else if (end.fragment) {
		f->bits |= FLOW_FRAGMENT;
		f->sip = end.id;
		f->dip = end.frag_off << 16 | end.frag;
		if (later)
			return next(ctx, SLOT_FRAG, chained);	/* no transport header in it */
	}
	return parse_l4(ctx, f, chained);
}
