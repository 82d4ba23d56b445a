# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages in docs/ and the README name all that there is, with the values that hold."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import diagnosis
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import metrics as ct_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEMANTICS = (ROOT / "docs/semantics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", chain_counters.COUNTERS)
def test_every_counter_is_explained(name: str) -> None:
    assert f"\n| `{name}` | " in SEMANTICS


@pytest.mark.parametrize(("name", "seconds"), chain_settings.TIMEOUTS.items())
def test_every_timeout_is_there_with_its_default(name: str, seconds: int) -> None:
    assert f"\n| `{name}` | {seconds} | " in SEMANTICS


@pytest.mark.parametrize(("name", "default"), chain_settings.KNOBS.items())
def test_every_switch_is_there_with_its_default(name: str, default: int) -> None:
    assert f"\n| `{name}` | {str(default).lower()} | " in SEMANTICS


@pytest.mark.parametrize(("name", "kind"), diagnosis.FAULTS.items())
def test_every_fault_is_explained(name: str, kind: diagnosis.Kind) -> None:
    assert f"\n| `{name}` | {kind.meaning} | " in (ROOT / "docs/health.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(("name", "metric"), ct_metrics.METRICS.items())
def test_every_metric_is_explained(name: str, metric: ct_metrics.Metric) -> None:
    labels = "".join(f" `{label}`" for label in metric.labels)
    assert f"\n| `{name}` |{labels} | {metric.help} |\n" in (ROOT / "docs/metrics.md").read_text(
        encoding="utf-8"
    )


def test_the_readme_names_every_module_role_playbook_and_plugin() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [path.stem for path in (ROOT / "plugins/modules").glob("*.py")]
    roles = [path.name for path in (ROOT / "roles").iterdir()]
    playbooks = [path.stem for path in (ROOT / "playbooks").glob("*.yml")]
    plugins = [
        f"| `{path.stem}` ({kind}) |"
        for kind in ("connection", "inventory")
        for path in (ROOT / "plugins" / kind).glob("*.py")
    ]
    assert [name for name in modules + roles + playbooks if f"`{name}`" not in readme] == []
    assert [row for row in plugins if row not in readme] == []
