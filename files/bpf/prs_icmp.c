// SPDX-License-Identifier: GPL-2.0-only
/*
 * Slot 12: ICMP.  Queries and their answers are flows of their own; an error is
 * handed on with the tuple of the packet that it quotes.
 */

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

PROG(prs_icmp)
{
	struct flow *f = flow_of(ctx);
	struct icmphdr *icmp;

	if (!f)
		return XDP_PASS;
	icmp = l4_at(ctx, f, sizeof(*icmp));
	if (!icmp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT);
	if (!l4_csum_ok(ctx, f, icmp->checksum))
		return outcome(ctx, COUNT_INVALID_CHECKSUM);
	icmp = l4_at(ctx, f, sizeof(*icmp));
	if (!icmp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT);
	if (icmp_query(f, icmp))
		return track(ctx, f);
	switch (icmp->type) {
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_REDIRECT:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return icmp_error(ctx, f) ? track(ctx, f) : outcome(ctx, COUNT_INVALID_ICMP_ERROR);
	default:
		return outcome(ctx, COUNT_INVALID_ICMP_TYPE);
	}
}
