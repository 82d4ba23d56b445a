// SPDX-License-Identifier: GPL-2.0-only
/* Slot 0: the hook on the initiators' side. */

PROG(ingress)
{
	return enter(ctx, 0);
}
