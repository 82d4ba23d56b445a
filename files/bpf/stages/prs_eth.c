// SPDX-License-Identifier: GPL-2.0-only
/* Slot 10: Ethernet, and up to two VLAN tags. */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/packet.h"

#define MAX_VLANS	2

/* The tag behind an Ethernet header or behind another tag (IEEE 802.1Q). */
struct vlan_tag {
	__be16 tci;
	__be16 proto;	/* of what follows */
};

#define VLAN_VID_MASK	0xfff

STAGE(prs_eth)
{
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));
	struct vlan_tag *tag;
	__be16 proto;
	u32 i, off;

	if (!eth)
		return outcome(ctx, COUNT_UNTRACKED_ETH_SHORT, chained);
	proto = eth->h_proto;
	off = sizeof(*eth);
#pragma unroll
	for (i = 0; i < MAX_VLANS; i++) {
		if (proto != BE16(ETH_P_8021Q) && proto != BE16(ETH_P_8021AD))
			break;
		tag = frame_at(ctx, off, sizeof(*tag));
		if (!tag)
			return outcome(ctx, COUNT_UNTRACKED_ETH_SHORT, chained);
		f->vlan[i] = bpf_ntohs(tag->tci) & VLAN_VID_MASK;
		f->vlans = i + 1;
		proto = tag->proto;
		off += sizeof(*tag);
	}
	f->l3_off = off;
	switch (proto) {
	case BE16(ETH_P_IP):
		return next(ctx, SLOT_PRS_IPV4, chained);
	case BE16(ETH_P_IPV6):
		return next(ctx, SLOT_PRS_IPV6, chained);
	case BE16(ETH_P_8021Q):
	case BE16(ETH_P_8021AD):
		return outcome(ctx, COUNT_UNTRACKED_VLAN_DEPTH, chained);
	case BE16(ETH_P_PPP_DISC):
	case BE16(ETH_P_PPP_SES):
		return outcome(ctx, COUNT_UNTRACKED_PPPOE, chained);
	default:
		return outcome(ctx, COUNT_UNTRACKED_NOT_IP, chained);
	}
}
