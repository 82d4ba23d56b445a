// SPDX-License-Identifier: GPL-2.0-only
/* IPv4 headers: of the packet itself, and of those that ICMP errors quote. */

#include "lib/base.h"
#include "lib/packet.h"

#define IPV4_MIN_WORDS		5
#define IPV4_MAX_WORDS		15
#define IPV4_FRAG_OFFSET	0x1fff
#define IPV4_MORE_FRAGS		0x2000
#define IPV4_LOOPBACK		127	/* first byte */
#define IPV4_MULTICAST		0xe0	/* its high half */

/* Addresses that no router forwards, so that nf_conntrack keeps no flow: RFC 1122, 3.2.1.3. */
static __always_inline bool ipv4_refused(const struct iphdr *ip)
{
	u8 src = bpf_ntohl(ip->saddr) >> 24, dst = bpf_ntohl(ip->daddr) >> 24;

	return src == IPV4_LOOPBACK || dst == IPV4_LOOPBACK || (src & 0xf0) == IPV4_MULTICAST;
}

/* Whether the header's checksum is right; net/ipv4/ip_input.c drops others unseen. */
static __always_inline bool ipv4_csum_ok(struct xdp_md *ctx, u32 off, u32 words)
{
	u64 sum = 0;
	u32 *word;
	u32 i;

	word = frame_at(ctx, off, IPV4_MIN_WORDS * sizeof(*word));
	if (!word)
		return false;
	sum = (u64)word[0] + word[1] + word[2] + word[3] + word[4];
	if (words > IPV4_MIN_WORDS) {
#pragma clang loop unroll(disable)
		for (i = IPV4_MIN_WORDS; i < IPV4_MAX_WORDS; i++) {
			OPAQUE(i);
			if (i >= words)
				break;
			word = frame_at(ctx, off + i * sizeof(*word), sizeof(*word));
			if (!word)
				return false;
			sum += *word;
		}
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}
