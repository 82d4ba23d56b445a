// SPDX-License-Identifier: GPL-2.0-only
/* The one place where packet bounds are checked, and how stages hand on. */

/* Largest offset of a header that is looked at: tells the verifier a bound. */
#define MAX_HEADER_OFF	0x3ff

/* Return len bytes at off, at most MAX_HEADER_OFF, of the frame; NULL where it is shorter. */
static __always_inline void *frame_at(struct xdp_md *ctx, u32 off, u32 len)
{
	void *p = (void *)(long)ctx->data + (off & MAX_HEADER_OFF);

	return p + len <= (void *)(long)ctx->data_end ? p : NULL;
}

/* Bytes of the frame from off on. */
static __always_inline s64 frame_left(struct xdp_md *ctx, u32 off)
{
	return (s64)((long)ctx->data_end - (long)ctx->data) - off;
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

/* Leave the chain with the metadata that it came with: prs_end's work. */
static __always_inline int leave(struct xdp_md *ctx)
{
	bpf_xdp_adjust_meta(ctx, sizeof(struct flow));
	return XDP_PASS;
}

/* End with the outcome already counted. */
static __always_inline int finish(struct xdp_md *ctx)
{
	jump(ctx, SLOT_PRS_END);
	return leave(ctx);
}

/* End with this outcome. */
static __always_inline int outcome(struct xdp_md *ctx, u32 reason)
{
	count(reason);
	return finish(ctx);
}

/* Go on with the next stage. */
static __always_inline int next(struct xdp_md *ctx, u32 slot)
{
	jump(ctx, slot);
	return outcome(ctx, COUNT_UNTRACKED_NO_SLOT);
}

/* Go on with what tracks the packet. */
static __always_inline int track(struct xdp_md *ctx, struct flow *f)
{
	if (f->bits & FLOW_FRAGMENT)
		return next(ctx, SLOT_FRAG);
	if (f->bits & FLOW_V6)
		return next(ctx, SLOT_CT6);
	return next(ctx, SLOT_CT);
}

/* Go on with the parser of the transport protocol. */
static __always_inline int parse_l4(struct xdp_md *ctx, struct flow *f)
{
	switch (f->proto) {
	case IPPROTO_TCP:
		return next(ctx, SLOT_PRS_TCP);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return next(ctx, SLOT_PRS_UDP);
	case IPPROTO_GRE:
		return next(ctx, SLOT_PRS_GRE);
	case IPPROTO_ICMP:
		if (!(f->bits & FLOW_V6))
			return next(ctx, SLOT_PRS_ICMP);
		break;
	case IPPROTO_ICMPV6:
		if (f->bits & FLOW_V6)
			return next(ctx, SLOT_PRS_ICMP6);
		break;
	}
	return track(ctx, f);	/* by addresses and protocol number alone */
}
