// SPDX-License-Identifier: GPL-2.0-only
/* Slot 3: tracks IPv4. */

#include "lib/packet.h"
#include "lib/entry.h"
#include "lib/track.h"

STAGE(ct)
{
	union any_key key;
	u64 src_hi;

	src_hi = ct_key_of(f, &key.v4);
	return ct_run(ctx, f, &key, src_hi, false, chained);
}
