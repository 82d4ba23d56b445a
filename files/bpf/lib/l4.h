// SPDX-License-Identifier: GPL-2.0-only
/* What the transport parsers share, with each other and with the parsers of ICMP errors. */

#include "lib/base.h"
#include "lib/flow.h"
#include "lib/packet.h"
#include "lib/icmp.h"

#define PORT_BYTES	4	/* source and destination port, first in the header */
#define GRE_VERSION	0x0007
#define GRE_PPTP	0x0001
#define GRE_PROTO_PPP	0x880b	/* RFC 2637, 4.1 */

/* The start of a GRE header of version 1. */
struct gre_pptp {
	__be16 flags;
	__be16 protocol;
	__be16 payload_len;
	__be16 call_id;
};

/* Protocols whose header is read; the others are tracked by addresses and protocol number alone. */
static __always_inline bool l4_parsed(u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_GRE:
	case IPPROTO_SCTP:
	case IPPROTO_ICMPV6:
		return true;
	default:
		return false;
	}
}

/* Bytes of the transport header and payload, as the IP header counts them. */
static __always_inline u32 l4_bytes(const struct flow *f)
{
	return f->bytes - (f->l4_off - f->l3_off);
}

/* Return a transport header of len bytes, NULL where the IP packet has less. */
static __always_inline void *l4_at(struct xdp_md *ctx, const struct flow *f, u32 len)
{
	return f->l4_off <= MAX_HEADER_OFF && l4_bytes(f) >= len ? frame_at(ctx, f->l4_off, len) : NULL;
}

/* gre_pkt_to_tuple(): false where a header of version 1 is not PPTP's. */
static __always_inline bool gre_tuple(struct xdp_md *ctx, struct flow *f, u32 off, u32 end)
{
	struct gre_pptp *gre;

	if (off > MAX_HEADER_OFF || off + sizeof(*gre) > end)
		return true;
	gre = frame_at(ctx, off, sizeof(*gre));
	if (!gre || (gre->flags & bpf_htons(GRE_VERSION)) != bpf_htons(GRE_PPTP))
		return true;
	if (gre->protocol != bpf_htons(GRE_PROTO_PPP))
		return false;
	f->dport = gre->call_id;
	return true;
}

/*
 * Put the ports of a transport header that an ICMP error quotes into the flow;
 * eight quoted bytes are enough (RFC 792).  False where they are cut off.
 */
static __always_inline bool quoted_ports(struct xdp_md *ctx, struct flow *f, u32 off, u32 end)
{
	struct icmphdr *icmp;
	__be16 *port;

	if (off > MAX_HEADER_OFF)
		return false;
	OPAQUE(off);
	switch (f->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
		port = frame_at(ctx, off, PORT_BYTES);
		if (!port || off + PORT_BYTES > end)
			return false;
		f->sport = port[0];
		f->dport = port[1];
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		icmp = frame_at(ctx, off, sizeof(*icmp));
		if (!icmp || off + sizeof(*icmp) > end)
			return false;
		return f->proto == IPPROTO_ICMP ? icmp_query(f, icmp) : icmp6_query(f, icmp);
	case IPPROTO_GRE:
		return gre_tuple(ctx, f, off, end);
	default:
		return true;
	}
}
