# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reboot takes away comes back from the state directory; tests/host really reboots."""

from __future__ import annotations

import collections.abc as c
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import record as attach_record
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.programs import SLOTS
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import delete as flow_delete
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    manifest,
    migrate,
    state_dir,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, netdev
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import daemon as ct_daemon
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import restore
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import unit as ct_unit
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_health import (
    run_an_older_generation_in_the_link,
)

__all__ = ["made", "rendered", "veth"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LEFT = {"name": "left", "netns": None, "program": "ingress", "mode": "native"}
TIMEOUTS = {"udp": 7}


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def program_on(name: str) -> int | None:
    (link,) = json.loads(ip("-j", "link", "show", "dev", name))
    return link["xdp"]["prog"]["id"] if "xdp" in link else None


def converge(
    chain: Chain, wanted: str, *interfaces: dict[str, t.Any], check_mode: bool = False
) -> list[str]:
    """Attach or detach; return the plan as lines."""
    result, dummy = attach.converge(
        wanted,
        interfaces or None,
        "native",
        False,
        chain.paths.pin_root,
        check_mode,
        state_dir=chain.paths.state_dir,
    )
    return [f"{step['action']} {step['kind']} {step['name']}" for step in result["plan"]]


@pytest.fixture
def used(made: Chain, veth: None, monkeypatch: pytest.MonkeyPatch) -> c.Iterator[Chain]:
    """A chain with a timeout of its own, attached to ``left``, as the state directory has it."""
    made.ensure(made.want(timeouts=TIMEOUTS))
    assert converge(made, "present", LEFT) == ["attach xdp left"]
    yield made
    converge(made, "absent")


def reboot(chain: Chain) -> None:
    """Take away what is in the kernel, as a reboot does."""
    generation.remove_tree(chain.paths.base)
    generation.remove_symlinks(chain.paths)
    deadline = time.monotonic() + 30
    # the kernel lets go of a link some time after its pin is gone
    while program_on("left") is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert chain.observe().generation is None


def test_what_is_attached_is_written_down(used: Chain) -> None:
    assert attach_record.interfaces(used.paths) == [LEFT] and converge(used, "present", LEFT) == []
    assert converge(used, "present", {**LEFT, "mode": "auto"}) == ["change manifest interfaces"], (
        "a reboot is to bring back what was asked for"
    )
    # as after an upgrade from a release that did not write it down
    attach_record.write_interfaces(used.paths, [])
    assert (
        converge(used, "present", LEFT, check_mode=True) == ["change manifest interfaces"]
        and attach_record.interfaces(used.paths) == []
    )
    assert (
        converge(used, "present", LEFT) == ["change manifest interfaces"]
        and converge(used, "present", LEFT) == []
    )
    assert used.ensure(used.want(timeouts=TIMEOUTS))[0] == [], "it is no stray"
    with pytest.raises(ConntrackError, match="there is no interface 'none'"):
        converge(used, "present", {**LEFT, "name": "none"})
    assert attach_record.interfaces(used.paths) == [LEFT]
    assert (
        converge(used, "absent", LEFT) == ["detach xdp left"]
        and attach_record.interfaces(used.paths) == []
        and converge(used, "absent", LEFT) == []
    )
    assert generation.remove(used.paths) and not os.path.exists(used.paths.state_dir)


def test_it_goes_with_the_chain(used: Chain) -> None:
    reboot(used)
    assert [step.name for step in generation.remove(used.paths)] == [
        "interfaces.json",
        "1.json",
    ] and not os.path.exists(used.paths.state_dir)


def test_a_reboot(used: Chain) -> None:
    before = used.observe()
    used.send(udp_frame(4000))
    reboot(used)
    foretold, dummy = restore.load(used.paths, check_mode=True)
    done, have = restore.load(used.paths)
    assert [step.as_dict() for step in done] == [step.as_dict() for step in foretold] and done[
        0
    ].reason == "no chain is loaded"
    assert (have.generation, have.digest, have.settings, have.faults) == (
        2,
        before.digest,
        before.settings,
        (),
    )
    assert program_on("left") is None
    again = restore.attach_again(used.paths)
    assert (
        [step.name for step in again.steps] == ["left"] and not again.refused and not again.waiting
    )
    assert program_on("left") == have.programs[SLOTS["ingress"]].id
    used.send(udp_frame(4001))
    assert len(used.flows()) == 1
    stamps = used.stamps()
    assert (
        restore.load(used.paths)[0] == []
        and restore.attach_again(used.paths) == restore.Attached()
        and used.stamps() == stamps
    )


def test_what_is_kept_to_go_back_to_stays(used: Chain) -> None:
    used.ensure(used.changed(), keep=2)
    used.ensure(used.changed("twice"), keep=2)
    os.unlink(used.paths.seed_map)
    assert [step.kind for step in restore.load(used.paths)[0]] == ["path"] and [
        one.number for one in used.observe().kept
    ] == [2, 1]


def test_interfaces_on_their_own(used: Chain) -> None:
    """One does not exist yet, one belongs to somebody else; the third is attached nevertheless."""
    converge(used, "present", {**LEFT, "name": "right", "mode": "generic"})
    ip("link", "add", "late", "type", "veth", "peer", "name", "late_peer")
    converge(used, "present", {**LEFT, "name": "late", "program": "egress"})
    ip("link", "del", "late")
    reboot(used)
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "stranger")) as fd:
        netdev.xdp_set(socket.if_nametoindex("right"), fd, netdev.XDP_FLAGS["generic"])
    restore.load(used.paths)
    done = restore.attach_again(used.paths)
    assert (
        [step.name for step in done.steps] == ["left"]
        and done.waiting == ["late"]
        and list(done.refused) == ["right"]
    )
    assert "right has an XDP program that is not ours" in done.refused["right"]
    ip("link", "add", "late", "type", "veth", "peer", "name", "late_peer")
    try:
        done = restore.attach_again(used.paths)
        assert [(step.action, step.name) for step in done.steps] == [
            ("attach", "late")
        ] and not done.waiting
        assert program_on("late") == used.observe().programs[SLOTS["egress"]].id
    finally:
        ip("link", "del", "late")


def test_an_interface_has_one_name(used: Chain) -> None:
    """An earlier release wrote down the name that it was given."""
    ip("link", "property", "add", "dev", "left", "altname", "uplink")
    written = [{**LEFT, "name": "uplink"}, LEFT]
    attach_record.write_interfaces(used.paths, written)
    assert restore.attach_again(used.paths) == restore.Attached(), (
        "it is attached, and is not renamed to and fro"
    )
    assert (
        converge(used, "present", LEFT, check_mode=True) == ["change manifest interfaces"]
        and attach_record.interfaces(used.paths) == written
    )
    assert converge(used, "present", {**LEFT, "name": "uplink"}) == [
        "change manifest interfaces"
    ] and attach_record.interfaces(used.paths) == [LEFT]
    assert (
        converge(used, "present", LEFT) == []
        and converge(used, "present", {**LEFT, "name": "uplink"}) == []
    )
    reboot(used)
    attach_record.write_interfaces(used.paths, written)
    restore.load(used.paths)
    assert [step.name for step in restore.attach_again(used.paths).steps] == [
        "left"
    ] and os.listdir(used.paths.link_dir) == ["left"]
    assert (
        converge(used, "absent", {**LEFT, "name": "uplink"}) == ["detach xdp left"]
        and attach_record.interfaces(used.paths) == []
    )


def test_what_cannot_carry_the_chain_is_refused_on_its_own(used: Chain) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("tuntap", "add", "tun0", "mode", "tun")
    try:
        attach_record.write_interfaces(
            used.paths,
            [LEFT, *({**LEFT, "name": name, "mode": "generic"} for name in ("br0", "tun0"))],
        )
        reboot(used)
        ip("link", "set", "left", "master", "br0")
        restore.load(used.paths)
        done = restore.attach_again(used.paths)
        assert [step.name for step in done.steps] == ["left"] and sorted(done.refused) == [
            "br0",
            "tun0",
        ]
        assert (
            "counted twice" in done.refused["br0"] and "no Ethernet header" in done.refused["tun0"]
        )
    finally:
        for name in ("br0", "tun0"):
            ip("link", "del", name)


def test_unload_and_load(used: Chain) -> None:
    written = used.written()
    assert (
        restore.unload(used.paths) == ["left"]
        and program_on("left") is None
        and used.written() == written
    )
    assert os.listdir(used.paths.pin_root) == [] and restore.unload(used.paths) == []
    assert restore.load(used.paths)[1].generation == 2 and [
        step.name for step in restore.attach_again(used.paths).steps
    ] == ["left"]


def killed_at(chain: Chain, monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """Let a run that hands the flows over to tables of another size die, without a chance to undo
    anything, where it calls that function.
    """
    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(module, name, lambda *dummy: os._exit(9))
            chain.ensure(chain.resized(table_size=2048, half_open_size=2048))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "it died there"


@pytest.mark.parametrize(
    ("module", "name", "active"),
    [
        (migrate, "connect_back", 1),  # the next generation is loaded, and nothing else is done
        (manifest, "activate", 1),  # it is active in the kernel, and not yet as it is written down
        (bpf, "link_update", 2),  # it is active, and the interface runs the one before
        (migrate, "finish", 2),  # it has the interface, and the flows are still with the one before
    ],
    ids=[
        "before it is active",
        "half active",
        "before it has the interface",
        "before it has the flows",
    ],
)
def test_a_reboot_after_a_handover_that_was_cut_off(
    used: Chain, monkeypatch: pytest.MonkeyPatch, module: object, name: str, active: int
) -> None:
    """What is written down as active comes back, whole, on its interface, with nothing of the other
    one; a second look finds nothing to do.
    """
    wants = {1: used.want(timeouts=TIMEOUTS), 2: used.resized(table_size=2048, half_open_size=2048)}
    used.send(udp_frame(4000))
    killed_at(used, monkeypatch, module, name)
    assert state_dir.active(used.paths) == active
    reboot(used)
    done, have = restore.load(used.paths)
    assert [step.action for step in done if step.action in ("load", "activate")] == [
        "load",
        "activate",
    ]
    assert (have.digest, have.faults, have.source, have.kept, have.leftovers) == (
        wants[active].digest,
        (),
        0,
        (),
        (),
    )
    assert [step.name for step in restore.attach_again(used.paths).steps] == [
        "left"
    ] and program_on("left") == have.programs[SLOTS["ingress"]].id
    assert (
        have.generation is not None
        and manifest.look(used.paths).numbers == (have.generation,)
        and state_dir.active(used.paths) == have.generation
    )
    used.send(udp_frame(4001))
    assert len(used.flows()) == 1
    assert (
        restore.load(used.paths)[0] == [] and restore.attach_again(used.paths) == restore.Attached()
    )


def test_an_interface_with_an_older_program_is_repaired_at_load(used: Chain) -> None:
    """Nothing is built for that: one link is updated, and no flow is lost."""
    used.send(udp_frame(4000))
    run_an_older_generation_in_the_link(used)
    assert [fault.fault for fault in used.observe().faults] == ["link_program"]
    foretold, dummy = restore.load(used.paths, check_mode=True)
    done, have = restore.load(used.paths)
    assert [step.as_dict() for step in done] == [step.as_dict() for step in foretold]
    assert [(step.action, step.kind, step.name) for step in done] == [("replace", "link", "left")]
    assert (
        (have.generation, have.faults) == (1, ())
        and program_on("left") == have.programs[SLOTS["ingress"]].id
        and len(used.flows()) == 1
    )
    assert restore.load(used.paths)[0] == []


def test_an_interface_that_is_gone_is_waited_for(used: Chain) -> None:
    """What attaches again forgets the link that holds nothing, and attaches the interface when it
    is back.
    """
    ip("link", "del", "left")
    assert [fault.repair for fault in used.observe().faults] == ["ct detach left"]
    foretold = restore.attach_again(used.paths, check_mode=True)
    done = restore.attach_again(used.paths)
    assert [step.as_dict() for step in done.steps] == [
        step.as_dict() for step in foretold.steps
    ] and [step.action for step in done.steps] == ["delete"]
    assert (
        done.waiting == ["left"]
        and used.observe().faults == ()
        and attach_record.interfaces(used.paths) == [LEFT]
    )
    assert restore.attach_again(used.paths).steps == []
    ip("link", "add", "left", "type", "veth", "peer", "name", "right")
    assert [step.action for step in restore.attach_again(used.paths).steps] == [
        "attach"
    ] and program_on("left") is not None


def test_nothing_is_taken_away_while_another_run_has_the_lock(used: Chain) -> None:
    """Neither the chain nor an interface nor a flow goes in the middle of what another run does; it
    is told which run that is.
    """
    used.send(udp_frame(4000))
    whole = used.tree()

    def flush() -> None:
        with flow_table.writing(used.paths.pin_root, 0) as tables:
            flow_delete.delete(tables, flow_delete.EVERYTHING, limit=0)

    changes: list[c.Callable[[], object]] = [
        flush,
        lambda: restore.unload(used.paths, 0),
        lambda: restore.attach_again(used.paths, patience=0),
        lambda: generation.remove(used.paths, patience=0),
    ]
    with lock.held(used.paths.base, 0):
        for change in changes:
            with pytest.raises(
                lock.Busy, match=rf"another run has the lock: process {os.getpid()} "
            ):
                change()
        assert used.tree() == whole and len(used.flows()) == 1 and program_on("left") is not None
    flush()
    assert len(used.flows()) == 0
    assert restore.unload(used.paths, 0) == ["left"]


def test_what_can_not_come_back(used: Chain) -> None:
    reboot(used)
    path = pathlib.Path(manifest.manifest(used.paths, 1))
    whole = path.read_text("utf-8")
    path.write_text(whole[:100], "utf-8")
    with pytest.raises(ConntrackError, match=r"1\.json is missing or damaged"):
        restore.load(used.paths)
    path.write_text(whole, "utf-8")
    with pytest.raises(ConntrackError, match="no chain is loaded there"):
        restore.attach_again(used.paths)
    generation.remove(used.paths)
    with pytest.raises(restore.NothingKept, match="no chain is written down there"):
        restore.load(used.paths)


# ---------------------------------------------------------------- the service's bound of memory
#: As systemd does for the unit that brings the chain back: elsewhere, and whoever asks waits.
SYSTEMCTL = """#!/bin/sh
[ "$*" = "--no-ask-password start ct-restore.service" ] || exit 4
echo start >"${0%/*}/asked"
read -r status <"${0%/*}/told"
exit "$status"
"""


class Bounded:
    """A control group with a bound of memory, in either version of the hierarchy; a context
    manager.
    """

    def __init__(self, directory: pathlib.Path, size: int) -> None:
        self.size, self._hierarchy = size, directory
        directory.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", directory], check=True)
        if "memory" in (directory / "cgroup.subtree_control").read_text("ascii"):
            self._names = ("memory.max", "memory.current")
        else:
            subprocess.run(["umount", directory], check=True)
            subprocess.run(
                ["mount", "-t", "cgroup", "-o", "memory", "cgroup", directory], check=True
            )
            self._names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        self._group = directory / f"ct_{os.getpid()}"
        self._group.mkdir()
        (self._group / self._names[0]).write_text(str(size), "ascii")

    def __enter__(self) -> Bounded:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._group.rmdir()
        subprocess.run(["umount", self._hierarchy], check=True)

    def join(self) -> None:
        (self._group / "cgroup.procs").write_text("0", "ascii")

    @property
    def used(self) -> int:
        return int((self._group / self._names[1]).read_text("ascii"))


def test_large_tables_under_the_bound_of_the_service(
    used: Chain, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of 4 million entries take more memory than the service may have: what brings them back
    is another unit, whose the maps are then.
    """
    used.ensure(used.resized(table_size=1 << 22))
    reboot(used)
    (tmp_path / "systemctl").write_text(SYSTEMCTL, "ascii")
    (tmp_path / "systemctl").chmod(0o755)
    for name in ("asked", "told"):
        os.mkfifo(tmp_path / name)
    with (
        Bounded(tmp_path / "cgroup", ct_unit.MEMORY << 20) as group,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)

        def begin(unit: str) -> int:
            pid = os.fork()
            if pid:
                return pid
            status = 99
            try:
                group.join()
                monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
                monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
                monkeypatch.setenv("CT_RESTORE_UNIT", unit)
                status = ct_daemon.Service(
                    service_options.Options(
                        used.paths, address=service_options.Address(str(tmp_path / "ct.sock"))
                    )
                ).run()
            finally:
                os._exit(status)

        alone = begin("")
        assert (
            os.waitstatus_to_exitcode(os.waitpid(alone, 0)[1]) == 1
            and used.observe().generation is None
        ), "it has no room for them, and says so"
        pid = begin("ct-restore.service")
        with open(tmp_path / "asked", encoding="ascii") as asked:
            assert asked.read() == "start\n"
        assert ct_daemon.load(used.paths) == 0
        (tmp_path / "told").write_text("0\n", "ascii")
        while b"READY=1" not in manager.recv(1 << 12):
            continue
        with (
            bpf.closing(bpf.obj_get(used.paths.map("ctt"))) as fd,
            open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as facts,
        ):
            maps = int(dict(line.split(":", 1) for line in facts)["memlock"])
        assert maps > group.size > 4 * group.used and used.observe().generation
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
