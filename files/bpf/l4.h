// SPDX-License-Identifier: GPL-2.0-only
/* What the transport parsers share. */

/* Bytes of the transport header and payload, as the IP header counts them. */
static __always_inline u32 l4_bytes(struct flow *f)
{
	return f->bytes - (f->l4_off - f->l3_off);
}

/* Return a transport header of len bytes, NULL where the IP packet has less. */
static __always_inline void *l4_at(struct xdp_md *ctx, struct flow *f, u32 len)
{
	return l4_bytes(f) >= len ? frame_at(ctx, f->l4_off, len) : NULL;
}
