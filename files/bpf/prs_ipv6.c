// SPDX-License-Identifier: GPL-2.0-only
/* Slot 15: IPv6 with extension headers.  Checks what net/ipv6/ip6_input.c checks before conntrack. */

STAGE(prs_ipv6)
{
	struct ipv6_end end;
	struct ipv6hdr *ip;
	u32 off, bytes;

	off = f->l3_off;
	ip = frame_at(ctx, off, sizeof(*ip));
	if (!ip || ip->version != 6 || ipv6_refused(ip))
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	bytes = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (frame_left(ctx, off) < bytes)
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	f->bits |= FLOW_V6;
	f->bytes = bytes;
	if (!ipv6_walk(ctx, off + sizeof(*ip), ip->nexthdr, off + bytes, &end))
		return outcome(ctx, COUNT_INVALID_EXT_HEADERS, chained);
	f->proto = end.proto;
	f->l4_off = end.off;
	/* a first fragment that ends with its headers is looked at as it is: ipv6frag_thdr_truncated() */
	if (end.fragment && (end.frag & IPV6_FRAG_OFFSET || end.off < off + bytes)) {
		f->bits |= FLOW_FRAGMENT;
		f->sip = end.id;
		f->dip = end.frag_off << 16 | end.frag;
		if (end.frag & IPV6_FRAG_OFFSET)
			return next(ctx, SLOT_FRAG, chained);	/* no transport header in it */
	}
	return parse_l4(ctx, f, chained);
}
