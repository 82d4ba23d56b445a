# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tarball: what is in it, and its playbooks by their names from where a user installed it."""

from __future__ import annotations

import pathlib
import tarfile

import pytest
from ansible_collections.ebpf.conntrack.tests.install.commands import Place, changes
from ansible_collections.ebpf.conntrack.tests.tools import tree

pytestmark = [pytest.mark.usefixtures("untouched"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tarball(copied_tree: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tree.build_tarball(copied_tree, tmp_path_factory.mktemp("tarball"))


@pytest.fixture(scope="module")
def user(tarball: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, plain_environment: dict[str, str]) -> Place:
    """Return a directory with nothing in it, and the environment of somebody who has installed the tarball."""
    home = tmp_path_factory.mktemp("home")
    env = {**plain_environment, "PATH": f"{tree.VENV}:{plain_environment['PATH']}", "HOME": str(home)}
    place = Place(home, env)
    place.run("ansible-galaxy", "collection", "install", "--offline", str(tarball))
    return place


def test_what_the_tarball_holds(tarball: pathlib.Path) -> None:
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
    assert {"README.md", "LICENSES/GPL-3.0-or-later.txt", "LICENSES/GPL-2.0-only.txt", "meta/runtime.yml", "playbooks/lab.yml"} <= names
    assert not [name for name in names if name.split("/")[0] in (".venv", ".ansible", ".git", ".ci", "build") or "__pycache__" in name]


def test_the_modules_have_documentation(user: Place) -> None:
    for name in ("netns_lab", "xdp_program", "xdp_attach", "ct_flows", "ct_flush", "ct_command"):
        assert "EXAMPLES" in user.run("ansible-doc", "-t", "module", f"ebpf.conntrack.{name}")


def test_the_roles_have_documentation(user: Place) -> None:
    for name in ("netns_lab", "xdp_ct"):
        assert "ENTRY POINT" in user.run("ansible-doc", "-t", "role", f"ebpf.conntrack.{name}")


def test_the_lab_by_name(user: Place) -> None:
    try:
        assert changes(user.run("ansible-playbook", "ebpf.conntrack.lab")) > 0
        assert changes(user.run("ansible-playbook", "ebpf.conntrack.lab")) == 0
        assert "172.20.56.105" in user.run("ansible", "localhost", "-m", "ebpf.conntrack.ct_flows")
    finally:
        changes(user.run("ansible-playbook", "ebpf.conntrack.clean"))
