// SPDX-License-Identifier: GPL-2.0-only
/* IPv6 headers: of the packet itself, and of those that ICMPv6 errors quote. */

#include "lib/base.h"
#include "lib/packet.h"

#define IPV6_MAX_EXTENSIONS	8
#define IPV6_FRAG_OFFSET	0xfff8
#define IPV6_MORE_FRAGS		0x0001
#define IPV6_MULTICAST		0xff
#define IPV6_MC_SCOPE		0x0f
#define IPV6_MC_INTERFACE	1	/* 0 is reserved */

/* Extension headers, by the numbers of net/ipv6.h. */
enum ipv6_next {
	NEXT_HOP = 0,
	NEXT_ROUTING = 43,
	NEXT_FRAGMENT = 44,
	NEXT_AUTH = 51,
	NEXT_NONE = 59,
	NEXT_DEST = 60,
};

#define IPV6_OPT_BYTES	2	/* next header and length: all that is read of a header to step over it */

struct ipv6_fragment {
	u8 next;
	u8 reserved;
	__be16 off;
	__be32 id;
};

/* What ipv6_walk() finds. */
struct ipv6_end {
	u32 off;	/* of the transport header */
	u32 frag;	/* offset and M flag of the fragment header, host order */
	u32 frag_off;	/* where it stands */
	__be32 id;
	u8 proto;
	bool fragment;	/* there is a fragment header */
	bool beyond;	/* no end was found within what is looked at */
};

/* The addresses that net/ipv6/ip6_input.c throws away: RFC 4291, 2.5.3 and 2.7. */
static __always_inline bool ipv6_is_loopback(const struct in6_addr *a)
{
	return !a->s6_addr32[0] && !a->s6_addr32[1] && !a->s6_addr32[2] && a->s6_addr32[3] == bpf_htonl(1);
}

static __always_inline bool ipv6_refused(const struct ipv6hdr *ip)
{
	return ip->saddr.s6_addr[0] == IPV6_MULTICAST ||
	       (ip->daddr.s6_addr[0] == IPV6_MULTICAST &&
		(ip->daddr.s6_addr[1] & IPV6_MC_SCOPE) <= IPV6_MC_INTERFACE) ||
	       ipv6_is_loopback(&ip->saddr) || ipv6_is_loopback(&ip->daddr);
}

/*
 * Follow the extension headers from off on, as ipv6_skip_exthdr() does; a later
 * fragment ends the walk.  False where one begins past end or past what is looked at.
 */
static __always_inline bool ipv6_walk(struct xdp_md *ctx, u32 off, u8 proto, u32 end, struct ipv6_end *found)
{
	struct ipv6_fragment *frag;
	u32 i, frag_word;
	u8 *ext;

	found->fragment = false;
	found->beyond = false;
	found->frag = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i <= IPV6_MAX_EXTENSIONS; i++) {
		OPAQUE(i);
		switch (proto) {
		case NEXT_HOP:
		case NEXT_ROUTING:
		case NEXT_DEST:
		case NEXT_AUTH:
		case NEXT_FRAGMENT:
			break;
		case NEXT_NONE:
			return false;
		default:
			/* the last length may lie: what needs no transport header is tracked all the same */
			found->off = off <= end ? off : end;
			found->proto = proto;
			return true;
		}
		if (off + IPV6_OPT_BYTES > end)
			return false;
		if (off > MAX_HEADER_OFF)
			break;
		ext = frame_at(ctx, off, IPV6_OPT_BYTES);
		if (!ext)
			return false;
		if (proto == NEXT_FRAGMENT) {
			frag = frame_at(ctx, off, sizeof(*frag));
			if (!frag || off + sizeof(*frag) > end)
				return false;
			frag_word = bpf_ntohs(frag->off) & (IPV6_FRAG_OFFSET | IPV6_MORE_FRAGS);
			if (!found->fragment) {
				found->fragment = true;
				found->frag = frag_word;
				found->frag_off = off;
				found->id = frag->id;
				if (frag_word & IPV6_FRAG_OFFSET) {
					found->off = off + sizeof(*frag);
					found->proto = frag->next;
					return true;
				}
			} else if (frag_word & IPV6_FRAG_OFFSET) {
				return false;	/* what is put together is a fragment again */
			}
			off += sizeof(*frag);
		} else if (proto == NEXT_AUTH) {
			off += (ext[1] + 2) * 4;
		} else {
			off += (ext[1] + 1) * 8;
		}
		proto = ext[0];
	}
	found->beyond = true;
	return false;
}
