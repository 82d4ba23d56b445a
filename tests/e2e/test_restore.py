# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reboot takes away comes back from the state directory; tests/host has the reboot itself."""

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
from ansible_collections.ebpf.conntrack.plugins.module_utils import (
    attach,
    bpf,
    build_bcc,
    ct_service,
    ct_unit,
    generation,
    restore,
    service_options,
    state,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import SLOTS
from ansible_collections.ebpf.conntrack.plugins.module_utils.errors import ConntrackError
from ansible_collections.ebpf.conntrack.tests.e2e import prebuilt
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import Chain, made, rendered, udp_frame, veth

__all__ = ["made", "rendered", "veth"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LEFT = {"name": "left", "netns": None, "program": "ingress", "mode": "native"}
TIMEOUTS = {"udp": 7}


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def program_on(name: str) -> int | None:
    (link,) = json.loads(ip("-j", "link", "show", "dev", name))
    return link["xdp"]["prog"]["id"] if "xdp" in link else None


def converge(chain: Chain, wanted: str, *interfaces: dict[str, t.Any], check_mode: bool = False) -> list[str]:
    """Attach or detach; return the plan as lines."""
    result, dummy = attach.converge(wanted, interfaces or None, "native", False, chain.paths.pin_root, check_mode, state_dir=chain.paths.state_dir)
    return [f"{step['action']} {step['kind']} {step['name']}" for step in result["plan"]]


@pytest.fixture
def used(made: Chain, veth: None, monkeypatch: pytest.MonkeyPatch) -> c.Iterator[Chain]:
    """A chain with a timeout of its own, attached to ``left``, as the state directory has it."""
    monkeypatch.setattr(build_bcc, "build", prebuilt.build)
    made.ensure(made.want(timeouts=TIMEOUTS))
    assert converge(made, "present", LEFT) == ["attach xdp left"]
    yield made
    converge(made, "absent")


def reboot(chain: Chain) -> None:
    """Take away what is in the kernel, as a reboot does."""
    generation.remove_tree(chain.paths.base)
    generation.remove_symlinks(chain.paths)
    deadline = time.monotonic() + 30
    while program_on("left") is not None:  # the kernel lets go of a link some time after its pin is gone
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert chain.observe().generation is None


def test_what_is_attached_is_written_down(used: Chain) -> None:
    assert state.interfaces(used.paths) == [LEFT] and converge(used, "present", LEFT) == []
    assert converge(used, "present", {**LEFT, "mode": "auto"}) == ["change manifest interfaces"], "a reboot is to bring back what was asked for"
    state.write_interfaces(used.paths, [])  # as after an upgrade from a release that did not write it down
    assert converge(used, "present", LEFT, check_mode=True) == ["change manifest interfaces"] and state.interfaces(used.paths) == []
    assert converge(used, "present", LEFT) == ["change manifest interfaces"] and converge(used, "present", LEFT) == []
    assert used.ensure(used.want(timeouts=TIMEOUTS))[0] == [], "it is no stray"
    with pytest.raises(ConntrackError, match="there is no interface 'none'"):
        converge(used, "present", {**LEFT, "name": "none"})
    assert state.interfaces(used.paths) == [LEFT]
    assert converge(used, "absent", LEFT) == ["detach xdp left"] and state.interfaces(used.paths) == [] and converge(used, "absent", LEFT) == []
    assert generation.remove(used.paths) and not os.path.exists(used.paths.state_dir)


def test_it_goes_with_the_chain(used: Chain) -> None:
    reboot(used)
    assert [step.name for step in generation.remove(used.paths)] == ["interfaces.json", "1.json"] and not os.path.exists(used.paths.state_dir)


def test_a_reboot(used: Chain) -> None:
    before = used.observe()
    used.send(udp_frame(4000))
    reboot(used)
    foretold, dummy = restore.load(used.paths, check_mode=True)
    done, have = restore.load(used.paths)
    assert [step.as_dict() for step in done] == [step.as_dict() for step in foretold] and done[0].reason == "no chain is loaded"
    assert (have.generation, have.digest, have.settings, have.faults) == (2, before.digest, before.settings, ())
    assert program_on("left") is None
    again = restore.attach_again(used.paths)
    assert [step.name for step in again.steps] == ["left"] and not again.refused and not again.waiting
    assert program_on("left") == have.programs[SLOTS["ingress"]].id
    used.send(udp_frame(4001))
    assert len(used.flows()) == 1
    stamps = used.stamps()
    assert restore.load(used.paths)[0] == [] and restore.attach_again(used.paths) == restore.Attached() and used.stamps() == stamps


def test_what_is_kept_to_go_back_to_stays(used: Chain) -> None:
    used.ensure(used.changed(), keep=2)
    used.ensure(used.changed("twice"), keep=2)
    os.unlink(used.paths.seed_map)
    assert [step.kind for step in restore.load(used.paths)[0]] == ["path"] and [one.number for one in used.observe().kept] == [2, 1]


def test_interfaces_on_their_own(used: Chain) -> None:
    """One does not exist yet, one belongs to somebody else; the third is attached nevertheless."""
    converge(used, "present", {**LEFT, "name": "right", "mode": "generic"})
    ip("link", "add", "late", "type", "veth", "peer", "name", "late_peer")
    converge(used, "present", {**LEFT, "name": "late", "program": "egress"})
    ip("link", "del", "late")
    reboot(used)
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "stranger")) as fd:
        bpf.xdp_set(socket.if_nametoindex("right"), fd, bpf.XDP_FLAGS["generic"])
    restore.load(used.paths)
    done = restore.attach_again(used.paths)
    assert [step.name for step in done.steps] == ["left"] and done.waiting == ["late"] and list(done.refused) == ["right"]
    assert "right has an XDP program that is not ours" in done.refused["right"]
    ip("link", "add", "late", "type", "veth", "peer", "name", "late_peer")
    try:
        done = restore.attach_again(used.paths)
        assert [(step.action, step.name) for step in done.steps] == [("attach", "late")] and not done.waiting
        assert program_on("late") == used.observe().programs[SLOTS["egress"]].id
    finally:
        ip("link", "del", "late")


def test_unload_and_load(used: Chain) -> None:
    written = used.written()
    assert restore.unload(used.paths) == ["left"] and program_on("left") is None and used.written() == written
    assert os.listdir(used.paths.pin_root) == [] and restore.unload(used.paths) == []
    assert restore.load(used.paths)[1].generation == 2 and [step.name for step in restore.attach_again(used.paths).steps] == ["left"]


def test_what_can_not_come_back(used: Chain) -> None:
    reboot(used)
    path = pathlib.Path(state.manifest(used.paths, 1))
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
    """A control group with a bound of memory, in either version of the hierarchy; a context manager."""

    def __init__(self, directory: pathlib.Path, size: int) -> None:
        self.size, self._hierarchy = size, directory
        directory.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", directory], check=True)
        if "memory" in (directory / "cgroup.subtree_control").read_text("ascii"):
            self._names = ("memory.max", "memory.current")
        else:
            subprocess.run(["umount", directory], check=True)
            subprocess.run(["mount", "-t", "cgroup", "-o", "memory", "cgroup", directory], check=True)
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


def test_large_tables_under_the_bound_of_the_service(used: Chain, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of 4 million entries take more memory than the service may have: what brings them back is another unit, whose the maps are then."""
    used.ensure(used.resized(table_size=1 << 22))
    reboot(used)
    (tmp_path / "systemctl").write_text(SYSTEMCTL, "ascii")
    (tmp_path / "systemctl").chmod(0o755)
    for name in ("asked", "told"):
        os.mkfifo(tmp_path / name)
    with Bounded(tmp_path / "cgroup", ct_unit.MEMORY << 20) as group, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
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
                status = ct_service.Service(service_options.Options(used.paths, address=service_options.Address(str(tmp_path / "ct.sock")))).run()
            finally:
                os._exit(status)

        alone = begin("")
        assert os.waitstatus_to_exitcode(os.waitpid(alone, 0)[1]) == 1 and used.observe().generation is None, "it has no room for them, and says so"
        pid = begin("ct-restore.service")
        with open(tmp_path / "asked", encoding="ascii") as asked:
            assert asked.read() == "start\n"
        assert ct_service.load(used.paths) == 0
        (tmp_path / "told").write_text("0\n", "ascii")
        while b"READY=1" not in manager.recv(1 << 12):
            continue
        with bpf.closing(bpf.obj_get(used.paths.map("ctt"))) as fd, open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as facts:
            maps = int(dict(line.split(":", 1) for line in facts)["memlock"])
        assert maps > group.size > 4 * group.used and used.observe().generation
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
