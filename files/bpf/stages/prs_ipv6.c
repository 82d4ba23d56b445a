// SPDX-License-Identifier: GPL-2.0-only
/* Slot 15: IPv6 with extension headers.  Checks what net/ipv6/ip6_input.c checks before conntrack. */

#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "lib/packet.h"
#include "lib/ipv6.h"
#include "lib/l4.h"

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
	jumbo = !ip->payload_len && (ip->nexthdr == NEXT_HOP || big_tcp_bytes(ctx, off, ip->nexthdr));
	if (jumbo)
		bytes = frame_left(ctx, off);
	if (frame_left(ctx, off) < bytes)
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	f->bits |= FLOW_V6;
	f->bytes = bytes;
	if (!ipv6_walk(ctx, off + sizeof(*ip), ip->nexthdr, off + bytes, &end))
		return outcome(ctx, end.beyond ? COUNT_UNTRACKED_LIMIT : COUNT_INVALID_EXT_HEADERS, chained);
	f->proto = end.proto;
	f->l4_off = end.off;
	later = end.frag & IPV6_FRAG_OFFSET;
	/* nf_ct_frag6_gather() looks at these as they are: a jumbogram; no transport header (ipv6frag_thdr_truncated()) */
	if (end.fragment && (jumbo || (!later && end.off >= off + bytes))) {
		if (later)
			return outcome(ctx, COUNT_INVALID_EXT_HEADERS, chained);
	} else if (end.fragment) {
		f->bits |= FLOW_FRAGMENT;
		f->sip = end.id;
		f->dip = end.frag_off << 16 | end.frag;
		/* there is no transport header in it, or it is one that nothing can follow */
		if (later || (end.frag & IPV6_MORE_FRAGS && (off + bytes - end.frag_off) & 7))
			return next(ctx, SLOT_FRAG, chained);
	}
	if (end.off > MAX_HEADER_OFF && end.off < off + bytes && l4_parsed(f->proto))
		return outcome(ctx, COUNT_UNTRACKED_LIMIT, chained);
	return parse_l4(ctx, f, chained);
}
