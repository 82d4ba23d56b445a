# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy the chain's sources, each copy changed or broken in one way; and make libraries that are not
what their names say.

variants.py <sources> <directory>
"""

from __future__ import annotations

import pathlib
import shutil
import sys

#: By the copy's name: file, what stands there, what shall stand there. No file: the copy is empty.
#: No new text: the file is taken away.
VARIANTS: dict[str, tuple[str, str, str | None]] = {
    "same": ("stages/ct.c", "", ""),
    "comment": ("stages/ct.c", "// SPDX", "/* changed */ // SPDX"),
    "empty": ("", "", None),
    "no_stage": ("stages/prs_udp.c", "", None),
    "template": ("stages/ct.c", "// SPDX", "{% if %}\n// SPDX"),
    "undefined": ("stages/ct.c", "// SPDX", "\n{{ nothing }}\n// SPDX"),
    "syntax": ("stages/ingress.c", "return enter(ctx, 0);", "return enter(ctx, 0)"),
    "verifier": (
        "stages/prs_eth.c",
        "\tproto = eth->h_proto;",
        "\tproto = *(volatile __be16 *)((void *)(long)ctx->data + 60);",
    ),
    "counts": (
        "stages/prs_eth.c",
        "COUNT_UNTRACKED_PPPOE, chained",
        "COUNT_UNTRACKED_NOT_IP, chained",
    ),
    "drops": ("stages/prs_end.c", "return leave(ctx);", "return XDP_DROP;"),
}
#: By directory: the version of the bcc that stands there, and its code.
LIBRARIES = {
    "broken": ("0.26.0", "raise ImportError('no such thing here')\n"),
    "other": ("0.1.10", ""),
    "old": ("0.18.0", "BPF = object\n"),
}


def main(sources: pathlib.Path, target: pathlib.Path) -> None:
    """Make every copy and every library."""
    for name, (version, code) in LIBRARIES.items():
        facts = target / name / f"bcc-{version}.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: bcc\nVersion: {version}\n", encoding="utf-8"
        )
        (target / name / "bcc.py").write_text(code, encoding="utf-8")
    for name, (file, old, new) in VARIANTS.items():
        copy = target / name
        if not file:
            copy.mkdir()
            continue
        shutil.copytree(sources, copy)
        text = (copy / file).read_text(encoding="utf-8")
        if new is None:
            (copy / file).unlink()
        elif old not in text:
            sys.exit(f"{file}: nothing to change for {name}")
        else:
            (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
