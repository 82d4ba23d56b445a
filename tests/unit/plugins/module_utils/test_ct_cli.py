# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of ct: what is refused, in one line, before anything is read."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shlex

import pytest
import yaml
from ansible_collections.ebpf.conntrack.plugins.module_utils import ct_cli, flow_filter
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

ROOT = pathlib.Path(__file__).resolve().parents[4]
#: A command line that can do nothing: no BPF file system is there.
NOWHERE = "--pin-root /nonexistent"


def run(line: str) -> int:
    """Return the exit status."""
    try:
        return ct_cli.main(shlex.split(line))
    except SystemExit as exc:
        return int(exc.code or 0)


def test_every_filter_is_an_option_of_every_command_that_chooses_flows() -> None:
    assert set(ct_cli.FILTER_HELP) == set(flow_filter.FILTER_WORDS) and set(ct_cli.FILTER_VALUES) <= set(flow_filter.FILTER_WORDS)
    for command in ("list", "count", "summary", "top", "watch", "flush"):
        args = ct_cli.parser().parse_args([command])
        assert {word: getattr(args, word) for word in flow_filter.FILTER_WORDS} == dict.fromkeys(flow_filter.FILTER_WORDS)


def test_what_the_shell_offers_is_valid() -> None:
    for word, values in ct_cli.FILTER_VALUES.items():
        flow_filter.parse_filters({word: values[0] if word == "assured" else list(values)})


def test_values_by_comma_and_by_repeating() -> None:
    args = ct_cli.parser().parse_args(shlex.split("list --proto tcp,udp --proto icmp --assured --min-bytes 10 --fields src,dst"))
    assert ct_cli._words(args, flow_filter.QUERY_WORDS) == {
        "proto": ["tcp", "udp", "icmp"],
        "assured": "true",
        "min_bytes": "10",
        "fields": ["src", "dst"],
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "COMMAND"),
        ("lits", "invalid choice: 'lits'"),
        ("list --porto tcp", "unrecognized arguments: --porto tcp"),
        ("list --prot tcp", "unrecognized arguments: --prot tcp"),
        ("list -o xml", "-o/--output: invalid choice: 'xml'"),
        ("list --proto tpc", "proto: 'tpc' is not valid: give icmp, tcp"),
        ("list --src 10.0.0.300", "src: '10.0.0.300' is not valid: give an IPv4"),
        ("list --dport 80,http", "dport[1]: 'http' is not valid: give a port"),
        ("list --sort size", "sort: 'size' is not valid: give one of"),
        ("list --limit some", "limit: 'some' is not valid: give a whole number"),
        ("list --fields colour", "fields: 'colour' is not valid: give some of"),
        ("list --extended", "extended: True is not valid: it belongs to -o conntrack"),
        ("list --window", "window: True is not valid: the format table has no place for it"),
        ("list -o json --window --input x", "window: True is not valid: a file"),
        ("count --limit 3", "limit: it belongs to --group-by"),
        ("count --group-by colour", "--group-by: 'colour' is not valid"),
        ("summary --state open", "state: 'open' is not valid"),
        ("show tcp 10.0.0.1:80", "tuple: 'tcp 10.0.0.1:80' is not valid: give PROTO SRC[:PORT] DST[:PORT]"),
        ("show", "TUPLE"),
        ("top --sort size", "invalid choice: 'size'"),
        ("top --sort flows", "sort: 'flows' is not valid: it belongs to --group-by"),
        ("top --interval 0", "interval: '0' is not valid: give seconds"),
        ("top --interval often", "interval: 'often' is not valid: give seconds"),
        ("top --count 0", "count: 0 is not valid: give 1 or more"),
        ("top --group-by colour", "--group-by: 'colour' is not valid"),
        ("watch --event end", "event: 'end' is not valid: give some of new, update, destroy"),
        ("watch --save a --input b", "save: 'a' is not valid: it is for what happens now"),
        ("watch -o csv", "-o/--output: invalid choice: 'csv'"),
        ("flush", "filters: give a filter, or --all"),
        ("flush --all --proto tcp", "but not both"),
        ("rollback --generation first", "argument --generation: invalid int value: 'first'"),
        ("load --set udp=60", "set: 'udp' is not valid: known are table_size"),
        ("load --set timeouts.udp=0", "timeouts.udp: 0 is not valid: give 1 to"),
        ("load --keep 99", "keep: 99 is not valid: give 0 to 16 generations"),
        ("attach eth0", "--program"),
        ("attach eth0/1 --program ingress", "ct attach: interface 1: 'eth0/1' is not valid"),
        ("attach eth0 eth0 --program ingress", "ct attach: interface 2: 'eth0' is not valid: the interface is already in interface 1"),
        ("detach", "interface: name the interfaces, or give --all"),
        ("detach eth0 --all", "but not both"),
    ],
)
def test_a_wrong_use_is_told_in_one_line(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{line} {NOWHERE}" if line else line) == ct_cli.USAGE
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("ct") and words in printed.err, printed


@pytest.mark.parametrize(
    "command", ["list", "count", "summary", "top", "stats", "show tcp 10.0.0.1 10.0.0.2", "flush --all --yes", "gc", "status", "verify", "load", "rollback"]
)
def test_without_a_bpf_file_system(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{command} {NOWHERE}") == ct_cli.FAILED
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "/nonexistent" in printed.err, printed


@pytest.mark.parametrize("command", ["", *ct_cli.COMMANDS])
def test_help_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{command} --help") == ct_cli.DONE
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: ct {command}".rstrip()) and (not command or "--pin-root" in printed)


def test_the_version_is_the_collections(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == ct_cli.DONE
    assert capsys.readouterr().out == f"ct {yaml.safe_load((ROOT / 'galaxy.yml').read_text('utf-8'))['version']}\n"


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "conntrack"])
def test_the_first_flows_are_printed_before_the_others_are_read(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fakes.FakeTables({"ctt": [fakes.entry(sport=sport) for sport in range(1, 3001)]}, batch=300)
    read_by_then: list[int] = []
    monkeypatch.setattr(ct_cli, "_tables", lambda args: contextlib.nullcontext(source))
    monkeypatch.setattr(ct_cli, "_put", lambda piece: read_by_then.append(source.batches_read) if len(piece) > 1 else None)
    assert ct_cli.main(["list", "-o", form]) == ct_cli.DONE
    assert min(number for number in read_by_then if number) == 1 and source.batches_read == 10 and len(read_by_then) >= 10


# ---------------------------------------------------------------- what came from elsewhere reaches no terminal
EVIL = "\x1b[2J\x9b31m\u202e"


def test_errors_quote_without_what_a_terminal_obeys(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"flows{EVIL}"
    path.write_text(f"{EVIL}\n", "utf-8")
    for command in ("list", "count"):
        assert run(f"{command} --input {shlex.quote(str(path))} {NOWHERE}") == ct_cli.FAILED
        said = capsys.readouterr()
        assert said.out == "" and said.err.rstrip("\n").isprintable() and "flows\\u001b[2J\\u009b31m\\u202e:1: '" in said.err, said.err


def test_what_is_said_keeps_its_lines_and_no_escape_code(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    ct_cli._say(f"r1{EVIL}\ndone\ud800")
    ct_cli._say_json({"host": f"r1{EVIL}"})
    out = capfdbinary.readouterr().out.decode("utf-8")
    first, rest = out.split("\n", 2)[:2], out.split("\n", 2)[2]
    assert first == ["r1\\u001b[2J\\u009b31m\\u202e", "done\\ud800"]
    assert json.loads(rest) == {"host": f"r1{EVIL}"} and rest.replace("\n", "").isprintable()
