// SPDX-License-Identifier: GPL-2.0-only
/* Slot 11: IPv4 with options.  Checks what net/ipv4/ip_input.c checks before conntrack. */

STAGE(prs_ipv4)
{
	struct iphdr *ip;
	u32 off, bytes, header;

	off = f->l3_off;
	ip = frame_at(ctx, off, sizeof(*ip));
	if (!ip || ip->version != 4 || ip->ihl < IPV4_MIN_WORDS || ipv4_refused(ip))
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	header = ip->ihl * 4;
	bytes = bpf_ntohs(ip->tot_len);
	if (bytes < header || frame_left(ctx, off) < bytes)
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	if (!ipv4_csum_ok(ctx, off, ip->ihl))
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	f->sip = ip->saddr;
	f->dip = ip->daddr;
	f->proto = ip->protocol;
	f->bytes = bytes;
	f->l4_off = off + header;
	if (ip->frag_off & bpf_htons(IPV4_FRAG_OFFSET | IPV4_MORE_FRAGS)) {
		f->bits |= FLOW_FRAGMENT;
		if (ip->frag_off & bpf_htons(IPV4_FRAG_OFFSET))
			return next(ctx, SLOT_FRAG, chained);	/* no transport header in it */
	}
	return parse_l4(ctx, f, chained);
}
