// SPDX-License-Identifier: GPL-2.0-only
/* Slot 14: UDP; the length checks are udp_error()'s in nf_conntrack_proto_udp.c. */

PROG(prs_udp)
{
	struct flow *f = flow_of(ctx);
	struct udphdr *udp;
	u32 len;

	if (!f)
		return XDP_PASS;
	udp = l4_at(ctx, f, sizeof(*udp));
	if (!udp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT);
	len = bpf_ntohs(udp->len);
	if (len < sizeof(*udp) || len > l4_bytes(f))
		return outcome(ctx, COUNT_INVALID_L4_SHORT);
	f->sport = udp->source;
	f->dport = udp->dest;
	return next(ctx, SLOT_CT);
}
