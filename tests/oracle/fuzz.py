# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throw frames at the chain until it misbehaves: every one must pass unchanged and be counted exactly once.

python tests/oracle/fuzz.py --frames 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / ".ansible/collections"))

from ansible_collections.ebpf.conntrack.tests.oracle.rig import mutate
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig, Misbehaviour


def fuzz(rig: ChainRig, count: int, seed: int) -> collections.Counter[str]:
    """Send ``count`` frames made from ``seed``, on both hooks; return how often each outcome was counted.

    :raises Misbehaviour: with the frame.
    """
    rng = random.Random(seed)
    return collections.Counter(rig.run(rng.choice("ab"), mutate.mutated(rng)) for dummy in range(count))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.monotonic()
    with ChainRig() as rig:
        try:
            seen = fuzz(rig, options.frames, options.seed)
        except Misbehaviour as exc:
            print(f"FAIL seed {options.seed}: {exc}")
            return 1
    for name, number in seen.most_common():
        print(f"{number:9} {name}")
    print(f"{seen.total():9} frames in {time.monotonic() - start:.1f} s, all passed unchanged, each counted once (seed {options.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
