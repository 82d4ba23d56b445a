# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab with the chain on it: what the lab takes away it detaches first, what it makes again runs
the chain again, and the chain is healthy all the while.
"""

from __future__ import annotations

import collections.abc as c
import os
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import model as attach_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import record as attach_record
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import health
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, netns
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import converge as lab_converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import model as lab_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import lab_attachments
from ansible_collections.ebpf.conntrack.tests.e2e.support import prebuilt
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import Chain, made, rendered
from ansible_collections.ebpf.conntrack.tests.e2e.test_netns_lab import (
    assert_whole,
    description,
    p,
    sh,
)

__all__ = ["made", "p", "rendered"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Lab:
    """A lab whose three interfaces run the chain: two of the router, one in a namespace. Another
    one, that is no part of it, does so too.
    """

    def __init__(self, chain: Chain, p: str) -> None:
        self.chain, self.p = chain, p
        # the pin root is known from the state directory alone
        self.attachments = lab_attachments.Attachments(state_dir=chain.paths.state_dir)

    def run(self, lab: dict[str, t.Any] | lab_model.Topology, check: bool = False) -> list[str]:
        want = lab if isinstance(lab, lab_model.Topology) else topology.parse(lab)
        return [
            f"{s.action} {s.kind} {s.name}"
            for s in lab_converge.converge(want, check, attachments=self.attachments).plan
        ]

    def attached(self) -> dict[str, str]:
        """The interfaces that run the chain, by what the kernel says, with their hooks; those
        written down are the same.
        """
        links = health.look_links(self.chain.paths)
        written = {
            attach_model.Want("", item["name"], item["netns"], "", "").label: item["program"]
            for item in attach_record.interfaces(self.chain.paths)
        }
        found = {health.interface(key): link.hook for key, link in links.items() if link.here}
        assert found == written
        return found


@pytest.fixture
def lab(made: Chain, p: str, monkeypatch: pytest.MonkeyPatch) -> c.Iterator[Lab]:
    monkeypatch.setattr(build_bcc, "build", prebuilt.build)
    made.ensure()
    lab = Lab(made, p)
    lab.run(description(p))
    sh(f"ip link add {p}o type veth peer name {p}o2")
    wanted = [
        (f"{p}l1", None, "ingress"),
        (f"{p}l2", None, "egress"),
        (f"{p}w1", f"{p}1", "egress"),
        (f"{p}o", None, "ingress"),
    ]
    items = [
        {"name": name, "netns": namespace, "program": program}
        for name, namespace, program in wanted
    ]
    attach.converge(
        "present",
        items,
        "generic",
        False,
        made.paths.pin_root,
        False,
        state_dir=made.paths.state_dir,
    )
    assert len(lab.attached()) == 4
    yield lab
    attach.converge(
        "absent", None, "auto", False, made.paths.pin_root, False, state_dir=made.paths.state_dir
    )


def test_what_the_lab_takes_away_it_detaches(lab: Lab) -> None:
    """A namespace with its link, which has the chain on both ends."""
    p = lab.p
    less = description(p)
    del less["namespaces"][0], less["links"][0]
    foretold = lab.run(less, check=True)
    assert (
        sorted(foretold[:2]) == [f"detach xdp {p}l1", f"detach xdp {p}w1@{p}1"]
        and f"delete netns {p}1" in foretold[2:]
    )
    assert lab.run(less) == foretold
    assert (
        lab.attached() == {f"{p}l2": "egress", f"{p}o": "ingress"}
        and lab.chain.observe().faults == ()
    )
    assert lab.run(less) == [] and lab.chain.ensure()[0] == []
    lab.run(topology.absent(p))
    assert lab.attached() == {f"{p}o": "ingress"} and lab.chain.observe().faults == ()


def test_what_the_lab_makes_again_runs_the_chain_again(lab: Lab) -> None:
    """A link whose other end is another one goes, and is made again."""
    p, before = lab.p, lab.attached()
    sh(f"ip -n {p}2 link set {p}w2 down; ip -n {p}2 link set {p}w2 name {p}z")
    done = lab.run(description(p))
    assert done[-1] == f"attach xdp {p}l2" and not [
        step for step in done if step.startswith("detach")
    ]
    assert lab.attached() == before and lab.chain.observe().faults == ()
    assert_whole(p)
    assert lab.run(description(p)) == []


def test_a_removal_that_fails_brings_the_chain_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lab.attached()

    def refuse(name: str) -> None:
        raise OSError(16, f"umount2: {name} is busy")

    with monkeypatch.context() as patch:
        patch.setattr(netns, "remove", refuse)
        with pytest.raises(ConntrackError, match="is busy"):
            lab.run(topology.absent(lab.p))
    assert lab.attached() == before and lab.chain.observe().faults == ()


def test_an_interface_that_somebody_else_took_away_is_repaired_by_what_loads_the_chain(
    lab: Lab,
) -> None:
    """Gone for good, gone and made again, and detached: three ways to a link that holds nothing."""
    p, paths = lab.p, lab.chain.paths
    sh(f"ip link del {p}o; ip link del {p}l2; ip link add {p}l2 type veth peer name {p}o2")
    with bpf.closing(bpf.obj_get(paths.link(None, f"{p}l1"))) as link:
        bpf.link_detach(link)
    stale = {
        fault.object: fault.repair
        for fault in lab.chain.observe().faults
        if fault.fault == "link_stale"
    }
    assert stale == {
        f"{p}o": f"ct detach {p}o",
        f"{p}l1": f"ct attach {p}l1 --program ingress",
        f"{p}l2": f"ct attach {p}l2 --program egress",
    }
    foretold, dummy = lab.chain.ensure(check_mode=True)
    done, have = lab.chain.ensure()
    assert done == foretold and [(step["action"], step["kind"], step["name"]) for step in done] == [
        ("delete", "link", f"{p}o")
    ]
    assert {fault.object for fault in have.faults} == {f"{p}l1", f"{p}l2"}, (
        "which xdp_program attaches, as they are written down"
    )
    assert lab.chain.ensure()[0] == []
