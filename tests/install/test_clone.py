# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A clean clone: the commands of the README, in their order."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.ebpf.conntrack.tests.install.commands import Place, changes
from ansible_collections.ebpf.conntrack.tests.tools import leftovers, tree

pytestmark = [pytest.mark.usefixtures("untouched"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def clone(copied_tree: pathlib.Path, plain_environment: dict[str, str]) -> Place:
    return Place(copied_tree, {**plain_environment, "CI": "true"})


def test_set_up(clone: Place) -> None:
    clone.run("make", "setup")
    assert "installing" not in clone.run("make", "setup")


def test_a_check_run_changes_nothing(clone: Place) -> None:
    before = leftovers.snapshot()
    changes(clone.run(".venv/bin/ansible-playbook", "playbooks/lab.yml", "--check", "--diff"))
    assert leftovers.differences(before, leftovers.snapshot()) == []


def test_the_lab_prints_the_flows_it_tracked(clone: Place) -> None:
    text = clone.run("make", "lab")
    assert changes(text) > 0
    table = [
        line.lower()
        for line in text.splitlines()
        if "172.20.56.105" in line and "172.30.56.105" in line
    ]
    for proto in ("tcp", "udp", "icmp"):
        assert any(proto in line for line in table), f"no {proto} flow in:\n{text}"


def test_the_second_lab_changes_nothing(clone: Place) -> None:
    assert changes(clone.run("make", "lab")) == 0


@pytest.mark.parametrize("module", ["ct_flows", "ct_flows_info"])
def test_the_flows_as_a_single_command(clone: Place, module: str) -> None:
    text = clone.run(
        ".venv/bin/ansible",
        "localhost",
        "-m",
        f"ebpf.conntrack.{module}",
        "-e",
        "ansible_callback_result_format=json",
    )
    assert "SUCCESS" in text
    assert "172.20.56.105" in text


def test_the_flows_as_a_playbook(clone: Place) -> None:
    text = clone.run(".venv/bin/ansible-playbook", "playbooks/flows.yml")
    assert changes(text) == 0
    assert "172.20.56.105" in text


def test_clean_leaves_the_clone_as_git_has_it(clone: Place) -> None:
    clone.run("make", "clean")
    left = {path.name for path in clone.path.iterdir()} - {
        name.split("/")[0] for name in tree.names()
    }
    assert left == {".git", ".venv", ".ansible"}
    assert not list((clone.path / "tests").rglob("__pycache__"))


def test_clean_can_be_repeated(clone: Place) -> None:
    clone.run("make", "clean")
