// SPDX-License-Identifier: GPL-2.0-only
/* Slot 16: ICMPv6, as prs_icmp.c; neighbour and multicast listener discovery stay untracked (nf_conntrack_proto_icmpv6.c). */

#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "lib/packet.h"
#include "lib/ipv6.h"
#include "lib/icmp.h"
#include "lib/l4.h"
#include "templates/checksum.h.j2"
#include "lib/entry.h"

/* 0, or what the error is counted as. */
static __always_inline u32 icmp6_error(struct xdp_md *ctx, struct flow *f)
{
	u32 off = f->l4_off + sizeof(struct icmphdr), end = f->l3_off + f->bytes;
	struct ipv6hdr *outer, *quoted;
	struct ipv6_end found;

	if (off > 0xff)
		return COUNT_UNTRACKED_LIMIT;
	quoted = frame_at(ctx, off, sizeof(*quoted));
	outer = frame_at(ctx, f->l3_off, sizeof(*outer));
	if (!quoted || !outer || off + sizeof(*quoted) > end)
		return COUNT_INVALID_ICMP_ERROR;
	/* it must go to the sender of what it quotes */
	if (!ipv6_equal(&quoted->saddr, &outer->daddr))
		return COUNT_INVALID_ICMP_ERROR;
	if (!ipv6_walk(ctx, off + sizeof(*quoted), quoted->nexthdr, end, &found))
		return found.beyond ? COUNT_UNTRACKED_LIMIT : COUNT_INVALID_ICMP_ERROR;
	if (found.frag & IPV6_FRAG_OFFSET)
		return COUNT_INVALID_ICMP_ERROR;
	f->proto = found.proto;
	f->bits |= FLOW_RELATED;
	f->l3_off = off;
	return quoted_ports(ctx, f, found.off, end) ? 0 : COUNT_INVALID_ICMP_ERROR;
}

STAGE(prs_icmp6)
{
	struct icmphdr *icmp;
	u32 why;

	icmp = l4_at(ctx, f, sizeof(*icmp));
	if (!icmp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	if (!l4_csum_ok(ctx, f, icmp->checksum, icmp, sizeof(*icmp)))
		return outcome(ctx, COUNT_INVALID_CHECKSUM, chained);
	icmp = l4_at(ctx, f, sizeof(*icmp));
	if (!icmp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	switch (icmp->type) {
	case ICMPV6_MGM_QUERY:
	case ICMPV6_MGM_REPORT:
	case ICMPV6_MGM_REDUCTION:
	case ND_ROUTER_SOLICIT:
	case ND_ROUTER_ADVERT:
	case ND_NEIGHBOUR_SOLICIT:
	case ND_NEIGHBOUR_ADVERT:
	case ICMPV6_MLD2_REPORT:
	case ND_MRD_ADVERT:
	case ND_MRD_SOLICIT:
		return outcome(ctx, COUNT_UNTRACKED_ND, chained);
	}
	if (icmp6_query(f, icmp))
		return track(ctx, f, chained);
	if (icmp->type > ICMP6_ERROR_MAX)
		return outcome(ctx, COUNT_INVALID_ICMP_TYPE, chained);
	why = icmp6_error(ctx, f);
	return why ? outcome(ctx, why, chained) : track(ctx, f, chained);
}
