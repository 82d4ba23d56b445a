// SPDX-License-Identifier: GPL-2.0-only
/* Slot 19: tracks IPv6; the addresses stand in the header at l3_off. */

#include "templates/defs.h.j2"
#include "lib/packet.h"
#include "lib/entry.h"
#include "lib/track.h"

STAGE(ct6)
{
	struct ipv6hdr *ip;
	union any_key key;
	u64 src_hi;

	ip = frame_at(ctx, f->l3_off, sizeof(*ip));
	if (!ip)
		return outcome(ctx, COUNT_INVALID_IP_HEADER, chained);
	src_hi = ct_key6_of(f, ip, &key.v6);
	return ct_run(ctx, f, &key, src_hi, true, chained);
}
