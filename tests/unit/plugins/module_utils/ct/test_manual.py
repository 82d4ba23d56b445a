# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manual page and the completion name what the parser has, and groff and bash take them."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import (
    arguments,
    cli,
    exit_status,
    manual,
)

PARSER = cli.parser()
COMMANDS = manual.commands(PARSER)
DOCS = pathlib.Path(__file__).resolve().parents[5] / "docs/reference/ct.md"


def completed(*words: str) -> list[str]:
    """Return what bash offers for the last word of a command line."""
    script = (
        f'{manual.bash_completion(PARSER)}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ct; printf'
        ' "%s\\n" "${COMPREPLY[@]}"'
    )
    return subprocess.run(
        ["bash", "-eu", "-c", script, "bash", "ct", *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()


def test_there_are_commands_and_options() -> None:
    assert list(COMMANDS) == list(cli.COMMANDS) and all(COMMANDS.values())
    assert {one.names for one in COMMANDS["list"] if one.group == arguments.FILTERS} == {
        (arguments.option(word),) for word in arguments.FILTER_HELP
    }


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_the_manual_page_names_all_of_it() -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-cbou"],
        input=manual.man_page(PARSER),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    page = done.stdout
    sections = {
        name: page.partition(f"ct {name} ")[2].partition("\n   ct ")[0] for name in COMMANDS
    }
    shared = page.partition("\nFILTERS\n")[2]
    for name, options in COMMANDS.items():
        assert f"\n   ct {name} " in page
        for one in options:
            where = shared if one.group == arguments.FILTERS else sections[name]
            assert all(word in where for word in one.names), (name, one)
    assert all(f"\n       {code} " in page for code in exit_status.EXIT_STATUS)


def test_the_documentation_names_all_commands() -> None:
    text = DOCS.read_text("utf-8")
    assert [name for name in COMMANDS if f"`ct {name}" not in text] == []


def test_completion_of_commands_and_options() -> None:
    assert set(completed("")) == {*COMMANDS, "--help", "--version"}
    assert completed("st") == ["stats", "status"]
    for name, options in COMMANDS.items():
        assert set(completed(name, "-")) == {
            *(word for one in options for word in one.names),
            "--help",
        }, name


def test_completion_of_values() -> None:
    assert completed("list", "-o", "") == ["table", "json", "jsonl", "csv", "conntrack"]
    assert completed("count", "--proto", "u") == ["udp", "udplite"]
    assert completed("attach", "eth0", "--program", "") == ["ingress", "egress", "pass"]
    assert completed("flush", "--state", "TIME") == ["TIME_WAIT"]
    assert completed("list", "--src", "") == [] and completed("list", "--assured", "--pro") == []
