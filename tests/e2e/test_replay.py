# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The replay before a swap: what differs is named, what may not differ does not take over, and what runs is not touched."""

from __future__ import annotations

import collections.abc as c
import contextlib
import functools
import logging
import os
import pathlib
import random
import signal
import socket
import tempfile
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import attach, bpf, bpffs, capture, chain, generation, render, replay, state
from ansible_collections.ebpf.conntrack.plugins.module_utils.errors import ConntrackError
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import SOURCES, TABLE_SIZE, Chain, bpf_descriptors, udp_frame, veth
from ansible_collections.ebpf.conntrack.tests.oracle import replay_set

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
scapy = pytest.importorskip("scapy.all")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
__all__ = ["veth"]  # a fixture

CLIENT, SERVER = "172.20.56.105", "172.30.56.105"
#: Changes of the sources, each of one place.
CHANGES = {
    "drops port 81": (
        "STAGE(prs_tcp)\n{\n",
        "STAGE(prs_tcp)\n{\n\tstruct tcphdr *to = l4_at(ctx, f, sizeof(*to));\n\n\tif (to && to->dest == BE16(81))\n\t\treturn XDP_DROP;\n",
    ),
    "counts PPPoE as something else": ("COUNT_UNTRACKED_PPPOE, chained", "COUNT_UNTRACKED_NOT_IP, chained"),
    "writes into frames": ("\tproto = eth->h_proto;", "\tproto = eth->h_proto;\n\tif (proto == BE16(ETH_P_ARP))\n\t\teth->h_dest[5] = 7;"),
    "never takes UDP for a stream": ("return set->timeout[TIMEOUT_UDP_STREAM];", "return set->timeout[TIMEOUT_UDP];"),
    "counts related bytes wrong": ("&e->rel_bytes, f->bytes", "&e->rel_bytes, 1"),
}


@pytest.fixture(scope="module")
def rendered() -> tuple[str, dict[str, str]]:
    return render.render(str(SOURCES), render.Settings(TABLE_SIZE, TABLE_SIZE)), render.read_headers(str(SOURCES))


@pytest.fixture(scope="module")
def running(rendered: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[Chain]:
    """A chain that runs, with flows and counters; tests that change it put it back."""
    mounted = bpffs.ensure_mounted(bpffs.STANDARD)
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
            bpffs.release(bpffs.STANDARD)


@pytest.fixture
def loaded(running: Chain) -> c.Iterator[Chain]:
    yield running
    running.ensure()


def changed(made: Chain, name: str, **settings: t.Any) -> generation.Want:
    old, new = CHANGES[name]
    assert made.text.count(old) == 1, name
    return made.want(made.text.replace(old, new), **settings)


def proof(made: Chain, packets: t.Sequence[capture.Packet] | None = None, on_difference: str = "warn", hook: str = "both") -> replay.Proof:
    return replay.Proof(packets or replay_set.packets(), hook, on_difference, functools.partial(state.read, made.paths))


def ensure(made: Chain, want: generation.Want, how: replay.Proof, check_mode: bool = False) -> list[dict[str, t.Any]]:
    plan, dummy = generation.ensure(made.paths, want, check_mode, generation.Policy(0, how))
    return [step.as_dict() for step in plan]


def everything(made: Chain) -> dict[str, t.Any]:
    """What a run could change: pins, the objects they hold, and what is in each map."""
    found: dict[str, t.Any] = {"tree": made.tree(), "stamps": made.stamps()}
    for spec in chain.maps(TABLE_SIZE, TABLE_SIZE):
        with bpf.closing(bpf.obj_get(made.paths.map(spec.name))) as fd:
            if spec.kind == "prog_array":
                found[spec.name] = [bpf.map_lookup(fd, index.to_bytes(4, "little"), 4) for index in range(chain.JT_ENTRIES)]
            elif spec.name != "scratch":
                size = bpf.map_info(fd).value_size * (bpf.possible_cpus() if spec.kind == "percpu_array" else 1)
                found[spec.name] = [(bytes(keys), bytes(values)) for dummy, keys, values in bpf.map_batches(fd, spec.key_size, size)]
    return found


def recorded(*packets: t.Any, kind: str = "pcap") -> list[capture.Packet]:
    """Return packets by way of a file that scapy wrote."""
    with tempfile.NamedTemporaryFile() as file:
        (scapy.wrpcap if kind == "pcap" else scapy.wrpcapng)(file.name, list(packets))
        with open(file.name, "rb") as source:
            return capture.read(source, file.name, 1000)


def handshake(port: int, sport: int = 4444) -> list[t.Any]:
    there = scapy.Ether(dst="02:00:00:00:00:01") / scapy.IP(src=CLIENT, dst=SERVER) / scapy.TCP(sport=sport, dport=port, seq=1, ack=9)
    back = scapy.Ether(dst="02:00:00:00:00:02") / scapy.IP(src=SERVER, dst=CLIENT) / scapy.TCP(sport=port, dport=sport, seq=8, ack=2)
    made = []
    for packet, flags, seq in ((there, "S", 1), (back, "SA", 8), (there, "A", 2)):
        one = packet.copy()
        one[scapy.TCP].flags, one[scapy.TCP].seq = flags, seq
        made.append(one)
    return made


# ---------------------------------------------------------------- what differs
def test_nothing_differs_where_only_a_comment_does(loaded: Chain, figure: c.Callable[[str, object], None]) -> None:
    want, how = loaded.changed(), proof(loaded, on_difference="fail")
    foretold = ensure(loaded, want, proof(loaded), check_mode=True)
    number = loaded.observe().generation
    done = ensure(loaded, want, how)
    assert done == foretold
    assert [step["action"] for step in done] == ["verify", "load", "activate", "delete"]
    assert done[0]["name"] == done[1]["name"] and done[0]["before"] == done[0]["after"]
    report = how.report
    assert (report.reason, report.differs, report.differences, how.warning) == ("", "", [], "")
    assert (report.frames, report.generation, report.skipped, report.cut) == (len(replay_set.steps()), number, 0, 0)
    assert report.verdicts == {side: {"pass": report.frames} for side in ("old", "new")}
    assert report.counters["old"] == report.counters["new"] and report.flows["old"] == report.flows["new"] > 50
    figure("frames replayed before a swap that only changes a comment, and differences", f"{report.frames}, {report.frame_differences}")


def test_a_dropped_port_is_named(loaded: Chain) -> None:
    how = proof(loaded, recorded(*handshake(80), *handshake(81)))
    step, *dummy = ensure(loaded, changed(loaded, "drops port 81"), how)
    report = how.report
    assert [(one.what, one.number, one.hook) for one in report.differences] == [
        ("frame", 4, "ingress"),
        ("frame", 5, "egress"),
        ("frame", 6, "ingress"),
        ("flow", None, None),
    ]
    first = report.differences[0]
    assert first.summary == f"IP {CLIENT}.4444 > {SERVER}.81: Flags [S], length 0"
    assert (first.old, first.new) == ("pass, tracked, created", "drop, not counted")
    assert report.differences[1].new == "pass, invalid_tcp_new"
    assert report.verdicts == {"old": {"pass": 6}, "new": {"pass": 4, "drop": 2}}
    assert report.differences[3][1:4] == (f"tcp {CLIENT}:4444 > {SERVER}:81", "ESTABLISHED, 2 and 1 packets", "no such flow")
    assert (step["before"].count(f"{SERVER}.81"), step["after"].count("drop, not counted")) == (3, 2)
    assert how.warning.startswith("3 frames and 1 flow differ ")


def test_each_change_is_found_in_the_set(loaded: Chain) -> None:
    found = {}
    for name in CHANGES:
        how = proof(loaded)
        ensure(loaded, changed(loaded, name), how, check_mode=True)
        found[name] = how.report
    one = found["counts PPPoE as something else"].differences
    assert [(two.what, two.old, two.new) for two in one] == [("frame", "pass, untracked_pppoe", "pass, untracked_not_ip")]
    assert "ethertype 0x8864" in one[0].summary
    one = found["writes into frames"].differences
    assert [(two.old, two.new) for two in one] == [("pass, untracked_not_ip", "pass, untracked_not_ip, the bytes are changed")]
    for name in ("never takes UDP for a stream", "counts related bytes wrong"):
        assert found[name].frame_differences == 0 < found[name].flow_differences == len(found[name].differences), name
    assert all(120 >= int(two.old.split()[1]) > 100 and int(two.new.split()[1]) <= 30 for two in found["never takes UDP for a stream"].differences)
    assert {two.new.partition(" ")[0] for two in found["counts related bytes wrong"].differences} == {"related.bytes"}


def test_settings_of_each_side_hold(loaded: Chain) -> None:
    """tcp_loose is compared, timeouts that were set to something else are not."""
    how = proof(loaded)
    ensure(loaded, loaded.want(f"{loaded.text}/* */\n", timeouts={"udp": 7, "udp_stream": 8}), how, check_mode=True)
    assert how.report.differs == ""
    how = proof(loaded)
    ensure(loaded, loaded.want(f"{loaded.text}/* */\n", knobs={"tcp_loose": 0}), how, check_mode=True)
    assert {(one.old, one.new) for one in how.report.differences if one.what == "frame" and "created" in one.old} == {
        ("pass, tracked, created", "pass, invalid_tcp_new")
    }


def test_other_checksums(loaded: Chain) -> None:
    how = proof(loaded)
    text = render.render(str(SOURCES), render.Settings(TABLE_SIZE, TABLE_SIZE, "off"))
    ensure(loaded, loaded.want(text), how, check_mode=True)
    wrong = [one for one in how.report.differences if one.what == "frame" and one.old == "pass, invalid_checksum"]
    assert len(wrong) == how.report.counters["old"]["invalid_checksum"]


def test_both_forms_make_the_same_of_it(loaded: Chain) -> None:
    how = proof(loaded)
    ensure(loaded, loaded.want(render.render(str(SOURCES), render.Settings(TABLE_SIZE, TABLE_SIZE, fused=True))), how, check_mode=True)
    assert (how.report.differs, how.report.reason) == ("", "")


def test_long_lists_are_cut_and_counted(loaded: Chain) -> None:
    packets = recorded(*(packet for port in range(1000, 1030) for packet in handshake(81, port)))
    how = proof(loaded, packets)
    ensure(loaded, changed(loaded, "drops port 81"), how, check_mode=True)
    assert (how.report.frame_differences, how.report.flow_differences) == (90, 30)
    assert [one.what for one in how.report.differences] == ["frame"] * replay.LISTED + ["flow"] * replay.LISTED


# ---------------------------------------------------------------- what may not differ
def test_what_may_not_differ_does_not_take_over(loaded: Chain) -> None:
    before, held = everything(loaded), bpf_descriptors()
    for check_mode in (True, False):
        with pytest.raises(ConntrackError) as raised:
            ensure(loaded, changed(loaded, "drops port 81"), proof(loaded, recorded(*handshake(81)), "fail"), check_mode)
        assert f"frame 1 (ingress) IP {CLIENT}.4444 > {SERVER}.81: Flags [S], length 0: pass, tracked, created -> drop" in raised.value.message
        assert "The running generation stays." in raised.value.message
        assert raised.value.facts["replay"]["frame_differences"] == 3
        assert everything(loaded) == before
        assert bpf_descriptors() == held
    assert loaded.ensure()[0] == []


def test_check_mode_changes_nothing(loaded: Chain) -> None:
    before, held = everything(loaded), bpf_descriptors()
    foretold = ensure(loaded, changed(loaded, "drops port 81"), proof(loaded), check_mode=True)
    assert everything(loaded) == before and bpf_descriptors() == held
    assert ensure(loaded, changed(loaded, "drops port 81"), proof(loaded)) == foretold


def test_sources_that_are_not_known(loaded: Chain) -> None:
    manifests: list[tuple[generation.Want | None, str]] = [
        (None, "the sources of generation"),
        (loaded.changed("another"), "is not that of what runs"),
    ]
    before = everything(loaded)
    for manifest, why in manifests:
        how = replay.Proof(replay_set.packets(), "both", "fail", lambda dummy: manifest)  # noqa: B023  called at once
        with pytest.raises(ConntrackError, match=why) as raised:
            ensure(loaded, loaded.changed(), how)
        assert "The running generation stays." in raised.value.message
        assert everything(loaded) == before
    how = replay.Proof(replay_set.packets(), "both", "warn", lambda dummy: None)
    step = ensure(loaded, loaded.changed(), how)[0]
    assert "not compared: the sources of generation" in step["reason"] and "tracked" in step["after"]
    assert "were not compared" in how.warning


def test_sources_that_do_not_compile_fail_as_ever(loaded: Chain) -> None:
    before, held = everything(loaded), bpf_descriptors()
    with pytest.raises(ConntrackError, match=r"ingress\.c:6:\d+: error: expected ';'"):
        ensure(loaded, loaded.want(loaded.text.replace("return enter(ctx, 0);", "return enter(ctx, 0)")), proof(loaded))
    assert everything(loaded) == before and bpf_descriptors() == held


# ---------------------------------------------------------------- when there is nothing to compare
def test_the_first_load_and_a_repair(made_for_itself: Chain) -> None:
    made = made_for_itself
    how = proof(made, on_difference="fail")
    foretold = ensure(made, made.want(), proof(made), check_mode=True)
    assert made.tree() == {}
    step, *rest = ensure(made, made.want(), how)
    assert [step, *rest] == foretold
    assert (step["action"], how.report.generation, how.report.verdicts, how.warning) == ("verify", None, {"new": {"pass": how.report.frames}}, "")
    assert "no generation is loaded yet" in step["reason"]
    how = proof(made)
    assert ensure(made, made.want(), how) == []
    assert (how.report.frames, how.report.reason) == (0, "no other sources are to be loaded")
    with bpf.closing(bpf.obj_get(made.paths.map("jt"))) as fd:
        bpf.map_delete(fd, chain.SLOTS["ct"].to_bytes(4, "little"))
    assert [step["action"] for step in ensure(made, made.want(), proof(made))] == ["load", "activate", "delete"], "the same sources"


@pytest.fixture
def made_for_itself(rendered: tuple[str, dict[str, str]], running: Chain, tmp_path: pathlib.Path) -> c.Iterator[Chain]:
    root = f"{running.paths.pin_root}_first"
    os.mkdir(root)
    made = Chain(bpffs.Paths(root, str(tmp_path / "state")), *rendered)
    yield made
    generation.remove(made.paths)
    generation.remove_tree(root)


# ---------------------------------------------------------------- what runs
def test_live_traffic_is_undisturbed(loaded: Chain, veth: None) -> None:
    """While frames are replayed all the time, each frame that comes in over the wire is counted once, and nothing else is."""
    loaded.interface()
    try:
        loaded.send(udp_frame(1))  # the first frame may need its page
        before = loaded.stats()
        sent = 0
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("right", 0))
            thread = threading.Thread(target=lambda: ensure(loaded, changed(loaded, "drops port 81"), proof(loaded), check_mode=True))
            thread.start()
            while thread.is_alive():
                sent += wire.send(udp_frame(5000 + sent // 60 % 100)) > 0
                time.sleep(0.001)
            thread.join()
        deadline = time.monotonic() + 5
        while loaded.stats()["tracked"] - before["tracked"] < sent and time.monotonic() < deadline:
            time.sleep(0.01)
        after = loaded.stats()
        assert sent > 50
        raised = {name: after[name] - before[name] for name in after if after[name] != before[name]}
        assert raised.pop("created") <= 100 and raised == {"tracked": sent}
    finally:
        attach.converge("absent", None, "auto", False, loaded.paths.pin_root, False)


def test_a_killed_replay_leaves_nothing(loaded: Chain) -> None:
    before = everything(loaded)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            ran = iter(range(100))

            def kill(name: str) -> None:
                if name == "bpf_prog_test_run_opts" and next(ran) == 50:
                    os.kill(os.getpid(), signal.SIGKILL)

            bpf.fault = kill
            ensure(loaded, loaded.changed(), proof(loaded))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert everything(loaded) == before
    assert loaded.ensure()[0] == []


# ---------------------------------------------------------------- captures
@pytest.mark.parametrize(("kind", "hook"), [("pcap", "ingress"), ("pcapng", "both"), ("pcapng", "egress")])
def test_a_capture_that_scapy_wrote(loaded: Chain, kind: str, hook: str) -> None:
    packets = recorded(*handshake(81), kind=kind)
    assert [packet.data for packet in packets] == [bytes(packet) for packet in handshake(81)]
    how = proof(loaded, packets, hook=hook)
    ensure(loaded, changed(loaded, "drops port 81"), how, check_mode=True)
    hooks = ["ingress", "egress", "ingress"] if hook == "both" else [hook] * 3
    assert [one.hook for one in how.report.differences if one.what == "frame"] == hooks


def test_frames_that_no_test_run_takes_are_skipped(loaded: Chain) -> None:
    whole = scapy.Ether() / scapy.IP(src=CLIENT, dst=SERVER) / scapy.UDP(sport=1, dport=2)
    longest = whole / bytes(replay._LONGEST - 42)
    packets = recorded(whole, longest, whole / bytes(replay._LONGEST - 41), whole)
    how = proof(loaded, [*packets, capture.Packet(b"short", 0, True)])
    ensure(loaded, loaded.changed(), how, check_mode=True)
    assert (how.report.frames, how.report.skipped, how.report.cut) == (3, 2, 1)
    assert how.report.counters["new"]["tracked"] == 3
