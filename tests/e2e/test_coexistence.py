# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others have on the same interfaces and below the same pin_root stays theirs, and interfaces
that wander keep their program.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import os
import re
import socket
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.programs import SLOTS
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import health
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    netdev,
    netns,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within
from ansible_collections.ebpf.conntrack.tests.e2e.test_attach import (
    BARE,
    EGRESS,
    INGRESS,
    Lab,
    foreign,
    ip,
    lab,
    make_veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import Chain, made, rendered

__all__ = ["foreign", "lab", "made", "rendered"]  # fixtures

#: include/uapi/linux/if_packet.h and socket.h, which Python does not name.
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

#: A program that libxdp brings along, to be loaded by its own tool.
LIBXDP_OBJECT = "/usr/lib/{}-linux-gnu/bpf/xdpdump_xdp.o"


def attached_id(name: str) -> int:
    """The id of the program that the interface runs, whoever attached it, as ip tells it."""
    (link,) = ip("link", "show", name)
    return int(link["xdp"]["prog"]["id"])


def refused(lab: Lab, *words: str, **options: t.Any) -> None:
    """A run with check mode and one without are refused in these words, and the interface runs what
    it ran.
    """
    before = attached_id(lab.near), lab.seen(lab.near), lab.pins()
    for check_mode in (True, False):
        with pytest.raises(ConntrackError) as raised:
            lab.run(lab.both[:1], check_mode=check_mode, **options)
        for word in words:
            assert re.search(word, raised.value.message), raised.value.message
    assert not lab.run(lab.both[:1], state="absent")["changed"]
    assert (attached_id(lab.near), lab.seen(lab.near), lab.pins()) == before


# ---------------------------------------------------------------- programs of others
@pytest.mark.parametrize("wanted", ["auto", "native", "generic"])
@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("how", ["netlink", "link"])
def test_a_foreign_program_stays(lab: Lab, foreign: int, how: str, mode: str, wanted: str) -> None:
    with contextlib.ExitStack() as stack:
        if how == "netlink":
            netdev.xdp_set(lab.ifindex, foreign, netdev.XDP_FLAGS[mode])
        else:
            link = stack.enter_context(
                bpf.closing(netdev.link_create(foreign, lab.ifindex, flags=netdev.XDP_FLAGS[mode]))
            )
        info = bpf.prog_info(foreign)
        refused(
            lab,
            rf"id {info.id}, name firewall, tag {info.tag}, mode {mode}",
            how,
            "takeover: true",
            mode=wanted,
        )
        assert attached_id(lab.near) == info.id
        if how == "link":
            assert bpf.link_info(link).ifindex == lab.ifindex, "still held by the same link"


def test_a_program_that_libxdps_own_tool_loaded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatcher with the program in it, or the program alone where the kernel lets no program
    replace a function of another (freplace).
    """
    monkeypatch.setenv("LIBXDP_BPFFS", lab.pin_root)
    path = LIBXDP_OBJECT.format(os.uname().machine)
    subprocess.run(
        ["xdp-loader", "load", "-m", "native", lab.near, path], check=True, capture_output=True
    )
    name = lab.name_of(attached_id(lab.near))
    assert name in ("xdp_dispatcher", "xdpdump")
    refused(
        lab,
        f"name {name}",
        "xdp-loader unload frees the interface" if name == "xdp_dispatcher" else "netlink",
    )
    subprocess.run(["xdp-loader", "unload", lab.near, "--all"], check=True, capture_output=True)
    lab.run(lab.both[:1])
    assert lab.seen(lab.near) == INGRESS
    done = subprocess.run(
        ["xdp-loader", "load", "-m", "native", lab.near, path], check=False, capture_output=True
    )
    assert done.returncode != 0 and lab.seen(lab.near) == INGRESS, "and it leaves ours alone"
    assert not lab.run(lab.both[:1])["changed"]


@pytest.mark.parametrize("how", ["netlink", "link"])
def test_a_libxdp_dispatcher(lab: Lab, how: str) -> None:
    """What it looks like from outside, whether or not this kernel takes a real one: libxdp attaches
    it through netlink, or since 1.4 through a link.
    """
    with (
        bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "xdp_dispatcher")) as dispatcher,
        contextlib.ExitStack() as stack,
    ):
        if how == "netlink":
            netdev.xdp_set(lab.ifindex, dispatcher, netdev.XDP_FLAGS["native"])
        else:
            stack.enter_context(
                bpf.closing(
                    netdev.link_create(dispatcher, lab.ifindex, flags=netdev.XDP_FLAGS["native"])
                )
            )
        refused(lab, "libxdp's dispatcher, xdp-loader unload frees the interface")
        lab.run(lab.both[:1], takeover=True)
        assert lab.seen(lab.near) == INGRESS
        assert not lab.run(lab.both[:1])["changed"]


# ---------------------------------------------------------------- places of others
PLACES = [
    "ebpf_conntrack",
    "ebpf_conntrack/gen",
    "ebpf_conntrack/link",
    "ebpf_conntrack/gen/7",
    "ebpf_conntrack/gen/stray",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["program", "symlink"])
def test_what_stands_in_the_chains_place_stays(
    made: Chain, foreign: int, place: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.path.join(made.paths.pin_root, place)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == "program":
        bpf.obj_pin(foreign, path)
    else:
        os.symlink("elsewhere", path)
    before = made.tree()
    for check_mode in (True, False):
        with pytest.raises(
            ConntrackError,
            match=(
                rf"^{path} is a (pin|symbolic link) of somebody else\. Move it away, or give"
                r" another pin_root\."
            ),
        ):
            made.ensure(check_mode=check_mode)
    generation.remove(made.paths)
    assert {name: what for name, what in made.tree().items() if what != "directory"} == {
        name: what for name, what in before.items() if what != "directory"
    }
    os.unlink(path)
    made.ensure()
    generation.remove(made.paths)


# ---------------------------------------------------------------- interfaces that wander
@contextlib.contextmanager
def counted(lab: Lab) -> c.Iterator[c.Callable[[], int]]:
    """How often the near end's program has run since."""
    with (
        bpf.closing(lab.prog(SLOTS["ingress"])) as first,
        bpf.closing(lab.prog(SLOTS["ingress"], 2)) as second,
        bpf.closing(bpf_batch.enable_stats()),
    ):

        def runs() -> int:
            return bpf.prog_info(first).run_cnt + bpf.prog_info(second).run_cnt

        before = runs()
        yield lambda: runs() - before


def send(lab: Lab, frames: int = 20) -> None:
    """Send frames from the far end: past its queue, which takes frames only some time after the end
    has come up, when the kernel has got round to it.
    """
    with netns.entered(lab.ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        sender.bind((lab.far, 0))
        for dummy in range(frames):
            sender.send(b"\xff" * 6 + b"\x02" + b"\0" * 5 + b"\x88\xb5" + b"\0" * 50)


def faults(lab: Lab) -> list[str]:
    """What is wrong with the links."""
    return [fault.fault for fault in health.examine(lab.paths) if fault.fault.startswith("link_")]


def link_id(lab: Lab, key: str) -> int:
    with bpf.closing(bpf.obj_get(os.path.join(lab.paths.link_dir, key))) as fd:
        return bpf.link_info(fd).id


@pytest.fixture
def elsewhere(lab: Lab) -> c.Iterator[str]:
    """Another namespace."""
    name = f"{lab.ns}x"
    ip("netns", "add", name)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.parametrize("activate", [1, 2])
def test_an_interface_that_was_renamed_keeps_its_link(lab: Lab, activate: int) -> None:
    """Its pin is renamed with it, while the program sees every frame; another generation goes into
    the link as well.
    """
    lab.run(lab.both[:1])
    number = link_id(lab, lab.near)
    new = f"{lab.near}2"
    ip("link", "set", lab.near, "down")
    ip("link", "set", lab.near, "name", new)
    ip("link", "set", new, "up")
    assert faults(lab) == ["link_moved"]
    lab.activate(activate)
    with counted(lab) as runs:
        foretold = lab.run([{"name": new, "program": "ingress"}], check_mode=True)
        done = lab.run([{"name": new, "program": "ingress"}])
        send(lab)
        assert within(lambda: runs() == 20), runs()
    assert done["plan"] == foretold["plan"] and [step["action"] for step in done["plan"]] == [
        "replace"
    ]
    assert "renamed or moved" in done["plan"][0]["reason"] and "link_moved" in [
        fault["fault"] for fault in done["mended"]
    ]
    assert lab.pins() == [new] and link_id(lab, new) == number, "the same link"
    assert attached_id(new) == lab.program_id(0, activate)
    assert faults(lab) == [] and not lab.run([{"name": new, "program": "ingress"}])["changed"]


def test_an_interface_that_was_moved_is_named_and_taken_up_where_it_is(
    lab: Lab, elsewhere: str
) -> None:
    lab.run(lab.both[:1])
    number = link_id(lab, lab.near)
    ip("link", "set", lab.near, "netns", elsewhere)
    ip("-n", elsewhere, "link", "set", lab.near, "up")
    with counted(lab) as runs:
        send(lab)
        assert within(lambda: runs() == 20), "the kernel leaves the program on it"
    assert faults(lab) == ["link_moved"]
    with pytest.raises(
        ConntrackError,
        match=(
            rf"no interface '{lab.near}'.* its link {number} went with the interface.*another"
            r" namespace: name it as it is now"
        ),
    ):
        lab.run(lab.both[:1])
    moved = [{"name": lab.near, "netns": elsewhere, "program": "ingress"}]
    assert "renamed or moved" in lab.run(moved)["plan"][0]["reason"]
    assert lab.pins() == [f"{lab.near}@{elsewhere}"] and link_id(lab, lab.pins()[0]) == number
    assert faults(lab) == [] and not lab.run(moved)["changed"]


def test_an_interface_that_was_moved_is_detached_by_its_old_name(lab: Lab, elsewhere: str) -> None:
    lab.run(lab.both[:1])
    ip("link", "set", lab.near, "netns", elsewhere)
    foretold = lab.run(lab.both[:1], state="absent", check_mode=True)
    done = lab.run(lab.both[:1], state="absent")
    assert (
        done["plan"] == foretold["plan"] and "went with the interface" in done["plan"][0]["reason"]
    )
    assert lab.seen(lab.near, elsewhere) == BARE and lab.pins() == []
    assert not lab.run(lab.both[:1], state="absent")["changed"]


def test_another_interface_of_the_name_of_one_that_was_moved(lab: Lab, elsewhere: str) -> None:
    """The link is for the name: it goes to the interface that has it now, and the one that was
    moved is let go.
    """
    lab.run(lab.both[:1])
    ip("link", "set", lab.near, "netns", elsewhere)
    ip("-n", lab.ns, "link", "set", lab.far, "name", "old")
    make_veth(lab)
    foretold = lab.run(lab.both[:1], check_mode=True)
    done = lab.run(lab.both[:1])
    assert (
        done["plan"] == foretold["plan"] and "went with the interface" in done["plan"][0]["reason"]
    )
    assert lab.seen(lab.near) == INGRESS and lab.seen(lab.near, elsewhere) == BARE
    assert lab.pins() == [lab.near] and not lab.run(lab.both[:1])["changed"]


def test_an_interface_that_comes_back(lab: Lab) -> None:
    """While it is away its link is named as stale, and the other interface is as it was; when it is
    back the next run attaches it.
    """
    lab.run()
    ip("link", "del", lab.near)
    assert faults(lab) == ["link_stale"] * 2, "a veth takes its other end along"
    with pytest.raises(ConntrackError, match=f"no interface '{lab.near}'"):
        lab.run()
    assert len(lab.pins()) == 2
    make_veth(lab)
    done = lab.run()
    assert [fault["fault"] for fault in done["mended"]] == ["link_stale"] * 2
    assert lab.state() == (INGRESS, EGRESS) and faults(lab) == [] and not lab.run()["changed"]


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_an_interface_in_a_bridge(lab: Lab, mode: str) -> None:
    """The program comes before the bridge, whichever was there first."""
    bridge = f"{lab.near}b"
    ip("link", "add", bridge, "type", "bridge")
    try:
        for attach_first in (True, False):
            steps: list[c.Callable[[], object]] = [
                lambda: lab.run(lab.both[:1], mode=mode),
                lambda: ip("link", "set", lab.near, "master", bridge),
            ]
            for step in steps if attach_first else reversed(steps):
                step()
            assert lab.seen(lab.near) == ("ingress", mode)
            with counted(lab) as runs:
                send(lab)
                assert within(lambda: runs() == 20), runs()
            assert not lab.run(lab.both[:1], mode=mode)["changed"]
            lab.run(lab.both[:1], state="absent")
            ip("link", "set", lab.near, "nomaster")
    finally:
        ip("link", "del", bridge)


def test_an_mtu_that_changes_under_a_program(lab: Lab) -> None:
    """The kernel refuses what native XDP on a veth can not take; what it lets through is no reason
    to do anything.
    """
    lab.run(lab.both[:1], mode="native")
    raise_far = ["ip", "-n", lab.ns, "link", "set", lab.far, "mtu", "9000"]
    assert subprocess.run(raise_far, check=False, capture_output=True).returncode != 0
    for mtu in (9000, 1280, 1500):
        ip("link", "set", lab.near, "mtu", str(mtu))
        assert not lab.run(lab.both[:1], mode="native")["changed"]
        assert lab.seen(lab.near) == INGRESS and faults(lab) == []
    lab.run(lab.both[:1], mode="generic")
    subprocess.run(raise_far, check=True)
    for mode in ("generic", "auto"):
        assert not lab.run(lab.both[:1], mode=mode)["changed"]
    with counted(lab) as runs:
        send(lab)
        assert within(lambda: runs() == 20), runs()
    with pytest.raises(ConntrackError, match="9000"):
        lab.run(lab.both[:1], mode="native")
    assert lab.seen(lab.near) == ("ingress", "generic")
