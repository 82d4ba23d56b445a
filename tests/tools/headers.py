# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that each file says which licence it is under, and that the licence's text is there.

The sanity tests are not to be silenced either: an ignore file is refused.

    python tests/tools/headers.py            the files that git knows of, or would
    python tests/tools/headers.py DIRECTORY  all files in a directory
"""

from __future__ import annotations

import collections.abc as c
import pathlib
import re
import sys

from tree import ROOT, names

LICENCE = re.compile(r"SPDX-License-Identifier: ([\w.-]+)")
# Where a comment cannot stand or a tool rewrites the file; the collection's licence (galaxy.yml)
# holds for them.
BARE_SUFFIXES = (".json", ".rst", ".txt", ".md", ".svg", ".png", ".pcap")
BARE_NAMES = ("changelog.yaml", "COPYING", ".gitignore", ".gitkeep", "aliases")
BARE_DIRECTORIES = ("LICENSES", "output")
#: What tools keep in a clone that was worked in.
TOOLS_DIRECTORIES = (
    ".git",
    "__pycache__",
    ".venv",
    ".ansible",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)
LINES = 12


def faults(root: pathlib.Path, paths: c.Iterable[pathlib.Path]) -> list[str]:
    """Return one line for each file below ``root`` that breaks the rule."""
    found = []
    for path in sorted(paths):
        inside = path.relative_to(root)
        if (
            not path.is_file()
            or path.is_symlink()
            or inside.parts[0] == "build"
            or set(inside.parts) & {*BARE_DIRECTORIES, *TOOLS_DIRECTORIES}
        ):
            continue
        if inside.parts[:2] == ("tests", "sanity") and inside.name.startswith("ignore-"):
            found.append(f"{inside}: mend what the sanity test finds instead of ignoring it")
        if inside.suffix in BARE_SUFFIXES or inside.name in BARE_NAMES:
            continue
        head = path.read_text(encoding="utf-8", errors="replace").splitlines()[:LINES]
        named = LICENCE.search("\n".join(head))
        if not named:
            found.append(f"{inside}: no SPDX-License-Identifier in its first {LINES} lines")
        elif not (root / "LICENSES" / f"{named[1]}.txt").is_file():
            found.append(f"{inside}: LICENSES/{named[1]}.txt is missing")
    return found


if __name__ == "__main__":
    if sys.argv[1:]:
        where = pathlib.Path(sys.argv[1])
        lines = faults(where, where.rglob("*"))
    else:
        lines = faults(ROOT, [ROOT / name for name in names()])
    print("\n".join(lines))
    sys.exit(1 if lines else 0)
