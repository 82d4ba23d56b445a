// Copyright (c) 2026 The ebpf.conntrack authors
// SPDX-License-Identifier: GPL-2.0-only
//
// Floods: each run of a program makes its frame one of another flow, by counting the source address up, and sends it
// out of IFINDEX, which comes from the command line. flood.py makes the frames.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define HEADERS4 (sizeof(struct ethhdr) + sizeof(struct iphdr))
#define HEADERS6 (sizeof(struct ethhdr) + sizeof(struct ipv6hdr))

enum flood { SYN4, UDP4, SYN6, FLOODS };

BPF_ARRAY(made, u64, FLOODS); // frames of each

// What takes up again what a number's two words add to a checksum (RFC 1071).
static __always_inline u16 counterweight(u32 n)
{
	u32 sum = (n >> 16) + (n & 0xffff);

	return __builtin_bswap16(0xffff - (sum & 0xffff) - (sum >> 16));
}

static __always_inline int next_flow(struct xdp_md *ctx, int flood, u32 source_at, u32 id_at, u32 data_at)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u64 *count = made.lookup(&flood);
	u32 n, base;

	if (!count || data + data_at + sizeof(u16) > end)
		return XDP_ABORTED;
	n = (*count)++;
	base = id_at ? 10 << 24 : 0;
	*(u32 *)(data + source_at) = __builtin_bswap32(base + n);
	if (id_at)
		*(u16 *)(data + id_at) = counterweight(n); // in the header's checksum
	*(u16 *)(data + data_at) = counterweight(n); // in that of the segment
	return bpf_redirect(IFINDEX, 0);
}

#define SOURCE4_AT (sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, saddr))
#define SOURCE6_AT (sizeof(struct ethhdr) + __builtin_offsetof(struct ipv6hdr, saddr) + 12)
#define ID_AT (sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, id))

int syn4(struct xdp_md *ctx)
{
	return next_flow(ctx, SYN4, SOURCE4_AT, ID_AT, HEADERS4 + sizeof(struct tcphdr));
}

int udp4(struct xdp_md *ctx)
{
	return next_flow(ctx, UDP4, SOURCE4_AT, ID_AT, HEADERS4 + sizeof(struct udphdr));
}

int syn6(struct xdp_md *ctx)
{
	return next_flow(ctx, SYN6, SOURCE6_AT, 0, HEADERS6 + sizeof(struct tcphdr));
}
