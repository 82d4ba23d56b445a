// SPDX-License-Identifier: GPL-2.0-only
/* Slot 7: tracks nothing.  A veth takes redirected frames only for a peer that has a program. */

#include "lib/base.h"

PROG(pass)
{
	return XDP_PASS;
}
