# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain from an object file that clang made, on a host that has no bcc: loaded, proved, swapped
with what bcc made, restored, replayed.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import sys

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import manifest, reload
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import capture
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import run as replay
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import restore
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    SIZES,
    SOURCES,
    Chain,
    bpf_descriptors,
    made,
    rendered,
    udp_frame,
)

__all__ = ["made", "rendered"]  # fixtures

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang"),
]

PRELUDE = (SOURCES / build_clang.PRELUDE).read_text(encoding="utf-8")
FLOWS = 30
#: Longer than any test takes on a busy machine.
TIMEOUTS = {"udp": 3000}
GUEST = """\
GUEST_MAP(seen_syns, "percpu_array", int, u64, {entries}, 0);
BPF_HASH(mine, u32, u64, 16);

GUEST(syns)
{{
    u32 key = f->proto;
    int i = 0;
    u64 *n, one = 1;

    n = seen_syns.lookup(&i);
    if (n)
        (*n)++;
    n = mine.lookup_or_try_init(&key, &one);
    if (n)
        (*n)++;
    {more}
    return guest_next(ctx);
}}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where what was compiled is kept for the next test."""
    return str(tmp_path_factory.mktemp("objects"))


@pytest.fixture
def no_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without bcc."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "bcc"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bcc", None)


def built(
    want: generation.Want, cache: str, settings: render.Settings = render.Settings()
) -> generation.Want:
    """Return the same chain with the object that clang makes of it."""
    name = build_clang.wanted(want.text, want.headers, PRELUDE, build_clang.here())
    found, dummy = build_clang.cached(
        cache,
        name,
        "clang",
        lambda: build_clang.build(want.text, want.headers, PRELUDE, settings, build_clang.here()),
    )
    return dataclasses.replace(want, build=generation.OBJECT, object=found)


def guest(tmp_path: pathlib.Path, more: str = "", entries: int = 1) -> str:
    """Return the chain with a guest, rendered."""
    path = tmp_path / "syns.c"
    path.write_text(GUEST.format(more=more, entries=entries), encoding="utf-8")
    return render.render(
        str(SOURCES),
        render.Settings(**SIZES),
        guests.read(guests.parse([{"slot": "acl", "src": str(path)}]), str, ()),
    )


def changed(made: Chain, mark: str) -> generation.Want:
    return dataclasses.replace(made.changed(mark), timeouts=TIMEOUTS)


def numbers(chain_: Chain) -> list[tuple[str, int]]:
    return sorted(
        (key.hex(), chain_layout.ENTRY.unpack(value)[0] + chain_layout.ENTRY.unpack(value)[6])
        for key, value in chain_.flows().items()
    )


# ---------------------------------------------------------------- loaded
def test_it_is_loaded_without_bcc_and_tracks(made: Chain, cache: str, no_bcc: None) -> None:
    held = bpf_descriptors()
    want = built(made.want(timeouts=TIMEOUTS), cache)
    made.ensure(want)
    have = made.observe()
    assert (have.generation, have.faults, have.digest) == (1, (), made.want().digest)
    assert {info.name for info in have.programs.values()} == set(chain_programs.SLOTS)
    made.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    made.send(udp_frame(4000))
    assert (
        len(numbers(made)) == FLOWS
        and sum(packets for dummy, packets in numbers(made)) == FLOWS + 1
    )
    assert made.stats()["tracked"] == FLOWS + 1
    assert (
        made.ensure(want)[0] == [] and made.ensure(dataclasses.replace(want, object=None))[0] == []
    )
    assert bpf_descriptors() == held


def test_the_two_front_ends_make_one_generation(made: Chain, cache: str) -> None:
    """What runs stays; only how it is built after a reboot changes."""
    made.ensure()
    before = made.observe()
    want = built(made.want(), cache)
    assert generation.needs_object(
        generation.ensure(made.paths, want, True)[0], before, dataclasses.replace(want, object=None)
    )
    (step,) = made.ensure(want)[0]
    assert (step["kind"], step["reason"]) == (
        "manifest",
        "it is to be built from its object, after a reboot for instance",
    )
    assert made.observe().programs == before.programs
    kept = manifest.read(made.paths, 1)
    assert (
        kept is not None
        and kept.object is not None
        and want.object is not None
        and kept.object == want.object
    )
    assert made.ensure(dataclasses.replace(want, object=None))[0] == []
    made.ensure(dataclasses.replace(want, object=None, timeouts={"udp": 7}))
    kept = manifest.read(made.paths, 1)
    assert kept is not None and kept.object == want.object and kept.timeouts == {"udp": 7}, (
        "other settings leave the object where it is"
    )
    path = pathlib.Path(manifest.object_path(made.paths, 1))
    path.write_bytes(path.read_bytes()[:-1])
    assert manifest.read(made.paths, 1) is None
    want = dataclasses.replace(want, timeouts={"udp": 7})
    (step,) = made.ensure(want)[0]
    assert (
        step["reason"]
        == "the state directory has not the object that the active generation is made of"
        and manifest.read(made.paths, 1)
    )
    (step,) = made.ensure(made.want(timeouts={"udp": 7}))[0]
    assert (
        step["reason"] == "it is to be built by bcc, after a reboot for instance"
        and not path.exists()
    )


def test_swaps_between_the_front_ends_keep_the_flows(made: Chain, cache: str) -> None:
    made.ensure(made.want(timeouts=TIMEOUTS))
    made.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    first = numbers(made)
    other = built(changed(made, "changed"), cache)
    made.ensure(other, keep=1)
    assert made.observe().generation == 2 and numbers(made) == first
    made.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    assert [packets for dummy, packets in numbers(made)] == [2] * FLOWS, (
        "each front end goes on with the entries that the other one made"
    )
    made.ensure(changed(made, "by bcc"), keep=1)
    made.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    assert (
        made.observe().generation == 3
        and [packets for dummy, packets in numbers(made)] == [3] * FLOWS
    )
    made.roll_back()
    made.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    assert (
        made.observe().generation == 2
        and [packets for dummy, packets in numbers(made)] == [4] * FLOWS
    )


def test_one_object_is_good_for_tables_of_all_sizes(made: Chain, cache: str, no_bcc: None) -> None:
    want = built(made.want(timeouts=TIMEOUTS), cache)
    made.ensure(want)
    made.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    larger = dataclasses.replace(made.resized(table_size=4096), timeouts=TIMEOUTS)
    assert object_file.sources_digest(larger.text, larger.headers) == object_file.sources_digest(
        want.text, want.headers
    )
    made.ensure(dataclasses.replace(larger, build=generation.OBJECT, object=want.object))
    have = made.observe()
    assert (have.generation, have.maps["ctt"].max_entries, have.faults) == (2, 4096, ()) and len(
        numbers(made)
    ) == FLOWS
    changes = reload.parse(["half_open_size=2048"])
    reload.load(made.paths, reload.wanted(made.paths, changes))
    assert made.observe().maps["ctt_new"].max_entries == 2048, (
        "the host's own command needs no compiler for it either"
    )


def test_a_reboot(made: Chain, cache: str, no_bcc: None) -> None:
    made.ensure(built(made.want(timeouts={"udp": 7}), cache))
    before = made.observe()
    generation.remove_tree(made.paths.base)
    generation.remove_symlinks(made.paths)
    done, have = restore.load(made.paths)
    assert done[0].reason == "no chain is loaded"
    assert (have.generation, have.digest, have.settings, have.faults) == (
        2,
        before.digest,
        before.settings,
        (),
    )
    made.send(udp_frame(4001))
    assert len(made.flows()) == 1 and restore.load(made.paths)[0] == []
    assert not os.path.exists(manifest.object_path(made.paths, 1)) and os.path.exists(
        manifest.object_path(made.paths, 2)
    )
    generation.remove(made.paths)
    assert not os.path.exists(made.paths.state_dir)


# ---------------------------------------------------------------- replayed
def test_generations_are_compared_without_bcc(made: Chain, cache: str, no_bcc: None) -> None:
    with (SOURCES.parent / "replay.pcap").open("rb") as source:
        packets = capture.read(source, "", replay.LIMIT)
    made.ensure(built(made.want(), cache))
    for text, same in (
        (made.changed().text, True),
        (render.render(str(SOURCES), render.Settings(**SIZES, checksum="off")), False),
    ):
        how = replay.Proof(packets, "both", "warn", made.paths)
        generation.ensure(
            made.paths, built(made.want(text), cache), True, generation.Policy(proof=how)
        )
        assert how.report.compared and how.report.frames == len(packets) and how.report.reason == ""
        assert (how.report.differs == "") == same
        assert how.report.counters["old"]["tracked"] > 100


def test_what_the_running_one_was_made_of_by_bcc_can_not_be_told_without_it(
    made: Chain, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.ensure()
    monkeypatch.setitem(sys.modules, "bcc", None)
    how = replay.Proof([capture.Packet(udp_frame(4000), 0)], "both", "warn", made.paths)
    generation.ensure(made.paths, built(made.changed(), cache), True, generation.Policy(proof=how))
    assert (
        not how.report.compared
        and "can not be loaded any more: bcc 0.26 or newer is needed" in how.report.reason
    )


# ---------------------------------------------------------------- guests, and what is refused
def test_guests(made: Chain, cache: str, tmp_path: pathlib.Path, no_bcc: None) -> None:
    def seen() -> int:
        with bpf.closing(bpf.obj_get(made.paths.map("seen_syns"))) as fd:
            return sum(int.from_bytes(value, "little") for value in bpf.percpu_value(fd, 0, 8))

    made.ensure(built(made.want(guest(tmp_path)), cache))
    made.send(udp_frame(4000), udp_frame(4001))
    assert seen() == 2
    made.ensure(built(made.want(guest(tmp_path, "/* changed */")), cache))
    made.send(udp_frame(4002))
    assert seen() == 3, "the next generation has the guest's map"
    with pytest.raises(
        ConntrackError,
        match=(
            "guests: the map seen_syns has another shape in the running generation: max_entries 1,"
            " now 2"
        ),
    ):
        made.ensure(built(made.want(guest(tmp_path, entries=2)), cache))
    assert made.observe().generation == 2 and made.observe().faults == ()


def test_the_verifiers_words_are_told(
    made: Chain, cache: str, tmp_path: pathlib.Path, no_bcc: None
) -> None:
    with pytest.raises(ConntrackError) as raised:
        made.ensure(
            built(made.want(guest(tmp_path, "return ((u8 *)(long)ctx->data)[200];")), cache)
        )
    assert raised.value.message.startswith(
        "load generation 1: loading syns failed: Permission denied\n"
    ), raised.value.message
    assert "invalid access to packet" in raised.value.message
    assert (
        "R0=" in raised.value.facts["compiler_output"]
        or "R1=" in raised.value.facts["compiler_output"]
    )
    assert raised.value.message.endswith("\nsyns.c:16: return ((u8 *)(long)ctx->data)[200];"), (
        "with the line of C"
    )
    assert made.observe().generation is None


def test_the_compilers_words_are_told(made: Chain, tmp_path: pathlib.Path, cache: str) -> None:
    with pytest.raises(ConntrackError) as raised:
        built(made.want(guest(tmp_path, "return nothing;")), cache)
    assert raised.value.message.startswith(
        "compiling the chain failed\nsyns.c:16:12: error: use of undeclared identifier 'nothing'"
    ), raised.value.message


def test_what_is_no_chain(made: Chain, cache: str, tmp_path: pathlib.Path) -> None:
    want = built(made.want(), cache)
    assert want.object is not None
    broken = want.object._replace(data=want.object.data[:1000])
    with pytest.raises(ConntrackError, match="loading the object failed"):
        made.ensure(dataclasses.replace(want, object=broken))
    assert made.observe().generation is None
    with pytest.raises(ConntrackError, match="the object has no program syns"):
        made.ensure(dataclasses.replace(want, text=guest(tmp_path)))


def test_an_object_that_was_not_asked_for(made: Chain) -> None:
    with pytest.raises(ConntrackError, match="Run it again"):
        made.ensure(dataclasses.replace(made.want(), build=generation.OBJECT))
