# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ct on real traffic: each command, held against nf_conntrack, conntrack(8), the
modules, and what was done.
"""

from __future__ import annotations

import collections.abc as c
import csv
import dataclasses
import io
import json
import os
import pathlib
import pty
import re
import shlex
import shutil
import subprocess
import tempfile
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import report as flow_report
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import CLIENT, PORT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_health import (
    FLOWS,
    detach_the_link,
    empty_one_slot,
    lose_a_path,
    make_the_interface_anew,
    run_an_older_generation_in_the_link,
    running,
)

__all__ = ["made", "rendered", "running", "veth"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NOBODY = 65534
#: What moves while nothing comes in.
MOVING = ("timeout", "age", "idle")


@dataclasses.dataclass
class Ct:
    """Runs the installed command as its own shebang does, but without site-packages: nothing but
    Python and libbpf is there.
    """

    path: str
    pin_root: str
    state_dir: str = "/var/lib/ebpf_conntrack"

    def argv(self, *words: str) -> list[str]:
        with open(self.path, "rb") as file:
            python = file.readline().decode()[2:].split()
        return [
            *python,
            "-S",
            self.path,
            *words,
            "--pin-root",
            self.pin_root,
            "--state-dir",
            self.state_dir,
        ]

    def __call__(self, *words: str, status: int = 0) -> str:
        """Return what a command prints."""
        done = subprocess.run(
            self.argv(*words),
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (status, ""), done
        return done.stdout

    def json(self, *words: str) -> t.Any:
        return json.loads(self(*words, "-o", "json"))

    def refuses(self, *words: str, status: int, user: int | None = None) -> str:
        """Return the one line that a command complains with."""
        done = subprocess.run(
            self.argv(*words),
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            user=user,
            cwd="/",
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done
        assert done.stderr.startswith(f"ct {words[0]}: "), done
        return done.stderr

    def asked(self, answer: str, *words: str) -> tuple[int, str]:
        """Run a command on a terminal and answer its question; return its exit status and all that
        it wrote there.
        """
        here, there = pty.openpty()
        with subprocess.Popen(
            self.argv(*words), env={}, stdin=there, stdout=there, stderr=there
        ) as process:
            os.close(there)
            os.write(here, f"{answer}\n".encode())
            status = process.wait(30)
        written = os.read(here, 1 << 16).decode()
        os.close(here)
        return status, written


@pytest.fixture(scope="module")
def installed() -> c.Iterator[str]:
    """The command, where other users find it."""
    prefix = tempfile.mkdtemp(prefix="ct_")
    os.chmod(prefix, 0o755)
    try:
        assert len(ct_archive.converge(prefix, ct_content.want())) == 3
        yield os.path.join(prefix, ct_archive.COMMAND)
    finally:
        shutil.rmtree(prefix)


@pytest.fixture
def ct(installed: str, wire: Wire) -> Ct:
    """The command, and flows of three protocols in both trackers."""
    wire.run("client", "ping", "-c", "2", "-i", "0.2", SERVER)
    wire.connect().exchange()
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.sendto(b"x", (SERVER, PORT))
    server.sendto(b"yy", server.recvfrom(10)[1])
    client.recv(10)
    return Ct(installed, wire.chain.paths.pin_root)


def module_result(ct: Ct, **given: t.Any) -> dict[str, t.Any]:
    """What the module ct_flows returns."""
    params = {
        name: given.get(name, option.get("default"))
        for name, option in flow_report.FLOWS_OPTIONS.items()
    }
    return flow_report.report({**params, "pin_root": ct.pin_root}, check_mode=False)


def still(records: c.Iterable[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Records without what moves."""
    return [
        {name: value for name, value in record.items() if name not in MOVING} for record in records
    ]


def lines_of(text: str) -> set[str]:
    """Lines of conntrack without the time left, which moves, and the users, which are the
    kernel's.
    """
    return {
        re.sub(r"use=\d+", "use=", re.sub(r"^(\w+ +\d+) \d+", r"\1", line.strip()))
        for line in text.splitlines()
    }


# ---------------------------------------------------------------- reading
def test_list_is_what_conntrack_and_the_module_say(
    ct: Ct, wire: Wire, figure: c.Callable[[str, object], None]
) -> None:
    theirs = lines_of(wire.run("router", "conntrack", "-L"))
    assert len(theirs) == 3 and lines_of(ct("list", "-o", "conntrack")) == theirs
    assert lines_of(ct("list", "--proto", "tcp", "-o", "conntrack")) == lines_of(
        wire.run("router", "conntrack", "-L", "-p", "tcp")
    )
    whole = module_result(ct)["flows"]
    assert still(ct.json("list")) == still(whole) and len(whole) == 3
    assert still(map(json.loads, ct("list", "-o", "jsonl").splitlines())) == still(whole)
    assert [row["proto"] for row in csv.DictReader(io.StringIO(ct("list", "-o", "csv")))] == [
        record["proto"] for record in whole
    ]
    table = ct("list").splitlines()
    assert table[0].split()[:3] == ["PROTO", "STATE", "FROM"] and len(table) == 4
    assert len({line.index(CLIENT) for line in table[1:]}) == 1, (
        "columns are aligned over all tables"
    )
    asked = {"dport": [str(PORT)], "sort": "-bytes", "limit": 1, "fields": ["proto", "bytes"]}
    mine = ct.json(
        "list", "--dport", str(PORT), "--sort=-bytes", "--limit", "1", "--fields", "proto,bytes"
    )
    assert mine == module_result(ct, **asked)["flows"] and mine[0]["proto"] == "tcp"
    assert "td_end" in ct.json("list", "--proto", "tcp", "--window")[0]["window"]["orig"]
    assert ct.json("list", "--src", "192.0.2.0/24") == []
    figure("flows that ct list and conntrack -L tell alike", f"{len(theirs)} of {len(theirs)}")


def test_a_file_answers_as_the_tables_did(ct: Ct, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "flows.json"
    path.write_text(ct("list", "-o", "json"), "utf-8")
    assert ct("list", "--input", str(path), "-o", "json") == path.read_text("utf-8")
    assert still(ct.json("list", "--input", str(path), "--proto", "udp")) == still(
        module_result(ct, proto=["udp"])["flows"]
    )
    assert lines_of(ct("list", "--input", str(path), "-o", "conntrack")) == lines_of(
        ct("list", "-o", "conntrack")
    )
    assert ct("count", "--input", str(path), "--assured") == ct("count", "--assured") == "1\n"
    path.write_text("no flow\n", "utf-8")
    assert f"input: {path}:1: 'no flow' is no whole flow" in ct.refuses(
        "list", "--input", str(path), status=1
    )


def test_counts_and_totals(ct: Ct, wire: Wire) -> None:
    assert ct("count") == "3\n" and ct("count", "--state", "established") == "1\n"
    groups = module_result(ct, group_by=["proto"])["groups"]
    assert (
        ct.json("count", "--group-by", "proto") == {"count": 3, "groups": groups}
        and len(groups) == 3
    )
    assert ct("count", "--group-by", "src").splitlines()[1].split()[:2] == [CLIENT, "3"]
    for dummy in range(5):  # the kernel's own neighbour discovery may come between the two
        expected, found = module_result(ct)["summary"], ct.json("summary")
        if {**found, "clock": 0} == {**expected, "clock": 0}:
            break
    else:
        assert {**found, "clock": 0} == {**expected, "clock": 0}
    assert "icmp 1, tcp 1, udp 1" in ct("summary") and "flows        1\n" in ct(
        "summary", "--proto", "tcp"
    )


def test_every_frame_is_counted_at_one_stage(ct: Ct, wire: Wire) -> None:
    counted = wire.counters()
    found = ct.json("stats")
    assert {
        name: number for names in found["frames"].values() for name, number in names.items()
    } == {name: counted[name] for name, dummy in chain_counters.OUTCOMES}
    assert (
        found["entries"]["created"] == counted["created"]
        and found["frames"]["ct, ct6"]["tracked"] == counted["tracked"] > 0
    )
    assert f"  {counted['tracked']}  counted in a flow" in ct("stats") and "invalid_gre" in ct(
        "stats", "--all"
    )
    assert ct("stats", "-o", "conntrack") == module_result(ct, format="stats")["text"]


def test_show_tells_why(ct: Ct) -> None:
    (record,) = ct.json("list", "--proto", "tcp")
    here, there = f"{CLIENT}:{record['orig']['sport']}", f"{SERVER}:{PORT}"
    text = ct("show", "tcp", here, there)
    for words in ([f"tcp {here} -> {there}"], ["tcp", there, here]):
        assert (
            ct("show", *words).splitlines()[0] == text.splitlines()[0] == f"tcp {here} -> {there}"
        )
    assert (
        "the handshake is complete" in text
        and "the timeout tcp_established is 432000 s" in text
        and "td_maxwin" in text
    )
    (shown,) = ct.json("show", "tcp", CLIENT, there)
    assert still([shown])[0].items() >= still([record])[0].items() and shown["why"][1].startswith(
        "assured"
    )
    assert ct("show", "icmp", CLIENT, SERVER).startswith(
        f"icmp {CLIENT} -> {SERVER} type 8"
    ) and "not assured: it was answered" in ct("show", "udp", SERVER, CLIENT)
    assert "no flow tcp 192.0.2.1 192.0.2.2 is tracked" in ct.refuses(
        "show", "tcp", "192.0.2.1", "192.0.2.2", status=1
    )


def test_head_has_its_line_at_once_and_nobody_complains(ct: Ct, wire: Wire) -> None:
    with bpf.closing(bpf.obj_get(wire.chain.paths.prog(chain_programs.SLOTS["ingress"]))) as entry:
        for sport in range(10_000, 10_800):
            bpf.prog_test_run(entry, udp_frame(sport))
    wire.chain.recount()
    for form in ("table", "json", "jsonl", "csv", "conntrack"):
        argv = [
            "bash",
            "-c",
            'set -o pipefail; "$@" | head -n 2',
            "bash",
            *ct.argv("list", "-o", form),
        ]
        done = subprocess.run(
            argv, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2), (form, done)


def test_what_is_refused(ct: Ct) -> None:
    assert "proto: 'tpc' is not valid" in ct.refuses("list", "--proto", "tpc", status=2)
    for words in (
        ["list"],
        ["count"],
        ["summary"],
        ["stats"],
        ["show", "tcp", CLIENT, SERVER],
        ["flush", "--all", "--yes"],
        ["gc"],
        ["status"],
        ["verify"],
    ):
        assert re.search("[Rr]un as root", ct.refuses(*words, status=1, user=NOBODY)), words
    for words in (["rollback"], ["attach", "lo", "--program", "ingress"], ["detach", "--all"]):
        assert re.search("root", ct.refuses(*words, status=1, user=NOBODY)), words
    assert ct("count") == "3\n"
    elsewhere = dataclasses.replace(ct, pin_root=f"{ct.pin_root}/none")
    assert "Run xdp_program" in elsewhere.refuses(
        "list", status=1
    ) and "Run xdp_program" in elsewhere.refuses("status", status=1)


# ---------------------------------------------------------------- deleting
def test_flush_asks(ct: Ct) -> None:
    assert "yes: it is not given" in ct.refuses("flush", "--proto", "udp", status=2)
    assert ct("flush", "--proto", "udp", "--dry-run").splitlines()[-1] == "would delete 1 flow"
    status, written = ct.asked("n", "flush", "--proto", "udp")
    assert (
        status == 1
        and "Delete 1 flow? [y/N]" in written
        and "nothing was deleted" in written
        and ct("count") == "3\n"
    )
    status, written = ct.asked("y", "flush", "--proto", "udp")
    assert status == 0 and "1 flow deleted" in written
    assert [
        record["proto"] for record in module_result(ct)["flows"] if record["proto"] == "udp"
    ] == [] and ct("count") == "2\n"
    assert (
        ct("flush", "--all", "--yes") == "2 flows deleted\n"
        and ct("flush", "--all", "--yes") == "0 flows deleted\n"
    )


def test_gc_frees_the_room_of_what_is_over(ct: Ct, wire: Wire) -> None:
    wire.chain.settings(timeouts={"udp": 1})
    client, server = wire.udp("client"), wire.udp("server", PORT + 1)
    client.sendto(b"x", (SERVER, PORT + 1))
    server.recv(10)
    assert within(lambda: ct("count") == "3\n"), "it has expired"
    before = len(wire.chain.entries_now())
    assert (
        ct("flush", "--all", "--dry-run").splitlines()[-1]
        == "would delete 3 live flows, and 1 expired entry"
    )
    assert (
        ct("count") == "3\n"
        and ct("gc", "--dry-run") == "would delete 1 entry whose time is over\n"
    )
    assert (
        ct("gc") == "1 entry deleted whose time was over\n"
        and len(wire.chain.entries_now()) == before - 1
    )
    assert ct("gc") == "0 entries deleted whose time was over\n"


# ---------------------------------------------------------------- the chain
def test_status_of_two_interfaces_in_a_namespace(ct: Ct, wire: Wire) -> None:
    found = ct.json("status")
    assert (found["healthy"], found["generation"], found["faults"]) == (True, 1, [])
    assert [(one["interface"], one["program"], one["mode"]) for one in found["interfaces"]] == [
        (f"ns{number}-lan@{wire.ns('router')}", hook, "native")
        for number, hook in ((1, "ingress"), (2, "egress"))
    ]
    assert found["pressure"] == module_result(ct)["summary"]["pressure"]
    for one in found["interfaces"]:
        name, dummy, namespace = one["interface"].partition("@")
        shown = subprocess.run(
            ["ip", "-n", namespace, "-j", "-d", "link", "show", "dev", name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert json.loads(shown)[0]["xdp"]["prog"]["id"] == one["program_id"]


def test_verify_sends_frames_of_proof_and_makes_no_entry(ct: Ct, wire: Wire) -> None:
    for dummy in range(5):  # until the kernel's own neighbour discovery does not come in between
        before, shown = wire.counters(), ct.json("stats")
        lines = ct("verify").splitlines()
        wire.chain.recount()
        after, then = wire.counters(), ct.json("stats")
        assert len(lines) == 21 and all(line.startswith("ok   ") for line in lines)
        if after["untracked_nd"] == before["untracked_nd"]:
            break
    assert (after, then) == (before, shown), "nor are they in any figure"


@pytest.fixture
def host(installed: str, running: Chain) -> Ct:
    """The command, and a chain on ``left`` with flows."""
    return Ct(installed, running.paths.pin_root, running.paths.state_dir)


def test_a_damaged_chain_is_told(host: Ct, running: Chain) -> None:
    assert "health      good" in host("status") and host("verify").count("ok ") == 21
    empty_one_slot(running)
    text = host("status", status=1)
    assert "NOT GOOD" in text and f"slot_empty jt[{chain_programs.SLOTS['ct']}]" in text
    proved = host("verify", status=1)
    assert (
        f"FAIL slot_empty jt[{chain_programs.SLOTS['ct']}]" in proved
        and "FAIL ingress: the chain does not pass a frame as it is" in proved
    )
    assert [fault.as_dict() for fault in running.observe().faults] == json.loads(
        host("status", "-o", "json", status=1)
    )["faults"]


def remove_the_interface(dummy: Chain) -> None:
    subprocess.run(["ip", "link", "del", "left"], check=True)


@pytest.mark.parametrize(
    ("break_it", "repair"),
    [
        (remove_the_interface, "ct detach left"),
        (detach_the_link, "ct attach left --program ingress"),
        (make_the_interface_anew, "ct attach left --program ingress"),
        (lose_a_path, "ct load"),
        (run_an_older_generation_in_the_link, "ct load"),
    ],
)
def test_status_names_the_command_that_repairs_and_it_does(
    host: Ct, running: Chain, break_it: c.Callable[[Chain], None], repair: str
) -> None:
    break_it(running)
    (fault,) = json.loads(host("status", "-o", "json", status=1))["faults"]
    assert fault["repair"] == repair and f"repair: {repair}\n" in host("status", status=1)
    assert host(*shlex.split(repair)[1:]) != "nothing to do\n"
    assert host.json("status")["healthy"]
    assert [one["interface"] for one in host.json("status")["interfaces"]] == (
        [] if "detach" in repair else ["left"]
    )


def test_detach_and_attach(host: Ct, running: Chain) -> None:
    def attached() -> bool:
        shown = subprocess.run(
            ["ip", "-j", "link", "show", "dev", "left"], check=True, capture_output=True, text=True
        ).stdout
        return "xdp" in json.loads(shown)[0]

    assert (
        attached()
        and host("detach", "left", "--dry-run").startswith("would detach xdp left")
        and attached()
    )
    assert host("detach", "left").startswith("detach xdp left") and not attached()
    assert host("detach", "left") == host("detach", "--all") == "nothing to do\n"
    assert "attached to no interface" in host("status")
    words = ("attach", "left", "--program", "ingress", "--mode", "generic")
    assert (
        host(*words, "--dry-run") == "would attach xdp left: nothing is attached\n"
        and not attached()
    )
    assert host(*words) == "attach xdp left: nothing is attached\n" and attached()
    assert host(*words) == "nothing to do\n"
    assert [(one["interface"], one["mode"]) for one in host.json("status")["interfaces"]] == [
        ("left", "generic")
    ]
    assert "there is no interface 'wrong'" in host.refuses(
        "attach", "wrong", "--program", "ingress", status=1
    )
    for typed in (
        "attach wrong --program ingress",
        "attach left wrong --program ingress",
        "detach wrong",
        "detach left wrong",
    ):
        for dry in ("", " --dry-run"):
            assert (
                "there is no interface 'wrong' in the host's namespace; there are: "
                in host.refuses(*f"{typed}{dry}".split(), status=1)
            ), typed
    assert (
        "there is no namespace 'wrong'" in host.refuses("detach", "left@wrong", status=1)
        and attached()
    )
    native = ("attach", "lo", "--program", "ingress", "--mode", "native")
    assert "does not support XDP in native mode. Give --mode generic or auto." in host.refuses(
        *native, "--dry-run", status=1
    )
    assert "does not support XDP in native mode. Give --mode generic or auto." in host.refuses(
        *native, status=1
    )
    assert host("detach", "--all").startswith("detach xdp left") and not attached()


@pytest.mark.parametrize(
    "words",
    [
        ("flush", "--all", "--yes"),
        ("flush", "--proto", "udp", "--yes"),
        ("gc",),
        ("detach", "--all"),
        ("attach", "right", "--program", "egress"),
    ],
    ids=" ".join,
)
def test_a_command_that_changes_something_waits_for_other_runs(
    host: Ct, running: Chain, words: tuple[str, ...]
) -> None:
    whole = running.tree(), running.flows()
    with lock.held(running.paths.base, 0):
        said = host.refuses(*words, "--lock-timeout", "0", status=1)
        assert (
            f"another run has the lock: process {os.getpid()} (" in said
            and (running.tree(), running.flows()) == whole
        )


def test_rollback(host: Ct, running: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no generation before 1" in host.refuses("rollback", status=1)
    running.ensure(running.changed(), keep=1)
    assert [host.json("status")[name] for name in ("generation", "healthy")] == [2, True]
    foretold = host("rollback", "--dry-run")
    assert (
        running.observe().generation == 2
        and "would activate generation 1: generation 2 is rolled back from" in foretold
    )
    assert host("rollback") == foretold.replace("would ", "")
    assert (
        running.observe().generation == 1
        and generation.facts(running.observe(), running.paths)["healthy"]
    )
    assert (
        host("rollback") == "nothing to do\n"
        and host("count") == f"{FLOWS}\n"
        and "2 (rolled back from)" in host("status")
    )
    assert "generation 7 is not pinned" in host.refuses("rollback", "--generation", "7", status=1)
