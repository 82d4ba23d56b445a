// SPDX-License-Identifier: GPL-2.0-only
/* What both entry programs do: tick, make room for struct flow, start parsing. */

/*
 * The clock is jiffies: reading CLOCK_MONOTONIC costs a packet half of what a
 * table hit costs.  ktime is written once a second, for those who look at meta;
 * the pair that relates jiffies to CLOCK_MONOTONIC is written once, by the
 * first frame of a generation, which the loader sends.
 */
static __always_inline void tick(void)
{
	u64 *due = meta_at(META_NEXT_TICK), *ktime, *pair;
	struct ct_settings *s;
	u64 now = bpf_jiffies64(), ns;

	if (!due || now < *due)
		return;
	s = settings_now();
	ktime = meta_at(META_KTIME);
	if (!s || !ktime)
		return;
	*due = now + s->hz;
	ns = bpf_ktime_get_ns();
	*ktime = ns / NSEC_PER_SEC;
	pair = meta_at(META_JIFFIES);
	if (!pair || *pair)
		return;
	*pair = now;
	pair = meta_at(META_KTIME_NS);
	if (pair)
		*pair = ns;
}

static __always_inline int enter(struct xdp_md *ctx, u8 bits)
{
	struct flow *f;

	tick();
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct flow))) {
		count(COUNT_UNTRACKED_NO_META);
		return XDP_PASS;
	}
	f = flow_of(ctx);
	if (!f)
		return outcome(ctx, COUNT_UNTRACKED_NO_META);
	__builtin_memset(f, 0, sizeof(*f));
	f->bits = bits;
	return next(ctx, SLOT_PRS_ETH);
}
