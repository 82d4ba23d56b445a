// SPDX-License-Identifier: GPL-2.0-only
/* IPv6 headers: of the packet itself, and of those that ICMPv6 errors quote. */

#define IPV6_MAX_EXTENSIONS	8
#define IPV6_FRAG_OFFSET	0xfff8
#define IPV6_MORE_FRAGS		0x0001

/* Extension headers, by the numbers of net/ipv6.h. */
enum ipv6_next {
	NEXT_HOP = 0,
	NEXT_ROUTING = 43,
	NEXT_FRAGMENT = 44,
	NEXT_AUTH = 51,
	NEXT_NONE = 59,
	NEXT_DEST = 60,
};

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
};

/*
 * Follow the extension headers from off on, as ipv6_skip_exthdr() does; a later
 * fragment ends the walk.  False where they lead past end or past what is looked at.
 */
static __always_inline bool ipv6_walk(struct xdp_md *ctx, u32 off, u8 proto, u32 end, struct ipv6_end *found)
{
	struct ipv6_fragment *frag;
	u8 *ext;
	u32 i;

	found->fragment = false;
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
			found->off = off;
			found->proto = proto;
			return off <= end;
		}
		if (off > MAX_HEADER_OFF || off + sizeof(*frag) > end)
			return false;
		ext = frame_at(ctx, off, sizeof(*frag));
		if (!ext)
			return false;
		if (proto == NEXT_FRAGMENT) {
			frag = (void *)ext;
			found->fragment = true;
			found->frag = bpf_ntohs(frag->off) & (IPV6_FRAG_OFFSET | IPV6_MORE_FRAGS);
			found->frag_off = off;
			found->id = frag->id;
			if (found->frag & IPV6_FRAG_OFFSET) {
				found->off = off + sizeof(*frag);
				found->proto = frag->next;
				return true;
			}
			off += sizeof(*frag);
		} else if (proto == NEXT_AUTH) {
			off += (ext[1] + 2) * 4;
		} else {
			off += (ext[1] + 1) * 8;
		}
		proto = ext[0];
	}
	return false;
}
