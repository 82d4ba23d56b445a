// SPDX-License-Identifier: GPL-2.0-only
/* Slot 3: tracks IPv4. */

PROG(ct)
{
	struct flow *f = flow_of(ctx);
	union any_key key;
	bool src_hi;

	if (!f)
		return XDP_PASS;
	src_hi = ct_key_of(f, &key.v4);
	return ct_run(ctx, f, &key, src_hi, false);
}
