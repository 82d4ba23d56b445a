// Copyright (c) 2026 The ebpf.conntrack authors
// SPDX-License-Identifier: GPL-2.0-only
//
// What the chain is measured against. Each program does a known part of the work and nothing else; packet.py says
// which one is compared with what. ENTRIES and ENTRIES6 (table sizes) and FLOWS (a power of two) come from the command line.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define HEADERS (sizeof(struct ethhdr) + sizeof(struct iphdr))
#define HEADERS6 (sizeof(struct ethhdr) + sizeof(struct ipv6hdr))

// The sizes are those of the chain's flow tables: keys of 16 and 40 bytes, value 112 bytes.
struct key {
	u32 src, dst;
	u16 sport, dport;
	u8 proto, role;
	u16 zone;
};

struct key6 {
	struct in6_addr src, dst;
	u16 sport, dport;
	u8 proto, role;
	u16 zone;
};

struct half {
	u64 packets, bytes;
	u32 window[4];
};

struct entry {
	struct half half[2];
	u64 ctl;
	u32 expires, last_seen, created, rest[7];
};

BPF_TABLE("lru_hash", struct key, struct entry, flows, ENTRIES);
BPF_TABLE("lru_hash", struct key6, struct entry, flows6, ENTRIES6);
BPF_TABLE("lru_hash", struct key, struct entry, model, 1024);
BPF_ARRAY(model_meta, u64, 4);
BPF_PROG_ARRAY(model_jt, 8);
BPF_PROG_ARRAY(next, 1);

static __always_inline struct entry *flows_lookup(struct key *key)
{
	return flows.lookup(key);
}

static __always_inline int flows_insert(struct key *key, struct entry *entry)
{
	return flows.insert(key, entry);
}

static __always_inline struct entry *flows6_lookup(struct key6 *key)
{
	return flows6.lookup(key);
}

static __always_inline int flows6_insert(struct key6 *key, struct entry *entry)
{
	return flows6.insert(key, entry);
}

static __always_inline struct entry *model_lookup(struct key *key)
{
	return model.lookup(key);
}

static __always_inline void model_update(struct key *key, struct entry *entry)
{
	model.update(key, entry);
}

static __always_inline void model_clock(u64 *now)
{
	int index = 0;

	model_meta.update(&index, now);
}

// One parse of Ethernet, IPv4 and the ports; returns the IP length, or 0 for anything else.
static __always_inline u32 parse(struct xdp_md *ctx, struct key *key)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	u16 *ports = data + HEADERS;

	if (data + HEADERS + 8 > end)
		return 0;
	if (eth->h_proto != __builtin_bswap16(ETH_P_IP) || ip->version != 4 || ip->ihl != 5)
		return 0;
	if (ip->frag_off & __builtin_bswap16(0x3fff))
		return 0;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return 0;
	key->src = ip->saddr;
	key->dst = ip->daddr;
	key->sport = ports[0];
	key->dport = ports[1];
	key->proto = ip->protocol;
	return __builtin_bswap16(ip->tot_len);
}

// The same for IPv6 without extension headers.
static __always_inline u32 parse6(struct xdp_md *ctx, struct key6 *key)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct ipv6hdr *ip = data + sizeof(*eth);
	u16 *ports = data + HEADERS6;

	if (data + HEADERS6 + 8 > end)
		return 0;
	if (eth->h_proto != __builtin_bswap16(ETH_P_IPV6) || ip->version != 6)
		return 0;
	if (ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP)
		return 0;
	key->src = ip->saddr;
	key->dst = ip->daddr;
	key->sport = ports[0];
	key->dport = ports[1];
	key->proto = ip->nexthdr;
	return sizeof(*ip) + __builtin_bswap16(ip->payload_len);
}

// The least that an XDP program can do.
int noop(struct xdp_md *ctx)
{
	return XDP_PASS;
}

// The floor: parse, one look-up that hits, counters and clock written in place.
int floor_hit(struct xdp_md *ctx)
{
	struct key key = {};
	u32 length = parse(ctx, &key);
	struct entry *entry;

	if (!length)
		return XDP_DROP;
	entry = flows_lookup(&key);
	if (!entry)
		return XDP_DROP;
	entry->half[0].packets++;
	entry->half[0].bytes += length;
	entry->last_seen = (u32)bpf_jiffies64();
	return XDP_PASS;
}

// The floor of a new flow: parse and one insert.
int floor_insert(struct xdp_md *ctx)
{
	struct key key = {};
	u32 length = parse(ctx, &key);
	struct entry entry = {};

	if (!length)
		return XDP_DROP;
	entry.half[0].packets = 1;
	entry.half[0].bytes = length;
	entry.last_seen = (u32)bpf_jiffies64();
	return flows_insert(&key, &entry) ? XDP_DROP : XDP_PASS;
}

int floor_hit6(struct xdp_md *ctx)
{
	struct key6 key = {};
	u32 length = parse6(ctx, &key);
	struct entry *entry;

	if (!length)
		return XDP_DROP;
	entry = flows6_lookup(&key);
	if (!entry)
		return XDP_DROP;
	entry->half[0].packets++;
	entry->half[0].bytes += length;
	entry->last_seen = (u32)bpf_jiffies64();
	return XDP_PASS;
}

int floor_insert6(struct xdp_md *ctx)
{
	struct key6 key = {};
	u32 length = parse6(ctx, &key);
	struct entry entry = {};

	if (!length)
		return XDP_DROP;
	entry.half[0].packets = 1;
	entry.half[0].bytes = length;
	entry.last_seen = (u32)bpf_jiffies64();
	return flows6_insert(&key, &entry) ? XDP_DROP : XDP_PASS;
}

// A new flow a frame, or an old one in an order of its own: counts the source address up, keeps the checksums right
// (RFC 1624) and calls on. The step lives in the frame, which a test run keeps from one repetition to the next.
static __always_inline u32 delta_of(u32 old, u32 new)
{
	return (u16)~old + (u16)(~old >> 16) + (u16)new + (new >> 16);
}

static __always_inline u16 adjusted(u16 check, u32 delta)
{
	u32 sum = (u16)~check + delta;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline int source_step(struct xdp_md *ctx, u32 factor, u32 add, u32 mask)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	u16 *tcp_check = data + HEADERS + 16;
	u32 old, host, new, delta;

	if (data + HEADERS + 18 > end)
		return 0;
	old = ip->saddr;
	host = __builtin_bswap32(old);
	new = __builtin_bswap32((host & ~mask) | ((host * factor + add) & mask));
	delta = delta_of(old, new);
	ip->saddr = new;
	ip->check = adjusted(ip->check, delta);
	if (ip->protocol == IPPROTO_TCP)
		*tcp_check = adjusted(*tcp_check, delta);
	return 1;
}

int drive_new(struct xdp_md *ctx)
{
	if (source_step(ctx, 1, 1, 0xffffff))
		next.call(ctx, 0);
	return XDP_ABORTED;
}

// The same for TCP over IPv6: the low half of the source address is counted up.
int drive_new6(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	u16 *tcp_check = data + HEADERS6 + 16;
	u32 *low, new;

	if (data + HEADERS6 + 18 > end)
		return XDP_ABORTED;
	low = &ip->saddr.s6_addr32[3];
	new = __builtin_bswap32(__builtin_bswap32(*low) + 1);
	*tcp_check = adjusted(*tcp_check, delta_of(*low, new));
	*low = new;
	next.call(ctx, 0);
	return XDP_ABORTED;
}

// Visits each of FLOWS sources once a turn: a linear congruential generator of full period.
int drive_random(struct xdp_md *ctx)
{
	if (source_step(ctx, 1664525, 1013904223, FLOWS - 1))
		next.call(ctx, 0);
	return XDP_ABORTED;
}

// The cost model of the tracker that this one replaces: metadata handed from stage to stage, each stage called by a
// number read from it, a clock written into a map per packet, an entry per direction and so two look-ups, and a map
// update per packet. It tracks no states, which makes it cheaper than the real one.
struct hand {
	struct key key;
	u32 length, stage;
};

static __always_inline struct hand *hand(struct xdp_md *ctx)
{
	struct hand *hand = (void *)(long)ctx->data_meta;

	return (void *)(hand + 1) > (void *)(long)ctx->data ? 0 : hand;
}

static __always_inline int model_next(struct xdp_md *ctx)
{
	struct hand *h = hand(ctx);

	if (!h)
		return XDP_DROP;
	h->stage++;
	model_jt.call(ctx, h->stage & 7);
	return XDP_DROP;
}

int model_0_entry(struct xdp_md *ctx)
{
	u64 now = bpf_ktime_get_ns() / 1000000000;
	struct hand *h;

	model_clock(&now);
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct hand)))
		return XDP_DROP;
	h = hand(ctx);
	if (!h)
		return XDP_DROP;
	__builtin_memset(h, 0, sizeof(*h));
	return model_next(ctx);
}

int model_1_ethernet(struct xdp_md *ctx)
{
	return model_next(ctx);
}

int model_2_ipv4(struct xdp_md *ctx)
{
	struct hand *h = hand(ctx);

	if (!h)
		return XDP_DROP;
	h->length = parse(ctx, &h->key);
	return h->length ? model_next(ctx) : XDP_DROP;
}

int model_3_tcp(struct xdp_md *ctx)
{
	return model_next(ctx);
}

int model_4_track(struct xdp_md *ctx)
{
	struct hand *h = hand(ctx);
	struct entry copy = {}, *entry, *other;
	struct key key, back = {};

	if (!h)
		return XDP_DROP;
	key = h->key;
	back.src = key.dst;
	back.dst = key.src;
	back.sport = key.dport;
	back.dport = key.sport;
	back.proto = key.proto;
	entry = model_lookup(&key);
	other = model_lookup(&back);
	if (entry)
		copy = *entry;
	if (other)
		copy.ctl |= 1;
	copy.half[0].packets++;
	copy.half[0].bytes += h->length;
	copy.last_seen = bpf_ktime_get_ns() / 1000000000;
	model_update(&key, &copy);
	return model_next(ctx);
}

int model_5_end(struct xdp_md *ctx)
{
	return XDP_PASS;
}
