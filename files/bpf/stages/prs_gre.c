// SPDX-License-Identifier: GPL-2.0-only
/* Slot 17: GRE; only PPTP's version 1 has something like a port (nf_conntrack_proto_gre.c). */

#include "templates/defs.h.j2"
#include "lib/packet.h"
#include "lib/l4.h"

STAGE(prs_gre)
{

	if (!gre_tuple(ctx, f, f->l4_off, f->l3_off + f->bytes))
		return outcome(ctx, COUNT_INVALID_GRE, chained);
	return track(ctx, f, chained);
}
