/* SPDX-License-Identifier: GPL-2.0-only */
/* In place of the real one, which linux/icmp.h includes and which asks for the C library. */
#define IFNAMSIZ 16
