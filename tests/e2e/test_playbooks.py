# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks, from a clean machine and back, in a lab that has a namespace as its router and a
pin root of its own.
"""

from __future__ import annotations

import collections.abc as c
import json
import os
import pathlib
import random
import re
import shlex
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.tests.install.commands import changes
from ansible_collections.ebpf.conntrack.tests.tools import leftovers, tree

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(600)]


class Playbooks:
    """Runs the playbooks with the variables that keep them apart from everything else."""

    def __init__(self, tag: str, directory: pathlib.Path) -> None:
        self.tag = tag
        self.variables = directory / "variables.json"
        self.prefix = directory / "host"
        self.variables.write_text(
            json.dumps(
                {**variables(tag), "xdp_ct_prefix": str(self.prefix), "xdp_ct_service": False}
            )
        )

    def command(self, name: str, *argv: str) -> list[str]:
        """Return the command line that runs one."""
        return [
            f"{tree.VENV}/ansible-playbook",
            str(tree.ROOT / "playbooks" / f"{name}.yml"),
            "-e",
            f"@{self.variables}",
            *argv,
        ]

    def at_once(self, *names: str) -> list[tuple[int, str]]:
        """Run several at the same moment, each with files of its own; return how each ended, and
        what it printed.

        One waits for the other; on a machine with much else to do that takes longer than the minute
        after which it would say so and end.
        """
        started = []
        for number, name in enumerate(names):
            env = tree.environment(ANSIBLE_LOCAL_TEMP=str(self.variables.parent / f"local{number}"))
            with (self.variables.parent / f"output{number}").open("w+b") as out:
                command = self.command(name, "-e", "xdp_ct_lock_timeout=300")
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=tree.ROOT,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                    )
                )
        ended = [process.wait() for process in started]
        return [
            (code, (self.variables.parent / f"output{number}").read_text("utf-8"))
            for number, code in enumerate(ended)
        ]

    def run(self, name: str, *argv: str, fails: bool = False) -> str:
        """Run one; return what it printed."""
        done = subprocess.run(
            self.command(name, *argv),
            cwd=tree.ROOT,
            env=tree.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        text = done.stdout + done.stderr
        assert bool(done.returncode) == fails, text
        return text

    def here(self) -> set[str]:
        """Return the namespaces, links, pins and files on the machine that carry the tag."""
        return {name for name in leftovers.snapshot() if self.tag in name} | {
            f"file {path}" for path in self.prefix.rglob("*") if path.is_file()
        }


def variables(tag: str) -> dict[str, t.Any]:
    """Return what makes the default lab one of its own."""

    def link(number: int, net: str) -> dict[str, t.Any]:
        return {
            "ends": [
                {
                    "name": f"ns{number}-wan",
                    "netns": f"{tag}{number}",
                    "addresses": [f"{net}.105/24"],
                },
                {"name": f"ns{number}-lan", "addresses": [f"{net}.1/24"]},
            ]
        }

    nets = {1: "172.20.56", 2: "172.30.56"}
    return {
        "netns_lab_name": tag,
        "netns_lab_router": f"{tag}r",
        "netns_lab_namespaces": [
            {"name": f"{tag}{number}", "routes": [{"dst": "default", "via": f"{net}.1"}]}
            for number, net in nets.items()
        ],
        "netns_lab_links": [link(number, net) for number, net in nets.items()],
        "xdp_ct_pin_root": f"/sys/fs/bpf/{tag}",
        "xdp_ct_interfaces": [
            {"name": f"ns{number}-lan", "netns": f"{tag}r", "program": hook}
            for number, hook in ((1, "ingress"), (2, "egress"))
        ],
        "lab_client": f"{tag}1",
        "lab_server": f"{tag}2",
    }


@pytest.fixture
def playbooks(tmp_path: pathlib.Path) -> c.Iterator[Playbooks]:
    made = Playbooks(f"p{random.randrange(1 << 20):05x}", tmp_path)
    try:
        yield made
    finally:
        made.run("clean")


def table_lines(text: str) -> list[list[str]]:
    """Return the words of each line of a printed flow table."""
    return [
        line.split()
        for line in text.splitlines()
        if " 172.20.56.105" in line and " 172.30.56.105" in line
    ]


def test_from_a_clean_machine_and_back(playbooks: Playbooks) -> None:
    # what begins before a run of a busy machine is still there at its end
    playbooks.variables.write_text(
        json.dumps(
            {**json.loads(playbooks.variables.read_text("utf-8")), "xdp_ct_timeouts": {"udp": 3600}}
        )
    )
    assert changes(playbooks.run("lab", "--check", "--diff")) > 0
    assert playbooks.here() == set()

    first = playbooks.run("lab")
    assert changes(first) > 0
    flows = table_lines(first)
    assert sorted(line[0] for line in flows) == ["icmp", "tcp", "udp"]
    assert {line[0]: line[1] for line in flows} == {
        "icmp": "REPLIED",
        "tcp": "TIME_WAIT",
        "udp": "REPLIED",
    }
    there = playbooks.here()
    assert f"netns {playbooks.tag}1" in there and f"pin /sys/fs/bpf/{playbooks.tag}/prog" in there

    half_open(playbooks, 3000)
    second = playbooks.run("lab")
    assert changes(second) == 0
    assert (
        len(table_lines(second)) == 20
        and "flows; ct list shows all." in second
        and second.count("\n") < 150
    ), "the youngest of many"
    assert {line[0] for line in table_lines(second)} >= {"icmp", "tcp"}
    assert changes(playbooks.run("lab", "--check")) == 0
    assert playbooks.here() == there

    other = {
        "netns_lab_namespaces": [{"name": f"{playbooks.tag}x"}],
        "netns_lab_links": [],
        "netns_lab_expect": [],
    }
    text = playbooks.run("lab", "-e", json.dumps(other), fails=True)
    assert (
        f"does not have: {playbooks.tag}1, {playbooks.tag}2" in " ".join(text.split())
        and "changed=0" in text
    )
    assert playbooks.here() == there, "another topology of the same name does not take its place"

    command = [str(playbooks.prefix / "bin/ct"), "list", "--proto", "tcp", "-o", "json"]
    tracked = json.loads(subprocess.run(command, env={}, check=True, capture_output=True).stdout)
    assert {(one["state"], one["orig"]["src"]) for one in tracked} == {
        ("TIME_WAIT", "172.20.56.105")
    }, "the command knows the role's pin root"

    shown = playbooks.run("flows", "-e", '{"flows_options": {"proto": "tcp"}}')
    assert changes(shown) == 0
    assert {line[0] for line in table_lines(shown)} == {"tcp"}

    assert changes(playbooks.run("clean", "--check")) > 0
    assert playbooks.here() == there
    assert changes(playbooks.run("clean")) > 0
    assert playbooks.here() == set()
    assert changes(playbooks.run("clean")) == 0


def status(playbooks: Playbooks) -> dict[str, t.Any]:
    """Return what ``ct status`` says of the lab's chain."""
    done = subprocess.run(
        [str(playbooks.prefix / "bin/ct"), "status", "-o", "json"],
        env={},
        capture_output=True,
        check=False,
    )
    found: dict[str, t.Any] = json.loads(done.stdout)
    assert done.returncode == int(not found["healthy"]), done.stderr
    return found


@pytest.mark.only_in_test_long
@pytest.mark.parametrize("removed", ["link", "namespace"])
def test_what_was_removed_by_hand_is_back_with_the_next_run(
    playbooks: Playbooks, removed: str
) -> None:
    """And the chain is on it again: no run says that nothing is to be done while ct status says
    that the chain is not good.
    """
    tag = playbooks.tag
    words = ["link", "del", "ns1-lan"] if removed == "link" else ["netns", "del", f"{tag}1"]
    playbooks.run("lab")
    assert status(playbooks)["healthy"]
    subprocess.run(["ip", *(["-n", f"{tag}r"] if removed == "link" else []), *words], check=True)
    broken = status(playbooks)
    assert not broken["healthy"] and all(fault["repair"] for fault in broken["faults"])
    assert changes(playbooks.run("lab", "--check")) > 0 and changes(playbooks.run("lab")) > 0
    whole = status(playbooks)
    assert whole["healthy"] and sorted(one["program"] for one in whole["interfaces"]) == [
        "egress",
        "ingress",
    ], whole
    assert changes(playbooks.run("lab")) == 0
    playbooks.run("clean")
    assert playbooks.here() == set()


def half_open(playbooks: Playbooks, number: int) -> None:
    """Begin flows that nobody answers."""
    script = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); [s.sendto(b'x',"
        " ('172.30.56.105', 10000 + at)) for at in range(int(sys.argv[1]))]"
    )
    subprocess.run(
        ["ip", "netns", "exec", f"{playbooks.tag}1", "python3", "-c", script, str(number)],
        check=True,
    )


def test_a_lab_that_refuses_checksums_says_so(playbooks: Playbooks) -> None:
    text = " ".join(
        playbooks.run(
            "lab", "-e", '{"xdp_ct_checksum": "strict", "xdp_ct_command": false}', fails=True
        ).split()
    )
    assert (
        "invalid_checksum" in text
        and "With checksum: strict the sum has to be right" in text
        and "Is the chain attached" not in text
    )


def test_a_lab_without_its_chain_says_what_is_wrong(playbooks: Playbooks) -> None:
    text = playbooks.run("lab", "-e", '{"xdp_ct_interfaces": []}', fails=True)
    assert "The table holds no flow with" in text and "ebpf.conntrack.clean" in text


def test_a_bad_variable_is_refused_before_anything_is_done(playbooks: Playbooks) -> None:
    text = playbooks.run("lab", "-e", '{"xdp_ct_table_size": "many"}', fails=True)
    assert "table_size" in text and not any(name.startswith("pin") for name in playbooks.here())


def test_a_missing_bpf_file_system_is_mounted_and_taken_away_again(playbooks: Playbooks) -> None:
    """In a mount namespace of its own, with an empty /run."""
    script = f"""
        while mountpoint -q /sys/fs/bpf; do umount -l /sys/fs/bpf; done
        mount -t tmpfs none /run
        {shlex.join(playbooks.command("lab"))}
        mountpoint /sys/fs/bpf
        {shlex.join(playbooks.command("clean"))}
        ! mountpoint /sys/fs/bpf
        find /run -mindepth 1 ! -path /run/netns
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", script]
    done = subprocess.run(
        command,
        cwd=tree.ROOT,
        env=tree.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("/sys/fs/bpf is not a mountpoint\n"), done.stdout


# ---------------------------------------------------------------- several routers
def two_routers(tag: str) -> dict[str, t.Any]:
    """Return a lab in which each packet goes through two routers, each in a namespace of its own,
    and tracked.
    """
    names = [f"{tag}{name}" for name in "cabs"]
    client, one, two, server = names

    def link(number: int, left: tuple[str, str], right: tuple[str, str]) -> dict[str, t.Any]:
        ends = ((*left, f"10.66.{number}.1/24"), (*right, f"10.66.{number}.2/24"))
        return {
            "ends": [
                {"netns": netns, "name": name, "addresses": [address]}
                for netns, name, address in ends
            ]
        }

    routes = {
        client: [("default", "10.66.1.2")],
        one: [("10.66.3.0/24", "10.66.2.2")],
        two: [("10.66.1.0/24", "10.66.2.1")],
        server: [("default", "10.66.3.1")],
    }
    hooks = (
        (one, "near", "ingress"),
        (one, "far", "egress"),
        (two, "near", "ingress"),
        (two, "far", "egress"),
    )
    return {
        "netns_lab_name": tag,
        "netns_lab_namespaces": [
            {
                "name": name,
                "routes": [{"dst": dst, "via": via} for dst, via in routes[name]],
                **({"sysctls": {"net.ipv4.ip_forward": "1"}} if name in (one, two) else {}),
            }
            for name in names
        ],
        "netns_lab_links": [
            link(1, (client, "eth0"), (one, "near")),
            link(2, (one, "far"), (two, "near")),
            link(3, (two, "far"), (server, "eth0")),
        ],
        "netns_lab_expect": [
            {"flow": {"from": client, "to": server, "proto": "udp", "port": 53}},
            {"untracked": 0},
        ],
        "xdp_ct_pin_root": f"/sys/fs/bpf/{tag}",
        "xdp_ct_interfaces": [
            {"name": name, "netns": netns, "program": hook} for netns, name, hook in hooks
        ],
        "xdp_ct_command": False,
        "xdp_ct_install": False,
        "lab_client": client,
        "lab_server": server,
        "lab_server_address": "10.66.3.2",
    }


def packets(pin_root: str) -> list[tuple[int, int]]:
    """Return the packets of each direction of the UDP flow that traffic.py makes."""
    with flow_table.FlowTables(pin_root) as tables:
        flows = flow_read.read(
            tables, flow_filter.parse_query({"proto": "udp", "dport": 5353}), summary=False
        ).flows
    return [(one["orig"]["packets"], one["reply"]["packets"]) for one in flows]


def test_each_router_in_a_namespace_has_a_table_of_its_own(playbooks: Playbooks) -> None:
    whole = two_routers(playbooks.tag)
    playbooks.variables.write_text(json.dumps(whole))
    text = playbooks.run("lab")
    assert "share its tables" not in text and "nothing stays untracked: 0 untracked" in text
    roots = [f"{whole['xdp_ct_pin_root']}/{playbooks.tag}{name}" for name in "ab"]
    assert [packets(root) for root in roots] == [[(3, 3)], [(3, 3)]], "each packet once a router"
    assert not os.path.exists(f"{whole['xdp_ct_pin_root']}/ebpf_conntrack")
    assert changes(playbooks.run("lab", "--check")) == 0

    playbooks.variables.write_text(
        json.dumps(
            {
                name: whole[name]
                for name in (
                    "netns_lab_name",
                    "xdp_ct_pin_root",
                    "xdp_ct_command",
                    "xdp_ct_install",
                )
            }
        )
    )
    assert changes(playbooks.run("clean")) > 0 and playbooks.here() == set(), (
        "the lab's name is enough"
    )


# ---------------------------------------------------------------- two at once
#: The tasks of lab.yml, and of clean.yml, that change something on a machine that has none of it,
#: or all.
CHANGES = 4
#: lab.yml without the traffic, which a lab that goes away meanwhile has none of.
DEPLOY = """
- hosts: localhost
  gather_facts: false
  roles:
    - ebpf.conntrack.netns_lab
    - ebpf.conntrack.xdp_ct
"""
#: What a run says that finds half of what it needs, because another one makes the reverse of it.
REASONS = (
    r"Run ebpf\.conntrack\.xdp_program first|the chain is attached to .*: detach it first|there is"
    r" no (namespace|interface) '"
)


def changes_at_once(playbooks: Playbooks, *names: str) -> list[int]:
    """Run playbooks at the same moment, each of which has to succeed; return how many of each one's
    tasks changed something.
    """
    ended = playbooks.at_once(*names)
    assert [code for code, dummy in ended] == [0] * len(names), "\n".join(
        text for dummy, text in ended
    )
    return [changes(text) for dummy, text in ended]


def test_two_at_once(
    playbooks: Playbooks, tmp_path: pathlib.Path, figure: c.Callable[[str, object], None]
) -> None:
    """One of them makes each thing, both have their traffic in the table; where one makes and one
    takes away, the next run ends well all the same.
    """
    assert sum(changes_at_once(playbooks, "lab", "lab")) == CHANGES
    there = playbooks.here()
    assert {name.rpartition("/gen/")[2].partition("/")[0] for name in there if "/gen/" in name} == {
        "1"
    }

    (tmp_path / "deploy.yml").write_text(DEPLOY)
    for code, text in playbooks.at_once(str(tmp_path / "deploy"), "clean"):
        failed = re.findall(r"^fatal: .*(?:\n .*)*", text, re.MULTILINE)
        assert bool(failed) == bool(code) and all(
            re.search(REASONS, message) and "Traceback" not in message for message in failed
        ), text

    changes_at_once(playbooks, "lab", "lab")
    assert {
        name.rpartition("/gen/")[2].partition("/")[0]
        for name in playbooks.here()
        if "/gen/" in name
    } == {"1"}
    assert changes_at_once(playbooks, "lab", "lab") == [0, 0], "the second runs"
    assert playbooks.here() == there
    assert sum(changes_at_once(playbooks, "clean", "clean")) == CHANGES
    assert playbooks.here() == set()
    figure(
        "pairs of ansible-playbook runs at once: generations afterwards, things made or taken away"
        " twice, left behind",
        "1, 0, 0",
    )
