# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads of a compiler and a verifier; no compiler is run."""

from __future__ import annotations

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError

TEXT = """/* main */
#line 1 "lib/packet.h"
/* bounds */
static __always_inline void *frame_at(struct xdp_md *ctx, u32 off)
{
\treturn NULL;
}

static __always_inline int leave(struct xdp_md *ctx)
{
\treturn XDP_PASS;
}
#line 1 "stages/ct.c"
/* the tracker */
enum what { A };
BPF_TABLE("array", int, int, x, 1);

PROG(ct)
{
\tcall(a,
\t\tb);
\treturn 0;
}
"""

COMPILER = """In file included from <built-in>:2:
stages/ct.c:7:9: warning: unused variable
stages/ct.c:8:14: error: expected ';' after return statement
        return 0
                ^
                ;
1 error generated.
"""

VERIFIER = """bpf: Failed to load program: Permission denied
0: R1=ctx() R10=fp0
; {other} @ packet.h:5
0: (bf) r6 = r1                       ; R1=ctx() R6_w=ctx()
; call(a, @ ct.c:9
from 3 to 17: R1=pkt_meta(r=32) R2=pkt(r=0)
R1_w=pkt(r=0)
17: (71) r4 = *(u8 *)(r2 +12)
invalid access to packet, off=12 size=1, R2(id=0,off=12,r=0)
R2 offset is outside of the packet
processed 37 insns (limit 1000000) max_states_per_insn 0 total_states 4 peak_states 4 mark_read 0
"""


def test_a_compilers_error_comes_with_its_place() -> None:
    assert build_bcc.explain(TEXT, COMPILER).startswith(
        "stages/ct.c:8:14: error: expected ';' after return statement\n        return 0\n"
    )


def test_a_compiler_can_have_much_to_say() -> None:
    assert (
        len(
            build_bcc.explain(
                TEXT, "".join(f"stages/ct.c:{n}:1: error: no\n" for n in range(1000))
            ).splitlines()
        )
        == 20
    )


def test_a_verifiers_error_comes_with_the_line_of_c() -> None:
    assert build_bcc.explain(TEXT, VERIFIER).splitlines() == [
        "invalid access to packet, off=12 size=1, R2(id=0,off=12,r=0)",
        "R2 offset is outside of the packet",
        "stages/ct.c:7: call(a,",
    ]


def test_a_verifiers_error_in_a_place_that_is_not_known() -> None:
    assert build_bcc.explain(TEXT, "; x @ other.h:3\nbad thing\n").splitlines() == [
        "bad thing",
        "other.h:3: (line not found)",
    ]


def test_an_output_without_places_is_shown_as_it_is() -> None:
    assert (
        build_bcc.explain(TEXT, "BPF program is too large. Processed 1000001 insn\n\n")
        == "BPF program is too large. Processed 1000001 insn"
    )
    assert build_bcc.explain(TEXT, "") == ""


def test_a_file_by_its_bare_name() -> None:
    assert build_bcc.source_name(TEXT, "packet.h") == "lib/packet.h"
    assert build_bcc.source_name(TEXT, "stages/ct.c") == "stages/ct.c"
    assert build_bcc.source_name(TEXT, "t.c") == "t.c"


def test_lines_of_one_file() -> None:
    assert build_bcc.source_lines(TEXT, "stages/ct.c")[0] == "/* the tracker */"
    assert build_bcc.source_lines(TEXT, "lib/packet.h")[-1] == "}"
    assert build_bcc.source_lines(TEXT, "none.c") == []


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [
        ("lib/packet.h", 1, 1),
        ("lib/packet.h", 2, 2),  # the line that bcc adds
        ("lib/packet.h", 3, 2),
        ("lib/packet.h", 5, 4),
        ("lib/packet.h", 8, 7),  # the line that bcc adds in front of the second function
        ("lib/packet.h", 9, 7),
        ("lib/packet.h", 11, 9),
        ("stages/ct.c", 3, 3),
        ("stages/ct.c", 6, 5),  # a program's head
        ("stages/ct.c", 9, 7),  # inside, behind the line that bcc adds to the brace
        ("stages/ct.c", 11, 9),
    ],
)
def test_lines_before_bcc_added_some(name: str, there: int, here: int) -> None:
    assert build_bcc.line_before_bcc(build_bcc.source_lines(TEXT, name), there) == here


def test_missing_headers_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_bcc, "_UAPI", "/nowhere")
    with pytest.raises(
        ConntrackError, match=r"^/nowhere/linux/bpf.h is missing: .*linux-libc-dev .*kernel-headers"
    ):
        build_bcc.flags()


@pytest.mark.parametrize(
    ("machine", "in_order"),
    [("x86_64", True), ("s390x", True), ("aarch64", False), ("ppc64le", False)],
)
def test_only_some_machines_store_in_order(
    monkeypatch: pytest.MonkeyPatch, machine: str, in_order: bool
) -> None:
    monkeypatch.setattr(build_bcc.os.path, "exists", lambda dummy: True)
    monkeypatch.setattr(build_bcc.platform, "machine", lambda: machine)
    assert ("-DCT_STORES_IN_ORDER" in build_bcc.flags()) is in_order
