// SPDX-License-Identifier: GPL-2.0-only
/* Slot 1: the hook on the responders' side. */

PROG(egress)
{
	return enter(ctx, FLOW_EGRESS);
}
