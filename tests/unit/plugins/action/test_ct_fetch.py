# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ct_fetch: what the target is asked for, what stays on the controller, and what is told of a
host.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import types
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.action import ct_fetch

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth1\t0000090A\t0100010A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
20010db8000000010000000000000001 02 40 00 80     eth1
fe80000000000000000000fffe000001 02 40 20 80     eth1
00000000000000000000000000000001 01 80 10 80       lo
"""


def test_the_networks_that_a_host_is_attached_to() -> None:
    assert ct_fetch.attached(ROUTES) == ["10.1.0.0/16", "192.168.1.0/24", "2001:db8:0:1::/64"]
    assert ct_fetch.attached("eth0 C0A80100 00000000 0001 0 0 0 FFFFFF00 0 0 0") == [
        "192.168.1.0/24"
    ], "as a big-endian host tells it"
    assert (
        ct_fetch.attached("") == []
        and ct_fetch.attached("what is this now\n1 2 3 4 5 6 7 8\n") == []
    )


@pytest.mark.parametrize(
    "line",
    [
        "eth0 FFFFFFFFFF 00000000 0001 0 0 0 00FFFFFF 0 0 0",
        "eth0 0001A8C0 00000000 0001 0 0 0 -1 0 0 0",
        "eth0 0001A8C0 00000000 0001 0 0 0 00FF00FF 0 0 0",
        "20010db8000000010000000000000001 02 FFFF 00 80 eth1",
        "\x1b[2J " * 8,
    ],
)
def test_a_host_that_was_taken_over_says_what_it_likes_of_its_networks(line: str) -> None:
    assert ct_fetch.attached(f"{ROUTES}{line}\n") == ct_fetch.attached(ROUTES)


class Action(ct_fetch.ActionModule):
    """The action, with a target that is a directory."""

    def __init__(
        self,
        target: pathlib.Path,
        args: dict[str, t.Any],
        answer: dict[str, t.Any],
        check_mode: bool = False,
    ) -> None:
        self.asked: list[dict[str, t.Any]] = []
        self._answer, self._target = answer, target
        self._task = types.SimpleNamespace(args=args, check_mode=check_mode)
        self._loader = types.SimpleNamespace(path_dwim=lambda path: str(target / path))
        shell = types.SimpleNamespace(tmpdir=None, join_path=lambda *parts: "/".join(parts))
        self._connection = types.SimpleNamespace(_shell=shell, fetch_file=shutil.copyfile)

    def _make_tmp_path(self, remote_user: str | None = None) -> str:
        return str(self._target)

    def _execute_module(
        self, module_name: str | None = None, module_args: t.Any = None, **dummy: t.Any
    ) -> dict[str, t.Any]:
        assert module_name == "ebpf.conntrack.ct_flows"
        self.asked.append(module_args)
        if "dest" in module_args:
            pathlib.Path(module_args["dest"]).write_text('{"proto": "tcp"}\n', "utf-8")
        return dict(self._answer)

    def _low_level_execute_command(
        self, cmd: str, sudoable: bool = True, **dummy: t.Any
    ) -> dict[str, t.Any]:
        assert cmd.startswith("cat /proc/net/route /proc/net/if_inet6") and not sudoable
        return {"stdout": ROUTES}

    def fetch(self) -> dict[str, t.Any]:
        return self._fetch({"inventory_hostname": "r1"})


ANSWER = {
    "count": 3,
    "flows": [{"proto": "tcp"}],
    "ansible_facts": {"ct_flows": {}},
    "summary": {"flows": 3},
    "changed": True,
}


def test_flows_come_as_a_file_and_not_in_the_result(tmp_path: pathlib.Path) -> None:
    action = Action(
        tmp_path,
        {"dest": "here/r1.jsonl", "proto": ["tcp"], "pin_root": "/sys/fs/bpf/x", "zone": None},
        ANSWER,
    )
    result = action.fetch()
    wanted = {
        "proto": ["tcp"],
        "pin_root": "/sys/fs/bpf/x",
        "dest": f"{tmp_path}/flows.jsonl",
        "format": "jsonl",
        "mode": "0644",
    }
    assert action.asked == [wanted]
    there = tmp_path / "here/r1.jsonl"
    assert json.loads(there.read_text("utf-8")) == {"proto": "tcp"} and [
        path.name for path in there.parent.iterdir()
    ] == ["r1.jsonl"]
    source = {"host": "r1", "path": str(there), "zone": "", "networks": ct_fetch.attached(ROUTES)}
    assert result == {
        "count": 3,
        "summary": {"flows": 3},
        "changed": True,
        "dest": str(there),
        "source": source,
    }


def test_networks_that_are_given_are_not_looked_for(tmp_path: pathlib.Path) -> None:
    result = Action(
        tmp_path, {"dest": "r1.jsonl", "networks": ["10.0.0.0/24"], "zone": "lab"}, ANSWER
    ).fetch()
    assert (result["source"]["networks"], result["source"]["zone"]) == (["10.0.0.0/24"], "lab")


def test_a_host_without_a_chain_says_so(tmp_path: pathlib.Path) -> None:
    assert Action(tmp_path, {"dest": "r1.jsonl"}, {"failed": True, "msg": "no chain"}).fetch() == {
        "failed": True,
        "msg": "no chain",
    }
    assert not (tmp_path / "r1.jsonl").exists()


def test_check_mode_writes_nothing(tmp_path: pathlib.Path) -> None:
    action = Action(tmp_path, {"dest": "r1.jsonl"}, ANSWER, check_mode=True)
    assert action.fetch() == {"count": 3, "summary": {"flows": 3}, "changed": False}
    assert action.asked == [{"limit": 0}] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "dest: it is missing"),
        (
            {"dest": "x", "sort": "age"},
            "option: 'sort' is not valid: ct_fetch takes pin_root, family",
        ),
        ({"dest": "x", "networks": ["eth0"]}, "networks: 'eth0' is not valid"),
        (
            {"dest": "x.jsonl/"},
            (
                "dest: 'x.jsonl/' is not valid: it is a directory; give the path of a file on the"
                " controller"
            ),
        ),
        ({"dest": "."}, "dest: '.' is not valid: it is a directory"),
    ],
)
def test_bad_options_are_refused(tmp_path: pathlib.Path, args: dict[str, t.Any], said: str) -> None:
    with pytest.raises(ct_fetch.ConntrackError) as caught:
        Action(tmp_path, args, ANSWER).fetch()
    assert list(tmp_path.iterdir()) == []
    assert caught.value.message.startswith(said)
