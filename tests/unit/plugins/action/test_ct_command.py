# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of ct_command: the content goes along when the module asks for it, and not
before.
"""

from __future__ import annotations

import types
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.action import ct_command
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive

Run = t.Callable[[dict[str, t.Any]], dict[str, t.Any]]


@pytest.fixture
def calls() -> list[dict[str, t.Any]]:
    """Return the arguments of the module's calls."""
    return []


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return what was sent, by name."""
    sent: dict[str, bytes] = {}

    def send(dummy: t.Any, name: str, data: bytes) -> str:
        sent[name] = data
        return f"/tmp/{name}"

    monkeypatch.setattr(ct_command.transfer, "send", send)
    return sent


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, t.Any]], files: dict[str, bytes]
) -> Run:
    """Run a task whose module asks for the content when state_dir is not as the target has it."""

    def execute(
        dummy: t.Any, module_name: str, module_args: dict[str, t.Any], task_vars: t.Any
    ) -> dict[str, t.Any]:
        calls.append(dict(module_args))
        if "content" not in module_args and module_args.get("state_dir") == "~/new":
            return {
                "changed": False,
                "content_wanted": {"pin_root": "/sys/fs/bpf", "state_dir": "/root/new"},
            }
        return {"changed": "content" in module_args, "invocation": {"module_args": module_args}}

    monkeypatch.setattr(ct_command.ActionBase, "run", lambda *dummy: {})
    monkeypatch.setattr(ct_command.ActionModule, "_execute_module", execute)

    def one(args: dict[str, t.Any]) -> dict[str, t.Any]:
        action = object.__new__(ct_command.ActionModule)
        action._task = types.SimpleNamespace(args=args)
        return action.run(None, {})

    return one


def test_a_run_that_changes_nothing_takes_one_call(
    run: Run, calls: list[dict[str, t.Any]], files: dict[str, bytes]
) -> None:
    result = run({"pin_root": "/sys/fs/bpf/a"})
    assert not result["changed"] and files == {}
    assert calls == [
        {"pin_root": "/sys/fs/bpf/a", "digest": ct_content.content("/sys/fs/bpf/a").digest}
    ]
    assert result["invocation"]["module_args"] == {"pin_root": "/sys/fs/bpf/a"}


def test_content_goes_along_when_the_module_asks_for_it(
    run: Run, calls: list[dict[str, t.Any]], files: dict[str, bytes]
) -> None:
    """With the directories as they are on the target."""
    result = run({"state_dir": "~/new"})
    wanted = ct_content.content(state_dir="/root/new")
    assert result["changed"] and "content_wanted" not in result
    assert ct_archive.unpack(files["content"]) == wanted
    assert (calls[1]["digest"], calls[1]["content"], calls[1]["state_dir"]) == (
        wanted.digest,
        "/tmp/content",
        "~/new",
    )


@pytest.mark.parametrize("name", ct_command.FILLED_IN)
def test_what_is_filled_in_can_not_be_given(
    run: Run, calls: list[dict[str, t.Any]], name: str
) -> None:
    assert (
        run({name: "x"})
        == {"failed": True, "msg": f"{name}: it is filled in and can not be given."}
        and calls == []
    )
