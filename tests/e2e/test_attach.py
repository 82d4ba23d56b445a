# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""xdp_attach on real interfaces: what it leaves is read with ip and bpftool; see test_faults.py for
broken runs.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import re
import socket
import subprocess
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import model as attach_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import observe as attach_observe
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import typed as attach_typed
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.programs import HOOKS, SLOTS
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    links as generation_links,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpf_constants,
    bpffs,
    bpffs_mount,
    netdev,
    netns,
    pins,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import namespaces
from ansible_collections.ebpf.conntrack.tests.e2e.support import syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MODES = {1: "native", 2: "generic"}
BARE = (None, None)
Seen = tuple[str | None, str | None]


def ip(*argv: str) -> t.Any:
    output = subprocess.run(["ip", "-j", *argv], check=True, capture_output=True, text=True).stdout
    return json.loads(output or "null")


@dataclasses.dataclass
class Lab:
    """A namespace, a veth from the host into it, and two generations that pass every frame.

    :ivar near: the end in the host's namespace.
    :ivar far: the end in namespace ``ns``.
    """

    ns: str
    near: str
    far: str
    pin_root: str

    @property
    def paths(self) -> bpffs.Paths:
        return bpffs.Paths(self.pin_root)

    @property
    def both(self) -> list[dict[str, t.Any]]:
        return [
            {"name": self.near, "program": "ingress"},
            {"name": self.far, "netns": self.ns, "program": "egress"},
        ]

    def run(
        self, interfaces: list[dict[str, t.Any]] | None = None, **options: t.Any
    ) -> dict[str, t.Any]:
        """Run the module's one call; warnings are put into the result."""
        whole = {
            "state": "present",
            "mode": "auto",
            "takeover": False,
            "check_mode": False,
            "pin_root": self.pin_root,
            **options,
        }
        result, warnings = attach.converge(
            interfaces=(
                self.both if interfaces is None and whole["state"] == "present" else interfaces
            ),
            **whole,
        )
        return {**result, "warnings": warnings}

    def seen(self, name: str, ns: str | None = None) -> Seen:
        """Return what ip says is attached: (program's name, mode)."""
        (link,) = ip(*(["-n", ns] if ns else []), "link", "show", name)
        xdp = link.get("xdp")
        return (
            (xdp["prog"].get("name") or self.name_of(xdp["prog"]["id"]), MODES[xdp["mode"]])
            if xdp
            else BARE
        )

    @staticmethod
    def name_of(number: int) -> str:
        shown = subprocess.run(
            ["bpftool", "-j", "prog", "show", "id", str(number)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return str(json.loads(shown)["name"])

    def state(self) -> tuple[Seen, Seen]:
        return self.seen(self.near), self.seen(self.far, self.ns)

    def pins(self) -> list[str]:
        return sorted(os.listdir(self.paths.link_dir)) if os.path.isdir(self.paths.link_dir) else []

    def activate(self, generation: int) -> None:
        pins.swap_symlink(f"gen/{generation}", self.paths.active)

    def prog(self, slot: int, generation: int = 1) -> int:
        return bpf.obj_get(f"{self.paths.gen_dir(generation)}/prog/xdp_{slot}")

    def program_id(self, slot: int, generation: int = 1) -> int:
        with bpf.closing(self.prog(slot, generation)) as fd:
            return bpf.prog_info(fd).id

    @property
    def ifindex(self) -> int:
        return socket.if_nametoindex(self.near)


INGRESS, EGRESS = ("ingress", "native"), ("egress", "native")


@pytest.fixture
def lab() -> t.Iterator[Lab]:
    tag = f"{random.randrange(1 << 24):06x}"
    bpffs_mount.ensure_mounted("/sys/fs/bpf")
    made = Lab(f"test{tag}", f"t{tag}n", f"t{tag}f", f"/sys/fs/bpf/test{tag}")
    try:
        ip("netns", "add", made.ns)
        make_veth(made)
        bpffs_mount.ensure_mounted(made.pin_root)
        for generation in (1, 2):
            os.makedirs(f"{made.paths.gen_dir(generation)}/prog")
            for hook in HOOKS:
                with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), hook)) as fd:
                    bpf.obj_pin(fd, f"{made.paths.gen_dir(generation)}/prog/xdp_{SLOTS[hook]}")
        made.activate(1)
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.ns], check=False)  # the veth goes with it
        for directory, below, names in os.walk(made.pin_root, topdown=False):
            for name in names + below:
                path = os.path.join(directory, name)
                (
                    os.rmdir(path)
                    if os.path.isdir(path) and not os.path.islink(path)
                    else os.unlink(path)
                )
        os.rmdir(made.pin_root)


def make_veth(lab: Lab, *extra: str) -> None:
    ip("link", "add", lab.near, *extra, "type", "veth", "peer", "name", lab.far, "netns", lab.ns)
    for name, ns in ((lab.near, []), (lab.far, ["-n", lab.ns])):
        # no frames but those that a test sends
        ip(*ns, "link", "set", name, "addrgenmode", "none", "up")


@pytest.fixture
def foreign() -> t.Iterator[int]:
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "firewall")) as fd:
        yield fd


# ---------------------------------------------------------------- the ordinary life
def test_attach_in_four_runs(lab: Lab) -> None:
    foretold = lab.run(check_mode=True)
    assert foretold["changed"] and lab.state() == (BARE, BARE) and lab.pins() == []
    done = lab.run()
    assert (
        done["changed"]
        and done["plan"] == foretold["plan"]
        and done["diff"] == foretold["diff"]
        and done["warnings"] == []
    )
    assert lab.state() == (INGRESS, EGRESS)
    assert lab.pins() == sorted([lab.near, f"{lab.far}@{lab.ns}"])
    for check_mode in (False, True):
        again = lab.run(check_mode=check_mode)
        assert (
            not again["changed"]
            and again["plan"] == []
            and again["diff"] == {"before": "", "after": ""}
        )
        assert again["interfaces"] == done["interfaces"]


def test_what_is_returned(lab: Lab) -> None:
    near, far = lab.run()["interfaces"]
    shown = json.loads(
        subprocess.run(
            ["bpftool", "-j", "link", "show", "id", str(near["link_id"])],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    assert (shown["type"], shown["prog_id"]) == ("xdp", near["program_id"])
    (link,) = ip("link", "show", lab.near)
    assert near == {
        "name": lab.near,
        "netns": None,
        "ifindex": link["ifindex"],
        "mode": "native",
        "program": "ingress",
        "program_id": link["xdp"]["prog"]["id"],
        "tag": link["xdp"]["prog"]["tag"],
        "link_id": shown["id"],
        "chosen_by": None,
    }
    assert (far["netns"], far["program"], far["program_id"]) == (
        lab.ns,
        "egress",
        lab.program_id(1),
    )


def test_one_interface_leaves_the_others(lab: Lab) -> None:
    lab.run()
    assert not lab.run(lab.both[:1])["changed"]
    assert lab.run(lab.both[:1], mode="generic")["changed"]
    assert lab.state() == (("ingress", "generic"), EGRESS)
    assert lab.run(lab.both[1:], state="absent")["changed"]
    assert lab.state() == (("ingress", "generic"), BARE) and lab.pins() == [lab.near]


@pytest.mark.parametrize("named", [True, False])
def test_absent_in_four_runs(lab: Lab, named: bool) -> None:
    lab.run()
    options: dict[str, t.Any] = {"state": "absent", "interfaces": lab.both if named else None}
    foretold = lab.run(**options, check_mode=True)
    assert foretold["changed"] and lab.state() == (INGRESS, EGRESS)
    assert lab.run(**options)["plan"] == foretold["plan"]
    assert lab.state() == (BARE, BARE) and not os.path.exists(lab.paths.link_dir)
    assert not lab.run(**options)["changed"] and not lab.run(**options, check_mode=True)["changed"]


def test_another_generation_goes_into_the_same_link(lab: Lab) -> None:
    before = lab.run()["interfaces"]
    lab.activate(2)
    result = lab.run()
    assert [step["action"] for step in result["plan"]] == ["replace", "replace"]
    for was, now, slot in zip(before, result["interfaces"], (0, 1)):
        assert (now["link_id"], now["mode"]) == (was["link_id"], was["mode"])
        assert now["program_id"] == lab.program_id(slot, 2) != was["program_id"]


def test_another_hook_goes_into_the_same_link(lab: Lab) -> None:
    (before,) = lab.run(lab.both[:1])["interfaces"]
    (after,) = lab.run([{"name": lab.near, "program": "egress"}])["interfaces"]
    assert after["link_id"] == before["link_id"] and lab.seen(lab.near) == EGRESS


def test_no_frame_is_missed_while_programs_are_replaced(lab: Lab) -> None:
    lab.run(lab.both[:1])
    stop = threading.Event()
    sent = 0

    with netns.entered(lab.ns):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind((lab.far, 0))
    frame = b"\xff" * 6 + b"\x02" + b"\0" * 5 + b"\x88\xb5" + b"\0" * 50

    def send() -> None:
        nonlocal sent
        while not stop.is_set():
            for dummy in range(16):
                sender.send(frame)
            sent += 16
            time.sleep(0.0005)

    fds = [lab.prog(0, generation) for generation in (1, 2)]
    thread = threading.Thread(target=send)
    with sender, bpf.closing(bpf_batch.enable_stats()):
        before = sum(bpf.prog_info(fd).run_cnt for fd in fds)
        thread.start()
        for turn in range(40):
            lab.activate(2 - turn % 2)
            assert [step["action"] for step in lab.run(lab.both[:1])["plan"]] == ["replace"]
        stop.set()
        thread.join()

        def runs() -> list[int]:
            return [bpf.prog_info(fd).run_cnt for fd in fds]

        def seen() -> int:
            (link,) = ip("-n", lab.ns, "-s", "link", "show", lab.far)
            return sum(runs()) - before + int(link["stats64"]["tx"]["dropped"])

        assert within(lambda: seen() == sent), (seen(), sent)
    assert min(runs()) > 0 and sent > 1000
    for fd in fds:
        bpf.close(fd)


def test_modes(lab: Lab) -> None:
    assert lab.run(mode="generic")["warnings"] == []
    assert lab.state() == (("ingress", "generic"), ("egress", "generic"))
    assert not lab.run(mode="auto")["changed"], "auto keeps what it finds"
    interfaces = [{**lab.both[0], "mode": "native"}, lab.both[1]]
    assert len(lab.run(interfaces, mode="generic")["plan"]) == 1
    assert lab.state() == (INGRESS, ("egress", "generic"))


def test_generic_where_the_driver_can_not(lab: Lab) -> None:
    lo = [{"name": "lo", "netns": lab.ns, "program": "ingress"}]
    with pytest.raises(
        ConntrackError,
        match=(
            r"refuses native XDP: .*does not support XDP in native mode.* Give mode: generic or"
            r" auto"
        ),
    ):
        lab.run(lo, mode="native")
    result = lab.run(lo)
    assert result["interfaces"][0]["mode"] == "generic"
    assert (
        len(result["warnings"]) == 1
        and "native was not possible: " in result["warnings"][0]
        and "native mode" in result["warnings"][0]
    )
    again = lab.run(lo)
    assert not again["changed"] and again["warnings"] == []


def test_no_descriptor_is_left_behind(lab: Lab, foreign: int) -> None:
    lab.run()
    before = len(os.listdir("/proc/self/fd"))
    lab.activate(2)
    lab.run()
    lab.run(mode="generic")
    lab.run(state="absent")
    netdev.xdp_set(lab.ifindex, foreign, netdev.XDP_FLAGS["native"])
    lab.run(takeover=True)
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- the limits of a veth
@pytest.mark.skipif(
    attach_model.VETH_MAX_MTU != 3506, reason="the kernel's pages are not of 4096 bytes"
)
def test_the_mtu_limit_is_the_kernels(lab: Lab) -> None:
    for mtu, fits in ((3506, True), (3507, False), (9000, False)):
        ip("-n", lab.ns, "link", "set", lab.far, "mtu", str(mtu))
        with bpf.closing(lab.prog(0)) as fd:
            try:
                bpf.close(netdev.link_create(fd, lab.ifindex, flags=netdev.XDP_FLAGS["native"]))
                accepted = True
            except bpf.BpfError:
                accepted = False
        assert accepted is fits, "what the kernel says"
        if fits:
            assert lab.run(lab.both[:1], mode="native")["changed"]
            lab.run(state="absent")
            continue
        for check_mode in (True, False):
            with pytest.raises(ConntrackError, match=f"at most 3506, .* {mtu}"):
                lab.run(lab.both[:1], mode="native", check_mode=check_mode)
        assert lab.seen(lab.near) == BARE and lab.pins() == []
    result = lab.run(lab.both[:1])
    assert lab.seen(lab.near) == ("ingress", "generic")
    assert "3506" in result["warnings"][0]


def test_too_few_queues_are_said_in_the_kernels_words(lab: Lab) -> None:
    ip("link", "del", lab.near)
    ip(
        "link",
        "add",
        lab.near,
        "numtxqueues",
        "1",
        "numrxqueues",
        "1",
        "type",
        "veth",
        "peer",
        lab.far,
        "netns",
        lab.ns,
        "numtxqueues",
        "4",
        "numrxqueues",
        "4",
    )
    with pytest.raises(
        ConntrackError,
        match=r"XDP expects number of rx queues.* as many rx queues as the other has tx queues",
    ):
        lab.run(lab.both[:1], mode="native")
    assert lab.seen(lab.near) == BARE
    assert "rx queues" in lab.run(lab.both[:1])["warnings"][0]


#: What makes the kernel refuse the chain on an interface of the lab's namespace: (commands there,
#: which interface, mode, what a check run says).
REFUSED: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "loopback": (
        (),
        "lo",
        "native",
        "does not support XDP in native mode. Give mode: generic or auto",
    ),
    "bridge": (
        ("link add br0 type bridge",),
        "br0",
        "native",
        "the driver bridge does not support XDP in native mode",
    ),
    "macvlan": (
        ("link add mv0 link {far} type macvlan",),
        "mv0",
        "native",
        "the driver macvlan does not support XDP in native mode",
    ),
    "queues": (
        (
            (
                "link add q0 numrxqueues 1 numtxqueues 1 type veth peer name q1 numrxqueues 4"
                " numtxqueues 4"
            ),
        ),
        "q0",
        "native",
        "as many rx queues as the other end has tx queues",
    ),
    "below a bridge": (
        (
            "link add br0 type bridge",
            "link set {far} master br0",
            "link set br0 xdpgeneric pinned {prog}",
        ),
        "{far}",
        "auto",
        "br0 on top of it has one. Detach that first",
    ),
    "below a macvlan": (
        ("link add mv0 link {far} type macvlan", "link set mv0 xdpgeneric pinned {prog}"),
        "{far}",
        "generic",
        "mv0 on top of it has one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_check_run_promises_nothing_that_the_run_cannot_keep(lab: Lab, case: str) -> None:
    commands, name, mode, said = REFUSED[case]
    names = {"far": lab.far, "prog": f"{lab.paths.gen_dir(2)}/prog/xdp_{SLOTS['egress']}"}
    # ip in a namespace has no bpffs of ours, but for a command run by setns alone
    for command in commands:
        with netns.entered(lab.ns):
            subprocess.run(["ip", *command.format(**names).split()], check=True)
    name = name.format(**names)
    interfaces = [{"name": name, "netns": lab.ns, "program": "ingress"}]
    with pytest.raises(ConntrackError, match=re.escape(said)) as foretold:
        lab.run(interfaces, mode=mode, check_mode=True)
    assert foretold.value.message.startswith("interfaces[0]"), foretold.value.message
    with pytest.raises(ConntrackError, match="the kernel refuses .* XDP"):
        lab.run(interfaces, mode=mode)
    assert lab.pins() == [] and lab.seen(name, lab.ns) == BARE
    if mode == "native":
        assert (
            lab.run(interfaces, check_mode=True)["changed"]
            and lab.run(interfaces)["interfaces"][0]["mode"] == "generic"
        )


def test_what_is_typed_by_hand_has_to_be_there(lab: Lab) -> None:
    def typed(state: str, name: str, netns: str | None = None) -> None:
        attach_typed.check_typed(
            lab.paths, state, [{"name": name, "netns": netns, "program": "ingress"}], "auto"
        )

    for state in ("present", "absent"):
        typed(state, lab.near)
        with pytest.raises(
            ConntrackError,
            match=(
                r"interfaces\[0\]\.name: there is no interface 'nolan' in the host's namespace;"
                r" there are: "
            ),
        ):
            typed(state, "nolan")
        with pytest.raises(
            ConntrackError,
            match=rf"no interface {lab.near!r} in namespace {lab.ns}; there are: lo, {lab.far}",
        ):
            typed(state, lab.near, lab.ns)
        with pytest.raises(ConntrackError, match="there is no namespace 'nowhere'; there are: "):
            typed(state, "lan", "nowhere")
    lab.run(lab.both[:1])
    ip("link", "del", lab.near)
    typed("absent", lab.near)  # its link is still pinned, and can be taken away
    with pytest.raises(ConntrackError, match="there is no interface"):
        typed("present", lab.near)
    assert lab.run(state="absent", interfaces=lab.both[:1])["changed"]
    with pytest.raises(ConntrackError, match="there is no interface"):
        typed("absent", lab.near)


# ---------------------------------------------------------------- foreign programs
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_foreign_netlink_program(lab: Lab, foreign: int, mode: str) -> None:
    netdev.xdp_set(lab.ifindex, foreign, netdev.XDP_FLAGS[mode])
    info = bpf.prog_info(foreign)
    with pytest.raises(ConntrackError) as raised:
        lab.run()
    for word in (
        f"id {info.id}",
        "name firewall",
        f"tag {info.tag}",
        f"mode {mode}",
        "netlink",
        "takeover: true",
    ):
        assert word in raised.value.message
    assert lab.state() == (("firewall", mode), BARE), "nothing is touched"
    assert not lab.run(state="absent", interfaces=lab.both)["changed"]
    assert lab.seen(lab.near) == ("firewall", mode)
    assert lab.run(takeover=True)["changed"]
    assert lab.state() == (INGRESS, EGRESS)
    assert not lab.run(takeover=True)["changed"]


def test_a_foreign_link(lab: Lab, foreign: int) -> None:
    link = netdev.link_create(foreign, lab.ifindex, flags=netdev.XDP_FLAGS["native"])
    with bpf.closing(link):
        number = bpf.link_info(link).id
        with pytest.raises(
            ConntrackError, match=rf"held by bpf_link {number} of process {os.getpid()} \("
        ):
            lab.run()
        assert lab.state() == (("firewall", "native"), BARE)
        lab.run(takeover=True)
        assert lab.state() == (INGRESS, EGRESS)
        assert bpf.link_info(link).ifindex == 0
    assert lab.state() == (INGRESS, EGRESS), "the former holder ends, ours stays"


def run_refused(lab: Lab, call: str, **options: t.Any) -> None:
    """Run with the first such call refused."""
    refuse = syscalls.at(syscalls.is_call(call), 1, syscalls.Refuse(errno.ENOMEM))
    syscalls.outcome(lambda: lab.run(takeover=True, **options), refuse)


def test_a_failed_takeover_puts_the_old_program_back(lab: Lab, foreign: int) -> None:
    netdev.xdp_set(lab.ifindex, foreign, netdev.XDP_FLAGS["native"])
    with pytest.raises(ConntrackError, match="ENOMEM"):
        run_refused(lab, "bpf LINK_CREATE", mode="native")
    assert lab.state() == (("firewall", "native"), BARE)
    netdev.xdp_set(lab.ifindex, -1, netdev.XDP_FLAGS["native"])
    with bpf.closing(netdev.link_create(foreign, lab.ifindex, flags=netdev.XDP_FLAGS["native"])):
        with pytest.raises(ConntrackError, match="ENOMEM"):
            run_refused(lab, "bpf OBJ_PIN")
        assert lab.state() == (("firewall", "native"), BARE)


# ---------------------------------------------------------------- the seed's own command
def test_the_seeds_command(lab: Lab) -> None:
    for path, target in lab.paths.seed_links().items():
        pins.swap_symlink(target, path)
    seed = ["ip", "link", "set", "dev", lab.near, "xdp", "pinned", f"{lab.pin_root}/prog/xdp_0"]
    subprocess.run(seed, check=True)
    assert lab.seen(lab.near) == INGRESS
    result = lab.run()
    assert "attached by its pin" in result["plan"][0]["reason"]
    assert lab.state() == (INGRESS, EGRESS) and result["interfaces"][0]["link_id"]
    refused = subprocess.run(seed, check=False, capture_output=True, text=True)
    assert refused.returncode != 0, "the kernel protects what a link holds"
    lab.run(state="absent")
    subprocess.run(seed, check=True)
    lab.activate(2)
    assert lab.run(state="absent", interfaces=lab.both)["changed"], (
        "an older generation's is ours, too"
    )
    assert lab.state() == (BARE, BARE)


# ---------------------------------------------------------------- interfaces come and go
def test_an_interface_made_anew(lab: Lab) -> None:
    lab.run()
    ip("link", "del", lab.near)
    make_veth(lab)
    foretold = lab.run(check_mode=True)
    assert [step["action"] for step in foretold["plan"]] == [
        "attach",
        "attach",
    ] and "made anew" in foretold["plan"][0]["reason"]
    lab.run()
    assert lab.state() == (INGRESS, EGRESS) and not lab.run()["changed"]


def test_a_namespace_made_anew(lab: Lab) -> None:
    lab.run()
    ip("netns", "del", lab.ns)
    ip("netns", "add", lab.ns)
    deadline = time.monotonic() + 5
    while os.path.exists(f"/sys/class/net/{lab.near}") and time.monotonic() < deadline:
        time.sleep(0.02)
    make_veth(lab)
    lab.run()
    assert lab.state() == (INGRESS, EGRESS) and not lab.run()["changed"]


def test_absent_with_a_process_in_a_namespace_that_lost_its_name(lab: Lab) -> None:
    lab.run()
    inside = netns.inode(lab.ns)
    with subprocess.Popen(["ip", "netns", "exec", lab.ns, "sleep", "60"]) as sleeper:
        try:
            deadline = time.monotonic() + 20
            while os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != inside:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            ip("netns", "del", lab.ns)

            def program() -> t.Any:
                asked = [
                    "nsenter",
                    f"--net=/proc/{sleeper.pid}/ns/net",
                    "ip",
                    "-j",
                    "link",
                    "show",
                    lab.far,
                ]
                return json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)[
                    0
                ].get("xdp")

            assert program() is not None, (
                "the process keeps the namespace alive, and the link its program"
            )
            assert lab.run(state="absent")["changed"] and lab.pins() == []
            assert program() is None and lab.seen(lab.near) == BARE
        finally:
            sleeper.kill()
    ip("netns", "add", lab.ns)


def test_a_number_means_nothing_in_another_namespace(lab: Lab) -> None:
    """The same name, number and program in two namespaces: each link is taken for what it is."""
    lab.run([lab.both[1]])
    (far,) = ip("-n", lab.ns, "link", "show", lab.far)
    other = f"{lab.ns}b"
    ip("netns", "add", other)
    try:
        ip(
            "-n",
            other,
            "link",
            "add",
            lab.far,
            "index",
            str(far["ifindex"]),
            "type",
            "veth",
            "peer",
            "name",
            "peer",
            "index",
            "99",
        )
        twin = {**lab.both[1], "netns": other}
        with netns.entered(other), bpf.closing(lab.prog(1)) as fd:
            link = netdev.link_create(fd, far["ifindex"], flags=netdev.XDP_FLAGS["native"])
        with bpf.closing(link):
            for wanted in ("present", "absent"):
                if wanted == "present":
                    with pytest.raises(
                        ConntrackError,
                        match=(
                            f"{lab.far}@{other} has an XDP program that is not ours: .*held by"
                            " bpf_link"
                        ),
                    ):
                        lab.run([twin])
                else:
                    assert not lab.run([twin], state=wanted)["changed"]
                assert lab.seen(lab.far, other) == lab.seen(
                    lab.far, lab.ns
                ) == EGRESS and lab.pins() == [f"{lab.far}@{lab.ns}"]
        assert (
            lab.run([twin])["plan"][0]["action"] == "attach" and lab.seen(lab.far, other) == EGRESS
        )
        assert lab.run([twin], state="absent")["changed"]
        assert (lab.seen(lab.far, other), lab.seen(lab.far, lab.ns)) == (
            BARE,
            EGRESS,
        ), "the other one's link is left alone"
    finally:
        ip("netns", "del", other)


def test_another_interface_with_the_program_is_not_the_one_that_is_held(lab: Lab) -> None:
    lab.run([lab.both[0]])
    ip("link", "set", lab.near, "down")
    ip("link", "set", lab.near, "name", f"{lab.near}2")
    ip("link", "add", lab.near, "type", "veth", "peer", "name", f"{lab.near}3")
    try:
        with bpf.closing(lab.prog(0)) as fd:
            netdev.xdp_set(lab.ifindex, fd, netdev.XDP_FLAGS["native"])
        moved = [
            fault.fault
            for fault in generation_links.judge_links(generation_links.look_links(lab.paths), {})
            if fault.fault != "link_program"
        ]
        assert moved == ["link_moved"], "it has the name and the program, and another number"
        assert lab.run([lab.both[0]])["changed"] and lab.seen(f"{lab.near}2") == BARE
        with bpf.closing(bpf.obj_get(lab.paths.link(None, lab.near))) as link:
            assert bpf.link_info(link).ifindex == lab.ifindex
    finally:
        ip("link", "del", lab.near)


def test_absent_after_the_interfaces_are_gone(lab: Lab) -> None:
    lab.run()
    ip("link", "del", lab.near)
    assert lab.run(state="absent", interfaces=lab.both)["changed"]
    assert lab.pins() == []
    assert not lab.run(state="absent", interfaces=[{"name": "none", "netns": "nowhere"}])["changed"]


def test_a_renamed_interface(lab: Lab) -> None:
    lab.run(lab.both[:1])
    ip("link", "set", lab.near, "down")
    ip("link", "set", lab.near, "name", f"{lab.near}2")
    ip("link", "set", f"{lab.near}2", "up")
    result = lab.run([{"name": f"{lab.near}2", "program": "ingress"}])
    assert "renamed or moved" in result["plan"][0]["reason"]
    assert lab.pins() == [f"{lab.near}2"] and lab.seen(f"{lab.near}2") == INGRESS


# ---------------------------------------------------------------- bad surroundings
def test_check_mode_on_a_clean_machine(lab: Lab) -> None:
    interfaces = [
        {"name": "nolan", "program": "ingress"},
        {"name": "lan", "netns": "nowhere", "program": "egress"},
    ]
    result = lab.run(interfaces, check_mode=True, pin_root=f"{lab.pin_root}/none")
    assert [step["reason"] for step in result["plan"]] == ["the interface does not exist yet"] * 2
    assert result["interfaces"][0]["mode"] == "auto" and result["interfaces"][0]["ifindex"] is None
    assert not os.path.exists(f"{lab.pin_root}/none")
    assert not lab.run(
        interfaces, state="absent", check_mode=True, pin_root=f"{lab.pin_root}/none"
    )["changed"]


def test_missing_things_are_named(lab: Lab) -> None:
    with pytest.raises(
        ConntrackError,
        match=(
            rf"interfaces\[1\]\.name: there is no interface 'nolan' in namespace {lab.ns}; there"
            rf" are: lo, {lab.far}\."
        ),
    ):
        lab.run([lab.both[0], {"name": "nolan", "netns": lab.ns, "program": "egress"}])
    with pytest.raises(
        ConntrackError,
        match=rf"interfaces\[0\]\.netns: there is no namespace 'nowhere'; there are: .*{lab.ns}",
    ):
        lab.run([{"name": "lan", "netns": "nowhere", "program": "egress"}])
    os.unlink(lab.paths.prog(0))
    with pytest.raises(
        ConntrackError,
        match=(
            rf"interfaces\[0\]\.program: 'ingress' is not loaded: {lab.paths.prog(0)} does not"
            r" exist\. Run ebpf\.conntrack\.xdp_program first"
        ),
    ):
        lab.run()
    assert lab.state() == (
        BARE,
        BARE,
    ), "the second interface's program is there, but nothing is touched"


def test_what_is_foreign_among_the_pins_is_refused(lab: Lab) -> None:
    os.makedirs(lab.paths.link_dir)
    with bpf.closing(
        bpf.map_create(bpf_constants.MAP_TYPES["percpu_array"], "percpu", 4, 4, 1)
    ) as fd:  # its kind has the number of an XDP link
        bpf.obj_pin(fd, lab.paths.link(None, lab.near))
    for state in ("present", "absent"):
        with pytest.raises(
            ConntrackError, match=rf"{lab.paths.link(None, lab.near)} is not a pinned XDP link"
        ):
            lab.run(lab.both, state=state)
    os.unlink(lab.paths.prog(0))
    with bpf.closing(
        bpf.map_create(bpf_constants.MAP_TYPES["percpu_array"], "percpu", 4, 4, 1)
    ) as fd:
        bpf.obj_pin(fd, lab.paths.prog(0))
    os.unlink(lab.paths.link(None, lab.near))
    with pytest.raises(ConntrackError, match="is no XDP program"):
        lab.run()


# ---------------------------------------------------------------- interfaces by what they are
def test_interfaces_are_chosen_by_what_they_are(lab: Lab) -> None:
    for argv in (
        ["link", "add", "br0", "type", "bridge"],
        ["link", "set", "br0", "up"],
        ["link", "set", lab.far, "up"],
        ["link", "set", "lo", "up"],
    ):
        ip("-n", lab.ns, *argv)
    ip("-n", lab.ns, "address", "add", "192.0.2.1/24", "dev", lab.far)
    ip("-n", lab.ns, "route", "add", "default", "via", "192.0.2.2")
    ip("-n", lab.ns, "route", "add", "default", "dev", "br0", "metric", "7")
    uplink, other = (
        {"default_route": True, "netns": lab.ns, "program": "egress"},
        {"pattern": "*", "netns": lab.ns, "program": "ingress", "mode": "generic"},
    )

    would = lab.run([uplink, other], check_mode=True)
    assert would["changed"] and lab.state() == (BARE, BARE)
    done = lab.run([uplink, other])
    assert [(one["name"], one["program"], one["chosen_by"]) for one in done["interfaces"]] == [
        (lab.far, "egress", "default route"),
        ("br0", "ingress", "pattern *"),
    ]
    assert (lab.seen(lab.far, lab.ns), lab.seen("br0", lab.ns)) == (EGRESS, ("ingress", "generic"))
    assert not lab.run([uplink, other])["changed"]

    ip(
        "-n",
        lab.ns,
        "route",
        "replace",
        "default",
        "nexthop",
        "via",
        "192.0.2.2",
        "dev",
        lab.far,
        "nexthop",
        "dev",
        "br0",
    )
    assert {one.name: one.default_route for one in attach_observe.candidates(lab.ns)} == {
        lab.far: True,
        "br0": True,
    }
    ip("-n", lab.ns, "route", "del", "default")
    assert {
        one.name: (one.driver, one.default_route) for one in attach_observe.candidates(lab.ns)
    } == {
        lab.far: ("veth", False),
        "br0": ("bridge", True),
    }

    assert [
        one["name"]
        for one in lab.run([{"driver": "bridge", "netns": lab.ns}], state="absent")["interfaces"]
    ] == ["br0"]
    assert (lab.seen(lab.far, lab.ns), lab.seen("br0", lab.ns)) == (EGRESS, BARE)


def test_nothing_that_fits_is_an_error_that_says_what_there_is(lab: Lab) -> None:
    nothing = {"driver": "virtio_net", "netns": lab.ns, "program": "ingress"}
    with pytest.raises(
        ConntrackError,
        match=(
            rf"interfaces\[0\]: driver virtio_net: no interface in namespace {lab.ns} fits; there"
            rf" are: {lab.far} \(driver veth\)\."
        ),
    ):
        lab.run([nothing])
    would = lab.run([nothing], check_mode=True)  # an earlier task may make it
    assert [(step["action"], step["name"]) for step in would["plan"]] == [
        ("attach", "driver virtio_net")
    ] and "there are: " in would["warnings"][0]
    assert not lab.run([nothing], state="absent")["changed"]
    with pytest.raises(
        ConntrackError, match=r"interfaces\[0\]\.netns: there is no namespace 'gone'"
    ):
        lab.run([{**nothing, "netns": "gone"}])


# ---------------------------------------------------------------- interfaces without Ethernet heade
def test_an_interface_without_ethernet_header_is_refused(lab: Lab) -> None:
    for name, mode in (("tun0", "tun"), ("tap0", "tap")):
        ip("-n", lab.ns, "tuntap", "add", name, "mode", mode)
    tun, tap = ({"name": name, "netns": lab.ns, "program": "ingress"} for name in ("tun0", "tap0"))
    for check_mode, mode in (
        (True, "auto"),
        (False, "auto"),
        (False, "native"),
        (False, "generic"),
    ):
        with pytest.raises(
            ConntrackError,
            match=(
                rf"interfaces\[1\]\.name: tun0@{lab.ns}: .*no Ethernet header \(hardware type 65534"
            ),
        ):
            lab.run([tap, tun], check_mode=check_mode, mode=mode)
    assert (lab.seen("tun0", lab.ns), lab.seen("tap0", lab.ns)) == (
        BARE,
        BARE,
    ), "nothing is touched"

    chosen = {"pattern": "t?[np]0", "netns": lab.ns, "program": "ingress"}
    for check_mode in (True, False):
        result = lab.run([chosen], check_mode=check_mode)
        assert [one["name"] for one in result["interfaces"]] == ["tap0"]
        assert any(
            line.startswith("interfaces[0]: pattern t?[np]0: left out: tun0 (its frames have no")
            for line in result["warnings"]
        )
    assert lab.seen("tap0", lab.ns)[0] == "ingress"
    with pytest.raises(
        ConntrackError,
        match=(
            r"interfaces\[0\]: pattern tun\*: no interface in namespace .* is left; left out: tun0"
        ),
    ):
        lab.run([{**chosen, "pattern": "tun*"}])

    with netns.entered(lab.ns), bpf.closing(lab.prog(0)) as fd:  # as an earlier release attached it
        link = netdev.link_create(
            fd, socket.if_nametoindex("tun0"), flags=netdev.XDP_FLAGS["generic"]
        )
        bpf.obj_pin(link, lab.paths.link(lab.ns, "tun0"))
        bpf.close(link)
    lab.run([{"pattern": "t*0", "netns": lab.ns}], state="absent")
    assert (lab.seen("tun0", lab.ns), lab.seen("tap0", lab.ns)) == (
        BARE,
        BARE,
    ) and lab.pins() == [], "it is detached whatever it is"


def stack(lab: Lab) -> None:
    """Make far a port of br0, with mv0 on top of that; in lab's namespace."""
    for argv in (
        ("link", "add", "br0", "type", "bridge"),
        ("link", "set", lab.far, "master", "br0"),
        ("link", "add", "link", "br0", "name", "mv0", "type", "macvlan", "mode", "bridge"),
        ("link", "set", "br0", "addrgenmode", "none", "up"),
        ("link", "set", "mv0", "addrgenmode", "none", "up"),
    ):
        ip("-n", lab.ns, *argv)


def test_a_frame_is_seen_on_each_of_a_stack(lab: Lab) -> None:
    """What the refusal rests on: the kernel runs XDP for one frame on the port, on the bridge and
    on what is on top of it.
    """
    stack(lab)
    frame = b"\xff" * 6 + b"\2" + bytes(5) + b"\x88\xb5" + bytes(46)
    with netns.entered(lab.ns):
        indexes = [socket.if_nametoindex(name) for name in (lab.far, "br0", "mv0")]
        programs = [bpf.prog_load(bpf.xdp_pass_insns(), "seen") for dummy in indexes]
        links = [
            netdev.link_create(fd, index, flags=netdev.XDP_FLAGS["generic"])
            for fd, index in zip(programs, indexes)
        ]
    with (
        bpf.closing(bpf_batch.enable_stats()),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
    ):
        sender.bind((lab.near, 0))
        sender.send(frame)
        deadline = time.monotonic() + 5
        while (runs := [bpf.prog_info(fd).run_cnt for fd in programs]) != [
            1,
            1,
            1,
        ] and time.monotonic() < deadline:
            time.sleep(0.01)
    for fd in (*links, *programs):
        bpf.close(fd)
    assert runs == [1, 1, 1]


def test_only_one_of_a_stack_carries_the_chain(lab: Lab) -> None:
    stack(lab)
    port, bridge, top = (
        {"name": name, "netns": lab.ns, "program": "ingress"} for name in (lab.far, "br0", "mv0")
    )
    for check_mode in (True, False):
        for both, upper, lower in (
            ([port, bridge], "br0", lab.far),
            ([top, port], "mv0", lab.far),
            ([bridge, top], "mv0", "br0"),
        ):
            with pytest.raises(
                ConntrackError,
                match=(
                    rf"\.name: {upper}@{lab.ns}: each packet would be counted twice: all its frames"
                    rf" that come by {lower} are"
                ),
            ):
                lab.run(both, check_mode=check_mode)
    assert lab.pins() == []
    assert [
        one["name"] for one in lab.run([{**port, "name": None, "pattern": "*"}])["interfaces"]
    ] == [lab.far]
    # in another run
    with pytest.raises(ConntrackError, match=f"br0@{lab.ns}: each packet would be counted twice"):
        lab.run([bridge])
    lab.run([port], state="absent")
    lab.run([top])
    with pytest.raises(
        ConntrackError,
        match=(
            f"{lab.far}@{lab.ns}: each packet would be counted twice: its frames that mv0 gets are"
            " counted there"
        ),
    ):
        lab.run([port])
    assert lab.run([{**port, "program": "pass"}], check_mode=True)["changed"], (
        "what does not track is not in the way"
    )


# ---------------------------------------------------------------- other names
def test_alternative_names_are_the_same_interface(lab: Lab) -> None:
    long = f"alternative-name-of-{lab.near}"
    for name in ("alt0", long):
        ip("link", "property", "add", "dev", lab.near, "altname", name)
    with pytest.raises(
        ConntrackError,
        match=(
            rf"interfaces\[1\]\.name: 'alt0' is not valid: it is {lab.near}, which is already in"
            r" interfaces\[0\]"
        ),
    ):
        lab.run([lab.both[0], {**lab.both[0], "name": "alt0"}])
    assert lab.pins() == []
    first = lab.run([{"name": long, "program": "ingress"}], check_mode=True)
    assert [step["name"] for step in first["plan"]] == [lab.near] and lab.run(
        [{"name": long, "program": "ingress"}]
    )["plan"][0]["name"] == lab.near
    for name in (lab.near, "alt0", long):
        for again in ({"name": name}, {"pattern": name}):
            assert not lab.run([{"program": "ingress", **again}])["changed"], again
    assert lab.run([{"name": "alt0", "program": "ingress"}])["interfaces"][0][
        "name"
    ] == lab.near and lab.pins() == [lab.near]
    named = [
        {"name": "alt0", "program": "ingress"},
        {"pattern": f"{lab.near[:-1]}*", "program": "egress"},
    ]
    with pytest.raises(
        ConntrackError, match=f"belongs to another entry: {lab.near} to interfaces\\[0\\]"
    ):
        lab.run(named)
    assert lab.run([{"name": "alt0"}], state="absent")["changed"] and lab.pins() == []


def test_a_pin_under_another_name_is_renamed_once(lab: Lab) -> None:
    ip("link", "property", "add", "dev", lab.near, "altname", "alt0")
    lab.run(lab.both[:1])
    # as an earlier release named it
    os.rename(lab.paths.link(None, lab.near), lab.paths.link(None, "alt0"))
    assert lab.run([{"name": "alt0", "program": "ingress"}])["changed"] and lab.pins() == [lab.near]
    assert (
        not lab.run([{"name": "alt0", "program": "ingress"}])["changed"]
        and not lab.run(lab.both[:1])["changed"]
    )


def test_a_namespace_with_two_names_is_one(lab: Lab) -> None:
    alias, own = f"a{lab.ns}", f"own{lab.ns}"
    try:
        for name, source in ((alias, netns.path(lab.ns)), (own, "/proc/self/ns/net")):
            open(netns.path(name), "w", encoding="ascii").close()
            subprocess.run(["mount", "--bind", source, netns.path(name)], check=True)
        with pytest.raises(
            ConntrackError,
            match=(
                rf"interfaces\[1\]\.name: '{lab.far}@{lab.ns}' is not valid: it is"
                rf" {lab.far}@{alias}, which is already in"
            ),
        ):
            lab.run([{**lab.both[1], "netns": alias}, lab.both[1]])
        assert lab.run([{**lab.both[0], "netns": own}, lab.both[1]])["changed"]
        assert not lab.run([lab.both[0], {**lab.both[1], "netns": alias}])[
            "changed"
        ] and lab.pins() == sorted([lab.near, f"{lab.far}@{alias}"])
        assert lab.run([lab.both[0], lab.both[1]], state="absent")["changed"] and lab.pins() == []
    finally:
        for name in (alias, own):
            namespaces.remove(name)


# ---------------------------------------------------------------- several namespaces, one table
def test_several_namespaces_under_one_pin_root_are_warned_of(lab: Lab) -> None:
    def shared(result: dict[str, t.Any]) -> list[str]:
        return [line for line in result["warnings"] if "share its tables" in line]

    assert shared(lab.run()) == [], "the two ends of one link see one direction each"
    ip("-n", lab.ns, "link", "add", "more", "type", "bridge")
    more = {"name": "more", "netns": lab.ns, "program": "ingress"}
    for check_mode in (True, False):
        (line,) = shared(lab.run([*lab.both, more], check_mode=check_mode))
        assert (
            f"several namespaces (the host's, {lab.ns})" in line
            and f"a pin_root of its own, as /sys/fs/bpf/{lab.ns} to {lab.ns}" in line
        )
    assert shared(lab.run(lab.both[:1])), "what an earlier run attached counts as well"
    lab.run([lab.both[1]], state="absent")
    lab.run([{**more, "program": "pass"}])
    assert shared(lab.run(lab.both[:1])) == [], "what does not track counts nothing"
