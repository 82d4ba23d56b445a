# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throw frames at the chain until it misbehaves: every one must pass unchanged and be counted
exactly once, and the chain in both of its forms must make the same of it.

python tests/oracle/rig/fuzz.py --frames 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import pathlib
import random
import sys
import time
import typing as t

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / ".ansible/collections"))

from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, mutate, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig, Misbehaviour

#: After so many frames the tables are compared and emptied, before they push anything out.
BLOCK = 4096
TABLE_SIZE = 1 << 15


def fuzz(rigs: t.Mapping[str, ChainRig], count: int, seed: int) -> collections.Counter[str]:
    """Send ``count`` frames made from ``seed``, on both hooks, through each rig; return how often
    each outcome was counted.

    :raises Misbehaviour: with the frame; also when the rigs make different things of it.
    """
    rng = random.Random(seed)
    seen: collections.Counter[str] = collections.Counter()
    for start in range(0, count, BLOCK):
        for rig in rigs.values():
            rig.flush()
        for dummy in range(min(BLOCK, count - start)):
            side, frame = rng.choice("ab"), mutate.mutated(rng)
            outcomes = {name: rig.run(side, frame) for name, rig in rigs.items()}
            if len(set(outcomes.values())) > 1:
                raise Misbehaviour(f"{outcomes}: {side} {frame.hex()}")
            seen.update(set(outcomes.values()))
        agree(rigs)
    return seen


def agree(rigs: t.Mapping[str, ChainRig]) -> None:
    """:raises Misbehaviour: when the rigs' tables are not the same."""
    (first, reference), *others = ((name, view.Seen("", rig.flows())) for name, rig in rigs.items())
    for name, other in others:
        faults = compare.differences(reference, other, name=name)
        if faults:
            raise Misbehaviour(f"{first} (as kernel) against {name}: {faults[:5]}")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        rigs = {
            name: stack.enter_context(ChainRig(fused, "strict", TABLE_SIZE))
            for name, fused in (("chain", False), ("fused", True))
        }
        try:
            seen = fuzz(rigs, options.frames, options.seed)
        except Misbehaviour as exc:
            print(f"FAIL seed {options.seed}: {exc}")
            return 1
    for name, number in seen.most_common():
        print(f"{number:9} {name}")
    rest = [name for name, dummy in chain_counters.OUTCOMES if name not in seen]
    print(f"not met: {', '.join(rest)}")
    print(
        f"{seen.total()} frames through {' and '.join(rigs)} in {time.monotonic() - start:.0f} s"
        f" (seed {options.seed}): all passed unchanged, each was counted once, both agree"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
