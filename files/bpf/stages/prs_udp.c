// SPDX-License-Identifier: GPL-2.0-only
/* Slot 14: UDP and UDP-Lite; the checks are udp_error()'s and udplite_error()'s in nf_conntrack_proto_udp.c. */

#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "lib/packet.h"
#include "lib/l4.h"
#include "templates/checksum.h.j2"

/* How many bytes the checksum covers (UDP-Lite: RFC 3828, 3.1); 0 where the length is impossible. */
static __always_inline u32 udp_cover(const struct flow *f, const struct udphdr *udp)
{
	u32 len = bpf_ntohs(udp->len), all = l4_bytes(f);

	if (f->proto == IPPROTO_UDPLITE && !len)
		return all;
	if (len < sizeof(*udp) || (len > all && !(f->bits & FLOW_FRAGMENT)))
		return 0;
	return f->proto == IPPROTO_UDPLITE ? len : all;	/* nf_conntrack takes all for UDP, too */
}

STAGE(prs_udp)
{
	struct udphdr *udp;
	u32 cover;

	udp = l4_at(ctx, f, sizeof(*udp));
	if (!udp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	cover = udp_cover(f, udp);
	if (!cover)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	if (udp->check ? !l4_csum_covers(ctx, f, udp->check, cover, udp, sizeof(*udp)) : f->proto == IPPROTO_UDPLITE)
		return outcome(ctx, COUNT_INVALID_CHECKSUM, chained);
	f->sport = udp->source;
	f->dport = udp->dest;
	return track(ctx, f, chained);
}
