# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module ct_handoff: its options to its result, on tables in memory."""

from __future__ import annotations

import contextlib
import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.handoff import run as handoff_run
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> dict[str, fakes.FakeTables]:
    """The tables of two hosts, by their pin roots."""
    made = {
        name: fakes.FakeTables({**{table.name: () for table in flow.TABLES}, "ctt": rows})
        for name, rows in (("/one", [fakes.entry()]), ("/two", []))
    }

    def opened(
        pin_root: str, dummy_patience: float = 0
    ) -> contextlib.AbstractContextManager[fakes.FakeTables]:
        return contextlib.nullcontext(made[pin_root])

    monkeypatch.setattr(bpffs, "check", lambda dummy: None)
    monkeypatch.setattr(flow_table, "FlowTables", opened)
    monkeypatch.setattr(flow_table, "writing", opened)
    return made


@pytest.fixture
def run() -> Run:
    def run(pin_root: str, check_mode: bool = False, **given: t.Any) -> dict[str, t.Any]:
        params = {
            name: given.get(name, option.get("default"))
            for name, option in handoff_run.OPTIONS.items()
        }
        return handoff_run.run({**params, "pin_root": pin_root}, check_mode)

    return run


def test_out_and_in(tables: dict[str, fakes.FakeTables], run: Run, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "flows")
    assert (
        run("/one", check_mode=True, export_to=path)["count"] == 1
        and not pathlib.Path(path).exists()
    )
    assert run("/one", export_to=path, state=["ESTABLISHED"]) == {
        "changed": True,
        "count": 1,
        "export_to": path,
    }
    would = run("/two", check_mode=True, import_from=path)
    assert would["changed"] and not tables["/two"].entries["ctt"]
    done = run("/two", import_from=path)
    assert (done["changed"], done["count"], done["imported"], "warnings" in done) == (
        True,
        1,
        1,
        False,
    )
    again = run("/two", import_from=path)
    assert (again["changed"], again["kept"]) == (False, 1)


def test_what_has_no_room_is_told(
    tables: dict[str, fakes.FakeTables], run: Run, tmp_path: pathlib.Path
) -> None:
    path = str(tmp_path / "flows")
    tables["/one"].entries["ctt"].update(fakes.entry(sport=number) for number in range(1100))
    run("/one", export_to=path)
    done = run("/two", import_from=path)
    assert done["no_room"] > 0 and f"{done['no_room']} flows were left out" in done["warnings"][0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"import_from": "/none", "proto": ["tcp"]},
            "proto: ['tcp'] is not valid: flows are chosen when they are exported",
        ),
        (
            {"import_from": "/none"},
            "import_from: '/none' is not valid: give a file that was exported: No such file",
        ),
        ({"export_to": "none"}, "export_to: 'none' is not valid: give an absolute path"),
        ({"export_to": "/tmp/x", "mode": "rw"}, "mode: 'rw' is not valid"),
    ],
)
def test_bad_options_are_refused(
    tables: dict[str, fakes.FakeTables], run: Run, given: dict[str, t.Any], said: str
) -> None:
    with pytest.raises(ConntrackError) as caught:
        run("/one", **given)
    assert caught.value.message.startswith(said)
