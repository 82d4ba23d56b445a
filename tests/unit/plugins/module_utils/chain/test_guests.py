# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be asked for as a guest, and what a rendered text says of its guests."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render, sources
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.model import Have, Want
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.plan import plan_present

pytest.importorskip("jinja2")

SOURCES = pathlib.Path(__file__).resolve().parents[5] / "files/bpf"
ONE = "GUEST(one)\n{\n\treturn guest_next(ctx);\n}\n"
FREE = "give acl, nat or the number of a free slot, 21 to 29."


def refusal(call: t.Callable[[], object]) -> str:
    with pytest.raises(ConntrackError) as raised:
        call()
    return raised.value.message


# ---------------------------------------------------------------- what is asked for
@pytest.mark.parametrize(
    ("slot", "number"), [("acl", 4), ("nat", 5), (4, 4), ("5", 5), (21, 21), ("29", 29)]
)
def test_slots_go_by_name_and_number(slot: t.Any, number: int) -> None:
    (guest,) = guests.parse([{"slot": slot, "src": "x.c", "pinned": None}])
    assert (guest.slot, guest.src, guest.pinned) == (number, "x.c", None)


def test_they_run_in_the_order_of_their_slots() -> None:
    asked = [{"slot": 29, "src": "a"}, {"slot": "nat", "pinned": "/b"}, {"slot": "acl", "src": "c"}]
    assert [(guest.slot, guest.field) for guest in guests.parse(asked)] == [
        (4, "guests[2]"),
        (5, "guests[1]"),
        (29, "guests[0]"),
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("acl.c", "guests: 'acl.c' is not valid: give a list."),
        (["acl.c"], "guests[0]: 'acl.c' is not valid: give slot, and src or pinned."),
        (
            [{"slot": "acl", "scr": "x"}],
            "guests[0]: 'scr' is not valid: known are slot, src and pinned.",
        ),
        ([{"src": "x"}], f"guests[0].slot: None is not valid: {FREE}"),
        ([{"slot": "tea", "src": "x"}], f"guests[0].slot: 'tea' is not valid: {FREE}"),
        (
            [{"slot": 6, "src": "x"}],
            f"guests[0].slot: 6 is not valid: it is forward's, a stage of the chain; {FREE}",
        ),
        ([{"slot": 9, "src": "x"}], f"guests[0].slot: 9 is not valid: {FREE}"),
        ([{"slot": 30, "src": "x"}], f"guests[0].slot: 30 is not valid: {FREE}"),
        (
            [{"slot": 3, "src": "x"}],
            f"guests[0].slot: 3 is not valid: it is ct's, a stage of the chain; {FREE}",
        ),
        (
            [{"slot": "prs_end", "src": "x"}],
            (
                "guests[0].slot: 'prs_end' is not valid: it is prs_end's, a stage of the chain;"
                f" {FREE}"
            ),
        ),
        (
            [{"slot": "acl", "src": "x"}, {"slot": "4", "src": "y"}],
            (
                "guests[1].slot: '4' is not valid: guests[0] has it; give each guest a slot of its"
                " own."
            ),
        ),
        ([{"slot": "acl"}], "guests[0]: src or pinned is missing: give one of them."),
        (
            [{"slot": "acl", "src": "x", "pinned": "/y"}],
            "guests[0]: src and pinned exclude each other: give one of them.",
        ),
    ],
)
def test_what_can_not_be_asked_for(asked: t.Any, message: str) -> None:
    assert refusal(lambda: guests.parse(asked)) == message


# ---------------------------------------------------------------- files
def read(
    tmp_path: pathlib.Path, *sources: str, taken: t.Container[str] = ()
) -> tuple[guests.Guest, ...]:
    """Write sources as a.c, b.c, ... and read them as guests."""
    asked = []
    for number, source in enumerate(sources):
        (tmp_path / f"{'abc'[number]}.c").write_text(source, encoding="utf-8")
        asked.append({"slot": 21 + number, "src": f"{'abc'[number]}.c"})
    return guests.read(guests.parse(asked), lambda path: str(tmp_path / path), taken)


def test_a_file_gives_its_program_a_name(tmp_path: pathlib.Path) -> None:
    first, second = read(tmp_path, ONE, "static int x;\nGUEST( two )\n{ return guest_next(ctx); }")
    assert [(one.name, one.file) for one in (first, second)] == [("one", "a.c"), ("two", "b.c")]
    assert second.text.endswith("}\n"), "what follows begins a line"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            ["int x;\n"],
            (
                "guests[0].src: 'a.c' is not valid: it has 0 programs; a guest's file has one,"
                " which begins with GUEST(name) in a line of its own."
            ),
        ),
        (
            [ONE + ONE],
            (
                "guests[0].src: 'a.c' is not valid: it has 2 programs; a guest's file has one,"
                " which begins with GUEST(name) in a line of its own."
            ),
        ),
        (
            ["GUEST(ct)\n{}"],
            (
                "guests[0].src: 'ct' is not valid: a guest's program needs a name of C, of 15"
                " characters at most, that no stage of the chain has."
            ),
        ),
        (
            ["GUEST(1st)\n{}"],
            (
                "guests[0].src: '1st' is not valid: a guest's program needs a name of C, of 15"
                " characters at most, that no stage of the chain has."
            ),
        ),
        (
            ["GUEST(a_name_that_is_cut)\n{}"],
            (
                "guests[0].src: 'a_name_that_is_cut' is not valid: a guest's program needs a name"
                " of C, of 15 characters at most, that no stage of the chain has."
            ),
        ),
        (
            ['GUEST_MAP(ctt, "hash", u32, u32, 1, 0);\n' + ONE],
            (
                "guests[0].src: 'ctt' is not valid: the chain has a map of this name; give the"
                " guest's another."
            ),
        ),
        (
            [ONE, ONE],
            (
                "guests[1].src: 'b.c' is not valid: guests[0] has the name one already; give each"
                " guest a name of its own."
            ),
        ),
    ],
)
def test_files_that_are_no_guests(tmp_path: pathlib.Path, sources: list[str], message: str) -> None:
    assert refusal(lambda: read(tmp_path, *sources)) == message


def test_files_are_told_apart_by_their_names(tmp_path: pathlib.Path) -> None:
    assert (
        refusal(lambda: read(tmp_path, ONE, taken=["a.c"]))
        == "guests[0].src: 'a.c' is not valid: a file of the chain has this name; give it another."
    )
    for directory in ("here", "there"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "a.c").write_text(ONE.replace("one", directory), encoding="utf-8")
    asked = guests.parse([{"slot": 21, "src": "here/a.c"}, {"slot": 22, "src": "there/a.c"}])
    assert "guests[0] has the file a.c already" in refusal(
        lambda: guests.read(asked, lambda path: str(tmp_path / path), ())
    )
    (tmp_path / 'a "b".c').write_text(ONE, encoding="utf-8")
    asked = guests.parse([{"slot": 21, "src": 'a "b".c'}])
    assert "use letters, digits and .+-_ for its name" in refusal(
        lambda: guests.read(asked, lambda path: str(tmp_path / path), ())
    )


def test_a_file_that_is_not_there(tmp_path: pathlib.Path) -> None:
    asked = guests.parse([{"slot": 21, "src": "nowhere.c"}])
    assert (
        refusal(lambda: guests.read(asked, lambda path: str(tmp_path / path), ()))
        == f"guests[0].src: {tmp_path}/nowhere.c can not be read: No such file or directory."
    )
    (tmp_path / "bytes.c").write_bytes(b"\xff\xfe")
    asked = guests.parse([{"slot": 21, "src": "bytes.c"}])
    assert "bytes.c can not be read: 'utf-8' codec" in refusal(
        lambda: guests.read(asked, lambda path: str(tmp_path / path), ())
    )


# ---------------------------------------------------------------- the text
def rendered(*found: guests.Guest) -> str:
    return render.render(str(SOURCES), render.Settings(1024), found)


def test_the_text_tells_programs_slots_and_maps(tmp_path: pathlib.Path) -> None:
    found = read(
        tmp_path,
        ONE,
        'GUEST_MAP(mine, "hash", u32, u64, 16, 0);\nGUEST(two)\n{ u32 x[1][1] = {{0}}; return'
        " guest_next(ctx); }\n",
    )
    text = rendered(*found, guests.Guest("guests[2]", 29, pinned="/x"))
    assert guests.programs_in(text) == {"one": 21, "two": 22}
    assert guests.maps_in(text) == ("mine",)
    assert "u32 x[1][1] = {{0}};" in text, "braces of a guest's are no template's"
    assert build_bcc.source_lines(text, "b.c")[1] == "GUEST(two)"


def test_without_guests_nobody_is_asked() -> None:
    text = rendered()
    assert guests.programs_in(text) == {} and guests.maps_in(text) == ()
    assert (
        "f->found = found" not in text
        and "guest_next" not in text.split('#line 1 "templates/guest.h.j2"')[1].split("*/", 1)[1]
    )


def test_the_list_that_comes_with_the_collection_is_a_guest() -> None:
    (found,) = guests.read(
        guests.parse([{"slot": "acl", "src": str(SOURCES / "guests/acl.c")}]),
        str,
        sources.file_names(str(SOURCES)),
    )
    assert guests.programs_in(rendered(found)) == {"acl": chain_programs.GUEST_SLOTS["acl"]}


# ---------------------------------------------------------------- generations
def test_another_program_behind_a_pin_is_another_chain() -> None:
    first, again, other = (
        Want("text", {}, 1024, pinned=(guests.Pinned(21, "/x", number, tag),))
        for number, tag in ((1, "aa"), (1, "aa"), (2, "aa"))
    )
    assert first.digest == again.digest != other.digest != Want("text", {}, 1024).digest
    assert Want("text", {}, 1024, pinned=(guests.Pinned(22, "/x", 1, "aa"),)).digest != first.digest


def test_a_guest_whose_pin_is_lost_is_loaded_again() -> None:
    want = Want("text", {}, 1024, pinned=(guests.Pinned(21, "/x", 1, "aa"),))
    load, *dummy = plan_present(
        Have(generation=1, digest=want.digest, layout=chain_layout.LAYOUT_VERSION), want, b""
    )
    assert (load.action, load.reason) == ("load", "the pin of the guest in slot 21 is missing")
