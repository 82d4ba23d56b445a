# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is put back to, without a kernel."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.plan import Step
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import put_back
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import present
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import unit as ct_unit

ETH0: dict[str, t.Any] = {"name": "eth0", "netns": None, "program": "ingress", "mode": "native"}
BEFORE: dict[str, t.Any] = {
    "generation": 3,
    "timeouts": {},
    "settings": {},
    "interfaces": [ETH0],
    "command": True,
    "service": True,
}


@pytest.mark.parametrize(
    ("now", "new", "other"),
    [
        ([ETH0], [], []),
        ([{**ETH0, "mode": "generic"}], [], [ETH0]),
        ([{**ETH0, "program": "egress"}], [], [ETH0]),
        ([{**ETH0, "netns": "ns1"}], [{**ETH0, "netns": "ns1"}], [ETH0]),
        ([ETH0, {**ETH0, "name": "eth1"}], [{**ETH0, "name": "eth1"}], []),
        ([], [], [ETH0]),
    ],
)
def test_which_interfaces_are_detached_and_which_attached_as_before(
    now: list[dict[str, t.Any]], new: list[dict[str, t.Any]], other: list[dict[str, t.Any]]
) -> None:
    assert put_back.surplus([ETH0], now) == (new, other)


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_what_was_there_before_has_to_be_whole(name: str) -> None:
    with pytest.raises(ConntrackError, match=f"before: .*{name}"):
        put_back.check({key: value for key, value in BEFORE.items() if key != name})


def test_nothing_is_done_by_half_a_description() -> None:
    with pytest.raises(ConntrackError, match="before: .*generation and timeouts"):
        put_back.put_back(bpffs.Paths(bpffs.STANDARD), {}, "/opt", False, 5)


class Host:
    """What put_back() would do to a host with a chain, with all that it calls written down."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, booted: bool = True, ours: bool = True
    ) -> None:
        self.done: list[str] = []
        monkeypatch.setattr(bpffs, "check", lambda *dummy: None)
        monkeypatch.setattr(ct_unit, "booted", lambda: booted)
        monkeypatch.setattr(present, "is_ours", lambda path: ours)
        monkeypatch.setattr(ct_unit, "converge", lambda state, *dummy: self.did(f"service {state}"))
        monkeypatch.setattr(
            ct_archive,
            "converge",
            lambda prefix, content, *dummy: self.did(f"command {prefix} {content}"),
        )
        monkeypatch.setattr(generation, "remove", lambda *dummy: self.did("remove"))
        monkeypatch.setattr(generation, "observe", lambda paths: None)
        monkeypatch.setattr(generation, "facts", lambda *dummy: {})
        monkeypatch.setattr(put_back, "_chain", lambda *dummy: self.did("chain"))
        monkeypatch.setattr(
            present,
            "attached",
            lambda paths: [{**ETH0, "mode": "generic"}, {**ETH0, "name": "eth1"}],
        )
        monkeypatch.setattr(attach, "converge", self._attach)

    def did(self, what: str) -> list[Step]:
        self.done.append(what)
        return [Step("did", "thing", what, "")]

    def _attach(
        self, state: str, interfaces: t.Any, mode: str, takeover: bool, *dummy: object
    ) -> tuple[dict[str, t.Any], list[str]]:
        names = (
            "all"
            if interfaces is None
            else " ".join(f"{one['name']} {one['mode']}" for one in interfaces)
        )
        assert mode == "auto" and takeover is False, "a program that came meanwhile is left alone"
        self.did(f"{state} {names}")
        return {"plan": [{"action": "did", "kind": "xdp", "name": names, "reason": ""}]}, [
            f"about {names}"
        ]

    def back(self, **before: t.Any) -> list[str]:
        plan, self.warnings, dummy = put_back.put_back(
            bpffs.Paths(bpffs.STANDARD), {**BEFORE, **before}, "/opt", False, 5
        )
        assert len(plan) == len(self.done)
        return self.done


def test_what_was_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    assert host.back() == ["chain", "absent eth1 native", "present eth0 native"], (
        "eth0 in its mode again, no word of the command and the service"
    )
    assert host.warnings == ["about eth1 native", "about eth0 native"]


def test_what_was_not_there_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Host(monkeypatch).back(generation=None, command=False, service=False) == [
        "service absent",
        "absent all",
        "remove",
        "command /opt None",
    ]


@pytest.mark.parametrize(("booted", "ours"), [(False, True), (True, False)])
def test_a_foreign_service_stays(monkeypatch: pytest.MonkeyPatch, booted: bool, ours: bool) -> None:
    assert "service absent" not in Host(monkeypatch, booted, ours).back(service=False)
