# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove a chain that is loaded but not attached yet."""

from __future__ import annotations

import struct

from . import bpf, chain
from .errors import ConntrackError

_XDP_PASS = 2
#: A frame of no known protocol: it runs from the chain's entry to its end.
_PROBE = bytes(12) + b"\xff\xff" + bytes(46)
_U64 = struct.Struct("=Q")


def prove(entry: int, stats: int, guests: bool = False) -> None:
    """Send a frame through the chain: it must come out as it went in and be counted, so every slot on its way is filled.

    :param guests: whether it has guests; then it must be counted, but what comes out is their affair.
    """
    index = chain.COUNTERS.index("untracked_not_ip")

    def seen() -> int:
        return sum(_U64.unpack(value)[0] for value in bpf.percpu_value(stats, index, _U64.size))

    before = seen()
    run = bpf.prog_test_run(entry, _PROBE)
    if (not guests and (run.retval != _XDP_PASS or run.data_out != _PROBE)) or seen() <= before:
        raise ConntrackError(
            f"the chain does not pass a frame as it is: verdict {run.retval} (XDP_PASS is {_XDP_PASS}), "
            f"{'unchanged' if run.data_out == _PROBE else 'changed'}, {'' if seen() > before else 'not '}counted."
        )
