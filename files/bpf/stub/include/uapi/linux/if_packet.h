/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: bcc includes it, the chain needs nothing of it. */
