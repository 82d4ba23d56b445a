# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module is killed, and refused, at its system calls (at one of STRIDE of them); the next run
ends well, and nothing stays behind.
"""

from __future__ import annotations

import collections.abc as c
import hashlib
import os
import re
import socket
import struct
import sys
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import libraries
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    apply as generation_apply,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    probe as generation_probe,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import probe_whole, traffic
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpffs,
    netdev,
    netns,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support import faults, syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.support.faults import Call, Ending, Scenario
from ansible_collections.ebpf.conntrack.tests.e2e.support.sandbox import sandboxed, shell
from ansible_collections.ebpf.conntrack.tests.support import compiled
from ansible_collections.ebpf.conntrack.tests.tools import tree
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SERVER, ROUTER6 = "172.30.56.105", "2001:db8:1::1"


def lab(*more: str) -> dict[str, t.Any]:
    """Return the lab's options: two namespaces behind the router, which is the host, over IPv6 only
    the first; ``more`` ones have no links.
    """
    nets = {"1": ("172.20.56", "2001:db8:1::"), "2": ("172.30.56", "")}

    def end(name: str, netns: str | None, number: int, nets: tuple[str, str]) -> dict[str, t.Any]:
        addresses = [f"{nets[0]}.{number}/24"] + ([f"{nets[1]}{number}/64"] if nets[1] else [])
        return {"name": name, "netns": netns, "addresses": addresses}

    return {
        "namespaces": [
            *(
                {"name": f"ns{n}", "routes": [{"dst": "default", "via": f"{net}.1"}]}
                for n, (net, dummy) in nets.items()
            ),
            *({"name": name, "sysctls": {"net.ipv4.tcp_syncookies": 0}} for name in more),
        ],
        "links": [
            {"ends": [end(f"ns{n}-wan", f"ns{n}", 105, both), end(f"ns{n}-lan", None, 1, both)]}
            for n, both in nets.items()
        ],
    }


def traffic_passes() -> None:
    """A datagram goes from ns1 to ns2 and is answered, and one over IPv6 to the router."""
    for family, namespace, address in (
        (socket.AF_INET, "ns2", SERVER),
        (socket.AF_INET6, None, ROUTER6),
    ):
        with netns.entered("ns1"):
            client = socket.socket(family, socket.SOCK_DGRAM)
        with netns.entered(namespace):
            server = socket.socket(family, socket.SOCK_DGRAM)
        with client, server:
            server.bind((address, 5300))
            for one in (client, server):
                one.settimeout(2)
            client.sendto(b"ping", (address, 5300))
            question, sender = server.recvfrom(64)
            server.sendto(b"pong", sender)
            assert (question, client.recv(64)) == (b"ping", b"pong")


def nothing_there() -> None:
    """Nothing of the lab is there."""
    assert os.listdir("/run/netns") == [] and not os.path.exists("/run/ebpf_conntrack")
    assert "lan" not in shell("ip link")


LAB, NO_LAB = Call("netns_lab", lab()), Call("netns_lab", {"state": "absent"})
WIDE_LAB, OTHER_LAB = Call("netns_lab", lab("ns3")), Call("netns_lab", lab("ns4"))


def lab_drifts() -> None:
    """Bring the lab up and let it drift."""
    WIDE_LAB.run()
    shell(
        "ip -n ns1 link set ns1-wan mtu 1400; ip link set ns1-lan address 02:11:11:11:11:11; ip -n"
        " ns1 addr add 172.20.56.77/24 dev ns1-wan;ip -n ns2 route replace default via"
        " 172.30.56.99; ip route add 10.88.0.0/16 via 172.20.56.105; echo 0 >"
        " /proc/sys/net/ipv4/conf/all/forwarding"
    )


LAB_SCENARIOS = {
    "build": Scenario(
        lambda: None,
        LAB,
        (Ending(LAB, traffic_passes), Ending(NO_LAB, nothing_there)),
        (NO_LAB.run,),
    ),
    "change": Scenario(
        lab_drifts,
        OTHER_LAB,
        (Ending(OTHER_LAB, traffic_passes), Ending(NO_LAB, nothing_there)),
        (NO_LAB.run,),
    ),
    "remove": Scenario(
        LAB.run, NO_LAB, (Ending(NO_LAB, nothing_there), Ending(LAB, traffic_passes)), (NO_LAB.run,)
    ),
}


# ---------------------------------------------------------------- a chain that costs no compiler
#: The sources of two generations: what is compiled plays no part in how they follow each other.
SOURCES = [render.pack(f'"{render.MAP_DIR}/meta" {number}', {"header.h": ""}) for number in (1, 2)]
TABLE: dict[str, t.Any] = {
    "table_size": 64,
    "table_size6": 16,
    "half_open_size": 16,
    "half_open_size6": 16,
}
ENTRIES = 20
CHAIN = Call("xdp_program", {"rendered": SOURCES[0], **TABLE})
NEXT_CHAIN, NO_CHAIN = CHAIN.but(rendered=SOURCES[1]), Call("xdp_program", {"state": "absent"})
ATTACH = Call(
    "xdp_attach",
    {
        "interfaces": [
            {"name": "ns1-lan", "program": "ingress"},
            {"name": "ns2-lan", "program": "egress"},
        ]
    },
)
DETACH = Call("xdp_attach", {"state": "absent"})
#: Where each hook counts, besides where the frame of proof counts.
COUNTERS = {
    "ingress": chain_counters.COUNTERS.index("untracked_eth_short"),
    "egress": chain_counters.COUNTERS.index("untracked_vlan_depth"),
}
PROOF = chain_counters.COUNTERS.index("untracked_not_ip")
PATHS = bpffs.Paths(bpffs.STANDARD)
U32, U64 = struct.Struct("=I"), struct.Struct("=Q")


def counting(stats: int, *counters: int) -> bytes:
    """Return a program that counts each frame, and passes it."""
    insn = struct.Struct("=BBhi").pack
    code = b""
    for counter in counters:
        # the key on the stack; r1 = the map
        code += insn(0x62, 10, -4, counter) + insn(0x18, 0x11, 0, stats) + bytes(8)
        # r2 = the key; r0 = bpf_map_lookup_elem()
        code += insn(0xBF, 0xA2, 0, 0) + insn(0x07, 2, 0, -4) + insn(0x85, 0, 0, 1)
        code += (
            insn(0x15, 0, 3, 0) + insn(0x79, 1, 0, 0) + insn(0x07, 1, 0, 1) + insn(0x7B, 0x10, 0, 0)
        )  # if (r0) ++*r0
    return code + bpf.xdp_pass_insns()


def build(text: str, dummy_headers: t.Mapping[str, str]) -> dict[str, int]:
    """Stand in for the compiler: the entries count frames, the other stages only pass them."""
    directory = os.path.dirname(text.split('"')[1])
    # what the first frame does; it was long before the entries of fill_table() were seen last
    with bpf.closing(bpf.obj_get(f"{directory}/meta")) as meta:
        for name, value in {
            "jiffies": (1 << 33) - (1 << 20),
            "ktime_ns": time.monotonic_ns(),
        }.items():
            bpf.map_update(meta, U32.pack(chain_maps.META[name]), U64.pack(value))
    with bpf.closing(bpf.obj_get(f"{directory}/stats")) as stats:
        code = {name: counting(stats, PROOF, counter) for name, counter in COUNTERS.items()}
        return {
            name: bpf.prog_load(code.get(name, bpf.xdp_pass_insns()), name)
            for name in chain_programs.SLOTS
        }


def lab_with_quick_chain() -> None:
    """Bring the lab up, and let what loads the chain neither compile nor wait."""
    vars(generation_apply.build_bcc)["build"] = build
    probe_whole.prove_whole = lambda entries, stats, guests=False: generation_probe.prove(
        entries["ingress"], stats, guests
    )
    generation_apply._GRACE_SECONDS = traffic._PAUSE = 0
    LAB.run()


def lab_with_chain() -> None:
    lab_with_quick_chain()
    CHAIN.run()


def counted() -> list[int]:
    with bpf.closing(bpf.obj_get(PATHS.map("stats"))) as stats:
        return [
            sum(U64.unpack(value)[0] for value in bpf.percpu_value(stats, counter, U64.size))
            for counter in COUNTERS.values()
        ]


def traffic_is_counted() -> None:
    """What passes is counted on both hooks."""
    before = counted()
    traffic_passes()
    after = counted()
    assert all(now > then for now, then in zip(after, before, strict=True)), (before, after)


def fill_table() -> None:
    with bpf.closing(bpf.obj_get(PATHS.map("ctt"))) as ctt:
        for number in range(ENTRIES):
            bpf.map_update(
                ctt,
                number.to_bytes(chain_layout.KEY4.size, "big"),
                number.to_bytes(chain_layout.ENTRY.size, "little"),
            )


def flows() -> int:
    with bpf.closing(bpf.obj_get(PATHS.map("ctt"))) as ctt:
        return sum(
            count
            for count, dummy, dummy in bpf.map_batches(
                ctt, chain_layout.KEY4.size, chain_layout.ENTRY.size
            )
        )


def in_use() -> None:
    """The chain is in use and knows flows."""
    CHAIN.run()
    ATTACH.run()
    fill_table()


def goes_on() -> None:
    """All interfaces run the active generation, which has all flows and counts."""
    traffic_is_counted()
    assert flows() == ENTRIES


def no_chain() -> None:
    assert not os.path.ismount(bpffs.STANDARD) or set(os.listdir(bpffs.STANDARD)) <= {
        "maps.debug",
        "progs.debug",
    }  # the kernel's own
    assert "xdp" not in shell("ip link")
    traffic_passes()


def bare_interfaces() -> None:
    assert "xdp" not in shell("ip link")
    traffic_passes()


GENERIC = ATTACH.but(mode="generic")
SWAPPED = ATTACH.but(
    interfaces=[{"name": "ns1-lan", "program": "egress"}, {"name": "ns2-lan", "program": "ingress"}]
)


def foreign() -> None:
    """A program of somebody else is on the first interface."""
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "foreign")) as program:
        netdev.xdp_set(socket.if_nametoindex("ns1-lan"), program, netdev.XDP_FLAGS["native"])


def foreign_goes() -> None:
    netdev.xdp_set(socket.if_nametoindex("ns1-lan"), -1, 0)


TAKE_OVER = ATTACH.but(takeover=True)

ATTACH_SCENARIOS = {
    "attach": Scenario(
        lambda: None,
        ATTACH,
        (Ending(ATTACH, traffic_is_counted), Ending(DETACH, bare_interfaces)),
        (DETACH.run,),
        lab_with_chain,
    ),
    "exchange": Scenario(
        ATTACH.run,
        SWAPPED,
        (Ending(SWAPPED, traffic_is_counted), Ending(DETACH, bare_interfaces)),
        (DETACH.run,),
        lab_with_chain,
    ),
    "mode": Scenario(
        ATTACH.run,
        GENERIC,
        (Ending(GENERIC, traffic_is_counted), Ending(DETACH, bare_interfaces)),
        (DETACH.run,),
        lab_with_chain,
    ),
    "takeover": Scenario(
        foreign,
        TAKE_OVER,
        (Ending(TAKE_OVER, traffic_is_counted),),
        (DETACH.run, foreign_goes),
        lab_with_chain,
    ),
    "detach": Scenario(
        ATTACH.run,
        DETACH,
        (Ending(DETACH, bare_interfaces), Ending(ATTACH, traffic_is_counted)),
        (DETACH.run,),
        lab_with_chain,
    ),
}

#: The table grows while it holds flows.
BIGGER = CHAIN.but(rendered=SOURCES[1], table_size=256)
SETTINGS = CHAIN.but(timeouts={"udp": 7})
AWAY = (DETACH.run, NO_CHAIN.run)


BACK = Call("xdp_program", {"state": "rolled_back"})


def upgraded() -> None:
    in_use()
    NEXT_CHAIN.run()


def detached() -> None:
    in_use()
    DETACH.run()


def removed(call: Call) -> Ending:
    return Ending(call, no_chain)


def without_bpffs() -> None:
    lab_with_quick_chain()
    shell("while mountpoint -q /sys/fs/bpf; do umount /sys/fs/bpf; done")


#: What stands in for an object file on the target: nothing but the head of an ELF file for BPF.
OBJECT, OBJECT_DATA = "/run/object", b"\x7fELF\2\1" + bytes(12) + (247).to_bytes(2, sys.byteorder)


def with_object(call: Call) -> Call:
    """Return the same run with an object of its sources in place of the compiler."""
    manifest = object_file.Manifest(
        digest="0" * 32,
        sources=object_file.sources_digest(*render.unpack(call.arguments["rendered"])),
        settings={
            "checksum": "offload",
            "fused": False,
            "forward": "off",
            "events": False,
            "guests": [],
        },
        compiler={"name": "clang", "version": "14.0.6"},
        target=build_clang.here()._asdict(),
        layout=chain_layout.LAYOUT_VERSION,
        sha256=hashlib.sha256(OBJECT_DATA).hexdigest(),
        bytes=len(OBJECT_DATA),
        kernel=[],
    )
    return call.but(build="object", object_file=OBJECT, object_manifest=manifest.as_text())


SAME_CHAIN, NEXT_OBJECT = with_object(CHAIN), with_object(NEXT_CHAIN)


def load_object(dummy: bytes, text: str, map_dir: str) -> dict[str, int]:
    """Stand in for what loads an object."""
    return build(text.replace(render.MAP_DIR, map_dir), {})


def lab_with_object() -> None:
    lab_with_quick_chain()
    vars(generation_apply.load_object)["load"] = load_object
    with open(OBJECT, "wb") as file:
        file.write(OBJECT_DATA)


PROGRAM_SCENARIOS = {
    "first": Scenario(
        lambda: None,
        CHAIN,
        (Ending(CHAIN, lambda: None), removed(NO_CHAIN)),
        AWAY,
        lab_with_quick_chain,
    ),
    "upgrade": Scenario(
        in_use,
        NEXT_CHAIN,
        (Ending(NEXT_CHAIN, goes_on), Ending(CHAIN, goes_on)),
        AWAY,
        lab_with_quick_chain,
    ),
    "roll back": Scenario(
        upgraded,
        BACK,
        (Ending(BACK, goes_on), Ending(NEXT_CHAIN, goes_on)),
        AWAY,
        lab_with_quick_chain,
    ),
    "resize": Scenario(in_use, BIGGER, (Ending(BIGGER, goes_on),), AWAY, lab_with_quick_chain),
    "object": Scenario(in_use, NEXT_OBJECT, (Ending(NEXT_OBJECT, goes_on),), AWAY, lab_with_object),
    "compiler": Scenario(
        in_use,
        SAME_CHAIN,
        (Ending(SAME_CHAIN, goes_on), Ending(CHAIN, goes_on)),
        AWAY,
        lab_with_object,
    ),
    "settings": Scenario(
        in_use, SETTINGS, (Ending(SETTINGS, goes_on),), AWAY, lab_with_quick_chain
    ),
    "mount": Scenario(
        lambda: None, CHAIN, (Ending(CHAIN, lambda: None), removed(NO_CHAIN)), AWAY, without_bpffs
    ),
    "remove": Scenario(
        detached,
        NO_CHAIN,
        (removed(NO_CHAIN), Ending(CHAIN, lambda: None)),
        AWAY,
        lab_with_quick_chain,
    ),
}


def test_a_killed_build_leaves_nothing() -> None:
    """With the compiler: until it begins, and when it has ended."""

    def body() -> int:
        compiled.uninstall()
        text, headers = (
            render.render(str(tree.ROOT / "files/bpf"), render.Settings(**TABLE)),
            render.read_headers(str(tree.ROOT / "files/bpf")),
        )
        bare, call, kills = faults.picture(), CHAIN.but(rendered=render.pack(text, headers)), 0
        while True:
            left = kills

            def answer(dummy: int, event: syscalls.Event) -> syscalls.Answer:
                nonlocal left
                left -= "/build" in event.path and event.changes
                return syscalls.Kill() if left < 0 else None

            run = syscalls.watch(call, answer)
            assert run.killed, run.output
            kills += 1
            NO_CHAIN.run()
            assert faults.differences(bare, faults.picture()) == [], run.events[-1]
            if run.events[-1].name.startswith(("unlink", "rmdir")):
                return kills

    (kills,) = sandboxed(body)
    assert kills > 10


# ---------------------------------------------------------------- the flow table
#: The flows to DNS servers are to go, the others stay.
FLUSH = Call("ct_flush", {"dport": [53]})
FLUSH_ALL = Call("ct_flush", {"all": True})
#: Nothing in it moves with time.
LIST = Call(
    "ct_flows",
    {
        "dest": f"{faults.OUTPUT}/flows",
        "format": "jsonl",
        "fields": ["proto", "src", "sport", "dport"],
    },
)


def with_flows() -> None:
    """Ten flows are in the table, half of them to DNS servers."""
    now, hz = 1 << 33, chain_jiffies.hz()
    with bpf.closing(bpf.obj_get(PATHS.map("meta"))) as meta:
        for name, ticks in {"jiffies": now, "ktime_ns": time.monotonic_ns()}.items():
            bpf.map_update(meta, U32.pack(chain_maps.META[name]), U64.pack(ticks))
    with bpf.closing(bpf.obj_get(PATHS.map("ctt"))) as ctt:
        for number in range(10):
            key, value = flow_fakes.entry(
                sport=40000 + number,
                dport=53 if number % 2 else 80,
                proto=17,
                ctl=0,
                left=86400,
                now=now,
                hz=hz,
            )
            bpf.map_update(ctt, key, value)


def without_flows() -> None:
    size = chain_layout.KEY4.size
    with bpf.closing(bpf.obj_get(PATHS.map("ctt"))) as ctt:
        for dummy, keys, _values in list(bpf.map_batches(ctt, size, chain_layout.ENTRY.size)):
            bpf_batch.map_delete_batch(
                ctt, [bytes(keys[at : at + size]) for at in range(0, len(keys), size)]
            )
    with bpf.closing(bpf.obj_get(PATHS.map("deletions"))) as deletions:
        for index in range(len(chain_counters.DELETIONS)):
            bpf.map_update(deletions, U32.pack(index), bytes(8))


def remaining(number: int) -> c.Callable[[], None]:
    def check() -> None:
        assert flows() == number

    return check


def with_output() -> None:
    lab_with_chain()
    os.mkdir(faults.OUTPUT)
    with_flows()


def listed() -> None:
    assert os.listdir(faults.OUTPUT) == ["flows"]
    with open(f"{faults.OUTPUT}/flows", encoding="utf-8") as file:
        assert len(file.readlines()) == 10


def no_list() -> None:
    for name in os.listdir(faults.OUTPUT):
        os.unlink(f"{faults.OUTPUT}/{name}")


TABLE_SCENARIOS = {
    "ct_flush": Scenario(
        with_flows, FLUSH, (Ending(FLUSH, remaining(5)),), (without_flows,), lab_with_chain
    ),
    "ct_flush, all": Scenario(
        with_flows, FLUSH_ALL, (Ending(FLUSH_ALL, remaining(0)),), (without_flows,), lab_with_chain
    ),
    "ct_flows": Scenario(lambda: None, LIST, (Ending(LIST, listed),), (no_list,), with_output),
}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    faults.warm()


Figure = c.Callable[[str, object], None]


def survived(scenario: Scenario) -> str:
    """Break the scenario everywhere in both ways; return how often, for people."""
    return (
        f"{faults.killed_everywhere(scenario)} kills, {faults.refused_everywhere(scenario)} refused"
        " calls"
    )


@pytest.mark.parametrize("name", LAB_SCENARIOS)
def test_netns_lab(name: str, figure: Figure) -> None:
    figure(f"faults survived by netns_lab, {name}", survived(LAB_SCENARIOS[name]))


@pytest.mark.parametrize("name", ATTACH_SCENARIOS)
def test_xdp_attach(name: str, figure: Figure) -> None:
    figure(f"faults survived by xdp_attach, {name}", survived(ATTACH_SCENARIOS[name]))


@pytest.mark.parametrize("name", PROGRAM_SCENARIOS)
def test_xdp_program(name: str, figure: Figure) -> None:
    figure(f"faults survived by xdp_program, {name}", survived(PROGRAM_SCENARIOS[name]))


@pytest.mark.parametrize("name", TABLE_SCENARIOS)
def test_the_flow_tables_modules(name: str, figure: Figure) -> None:
    figure(f"faults survived by {name}", survived(TABLE_SCENARIOS[name]))


# ---------------------------------------------------------------- bad surroundings
def refused(words: str, *calls: Call) -> None:
    """Each run fails with these words, and changes nothing."""
    before = faults.picture()
    for call in calls:
        result = call.fails()
        assert re.search(words, result["msg"]), result["msg"]
        assert faults.differences(before, faults.picture()) == []


def test_no_room_for_the_state() -> None:
    def body() -> None:
        lab_with_quick_chain()
        shell(
            "mkdir /var/lib/ebpf_conntrack; mount -t tmpfs -o size=64k tmpfs"
            " /var/lib/ebpf_conntrack"
        )
        fill = "dd if=/dev/zero of=/var/lib/ebpf_conntrack/rubbish bs=1k 2>/dev/null || true"
        shell(fill)
        words = (
            r"/var/lib/ebpf_conntrack/.*: the manifest of the generation can not be kept: No space"
            r" left on device\. Make room"
        )
        refused(words, CHAIN)
        shell("rm /var/lib/ebpf_conntrack/rubbish")
        in_use()
        shell(fill)
        refused(words, NEXT_CHAIN, SETTINGS)
        goes_on()
        shell("rm /var/lib/ebpf_conntrack/rubbish")
        NEXT_CHAIN.run()
        goes_on()
        faults.unchanged(NEXT_CHAIN)

    sandboxed(body)


def test_a_read_only_bpf_file_system() -> None:
    def body() -> None:
        lab_with_quick_chain()
        in_use()
        before = faults.picture()
        shell("mount -o remount,ro /sys/fs/bpf")
        for call in (CHAIN, NEXT_CHAIN, NO_CHAIN, BACK, ATTACH, DETACH, FLUSH):
            message = call.fails()["msg"]
            assert re.search(
                r"pin_root: .* mounted read-only; remount it: mount -o remount,rw /sys/fs/bpf",
                message,
            ), message
        shell("mount -o remount,rw /sys/fs/bpf")
        assert faults.differences(before, faults.picture()) == []
        goes_on()

    sandboxed(body)


def test_something_else_is_mounted_over_the_bpf_file_system() -> None:
    def body() -> None:
        lab_with_quick_chain()
        in_use()
        shell("mount -t tmpfs tmpfs /sys/fs/bpf")
        refused(
            r"of type tmpfs is mounted at /sys/fs/bpf, and hides the BPF file system; unmount it",
            CHAIN,
            NEXT_CHAIN,
            NO_CHAIN,
            ATTACH,
            DETACH,
            FLUSH,
        )
        assert os.listdir(bpffs.STANDARD) == []
        shell("umount /sys/fs/bpf")
        goes_on()

    sandboxed(body)


def test_no_bpf_file_system_and_nothing_to_take_away() -> None:
    def body() -> None:
        without_bpffs()
        before = faults.picture()
        for call in (NO_CHAIN, DETACH):
            faults.unchanged(call)
        assert faults.differences(before, faults.picture()) == []

    sandboxed(body)


def test_what_is_needed_for_building_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_bcc, "_UAPI", "/nonexistent")
    monkeypatch.setattr(libraries, "SYSTEM_PYTHONS", ())
    sandboxed(lambda: refused(r"/nonexistent/linux/bpf\.h is missing: .*linux-libc-dev", CHAIN))
    monkeypatch.setitem(sys.modules, "bcc", None)
    sandboxed(lambda: refused(r"bcc .* or newer is needed .*python3-bpfcc", CHAIN))


# ---------------------------------------------------------------- at the same time
def test_labs_at_once() -> None:
    def body() -> None:
        bare = faults.picture()
        for dummy in range(3):
            assert sum(result["changed"] for result in faults.at_once(*[LAB] * 4)) == 1, (
                "one built it, the others waited and saw that"
            )
            faults.at_once(LAB, NO_LAB, OTHER_LAB, NO_LAB)
            LAB.run()
            traffic_passes()
            faults.at_once(NO_LAB, NO_LAB)
            assert faults.differences(bare, faults.picture()) == []

    sandboxed(body)


def test_chains_at_once() -> None:
    def body() -> None:
        without_bpffs()
        bare = faults.picture()
        for dummy in range(3):
            assert sum(result["changed"] for result in faults.at_once(*[CHAIN] * 3)) == 1
            assert shell("grep -c ' /sys/fs/bpf bpf ' /proc/mounts") == "1\n"
            assert sum(result["changed"] for result in faults.at_once(*[ATTACH] * 3)) == 1
            fill_table()
            faults.at_once(NEXT_CHAIN, ATTACH, CHAIN, NEXT_CHAIN)
            goes_on()
            faults.at_once(DETACH, DETACH)
            faults.at_once(NO_CHAIN, CHAIN, NO_CHAIN)
            NO_CHAIN.run()
            assert faults.differences(bare, faults.picture()) == []

    sandboxed(body)
