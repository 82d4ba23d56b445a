// SPDX-License-Identifier: GPL-2.0-only
/* Slot 13: TCP; the checks are tcp_error()'s in nf_conntrack_proto_tcp.c. */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/maps.h.j2"
#include "lib/packet.h"
#include "lib/l4.h"
#include "templates/checksum.h.j2"
#include "lib/tcp.h"

#define TCP_OPTION_BYTES	40
#define TCP_OPTION_MASK		0x3f
#define TCP_SACK_BLOCKS		4
#define TCP_MAX_SCALE		14	/* RFC 7323, 2.3 */
/* The options of nearly every segment: NOP, NOP, timestamps (RFC 7323, appendix A). */
#define TCP_ONLY_TIMESTAMPS	bpf_htonl(0x0101080a)

enum tcp_option {
	TCP_OPTION_END = 0,
	TCP_OPTION_NOP = 1,
	TCP_OPTION_SCALE = 3,
	TCP_OPTION_SACK_PERM = 4,
	TCP_OPTION_SACK = 5,
};

enum tcp_option_size {
	TCP_SIZE_SCALE = 3,
	TCP_SIZE_SACK_PERM = 2,
	TCP_SIZE_SACK_HEAD = 2,
	TCP_SIZE_SACK_BLOCK = 8,
};

/* The combinations that are left when PSH, ECE and CWR are taken away. */
static __always_inline bool tcp_flags_valid(u8 flags)
{
	switch (flags & ~(TCP_PSH | TCP_ECE | TCP_CWR)) {
	case TCP_SYN:
	case TCP_SYN | TCP_URG:
	case TCP_SYN | TCP_ACK:
	case TCP_RST:
	case TCP_RST | TCP_ACK:
	case TCP_FIN | TCP_ACK:
	case TCP_FIN | TCP_ACK | TCP_URG:
	case TCP_ACK:
	case TCP_ACK | TCP_URG:
		return true;
	default:
		return false;
	}
}

/* Return the highest of ack and the right edges of a SACK option's blocks (RFC 2018, 3). */
static __always_inline u32 tcp_sack_edge(struct xdp_md *ctx, u32 off, u32 size, u32 ack)
{
	u32 i, *edge;

	off += TCP_SIZE_SACK_HEAD + sizeof(*edge);
#pragma clang loop unroll(disable)
	for (i = 0; i < TCP_SACK_BLOCKS; i++) {
		OPAQUE(i);
		if (TCP_SIZE_SACK_HEAD + (i + 1) * TCP_SIZE_SACK_BLOCK > size)
			break;
		edge = frame_at(ctx, off, sizeof(*edge));
		if (!edge)
			break;
		if ((s32)(ack - bpf_ntohl(*edge)) < 0)
			ack = bpf_ntohl(*edge);
		off += TCP_SIZE_SACK_BLOCK;
	}
	return ack;
}

/*
 * Read the options as tcp_options() and tcp_sack() of nf_conntrack_proto_tcp.c do.
 * The position is masked so that the verifier sees the same range in each round.
 */
static __always_inline void tcp_parse_options(struct xdp_md *ctx, struct flow *f, u32 off, u32 len)
{
	u32 i, pos = 0, sack_pos = 0, sack_size = 0;
	u8 opts = TCP_OPT_PRESENT, *opt, size;

#pragma clang loop unroll(disable)
	for (i = 0; i < TCP_OPTION_BYTES; i++) {
		OPAQUE(i);
		pos &= TCP_OPTION_MASK;
		if (pos >= len)
			break;
		opt = frame_at(ctx, off + pos, 1);
		if (!opt || opt[0] == TCP_OPTION_END)
			break;
		if (opt[0] == TCP_OPTION_NOP) {
			pos++;
			continue;
		}
		opt = frame_at(ctx, off + pos, 2);
		OPAQUE(opt);	/* else its bounds are compared twice, and the verifier thinks that both could differ */
		if (!opt)
			break;
		size = opt[1];
		if (size < 2 || pos + size > len)
			break;
		if (opt[0] == TCP_OPTION_SACK_PERM && size == TCP_SIZE_SACK_PERM) {
			opts |= TCP_OPT_SACK_PERM;
		} else if (opt[0] == TCP_OPTION_SCALE && size == TCP_SIZE_SCALE) {
			opt = frame_at(ctx, off + pos, TCP_SIZE_SCALE);
			if (!opt)
				break;
			opts &= ~TCP_OPT_SCALE_MASK;
			opts |= TCP_OPT_HAS_SCALE | (opt[2] > TCP_MAX_SCALE ? TCP_MAX_SCALE : opt[2]);
		} else if (opt[0] == TCP_OPTION_SACK && !sack_size &&
			   size >= TCP_SIZE_SACK_HEAD + TCP_SIZE_SACK_BLOCK &&
			   (size - TCP_SIZE_SACK_HEAD) % TCP_SIZE_SACK_BLOCK == 0) {
			sack_pos = pos;
			sack_size = size;
		}
		pos += size;
	}
	f->tcp_opts = opts;
	if (sack_size)
		f->tcp_sack = tcp_sack_edge(ctx, off + sack_pos, sack_size, f->tcp_sack);
}

/* Leave what the segment says to what tracks it, and go on. */
static __always_inline int tcp_parsed(struct xdp_md *ctx, struct flow *f, const struct tcphdr *tcp, const bool chained)
{
	struct scratch *here = scratch_here();

	if (!here)
		return outcome(ctx, COUNT_UNTRACKED_NO_ENTRY, chained);
	tcp_seg_of(f, tcp, &here->seg);
	return track(ctx, f, chained);
}

STAGE(prs_tcp)
{
	u32 header, *first;
	struct tcphdr *tcp;
	u8 flags;

	tcp = l4_at(ctx, f, sizeof(*tcp));
	if (!tcp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	header = tcp->doff * 4;
	if (header < sizeof(*tcp) || (header > l4_bytes(f) && !(f->bits & FLOW_FRAGMENT)))
		return outcome(ctx, COUNT_INVALID_TCP_HEADER, chained);
	if (!l4_csum_ok(ctx, f, tcp->check, tcp, sizeof(*tcp)))
		return outcome(ctx, COUNT_INVALID_CHECKSUM, chained);
	flags = ((u8 *)tcp)[13];
	if (!tcp_flags_valid(flags))
		return outcome(ctx, COUNT_INVALID_TCP_FLAGS, chained);
	f->sport = tcp->source;
	f->dport = tcp->dest;
	f->tcp_flags = flags;
	f->tcp_sack = bpf_ntohl(tcp->ack_seq);
	if (header > l4_bytes(f))	/* a fragment: what follows its options in the frame is no part of it */
		header = l4_bytes(f);
	if (header == sizeof(*tcp))
		return tcp_parsed(ctx, f, tcp, chained);
	first = frame_at(ctx, f->l4_off + sizeof(*tcp), sizeof(*first));
	if (header == sizeof(*tcp) + 12 && first && *first == TCP_ONLY_TIMESTAMPS)
		f->tcp_opts = TCP_OPT_PRESENT;
	else
		tcp_parse_options(ctx, f, f->l4_off + sizeof(*tcp), header - sizeof(*tcp));
	return tcp_parsed(ctx, f, tcp, chained);
}
