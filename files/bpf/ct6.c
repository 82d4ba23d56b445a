// SPDX-License-Identifier: GPL-2.0-only
/* Slot 19: tracks IPv6; the addresses stand in the header at l3_off. */

PROG(ct6)
{
	struct flow *f = flow_of(ctx);
	struct ipv6hdr *ip;
	union any_key key;
	bool src_hi;

	if (!f)
		return XDP_PASS;
	ip = frame_at(ctx, f->l3_off, sizeof(*ip));
	if (!ip)
		return outcome(ctx, COUNT_INVALID_IP_HEADER);
	src_hi = ct_key6_of(f, ip, &key.v6);
	return ct_run(ctx, f, &key, src_hi, true);
}
