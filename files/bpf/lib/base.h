// SPDX-License-Identifier: GPL-2.0-only
/* What every file builds on: the kernel's headers and a few macros. */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/in.h>

#ifndef PROG	/* clang/bcc.h has one of its own */
#define PROG(name) int name(struct xdp_md *ctx)
#endif
/* For case labels, where bcc's bpf_htons() will not do. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) ((__be16)((x) << 8 | (x) >> 8))
#else
#define BE16(x) ((__be16)(x))
#endif
/*
 * Hide a value's range from the compiler: where it knows a bound it leaves the
 * check out, which the verifier then misses.
 */
#define OPAQUE(x) asm volatile("" : "+r"(x))
/*
 * Have what was written to memory read again: of what it reads from a map the
 * verifier knows nothing, and so what comes after is followed once, and not for
 * each way that led there.
 */
#define READ_AGAIN() asm volatile("" ::: "memory")
#define offsetof(type, member) __builtin_offsetof(type, member)
#define NSEC_PER_SEC	1000000000ULL
#define STREAM_SECONDS	2	/* of two-way UDP traffic: nf_conntrack_proto_udp.c */
