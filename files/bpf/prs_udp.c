// SPDX-License-Identifier: GPL-2.0-only
/* Slot 14: UDP and UDP-Lite; the checks are udp_error()'s and udplite_error()'s in nf_conntrack_proto_udp.c. */

/* Whether the length, for UDP-Lite the checksum's coverage (RFC 3828), is possible. */
static __always_inline bool udp_length_ok(const struct flow *f, const struct udphdr *udp)
{
	u32 len = bpf_ntohs(udp->len);

	if (f->proto == IPPROTO_UDPLITE && !len)
		return true;	/* covers all */
	if (len < sizeof(*udp))
		return false;
	return f->bits & FLOW_FRAGMENT || len <= l4_bytes(f);
}

STAGE(prs_udp)
{
	struct udphdr *udp;

	udp = l4_at(ctx, f, sizeof(*udp));
	if (!udp || !udp_length_ok(f, udp))
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	if (f->proto == IPPROTO_UDPLITE && !udp->check)
		return outcome(ctx, COUNT_INVALID_CHECKSUM, chained);
	if (udp->check && !l4_csum_ok(ctx, f, udp->check))
		return outcome(ctx, COUNT_INVALID_CHECKSUM, chained);
	f->sport = udp->source;
	f->dport = udp->dest;
	return track(ctx, f, chained);
}
