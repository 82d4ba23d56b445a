// SPDX-License-Identifier: GPL-2.0-only
/* Slot 1: the hook on the responders' side. */

#include "lib/base.h"
#include "lib/flow.h"
#include "templates/enter.h.j2"

PROG(egress)
{
	return enter(ctx, FLOW_EGRESS);
}
