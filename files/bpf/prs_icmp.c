// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slot 12: ICMP.  Queries and their answers are flows of their own; an error is
 * handed on with the tuple of the packet that it quotes.
 */

#define ICMP_PORT_BYTES	4	/* of the quoted transport header: source and destination port */

/* The quoted header is only looked at as far as ipv4_get_l4proto() and nf_ct_get_tuple() do. */
static __always_inline int icmp_error(struct xdp_md *ctx, struct flow *f)
{
	u32 off = f->l4_off + sizeof(struct icmphdr), l4;
	struct iphdr *quoted = frame_at(ctx, off, sizeof(*quoted));
	__be32 outer_dip = f->dip;
	struct icmphdr *icmp;
	__be16 *port;

	if (!quoted || l4_bytes(f) < sizeof(*icmp) + sizeof(*quoted))
		return COUNT_INVALID_ICMP_ERROR;
	l4 = off + quoted->ihl * 4;
	/* the error must go to the sender of what it quotes */
	if ((quoted->frag_off & bpf_htons(IPV4_FRAG_OFFSET)) || quoted->saddr != outer_dip)
		return COUNT_INVALID_ICMP_ERROR;
	f->sip = quoted->saddr;
	f->dip = quoted->daddr;
	f->proto = quoted->protocol;
	f->bits |= FLOW_RELATED;
	switch (quoted->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		port = frame_at(ctx, l4, ICMP_PORT_BYTES);
		if (!port || l4 + ICMP_PORT_BYTES > f->l3_off + f->bytes)
			return COUNT_INVALID_ICMP_ERROR;
		f->sport = port[0];
		f->dport = port[1];
		return COUNT_RELATED;
	case IPPROTO_ICMP:
		icmp = frame_at(ctx, l4, sizeof(*icmp));
		if (!icmp || l4 + sizeof(*icmp) > f->l3_off + f->bytes)
			return COUNT_INVALID_ICMP_ERROR;
		return icmp_query(f, icmp) ? COUNT_RELATED : COUNT_INVALID_ICMP_ERROR;
	default:
		return COUNT_INVALID_ICMP_ERROR;
	}
}

PROG(prs_icmp)
{
	struct flow *f = flow_of(ctx);
	struct icmphdr *icmp;
	int reason;

	if (!f)
		return XDP_PASS;
	icmp = l4_at(ctx, f, sizeof(*icmp));
	if (!icmp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT);
	if (icmp_query(f, icmp))
		return next(ctx, SLOT_CT);
	switch (icmp->type) {
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_REDIRECT:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		reason = icmp_error(ctx, f);
		return reason == COUNT_RELATED ? next(ctx, SLOT_CT) : outcome(ctx, reason);
	default:
		return outcome(ctx, COUNT_INVALID_ICMP_TYPE);
	}
}
