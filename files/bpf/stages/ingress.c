// SPDX-License-Identifier: GPL-2.0-only
/* Slot 0: the hook on the initiators' side. */

#include "lib/base.h"
#include "templates/enter.h.j2"

PROG(ingress)
{
	return enter(ctx, 0);
}
