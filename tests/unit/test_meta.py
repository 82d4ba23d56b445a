# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection says of its modules, roles and playbooks: groups that can be used, what is
refused, and that names are looked at everywhere.
"""

from __future__ import annotations

import functools
import importlib
import pathlib
import re
import typing as t

import pytest
import yaml
from ansible_collections.ebpf.conntrack.plugins.filter import names as names_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import names

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
GROUPS: dict[str, list[str]] = yaml.safe_load((ROOT / "meta/runtime.yml").read_text("utf-8"))[
    "action_groups"
]
#: The options that a group is for, where it is not called by its one.
OPTIONS = {"all": ("pin_root",), "chain_form": ("checksum", "fused", "forward", "events", "guests")}


@functools.lru_cache(None)
def documented(module: str) -> dict[str, t.Any]:
    """Return a module's documentation, with the options and attributes of its fragments."""
    whole = yaml.safe_load(
        importlib.import_module(
            f"ansible_collections.ebpf.conntrack.plugins.modules.{module}"
        ).DOCUMENTATION
    )
    for name in whole.get("extends_documentation_fragment", ()):
        fragment = importlib.import_module(
            f"ansible_collections.ebpf.conntrack.plugins.doc_fragments.{name.split('.')[-1]}"
        )
        more = yaml.safe_load(fragment.ModuleDocFragment.DOCUMENTATION)
        for part in ("options", "attributes"):
            for key, value in (more.get(part) or {}).items():
                own = whole.setdefault(part, {})
                own[key] = {**value, **own.get(key, {})}
    return t.cast("dict[str, t.Any]", whole)


@pytest.mark.parametrize("group", GROUPS)
def test_every_module_of_a_group_has_the_option_that_the_group_is_for(group: str) -> None:
    options = OPTIONS.get(group, (group,))
    assert sorted(GROUPS[group]) == [
        module for module in MODULES if set(options) <= set(documented(module)["options"])
    ]
    assert GROUPS[group], "module_defaults of it set something"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_in_which_groups_it_is(module: str) -> None:
    attribute = documented(module)["attributes"]["action_group"]
    mine = [f"ebpf.conntrack.{group}" for group, modules in GROUPS.items() if module in modules]
    assert attribute.get("membership", []) == mine
    assert attribute["support"] == ("full" if mine else "none")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_whether_it_runs_with_async(module: str) -> None:
    """One that has an action plugin does not: Ansible refuses it, unless the plugin says
    otherwise.
    """
    action = ROOT / "plugins/action" / f"{module}.py"
    refused = action.exists() and "_supports_async" not in action.read_text("utf-8")
    assert documented(module)["attributes"]["async"]["support"] == ("none" if refused else "full")


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("owner", "found", "said"),
    [
        (
            "xdp_ct",
            "xdp_ct_interface",
            (
                "xdp_ct_interface: there is no such variable of xdp_ct. Did you mean"
                " xdp_ct_interfaces?"
            ),
        ),
        (
            "xdp_ct",
            "xdp_ct_pinroot",
            "xdp_ct_pinroot: there is no such variable of xdp_ct. Did you mean xdp_ct_pin_root?",
        ),
        (
            "xdp_ct",
            "xdp_ct_tiemouts",
            "xdp_ct_tiemouts: there is no such variable of xdp_ct. Did you mean xdp_ct_timeouts?",
        ),
        ("xdp_ct", "xdp_ct_qqq", "xdp_ct_qqq: there is no such variable of xdp_ct."),
        (
            "netns_lab",
            "netns_lab_sysctl",
            (
                "netns_lab_sysctl: there is no such variable of netns_lab. Did you mean"
                " netns_lab_sysctls?"
            ),
        ),
        (
            "rollout",
            "rollout_skip_unfitt",
            (
                "rollout_skip_unfitt: there is no such variable of rollout. Did you mean"
                " rollout_skip_unfit?"
            ),
        ),
        (
            "rollout",
            "rollout_batch_size",
            (
                "rollout_batch_size: there is no such variable of rollout. Did you mean"
                " rollout_batches?"
            ),
        ),
        (
            "handoff",
            "handoff_form",
            "handoff_form: there is no such variable of handoff. Did you mean handoff_from?",
        ),
        (
            "flows",
            "flows_flie",
            "flows_flie: there is no such variable of flows. Did you mean flows_file?",
        ),
        ("lab", "lab_room", None),
        ("build", "build_number", None),
        ("xdp_ct", "my_xdp_ct_interface", None),
        ("lab", "netns_lab_clent", None),
    ],
)
def test_misspelt_variables(owner: str, found: str, said: str | None) -> None:
    """Names that begin as a playbook's may be somebody else's, those of a role may not."""
    assert names_filter.ct_unknown([found, "ansible_host", f"{owner}_unknown"], owner) == (
        [said] if said else []
    )


@pytest.mark.parametrize("role", ["netns_lab", "rollout", "xdp_ct"])
def test_every_variable_of_a_role_is_known(role: str) -> None:
    spec = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text("utf-8"))[
        "argument_specs"
    ]
    listed = {name for entry in spec.values() for name in entry["options"]}
    readme = names.mentioned((ROOT / "roles" / role / "README.md").read_text("utf-8"), role)
    assert names_filter.ct_unknown(listed | readme, role) == []
    assert {name for name in listed if name.startswith(f"{role}_")} <= names_filter.known(role)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.stem
)
def test_every_playbook_looks_at_the_names_before_anything_else(path: pathlib.Path) -> None:
    """rollout.yml and rollback.yml do in the role, which all of their variables belong to."""
    text = re.sub("^ *#.*$", "", path.read_text("utf-8"), flags=re.MULTILINE)
    first = yaml.safe_load(text)[0]
    tasks = first.get("pre_tasks") or first["tasks"]
    if path.stem in ("rollout", "rollback"):
        include = tasks[0]["ansible.builtin.import_role"]
        entry = yaml.safe_load(
            (ROOT / "roles/rollout/tasks" / f"{include['tasks_from']}.yml").read_text("utf-8")
        )
        assert entry[0]["ansible.builtin.import_tasks"] == "settings.yml"
        tasks = yaml.safe_load((ROOT / "roles/rollout/tasks/settings.yml").read_text("utf-8"))
        assert tasks[0]["any_errors_fatal"] is True
    assert tasks[0]["name"] == "Check the names of the variables"
    ((owner, expression),) = tasks[0]["vars"].items()
    own = {"clean": "lab", "rollback": "rollout"}.get(path.stem, path.stem)
    assert owner == f"{own}_unknown"
    owners = re.findall(r"'([a-z_]+)'", expression.partition("ct_unknown")[2])
    used = {
        role
        for role in ("xdp_ct", "netns_lab", "rollout")
        if names.mentioned(text, role) or f"ebpf.conntrack.{role}\n" in text
    }
    assert {own, *used} <= set(owners) and expression.count(
        f"^({'|'.join(owners)})_" if len(owners) > 1 else f"^{own}_"
    ) == 1
