# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ct.service under a systemd: what the role installs keeps the chain through a reboot, a death, and
interfaces that come and go.
"""

from __future__ import annotations

import collections.abc as c
import json
import os
import re
import subprocess
import sys
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import sd_notify
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import unit as ct_unit
from ansible_collections.ebpf.conntrack.tests.host.machine import ROOT, Machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SECONDS = 60
GROUP = "adm"
#: A veth from the machine into a namespace: what a network service makes when the machine starts.
NET = """\
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -euc 'ip netns add peer; ip link add wan0 type veth peer name wan1 netns peer; \\
  ip addr add 10.77.0.1/24 dev wan0; ip -n peer addr add 10.77.0.2/24 dev wan1; \\
  ip link set wan0 up; ip -n peer link set wan1 up'
ExecStop=ip netns del peer
"""
INTERFACES = [
    {"name": "wan0", "program": "ingress"},
    {"name": "wan1", "netns": "peer", "program": "egress"},
]
#: The maps take more memory than the service may: tests/e2e/test_restore.py has that its bound is
#: one.
TABLE_SIZE = 1 << 22
BOTH = {"wan0": "ingress", "wan1@peer": "egress"}
#: Sends datagrams from the namespace into the machine, each of which has to come in.
TRAFFIC = """
import ctypes, os, socket, sys, time
libc, home = ctypes.CDLL(None), os.open("/proc/self/ns/net", os.O_RDONLY)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.77.0.1", 5300))
server.settimeout(10)
libc.setns(os.open("/run/netns/peer", os.O_RDONLY), 0)
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(int(sys.argv[1])):
    client.sendto(b"x", ("10.77.0.1", 5300))
    server.recv(10)
    time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def machine() -> c.Iterator[Machine]:
    """A machine on which the role was run; its BPF file system was not mounted."""
    with Machine({"net.service": NET}) as made:
        assert " bpf " not in made.run("cat", "/proc/mounts")
        assert changed(made) == 4
        yield made


def changed(machine: Machine, **variables: t.Any) -> int:
    """Run the role in the machine, by Ansible in there; return how many tasks changed something."""
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "roles": [
            {
                "role": "ebpf.conntrack.xdp_ct",
                "vars": {
                    "xdp_ct_interfaces": INTERFACES,
                    "xdp_ct_table_size": TABLE_SIZE,
                    "xdp_ct_timeouts": {"udp": 77},
                    "xdp_ct_service_group": GROUP,
                    **variables,
                },
            }
        ],
    }
    machine.run("tee", "/root/play.yml", stdin=json.dumps([play]))
    argv = [
        f"{ROOT}/.venv/bin/ansible-playbook",
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        f"ansible_python_interpreter={os.path.realpath(sys.executable)}",
    ]
    told = machine.run(*argv, "/root/play.yml", cwd=str(ROOT), ANSIBLE_CONFIG=f"{ROOT}/ansible.cfg")
    (number,) = re.findall(r"changed=(\d+) ", told)
    assert "[WARNING]" not in told, told
    return int(number)


def within(seconds: float, what: c.Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def attached(machine: Machine) -> dict[str, str | None]:
    """Return which hook runs on which interface, as ct has it, where all is well."""
    found = json.loads(machine.run("ct", "status", "-o", "json", check=False) or "{}")
    return (
        {one["interface"]: one["program"] for one in found["interfaces"]}
        if found.get("healthy")
        else {}
    )


def tracked(machine: Machine) -> int:
    return int(json.loads(machine.run("ct", "stats", "-o", "json"))["frames"]["ct, ct6"]["tracked"])


def send(machine: Machine, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        machine.argv("python3", "-c", TRAFFIC, str(number)), stdin=subprocess.DEVNULL
    )


def all_is_tracked(machine: Machine) -> None:
    before = tracked(machine)
    assert send(machine, 20).wait(SECONDS) == 0 and tracked(machine) == before + 20
    assert machine.run("ct", "count", "--proto", "udp", "--src", "10.77.0.2") != "0\n"


def property_of(machine: Machine, unit: str, name: str) -> str:
    return machine.run("systemctl", "show", unit, "--value", "--property", name).strip()


def xdp_in(machine: Machine) -> bool:
    """Whether any interface of the machine has a program."""
    return any("xdp" in link for link in json.loads(machine.run("ip", "-j", "link")))


def test_it_runs_and_a_second_run_changes_nothing(machine: Machine) -> None:
    assert changed(machine) == 0
    assert (
        property_of(machine, "ct", "ActiveState") == "active"
        and property_of(machine, "ct", "UnitFileState") == "enabled"
    )
    assert (
        "2 of 2 interfaces run the chain" in property_of(machine, "ct", "StatusText")
        and attached(machine) == BOTH
    )
    all_is_tracked(machine)


#: What docs/guide/service.md says of `systemd-analyze security`, with the version of systemd that
#: said so.
SCORES = re.compile(
    r"says (\d\.\d) of `ct.service`, (\d\.\d) of\s+`ct-restore.service`, and (\d\.\d) of a"
    r" `ct.service`.* \(systemd (\d+)\)",
    re.DOTALL,
)


def test_what_systemd_says_of_its_confinement(machine: Machine) -> None:
    """The docs have it as it is measured. Other versions of systemd look at other things, so with
    them it may be a little more.
    """
    found = SCORES.search((ROOT / "docs/guide/service.md").read_text("utf-8"))
    assert found is not None
    *documented, version = found.groups()
    listening = service_options.Options(
        bpffs.Paths("/sys/fs/bpf"), address=service_options.parse_address(listen="127.0.0.1:9477")
    )
    machine.run("mkdir", "-p", "/run/listening")
    machine.run(
        "tee", "/run/listening/ct.service", stdin=ct_unit.Want("/usr/local", listening).text
    )
    measured = []
    for path in (
        "/etc/systemd/system/ct.service",
        "/etc/systemd/system/ct-restore.service",
        "/run/listening/ct.service",
    ):
        told = machine.run("systemd-analyze", "security", "--no-pager", "--offline=true", path)
        measured += re.findall(r"Overall exposure level for \S+ (\d+\.\d) ", told)
    if machine.run("systemctl", "--version").split()[1] == version:
        assert measured == documented
    assert len(measured) == 3 and all(
        float(one) <= float(other) + 0.5 for one, other in zip(measured, documented, strict=True)
    )


def test_its_group_reads_over_http(machine: Machine) -> None:
    all_is_tracked(machine)
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX);"
        " s.connect('/run/ebpf_conntrack/ct.sock'); s.sendall(b'GET /flows HTTP/1.0\\r\\n\\r\\n');"
    )
    script += "print(s.makefile().read())"
    as_user = ["setpriv", "--reuid=65534", "--clear-groups"]
    head, dummy, body = machine.run(
        *as_user, f"--regid={GROUP}", "python3", "-c", script
    ).partition("\n\n")
    assert (
        " 200 " in head.splitlines()[0]
        and [flow["reply"]["src"] for flow in json.loads(body)].count("10.77.0.1") >= 1
    )
    assert machine.run(*as_user, "--regid=65534", "python3", "-c", script, check=False) == ""


def test_what_it_tells_of_itself(machine: Machine) -> None:
    """Confined as it is, it sees all that there is to see."""
    curl = ["curl", "-sS", "--unix-socket", "/run/ebpf_conntrack/ct.sock"]
    assert json.loads(machine.run(*curl, "http://ct/healthz"))["healthy"]
    lines = machine.run(*curl, "http://ct/metrics").splitlines()
    assert {f"ct_{name} 1.0" for name in ("up", "healthy", "sweeper")} <= set(lines)
    assert sum(line.startswith("ct_attached{") and line.endswith("} 1.0") for line in lines) == len(
        BOTH
    )
    assert [
        line
        for line in lines
        if line.startswith("ct_scrape_errors_total{") and not line.endswith(" 0.0")
    ] == []


def test_a_reboot(machine: Machine) -> None:
    before = json.loads(machine.run("ct", "status", "-o", "json"))
    machine.reboot()
    assert property_of(machine, "ct", "ActiveState") == "active" and within(
        SECONDS, lambda: attached(machine) == BOTH
    )
    after = json.loads(machine.run("ct", "status", "-o", "json"))
    assert (after["digest"], after["settings"]) == (before["digest"], before["settings"]) and after[
        "settings"
    ]["timeouts"]["udp"] == 77
    assert after["generation"] == before["generation"] + 1
    assert (
        json.loads(machine.run("ct", "summary", "-o", "json"))["tables"]["ctt"]["capacity"]
        == TABLE_SIZE
    )
    assert (
        property_of(machine, "ct", "MemoryMax") == str(ct_unit.MEMORY << 20)
        and property_of(machine, "ct-restore", "MemoryMax") == "infinity"
    )
    assert (
        property_of(machine, "ct", "NRestarts") == "0"
        and property_of(machine, "ct-restore", "Result") == "success"
    )
    assert property_of(machine, "ct-restore", "ActiveState") == "inactive", (
        "its control group, to which the maps were charged, is gone"
    )
    built, watched = (
        machine.run("journalctl", "-b", "-u", unit, "-o", "cat", "--no-pager")
        for unit in ("ct-restore", "ct")
    )
    assert "no chain is loaded" in built and "no chain is loaded" not in watched
    ready, net = (
        int(property_of(machine, *of))
        for of in (
            ("ct", "ActiveEnterTimestampMonotonic"),
            ("net", "ExecMainStartTimestampMonotonic"),
        )
    )
    assert ready < net, "the chain is there before the network is"
    all_is_tracked(machine)


def test_interfaces_come_back(machine: Machine) -> None:
    machine.run("systemctl", "stop", "net")
    assert "peer" not in machine.run("ip", "netns") and within(
        SECONDS, lambda: "wan0" not in machine.run("ip", "link")
    ), "nobody holds the namespace"
    machine.run("systemctl", "start", "net")
    assert within(SECONDS, lambda: attached(machine) == BOTH)
    all_is_tracked(machine)
    machine.run("ip", "link", "del", "wan0")
    machine.run("ip", "netns", "del", "peer")
    machine.run("systemctl", "restart", "net", check=False)
    assert within(SECONDS, lambda: attached(machine) == BOTH)
    all_is_tracked(machine)


def test_what_is_detached_stays_so(machine: Machine) -> None:
    machine.run("ct", "detach", "wan0")
    machine.run("ip", "link", "set", "wan0", "down")
    machine.run("ip", "link", "set", "wan0", "up")
    time.sleep(1.5)
    assert not xdp_in(machine)
    machine.run("ct", "attach", "wan0", "--program", "ingress")
    assert attached(machine) == BOTH


def test_its_death_costs_no_packet(machine: Machine) -> None:
    before, pid = tracked(machine), property_of(machine, "ct", "MainPID")
    sending = send(machine, 300)
    machine.run("kill", "-9", pid)
    assert within(
        SECONDS,
        lambda: (
            property_of(machine, "ct", "MainPID") not in (pid, "0")
            and property_of(machine, "ct", "ActiveState") == "active"
        ),
    )
    assert sending.wait(SECONDS) == 0 and tracked(machine) == before + 300
    assert property_of(machine, "ct", "NRestarts") == "1" and attached(machine) == BOTH


def test_a_service_that_hangs_is_started_again(machine: Machine) -> None:
    """No packet goes untracked meanwhile. The time until systemd gives it up is shortened here."""

    def main_pid() -> str:
        return machine.run("systemctl", "show", "-P", "MainPID", "ct").strip()

    machine.run("mkdir", "-p", "/run/systemd/system/ct.service.d")
    machine.run(
        "tee", "/run/systemd/system/ct.service.d/watchdog.conf", stdin="[Service]\nWatchdogSec=3\n"
    )
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "ct")
        pid = main_pid()
        assert not within(5, lambda: main_pid() != pid), "one that answers is left alone"
        machine.run("kill", "-STOP", pid)
        all_is_tracked(machine)
        assert within(
            SECONDS,
            lambda: (
                main_pid() not in (pid, "0")
                and machine.run("systemctl", "is-active", "ct", check=False).strip() == "active"
            ),
        )
        assert "Watchdog timeout" in machine.run("journalctl", "-b", "-u", "ct", "--no-pager")
        assert attached(machine) == BOTH
    finally:
        machine.run("rm", "-r", "/run/systemd/system/ct.service.d")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "ct")


def test_stop_keeps_or_removes(machine: Machine) -> None:
    machine.run("systemctl", "stop", "ct")
    assert attached(machine) == BOTH
    all_is_tracked(machine)
    assert (
        changed(machine, xdp_ct_service_on_stop="remove", xdp_ct_service_sweep_interval=1) == 1
        and property_of(machine, "ct", "ActiveState") == "active"
    )
    generation = machine.run("readlink", "/sys/fs/bpf/ebpf_conntrack/active")
    machine.run("systemctl", "restart", "ct")
    assert (
        machine.run("readlink", "/sys/fs/bpf/ebpf_conntrack/active") == generation
        and attached(machine) == BOTH
    )
    machine.run("systemctl", "stop", "ct")
    assert not xdp_in(machine) and "ebpf_conntrack" not in machine.run("ls", "/sys/fs/bpf")
    machine.run("systemctl", "start", "ct")
    assert attached(machine) == BOTH
    all_is_tracked(machine)


def test_it_sweeps(machine: Machine) -> None:
    """Every second now; and bcc is needed by what builds, and by nothing else."""
    bcc = machine.run("python3", "-c", "import bcc; print(bcc.__path__[0])").strip()
    machine.run("mv", bcc, "/root/bcc")
    machine.run("ct", "load", "--set", "timeouts.udp=1")
    machine.run("ct", "flush", "--all", "--yes")
    assert send(machine, 1).wait(SECONDS) == 0
    assert within(
        SECONDS,
        lambda: (
            not any(
                one["entries"]
                for one in json.loads(machine.run("ct", "summary", "-o", "json"))["tables"].values()
            )
        ),
    )
    assert machine.run("ct", "gc") == "0 entries deleted whose time was over\n"
    machine.run("ct", "load", "--set", "table_size=1024", check=False)  # is refused for want of bcc
    assert attached(machine) == BOTH and property_of(machine, "ct", "ActiveState") == "active"
    machine.run("mv", "/root/bcc", bcc)


def test_the_journal(machine: Machine) -> None:
    """Each line has a priority, and none is a traceback."""
    lines = [
        json.loads(line)
        for line in machine.run("journalctl", "-u", "ct", "-o", "json").splitlines()
    ]
    own = [
        (int(line["PRIORITY"]), line["MESSAGE"])
        for line in lines
        if line.get("_TRANSPORT") == "stdout"
    ]
    assert (
        sd_notify.NOTICE,
        "wan0: attach: nothing is attached",
    ) in own and "Traceback" not in str(own)
    assert {priority for priority, dummy in own} <= {
        sd_notify.ERROR,
        sd_notify.WARNING,
        sd_notify.NOTICE,
        sd_notify.INFO,
    }


def test_absent(machine: Machine) -> None:
    assert changed(machine, xdp_ct_state="absent") == 4
    assert not xdp_in(machine) and " bpf " not in machine.run("cat", "/proc/mounts")
    for path in (
        "/etc/systemd/system/ct.service",
        "/etc/systemd/system/ct-restore.service",
        "/usr/local/bin/ct",
        "/var/lib/ebpf_conntrack",
        "/run/ebpf_conntrack",
    ):
        assert machine.run("ls", "-d", path, check=False) == "", path
    assert property_of(machine, "ct", "LoadState") == "not-found"
