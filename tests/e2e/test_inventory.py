# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab as an inventory: playbooks as they are written for real hosts run in its namespaces."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import json
import os
import pathlib
import random
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import converge as lab_converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology
from ansible_collections.ebpf.conntrack.tests.install.commands import changes
from ansible_collections.ebpf.conntrack.tests.tools import leftovers, tree

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

#: What a user might have for hosts of their own: it is made, found to be right, and taken away.
SITE = """
- hosts: routers
  become: true
  gather_facts: false
  vars: &chain
    xdp_ct_install: false
    xdp_ct_table_size: 1024
    xdp_ct_table_size6: 1024
    xdp_ct_half_open_size: 1024
    xdp_ct_half_open_size6: 1024
    xdp_ct_timeouts: {{icmp: 600}}
    xdp_ct_interfaces:
      - {{default_route: true, program: egress}}
      - {{pattern: "*", program: ingress}}
  roles: [ebpf.conntrack.xdp_ct]
- hosts: {client}
  gather_facts: false
  tasks:
    - command: ping -c 1 -W 5 10.77.2.2
      changed_when: false
- hosts: routers
  gather_facts: false
  vars: *chain
  tasks:
    - include_role: {{name: ebpf.conntrack.xdp_ct}}
    - command: "{{{{ xdp_ct_prefix }}}}/bin/ct list -o json"
      changed_when: false
      register: flows
    - copy: {{content: "{{{{ flows.stdout }}}}", dest: "{directory}/flows"}}
    - include_role: {{name: ebpf.conntrack.xdp_ct}}
      vars: {{xdp_ct_state: absent}}
"""
#: What connections have to be good for.
TASKS = """
- hosts: {client}
  tasks:
    - assert:
        that:
          - ansible_facts.interfaces | sort == ["eth0", "lo"]
          - ansible_facts.default_ipv4.address == "10.77.1.2"
    - command: ping -c 1 -W 5 10.77.2.2
    - command: printf %200000s x
      register: long
    - assert:
        that: long.stdout | length == 200000
    - copy: {{content: "a b", dest: "{directory}/there"}}
    - fetch: {{src: "{directory}/there", dest: "{directory}/back", flat: true}}
    - raw: exit 7
      register: seven
      failed_when: seven.rc != 7
    - command: id -un
      become: true
      become_user: nobody
      become_method: ansible.builtin.su
      become_flags: -s /bin/sh
      vars: {{ansible_pipelining: true}}
      register: who
    - assert:
        that: who.stdout == "nobody"
"""


@dataclasses.dataclass
class Lab:
    """A client and a server with a router between them, and an inventory of them."""

    tag: str
    directory: pathlib.Path

    def name(self, host: str) -> str:
        return f"{self.tag}-{host}"

    @property
    def description(self) -> dict[str, t.Any]:
        def link(number: int, host: str) -> dict[str, t.Any]:
            end = {"name": "eth0", "netns": self.name(host), "addresses": [f"10.77.{number}.2/24"]}
            return {"ends": [end, {"name": f"to-{host}", "addresses": [f"10.77.{number}.1/24"]}]}

        routes = {"client": "10.77.1.1", "server": "10.77.2.1"}
        return {
            "name": self.tag,
            "router": self.name("router"),
            "namespaces": [
                {"name": self.name(host), "routes": [{"dst": "default", "via": via}]}
                for host, via in routes.items()
            ],
            "links": [link(1, "client"), link(2, "server")],
            "routes": [{"dst": "default", "via": "10.77.2.2"}],
        }

    def run(self, tool: str, inventory: str, *argv: str, fails: bool = False) -> str:
        source = self.directory / inventory
        command = [f"{tree.VENV}/{tool}", "-i", str(source), *argv]
        done = subprocess.run(
            command,
            cwd=tree.ROOT,
            env=tree.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        return done.stdout if tool == "ansible-inventory" else done.stdout + done.stderr

    def play(self, text: str, *argv: str) -> str:
        playbook = self.directory / "play.yml"
        playbook.write_text(text.format(client=self.name("client"), directory=self.directory))
        return self.run("ansible-playbook", "described.yml", str(playbook), *argv)

    def here(self) -> set[str]:
        prefixes = pathlib.Path("/usr/local/lib").glob(f"*{self.tag}*")
        return {
            name for name in leftovers.snapshot() if self.tag in name and name.startswith("pin")
        } | {str(path) for path in prefixes}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[Lab]:
    made = Lab(f"i{random.randrange(1 << 20):05x}", tmp_path_factory.mktemp("inventory"))
    (made.directory / "described.yml").write_text(
        json.dumps({"plugin": "ebpf.conntrack.netns_lab", "topology": "lab.yml"})
    )
    (made.directory / "lab.yml").write_text(
        json.dumps({f"netns_lab_{name}": value for name, value in made.description.items()})
    )
    (made.directory / "there.yml").write_text(
        json.dumps(
            {
                "plugin": "ebpf.conntrack.netns_lab",
                "lab": made.tag,
                "compose": {"kind": "netns_role"},
            }
        )
    )
    try:
        lab_converge.converge(topology.parse(made.description))
        yield made
    finally:
        lab_converge.converge(topology.absent(made.tag))


def hosts(text: str) -> dict[str, t.Any]:
    """Return the variables of each host, without the marks of texts that are no templates."""
    found = json.loads(text, object_hook=lambda one: one.get("__ansible_unsafe", one))
    return dict(found["_meta"]["hostvars"])


def test_a_lab_is_the_same_inventory_from_its_description_and_as_it_is(lab: Lab) -> None:
    described, there = (
        hosts(lab.run("ansible-inventory", name, "--list"))
        for name in ("described.yml", "there.yml")
    )
    assert {name: found.pop("kind") for name, found in there.items()} == {
        name: found["netns_role"] for name, found in described.items()
    }
    assert there == described
    assert {name: found["netns_role"] for name, found in there.items()} == {
        lab.name("client"): "endpoint",
        lab.name("server"): "endpoint",
        lab.name("router"): "router",
    }


def test_tasks_run_in_the_namespace(lab: Lab) -> None:
    lab.play(TASKS)
    assert (lab.directory / "back").read_text() == "a b"


def test_a_playbook_of_hosts(lab: Lab) -> None:
    assert changes(lab.play(SITE)) == 3 + 1 + 3, "loaded, attached, installed; the copy; and back"
    (flow,) = json.loads((lab.directory / "flows").read_text())
    assert (flow["proto"], flow["state"], flow["orig"]["src"], flow["dir"]) == (
        "icmp",
        "REPLIED",
        "10.77.1.2",
        "ingress",
    )
    assert lab.here() == set()


def test_a_missing_namespace_or_lab_is_named(lab: Lab) -> None:
    text = lab.run(
        "ansible",
        "described.yml",
        lab.name("client"),
        "-m",
        "ansible.builtin.ping",
        "-e",
        "ansible_netns=gone",
        fails=True,
    )
    assert (
        "UNREACHABLE" in text
        and "there is no namespace 'gone'" in text
        and lab.name("router") in text
    )
    (lab.directory / "none.yml").write_text("plugin: ebpf.conntrack.netns_lab\nlab: nowhere\n")
    assert "there is no lab 'nowhere' on this machine" in " ".join(
        lab.run("ansible", "none.yml", "all", "--list-hosts").split()
    )
