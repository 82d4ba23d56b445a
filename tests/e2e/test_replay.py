# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The replay before a swap: what differs is named, what may not differ does not take over, and what
runs is not touched.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import itertools
import logging
import os
import pathlib
import random
import socket
import tempfile
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import manifest
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import (
    capture,
    shadow,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import run as replay
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    bpffs,
    bpffs_mount,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support import syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    SOURCES,
    TABLE_SIZE,
    Chain,
    bpf_descriptors,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import replay_set

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
scapy = pytest.importorskip("scapy.all")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
__all__ = ["veth"]  # a fixture

CLIENT, SERVER = "172.20.56.105", "172.30.56.105"
#: Changes of the sources, each of one place.
CHANGES = {
    "drops port 81": (
        "STAGE(prs_tcp)\n{\n",
        (
            "STAGE(prs_tcp)\n{\n\tstruct tcphdr *to = l4_at(ctx, f, sizeof(*to));\n\n\tif (to &&"
            " to->dest == BE16(81))\n\t\treturn XDP_DROP;\n"
        ),
    ),
    "counts PPPoE as something else": (
        "COUNT_UNTRACKED_PPPOE, chained",
        "COUNT_UNTRACKED_NOT_IP, chained",
    ),
    "writes into frames": (
        "\tproto = eth->h_proto;",
        "\tproto = eth->h_proto;\n\tif (proto == BE16(ETH_P_ARP))\n\t\teth->h_dest[5] = 7;",
    ),
    "never takes UDP for a stream": (
        "return set->timeout[TIMEOUT_UDP_STREAM];",
        "return set->timeout[TIMEOUT_UDP];",
    ),
    "counts related bytes wrong": ("&e->rel_bytes, f->bytes", "&e->rel_bytes, 1"),
}


@pytest.fixture(scope="module")
def rendered() -> tuple[str, dict[str, str]]:
    return render.render(
        str(SOURCES), render.Settings(TABLE_SIZE, TABLE_SIZE)
    ), render.read_headers(str(SOURCES))


@pytest.fixture(scope="module")
def running(
    rendered: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> c.Iterator[Chain]:
    """A chain that runs, with flows and counters. Its sources are those of the collection, but for
    comments.
    """
    mounted = bpffs_mount.ensure_mounted(bpffs.STANDARD)
    root = f"{bpffs.STANDARD}/replay{random.randrange(1 << 32):08x}"
    os.mkdir(root)
    made = Chain(bpffs.Paths(root, str(tmp_path_factory.mktemp("replay") / "state")), *rendered)
    try:
        made.ensure()
        made.send(*(udp_frame(4000 + number) for number in range(20)))
        yield made
    finally:
        generation.remove(made.paths)
        generation.remove_tree(root)
        if mounted:
            bpffs_mount.release(bpffs.STANDARD)


def changed(made: Chain, name: str, **settings: t.Any) -> generation.Want:
    old, new = CHANGES[name]
    assert made.text.count(old) == 1, name
    return made.want(made.text.replace(old, new), **settings)


def proof(
    made: Chain,
    packets: t.Sequence[capture.Packet] | None = None,
    on_difference: str = "warn",
    hook: str = "both",
) -> replay.Proof:
    return replay.Proof(packets or replay_set.packets(), hook, on_difference, made.paths)


def ensure(
    made: Chain, want: generation.Want, how: replay.Proof, check_mode: bool = False
) -> list[dict[str, t.Any]]:
    plan, dummy = generation.ensure(made.paths, want, check_mode, generation.Policy(0, how))
    return [step.as_dict() for step in plan]


def everything(made: Chain) -> dict[str, t.Any]:
    """What a run could change: pins, the objects they hold, and what is in each map."""
    found: dict[str, t.Any] = {"tree": made.tree(), "stamps": made.stamps()}
    for spec in chain_maps.maps(TABLE_SIZE, TABLE_SIZE):
        with bpf.closing(bpf.obj_get(made.paths.map(spec.name))) as fd:
            if spec.kind == "prog_array":
                found[spec.name] = [
                    bpf.map_lookup(fd, index.to_bytes(4, "little"), 4)
                    for index in range(chain_programs.JT_ENTRIES)
                ]
            elif spec.name != "scratch":
                size = bpf.map_info(fd).value_size * (
                    bpf.possible_cpus() if spec.kind == "percpu_array" else 1
                )
                found[spec.name] = [
                    (bytes(keys), bytes(values))
                    for dummy, keys, values in bpf.map_batches(fd, spec.key_size, size)
                ]
    return found


def recorded(*packets: t.Any, kind: str = "pcap") -> list[capture.Packet]:
    """Return packets by way of a file that scapy wrote."""
    with tempfile.NamedTemporaryFile() as file:
        (scapy.wrpcap if kind == "pcap" else scapy.wrpcapng)(file.name, list(packets))
        with open(file.name, "rb") as source:
            return capture.read(source, file.name, 1000)


def handshake(port: int, sport: int = 4444) -> list[t.Any]:
    there = (
        scapy.Ether(dst="02:00:00:00:00:01")
        / scapy.IP(src=CLIENT, dst=SERVER)
        / scapy.TCP(sport=sport, dport=port, seq=1, ack=9)
    )
    back = (
        scapy.Ether(dst="02:00:00:00:00:02")
        / scapy.IP(src=SERVER, dst=CLIENT)
        / scapy.TCP(sport=port, dport=sport, seq=8, ack=2)
    )
    made = []
    for packet, flags, seq in ((there, "S", 1), (back, "SA", 8), (there, "A", 2)):
        one = packet.copy()
        one[scapy.TCP].flags, one[scapy.TCP].seq = flags, seq
        made.append(one)
    return made


# ---------------------------------------------------------------- what differs
def test_nothing_differs_where_only_a_comment_does(
    running: Chain, figure: c.Callable[[str, object], None]
) -> None:
    before, held = everything(running), bpf_descriptors()
    foretold = ensure(running, running.changed(), proof(running), check_mode=True)
    assert everything(running) == before and bpf_descriptors() == held
    number, how = running.observe().generation, proof(running, on_difference="fail")
    done = ensure(running, running.changed(), how)
    assert done == foretold
    assert [step["action"] for step in done] == ["verify", "load", "activate", "delete"]
    assert done[0]["name"] == done[1]["name"] and done[0]["before"] == done[0]["after"]
    report = how.report
    assert (report.reason, report.differs, report.differences, how.warning) == ("", "", [], "")
    assert (report.frames, report.generation, report.skipped, report.cut) == (
        len(replay_set.steps()),
        number,
        0,
        0,
    )
    assert report.verdicts == {side: {"pass": report.frames} for side in ("old", "new")}
    assert (
        report.counters["old"] == report.counters["new"]
        and report.flows["old"] == report.flows["new"] > 50
    )
    figure(
        "frames replayed before a swap that only changes a comment, and differences",
        f"{report.frames}, {report.frame_differences}",
    )


def test_a_dropped_port_is_named_and_long_lists_are_cut(running: Chain) -> None:
    how = proof(
        running,
        recorded(
            *handshake(80),
            *(packet for sport in range(4444, 4474) for packet in handshake(81, sport)),
        ),
    )
    step, *dummy = ensure(running, changed(running, "drops port 81"), how, check_mode=True)
    report = how.report
    assert (report.frame_differences, report.flow_differences) == (90, 30)
    assert report.verdicts == {"old": {"pass": 93}, "new": {"pass": 33, "drop": 60}}
    assert [one.what for one in report.differences] == ["frame"] * replay.LISTED + [
        "flow"
    ] * replay.LISTED
    there, back, again = report.differences[:3]
    assert (there.number, there.hook, there.summary) == (
        4,
        "ingress",
        f"IP {CLIENT}.4444 > {SERVER}.81: Flags [S], length 0",
    )
    assert (there.old, there.new) == ("pass, tracked, created", "drop, not counted")
    assert (back.number, back.hook, back.new) == (5, "egress", "pass, invalid_tcp_new")
    assert (again.number, again.hook, again.new) == (6, "ingress", "drop, not counted")
    assert (f"tcp {CLIENT}:4444 > {SERVER}:81", "ESTABLISHED, 2 and 1 packets", "no such flow") in [
        one[1:4] for one in report.differences
    ]
    assert (
        f"frame 4 {there.summary}: {there.old}; frame 5" in step["before"]
        and f"frame 4 {there.summary}: {there.new}; frame 5" in step["after"]
    )
    assert how.warning.startswith("90 frames and 30 flows differ ")


def test_each_change_is_found_in_the_set(running: Chain) -> None:
    text = running.text
    for old, new in (CHANGES[name] for name in CHANGES if name != "drops port 81"):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    how = proof(running)
    ensure(running, running.want(text), how, check_mode=True)
    pppoe, arp = sorted(
        (one for one in how.report.differences if one.what == "frame"),
        key=lambda one: one.summary,
        reverse=True,
    )
    assert "ethertype 0x8864" in pppoe.summary and (pppoe.old, pppoe.new) == (
        "pass, untracked_pppoe",
        "pass, untracked_not_ip",
    )
    assert "ethertype 0x0806" in arp.summary and (arp.old, arp.new) == (
        "pass, untracked_not_ip",
        "pass, untracked_not_ip, the bytes are changed",
    )
    flows = [one for one in how.report.differences if one.what == "flow"]
    streams = [one for one in flows if one.old.startswith("timeout ")]
    assert len(streams) == 2 and all(
        100 < int(one.old.split()[1]) <= 120 and int(one.new.split()[1]) <= 30 for one in streams
    )
    related = [one for one in flows if one.old.startswith("related.bytes ")]
    assert (
        len(related) > 2
        and len(streams) + len(related) == len(flows) == how.report.flow_differences
    )


def test_settings_of_each_side_hold(running: Chain) -> None:
    """tcp_loose is compared, timeouts that are to be others are not."""
    how = proof(running)
    ensure(
        running,
        running.want(
            f"{running.text}/* */\n", timeouts={"udp": 7, "udp_stream": 8}, knobs={"tcp_loose": 0}
        ),
        how,
        check_mode=True,
    )
    picked_up = [
        one for one in how.report.differences if one.what == "frame" and "created" in one.old
    ]
    assert picked_up and {(one.old, one.new) for one in picked_up} == {
        ("pass, tracked, created", "pass, invalid_tcp_new")
    }
    assert "timeout" not in how.warning and how.report.flow_differences


def test_frames_that_any_cpu_takes_differ_in_nothing(
    running: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the run moves between CPUs; each has free entries of the tables that the
    others do not get.
    """
    turns, cpus, run = itertools.count(), sorted(os.sched_getaffinity(0)), shadow.Shadow.run
    datagrams = [
        scapy.Ether(dst="02:00:00:00:00:01")
        / scapy.IP(src=CLIENT, dst=SERVER)
        / scapy.UDP(sport=5000 + number, dport=53)
        for number in range(300)
    ]

    def elsewhere(self: shadow.Shadow, hook: str, data: bytes, at_ns: int) -> shadow.Result:
        frame, side = divmod(next(turns), 2)
        os.sched_setaffinity(0, {cpus[frame * side % len(cpus)]})
        return run(self, hook, data, at_ns)

    monkeypatch.setattr(shadow.Shadow, "run", elsewhere)
    how = proof(running, recorded(*datagrams, *datagrams[:20]))
    try:
        ensure(running, running.want(f"{running.text}\n/* one more */\n"), how, check_mode=True)
    finally:
        os.sched_setaffinity(0, cpus)
    assert (how.report.differs, how.report.frames, how.report.flows) == (
        "",
        320,
        {"old": 300, "new": 300},
    )


def test_a_shadows_jump_table_is_never_without_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel empties one that is, at some later time: what stood in it when bcc let go of its
    own descriptor has to be there still.
    """
    import bcc

    text = shadow.shadow_text(
        render.render(str(SOURCES), render.Settings(TABLE_SIZE, TABLE_SIZE)), 1
    )
    headers = render.read_headers(str(SOURCES))
    maps: dict[str, int] = {}
    programs: list[int] = []
    cleanup = bcc.BPF.cleanup

    def watched(self: t.Any) -> None:
        if programs:  # once more when Python ends
            return
        programs.append(
            os.dup(self.load_func(b"prs_end", bcc.BPF.XDP, attach_type=bpf_constants.ATTACH_XDP).fd)
        )
        bpf.map_update(maps["jt"], bytes(4), programs[0].to_bytes(4, "little"))
        cleanup(self)

    monkeypatch.setattr(bcc.BPF, "cleanup", watched)
    loaded = build_bcc.build(text, headers, ("ingress", "prs_end"), maps)
    try:
        time.sleep(0.3)
        assert bpf.map_lookup(maps["jt"], bytes(4), 4) is not None
    finally:
        for fd in (*loaded.values(), *maps.values(), *programs):
            bpf.close(fd)


def test_another_form_that_takes_all_checksums(running: Chain) -> None:
    how = proof(running)
    ensure(
        running,
        running.want(
            render.render(
                str(SOURCES), render.Settings(TABLE_SIZE, TABLE_SIZE, checksum="off", fused=True)
            )
        ),
        how,
        check_mode=True,
    )
    differing = [one for one in how.report.differences if one.what == "frame"]
    assert {one.old for one in differing} == {"pass, invalid_checksum"}, [
        str(one) for one in differing if one.old != "pass, invalid_checksum"
    ]
    assert (
        len(differing) == how.report.counters["old"]["invalid_checksum"]
        and "invalid_checksum" not in how.report.counters["new"]
    )


# ---------------------------------------------------------------- guests
def test_guests_do_in_a_shadow_what_they_are_set_to(guarded: Chain) -> None:
    """The access list drops what no rule lets in, by the rules that the running one has: none for a
    connection from outside to port 81.
    """
    with bpf.closing(bpf.obj_get(guarded.paths.map("acl_set"))) as fd:
        bpf.map_update(fd, ACL_MODE.to_bytes(4, "little"), ACL_DROP.to_bytes(4, "little"))
    before = everything(guarded)
    how = proof(guarded, recorded(*handshake(81)), hook="egress")
    ensure(guarded, guarded.changed(), how, check_mode=True)
    assert (how.report.reason, how.report.differs) == ("", "")
    assert how.report.verdicts == {side: {"drop": 3} for side in ("old", "new")}
    assert everything(guarded) == before


ACL_MODE, ACL_DROP = 0, 1


@pytest.fixture
def guarded(made_for_itself: Chain) -> Chain:
    """A chain with the access list that comes with the collection."""
    asked = guests.read(
        guests.parse([{"slot": "acl", "src": str(SOURCES / "guests/acl.c")}]), str, ()
    )
    made = dataclasses.replace(
        made_for_itself,
        text=render.render(str(SOURCES), render.Settings(TABLE_SIZE, TABLE_SIZE), asked),
    )
    made.ensure()
    return made


# ---------------------------------------------------------------- what may not differ
def test_what_may_not_differ_does_not_take_over(running: Chain) -> None:
    before, held = everything(running), bpf_descriptors()
    with pytest.raises(ConntrackError) as raised:
        ensure(
            running,
            changed(running, "drops port 81"),
            proof(running, recorded(*handshake(81)), "fail"),
        )
    assert (
        f"frame 1 (ingress) IP {CLIENT}.4444 > {SERVER}.81: Flags [S], length 0: pass, tracked,"
        " created -> drop" in raised.value.message
    )
    assert "The running generation stays." in raised.value.message
    assert raised.value.facts["replay"]["frame_differences"] == 3
    assert everything(running) == before and bpf_descriptors() == held


def test_sources_that_are_not_known(running: Chain) -> None:
    number = t.cast("int", running.observe().generation)
    kept = manifest.read(running.paths, number)
    assert kept
    for forget, why in (
        (
            lambda: manifest.write(running.paths, number, running.changed("another")),
            "is not that of what runs",
        ),
        (
            lambda: manifest.forget_generation(running.paths, number),
            "the sources of generation .* are not known",
        ),
    ):
        forget()
        before = everything(running)
        with pytest.raises(ConntrackError, match=why) as raised:
            ensure(running, running.changed("more"), proof(running, on_difference="fail"))
        assert "The running generation stays." in raised.value.message
        assert everything(running) == before
    how = proof(running)
    step = next(
        step
        for step in ensure(running, running.changed("more"), how, check_mode=True)
        if step["action"] == "verify"
    )
    assert (
        "not compared: the sources of generation" in step["reason"] and "tracked" in step["after"]
    )
    assert "were not compared" in how.warning
    manifest.write(running.paths, number, kept)


def test_sources_that_do_not_compile_fail_as_ever(running: Chain) -> None:
    before, held = everything(running), bpf_descriptors()
    with pytest.raises(ConntrackError, match=r"ingress\.c:9:\d+: error: expected ';'"):
        ensure(
            running,
            running.want(running.text.replace("return enter(ctx, 0);", "return enter(ctx, 0)")),
            proof(running),
        )
    assert everything(running) == before and bpf_descriptors() == held


# ---------------------------------------------------------------- when there is nothing to compare
def test_the_first_load_and_a_repair(made_for_itself: Chain) -> None:
    made = made_for_itself
    how = proof(made, on_difference="fail")
    step, *dummy = ensure(made, made.want(), how)
    assert (step["action"], how.report.generation, how.report.verdicts, how.warning) == (
        "verify",
        None,
        {"new": {"pass": how.report.frames}},
        "",
    )
    assert "no generation is loaded yet" in step["reason"]
    how = proof(made)
    assert ensure(made, made.want(), how) == []
    assert (how.report.frames, how.report.reason) == (0, "no other sources are to be loaded")
    with bpf.closing(bpf.obj_get(made.paths.map("jt"))) as fd:
        bpf.map_delete(fd, chain_programs.SLOTS["ct"].to_bytes(4, "little"))
    assert [step["action"] for step in ensure(made, made.want(), proof(made))] == [
        "load",
        "activate",
        "delete",
    ], "the same sources"


@pytest.fixture
def made_for_itself(
    rendered: tuple[str, dict[str, str]], running: Chain, tmp_path: pathlib.Path
) -> c.Iterator[Chain]:
    root = f"{running.paths.pin_root}_first"
    os.mkdir(root)
    made = Chain(bpffs.Paths(root, str(tmp_path / "state")), *rendered)
    yield made
    generation.remove(made.paths)
    generation.remove_tree(root)


# ---------------------------------------------------------------- what runs
def test_live_traffic_is_undisturbed(running: Chain, veth: None) -> None:
    """While frames are replayed all the time, each frame that comes in over the wire is counted
    once, and nothing else is.
    """
    running.interface()
    try:
        running.send(udp_frame(1))  # the first frame may need its page
        before = running.stats()
        sent = 0
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("right", 0))
            thread = threading.Thread(
                target=lambda: ensure(
                    running, changed(running, "drops port 81"), proof(running), check_mode=True
                )
            )
            thread.start()
            while thread.is_alive():
                sent += wire.send(udp_frame(5000 + sent // 60 % 100)) > 0
                time.sleep(0.001)
            thread.join()
        deadline = time.monotonic() + 5
        while running.stats()["tracked"] - before["tracked"] < sent and time.monotonic() < deadline:
            time.sleep(0.01)
        after = running.stats()
        assert sent > 50
        raised = {name: after[name] - before[name] for name in after if after[name] != before[name]}
        assert raised.pop("created") <= 100 and raised == {"tracked": sent}
    finally:
        attach.converge("absent", None, "auto", False, running.paths.pin_root, False)


def test_a_killed_replay_leaves_nothing(running: Chain) -> None:
    before = everything(running)
    assert syscalls.killed(
        lambda: ensure(running, running.changed("more"), proof(running)),
        syscalls.is_call("bpf PROG_TEST_RUN"),
        51,
    )
    assert everything(running) == before


# ---------------------------------------------------------------- captures
def test_a_capture_in_pcapng_of_frames_that_no_test_run_takes(running: Chain) -> None:
    whole = scapy.Ether() / scapy.IP(src=CLIENT, dst=SERVER) / scapy.UDP(sport=1, dport=2)
    sent = [whole, whole / bytes(replay._LONGEST - 42), whole / bytes(replay._LONGEST - 41), whole]
    packets = recorded(*sent, kind="pcapng")
    assert [packet.data for packet in packets] == [bytes(packet) for packet in sent]
    how = proof(running, [*packets, capture.Packet(b"short", 0, True)])
    ensure(running, running.changed("more"), how, check_mode=True)
    assert (how.report.frames, how.report.skipped, how.report.cut) == (3, 2, 1)
    assert how.report.counters["new"]["tracked"] == 3
