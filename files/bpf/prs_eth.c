// SPDX-License-Identifier: GPL-2.0-only
/* Slot 10: Ethernet. */

PROG(prs_eth)
{
	struct flow *f = flow_of(ctx);
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));

	if (!f)
		return XDP_PASS;
	if (!eth)
		return outcome(ctx, COUNT_UNTRACKED_ETH_SHORT);
	switch (eth->h_proto) {
	case BE16(ETH_P_IP):
		f->l3_off = sizeof(*eth);
		return next(ctx, SLOT_PRS_IPV4);
	case BE16(ETH_P_IPV6):
		return outcome(ctx, COUNT_UNTRACKED_IPV6);
	case BE16(ETH_P_8021Q):
	case BE16(ETH_P_8021AD):
		return outcome(ctx, COUNT_UNTRACKED_VLAN);
	default:
		return outcome(ctx, COUNT_UNTRACKED_NOT_IP);
	}
}
