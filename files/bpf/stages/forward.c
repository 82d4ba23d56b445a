// SPDX-License-Identifier: GPL-2.0-only
/* Slot 6: forwards packets of known flows past the stack.  Where nothing is forwarded, nobody comes here. */

#include "templates/defs.h.j2"
#include "lib/packet.h"
#include "templates/forward.h.j2"

STAGE(forward)
{
{% if forward != "off" %}
	u32 to;

	if (forward_packet(ctx, f, &to) == XDP_REDIRECT) {
		leave(ctx);
		return bpf_redirect(to, 0);
	}
{% endif %}
	return next(ctx, SLOT_PRS_END, chained);
}
