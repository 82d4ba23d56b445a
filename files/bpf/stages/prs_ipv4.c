// SPDX-License-Identifier: GPL-2.0-only
/* Slot 11: IPv4 with options.  Checks what net/ipv4/ip_input.c checks before conntrack. */

#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "lib/packet.h"
#include "lib/ipv4.h"

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
	if (!bytes)
		bytes = big_tcp_bytes(ctx, off, ip->protocol);
	if (bytes < header || frame_left(ctx, off) < bytes)
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	if (!ipv4_csum_ok(ctx, off, ip->ihl))
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	f->sip = ip->saddr;
	f->dip = ip->daddr;
	f->proto = ip->protocol;
	f->l4_off = off + header;
	if (ip->frag_off & bpf_htons(IPV4_FRAG_OFFSET | IPV4_MORE_FRAGS)) {
		f->bits |= FLOW_FRAGMENT;
		/* the next one begins at a multiple of 8 bytes: ip_frag_queue() cuts off what is beyond */
		if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGS))
			bytes -= (bytes - header) & 7;
		f->bytes = bytes;
		if (ip->frag_off & bpf_htons(IPV4_FRAG_OFFSET) || bytes == header)
			return next(ctx, SLOT_FRAG, chained);	/* no transport header in it */
	}
	f->bytes = bytes;
	return parse_l4(ctx, f, chained);
}
