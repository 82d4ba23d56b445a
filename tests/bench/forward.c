// Copyright (c) 2026 The ebpf.conntrack authors
// SPDX-License-Identifier: GPL-2.0-only
//
// A router's traffic made in place: each live frame is written anew, as if it had just come in, and handed to what is measured.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>

// What the frames are to be.
struct wanted {
	u8 dst[ETH_ALEN], src[ETH_ALEN];
	u32 first, mask;	// source addresses: first + (n & mask)
	u64 n;
};

BPF_ARRAY(wanted, struct wanted, 1);
BPF_PERCPU_ARRAY(received, u64, 1);
BPF_PROG_ARRAY(next, 1);

int drive(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct ethhdr *eth = data;
	struct wanted *w;
	u16 *half = (void *)ip;
	u32 sum = 0, i;
	int zero = 0;

	w = wanted.lookup(&zero);
	if (!w || (void *)(ip + 1) > end)
		return XDP_ABORTED;
	__builtin_memcpy(eth->h_dest, w->dst, ETH_ALEN);
	__builtin_memcpy(eth->h_source, w->src, ETH_ALEN);
	ip->saddr = __builtin_bswap32(w->first + (w->n++ & w->mask));
	ip->ttl = 64;
	ip->check = 0;
#pragma unroll
	for (i = 0; i < sizeof(*ip) / 2; i++)
		sum += half[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
	next.call(ctx, 0);
	return XDP_ABORTED;
}

// The far end: counts what arrives and drops it.
int sink(struct xdp_md *ctx)
{
	int zero = 0;
	u64 *n = received.lookup(&zero);

	if (n)
		(*n)++;
	return XDP_DROP;
}

int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

// What forwarding alone costs in XDP: a route, no tracking.
int redirect(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct bpf_fib_lookup fib = {};
	struct ethhdr *eth = data;
	u32 check;

	if ((void *)(ip + 1) > end)
		return XDP_ABORTED;
	fib.family = 2;
	fib.tos = ip->tos;
	fib.l4_protocol = ip->protocol;
	fib.tot_len = __builtin_bswap16(ip->tot_len);
	fib.ipv4_src = ip->saddr;
	fib.ipv4_dst = ip->daddr;
	fib.ifindex = ctx->ingress_ifindex;
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS;
	check = ip->check + __builtin_bswap16(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	return bpf_redirect(fib.ifindex, 0);
}
