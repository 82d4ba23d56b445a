# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tarball: what is in it, and its playbooks by their names from where a user installed it."""

from __future__ import annotations

import json
import pathlib
import tarfile
import typing as t

import pytest
import yaml
from ansible_collections.ebpf.conntrack.tests.install.commands import Place, changes
from ansible_collections.ebpf.conntrack.tests.tools import tree

pytestmark = [pytest.mark.usefixtures("untouched"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tarball(copied_tree: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tree.build_tarball(copied_tree, tmp_path_factory.mktemp("tarball"))


@pytest.fixture(scope="module")
def user(
    tarball: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    plain_environment: dict[str, str],
) -> Place:
    """Return a directory with nothing in it, and the environment of somebody who has installed the
    tarball.
    """
    home = tmp_path_factory.mktemp("home")
    env = {
        **plain_environment,
        "PATH": f"{tree.VENV}:{plain_environment['PATH']}",
        "HOME": str(home),
    }
    place = Place(home, env)
    place.run("ansible-galaxy", "collection", "install", "--offline", str(tarball))
    return place


def test_what_the_tarball_holds(tarball: pathlib.Path) -> None:
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
        environment = yaml.safe_load(
            t.cast("t.IO[bytes]", archive.extractfile("meta/execution-environment.yml"))
        )
    assert set(environment["dependencies"].values()) <= names, "what ansible-builder reads"
    assert {
        "README.md",
        "LICENSES/GPL-3.0-or-later.txt",
        "LICENSES/GPL-2.0-only.txt",
        "meta/runtime.yml",
        "playbooks/lab.yml",
    } <= names
    assert not [
        name
        for name in names
        if name.split("/")[0] in (".venv", ".ansible", ".git", ".ci", "build")
        or "__pycache__" in name
    ]


def gaps(name: str, options: t.Mapping[str, t.Any], returned: bool = False) -> list[str]:
    """Return the options, or the values that a module returns, that lack what a reader has to
    know.
    """
    found = []
    for key, option in options.items():
        where = f"{name}.{key}"
        wanted = ("description", "type", "returned") if returned else ("description", "type")
        found += [f"{where}: no {field}" for field in wanted if not option.get(field)]
        below = option.get("contains" if returned else "suboptions") or option.get("options") or {}
        found += gaps(
            where,
            (
                {sub: {"returned": "always", **one} for sub, one in below.items()}
                if returned
                else below
            ),
            returned,
        )
    return found


@pytest.fixture(scope="module")
def documentation(user: Place) -> dict[str, t.Any]:
    """Return what ansible-doc knows of the collection, by kind and name."""
    return dict(json.loads(user.run("ansible-doc", "--metadata-dump", "ebpf.conntrack"))["all"])


@pytest.mark.parametrize("kind", ["module", "connection", "inventory"])
def test_ansible_doc_has_all_of_every_plugin(documentation: dict[str, t.Any], kind: str) -> None:
    there = {
        f"ebpf.conntrack.{path.stem}"
        for path in (tree.ROOT / "plugins" / ("modules" if kind == "module" else kind)).glob("*.py")
    }
    found = {
        name: one for name, one in documentation[kind].items() if name.startswith("ebpf.conntrack.")
    }
    assert there == found.keys()
    for name, one in found.items():
        missing = [
            f"{name}: no {field}"
            for field in ("short_description", "description", "author", "version_added")
            if not one["doc"].get(field)
        ]
        missing += gaps(
            name,
            {
                key: option
                for key, option in one["doc"]["options"].items()
                if option.get("version_added_collection") != "ansible.builtin"
            },
        )
        missing += gaps(f"{name}: returns", one["return"] or {}, returned=True)
        assert missing == []
        assert one["examples"] and name in one["examples"] and (one["return"] or kind != "module")


def test_ansible_doc_has_all_of_every_role(documentation: dict[str, t.Any]) -> None:
    """And its defaults and its README have no variable that it has not, nor lack one."""
    roles = tree.ROOT / "roles"
    found = {
        name: one
        for name, one in documentation["role"].items()
        if name.startswith("ebpf.conntrack.")
    }
    assert found.keys() == {f"ebpf.conntrack.{path.name}" for path in roles.iterdir()}
    for name, one in found.items():
        for entry, spec in one["entry_points"].items():
            assert all(
                spec.get(field) for field in ("short_description", "description", "author")
            ), (name, entry)
            assert gaps(f"{name} {entry}", spec["options"]) == []
        options = {
            key: option
            for spec in one["entry_points"].values()
            for key, option in spec["options"].items()
        }
        defaults = yaml.safe_load(
            (roles / name.rpartition(".")[2] / "defaults/main.yml").read_text("utf-8")
        )
        readme = (roles / name.rpartition(".")[2] / "README.md").read_text("utf-8")
        assert defaults.keys() <= options.keys()
        fixed = {
            key: value
            for key, value in defaults.items()
            if not (isinstance(value, str) and "{{" in value)
        }
        assert {key: options[key].get("default") for key in fixed} == fixed
        assert [key for key in options if f"`{key}`" not in readme] == []


def test_every_playbook_runs_by_its_name(user: Place) -> None:
    names = [
        f"ebpf.conntrack.{path.stem}" for path in sorted((tree.ROOT / "playbooks").glob("*.yml"))
    ]
    told = user.run("ansible-playbook", *names, "--syntax-check")
    assert [
        name for name in names if f"/{name.rpartition('.')[2]}.yml" not in told and name not in told
    ] == []


def test_a_lab_is_an_inventory(user: Place) -> None:
    """The inventory and the connection plugin are found where the collection is installed."""
    (user.path / "lab.yml").write_text(
        "plugin: ebpf.conntrack.netns_lab\ntopology: {}\n", encoding="utf-8"
    )
    found = json.loads(user.run("ansible-inventory", "-i", "lab.yml", "--list"))
    assert (found["endpoints"]["hosts"], found["routers"]["hosts"]) == (
        ["ns1", "ns2"],
        ["localhost"],
    )


def test_the_lab_by_name(user: Place) -> None:
    try:
        assert changes(user.run("ansible-playbook", "ebpf.conntrack.lab")) > 0
        assert changes(user.run("ansible-playbook", "ebpf.conntrack.lab")) == 0
        assert "172.20.56.105" in user.run("ansible", "localhost", "-m", "ebpf.conntrack.ct_flows")
        assert "172.20.56.105" in user.run("ansible-playbook", "ebpf.conntrack.flows")
        user.run(
            "ansible-playbook", "ebpf.conntrack.picture", "-e", f"picture_directory={user.path}"
        )
        assert "172.20.56.105" in (user.path / "localhost.html").read_text("utf-8")
        assert "172.20.56.105/24" in user.run(
            "ansible", "-i", "lab.yml", "ns1", "-m", "ansible.builtin.command", "-a", "ip address"
        )
    finally:
        changes(user.run("ansible-playbook", "ebpf.conntrack.clean"))
