// SPDX-License-Identifier: GPL-2.0-only
/* The one place where packet bounds are checked, and how stages hand on. */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/stages.h.j2"
#include "templates/maps.h.j2"

/* Largest offset of a header that is looked at: tells the verifier a bound. */
#define MAX_HEADER_OFF	0x3ff

/*
 * Return off, at most mask, wherever it was compared before: the verifier may
 * have lost that, as of what lay on the stack meanwhile.
 */
static __always_inline u32 at_most(u32 off, u32 mask)
{
	OPAQUE(off);
	return off & mask;
}

/* Return len bytes at off, at most MAX_HEADER_OFF, of the frame; NULL where it is shorter. */
static __always_inline void *frame_at(struct xdp_md *ctx, u32 off, u32 len)
{
	void *p = (void *)(long)ctx->data + at_most(off, MAX_HEADER_OFF);

	return p + len <= (void *)(long)ctx->data_end ? p : NULL;
}

/* Largest offset of what is read of a payload; a linear frame is shorter. */
#define MAX_PAYLOAD_OFF	0x7fff

/* The same for what may lie deep in the frame. */
static __always_inline void *payload_at(struct xdp_md *ctx, u32 off, u32 len)
{
	void *p = (void *)(long)ctx->data + at_most(off, MAX_PAYLOAD_OFF);

	return p + len <= (void *)(long)ctx->data_end ? p : NULL;
}

/* Bytes of the frame from off on. */
static __always_inline s64 frame_left(struct xdp_md *ctx, u32 off)
{
	return (s64)((long)ctx->data_end - (long)ctx->data) - off;
}

/* The longest packet whose length an IPv4 header can tell. */
#define IP_MAX_BYTES	0xffff

/*
 * Bytes of the IP packet at off, where its header tells none: BIG TCP, which only
 * generic mode shows (include/linux/ip.h, iph_totlen(); ipv6.h).  0 where it is none.
 */
static __always_inline u32 big_tcp_bytes(struct xdp_md *ctx, u32 off, u8 proto)
{
	s64 left = frame_left(ctx, off);

	return proto == IPPROTO_TCP && left > IP_MAX_BYTES ? left : 0;
}

/* Return the parsed packet in the metadata, NULL where a stage runs without. */
static __always_inline struct flow *flow_of(struct xdp_md *ctx)
{
	struct flow *f = (void *)(long)ctx->data_meta;

	return (void *)(f + 1) <= (void *)(long)ctx->data ? f : NULL;
}

static __always_inline void count(u32 reason)
{
	u64 *n = stats_at(reason);

	if (n)
		(*n)++;
}

/*
 * Each stage is a program of the chain, and an inline function for the fused
 * entry programs.  There chained is false: nothing is jumped to, the slot to go
 * on with is returned instead.
 */
#define STAGE(name)									\
PROG(name)										\
{											\
	struct flow *f = flow_of(ctx);							\
											\
	return f ? name##_stage(ctx, f, true) : XDP_PASS;				\
}											\
static __always_inline int name##_stage(struct xdp_md *ctx, struct flow *f, const bool chained)

/* Leave the chain with the metadata that it came with: prs_end's work. */
static __always_inline int leave(struct xdp_md *ctx)
{
	bpf_xdp_adjust_meta(ctx, sizeof(struct flow));
	return XDP_PASS;
}

/*
 * templates/guest.h.j2, which templates/enter.h.j2 includes: tell the guests what was
 * found, and go to the first of them; without guests to prs_end.
 */
static __always_inline void guests_told(struct xdp_md *ctx, struct ct_found found, const bool chained);
static __always_inline int guests_after(struct xdp_md *ctx, const u32 slot);

/* End with this finding. */
static __always_inline int finish(struct xdp_md *ctx, struct ct_found found, const bool chained)
{
	count(found.outcome);
	guests_told(ctx, found, chained);
	if (!chained)
		return SLOT_PRS_END;
	return guests_after(ctx, 0);
}

/*
 * What a stage returns to a fused entry program for a frame of proof.  It is no
 * slot, so that guests, which would count the frame as traffic, never get it.
 */
#define SLOT_PROVED	NR_SLOTS

/*
 * Whether the frame is one of proof: the first 64 bits of its addresses are the
 * generation's mark.  The loader writes a random one, which only root can read;
 * a frame from a wire can not be taken for one of proof but by a chance of 2^-64.
 * A mark of 0 is none: all frames on a loopback have it, and the shadows of the
 * chain too.  Frames of proof make no flow, so tracked packets never pay for this.
 */
static __always_inline bool is_proof(struct xdp_md *ctx)
{
	u64 *mark = proof_at(PROOF_MARK), have;
	u16 *words = frame_at(ctx, 0, sizeof(u64));	/* no wider reads: some machines need them aligned */

	if (!mark || !*mark || !words)
		return false;
	have = (u64)words[0] | (u64)words[1] << 16 | (u64)words[2] << 32 | (u64)words[3] << 48;
	return have == *mark;
}

/* End with this outcome, where no flow is known.  What is proof is counted beside the traffic. */
static __always_inline int outcome(struct xdp_md *ctx, u32 reason, const bool chained)
{
	struct ct_found found = { .outcome = reason };
	u64 *n;

	if (!is_proof(ctx))
		return finish(ctx, found, chained);
	n = proof_at(PROOF_COUNTS + reason);
	if (n)
		lock_xadd(n, 1);	/* any CPU may prove at the same time */
	if (!chained)
		return SLOT_PROVED;
	jump(ctx, SLOT_PRS_END);
	return leave(ctx);
}

/* Go on with the next stage. */
static __always_inline int next(struct xdp_md *ctx, u32 slot, const bool chained)
{
	if (!chained)
		return slot;
	jump(ctx, slot);
	return outcome(ctx, COUNT_UNTRACKED_NO_SLOT, true);
}

/* Go on with what tracks the packet. */
static __always_inline int track(struct xdp_md *ctx, struct flow *f, const bool chained)
{
	if (f->bits & FLOW_FRAGMENT)
		return next(ctx, SLOT_FRAG, chained);
	if (f->bits & FLOW_V6)
		return next(ctx, SLOT_CT6, chained);
	return next(ctx, SLOT_CT, chained);
}

/* Go on with the parser of the transport protocol. */
static __always_inline int parse_l4(struct xdp_md *ctx, struct flow *f, const bool chained)
{
	switch (f->proto) {
	case IPPROTO_TCP:
		return next(ctx, SLOT_PRS_TCP, chained);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return next(ctx, SLOT_PRS_UDP, chained);
	case IPPROTO_GRE:
		return next(ctx, SLOT_PRS_GRE, chained);
	case IPPROTO_SCTP:
		return next(ctx, SLOT_PRS_SCTP, chained);
	case IPPROTO_ICMP:
		if (!(f->bits & FLOW_V6))
			return next(ctx, SLOT_PRS_ICMP, chained);
		break;
	case IPPROTO_ICMPV6:
		if (f->bits & FLOW_V6)
			return next(ctx, SLOT_PRS_ICMP6, chained);
		break;
	}
	return track(ctx, f, chained);	/* by addresses and protocol number alone */
}
