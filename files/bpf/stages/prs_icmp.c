// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slot 12: ICMP.  Queries and their answers are flows of their own; an error is
 * handed on with the tuple of the packet that it quotes.
 */

#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "lib/packet.h"
#include "lib/ipv4.h"
#include "lib/icmp.h"
#include "lib/l4.h"
#include "templates/checksum.h.j2"

/* The quoted header is only looked at as far as ipv4_get_l4proto() and nf_ct_get_tuple() do. */
static __always_inline bool icmp_error(struct xdp_md *ctx, struct flow *f)
{
	u32 off = f->l4_off + sizeof(struct icmphdr), end = f->l3_off + f->bytes;
	struct iphdr *quoted = frame_at(ctx, off, sizeof(*quoted));
	u32 header;

	if (!quoted || off + sizeof(*quoted) > end)
		return false;
	/* it must go to the sender of what it quotes */
	if (quoted->frag_off & bpf_htons(IPV4_FRAG_OFFSET) || quoted->saddr != f->dip)
		return false;
	header = quoted->ihl * 4;
	f->sip = quoted->saddr;
	f->dip = quoted->daddr;
	f->proto = quoted->protocol;
	f->bits |= FLOW_RELATED;
	return quoted_ports(ctx, f, off + header, end);
}

STAGE(prs_icmp)
{
	struct icmphdr *icmp;

	icmp = l4_at(ctx, f, sizeof(*icmp));
	if (!icmp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	if (!l4_csum_ok(ctx, f, icmp->checksum, icmp, sizeof(*icmp)))
		return outcome(ctx, COUNT_INVALID_CHECKSUM, chained);
	icmp = l4_at(ctx, f, sizeof(*icmp));
	if (!icmp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	if (icmp_query(f, icmp))
		return track(ctx, f, chained);
	switch (icmp->type) {
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_REDIRECT:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return icmp_error(ctx, f) ? track(ctx, f, chained) : outcome(ctx, COUNT_INVALID_ICMP_ERROR, chained);
	default:
		return outcome(ctx, COUNT_INVALID_ICMP_TYPE, chained);
	}
}
