# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of ct: what is refused, in one line, before anything is read."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import (
    arguments,
    cli,
    exit_status,
    printing,
    sources,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import words as ct_words
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import output as flow_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

ROOT = pathlib.Path(__file__).resolve().parents[5]
#: A command line that can do nothing: no BPF file system is there.
NOWHERE = "--pin-root /nonexistent"


def run(line: str) -> int:
    """Return the exit status."""
    try:
        return cli.main(shlex.split(line))
    except SystemExit as exc:
        return int(exc.code or 0)


def test_every_filter_is_an_option_of_every_command_that_chooses_flows() -> None:
    assert set(arguments.FILTER_HELP) == set(flow_filter.FILTER_WORDS) and set(
        arguments.FILTER_VALUES
    ) <= set(flow_filter.FILTER_WORDS)
    for command in ("list", "count", "summary", "top", "watch", "flush"):
        args = cli.parser().parse_args([command])
        assert {word: getattr(args, word) for word in flow_filter.FILTER_WORDS} == dict.fromkeys(
            flow_filter.FILTER_WORDS
        )


def test_what_the_shell_offers_is_valid() -> None:
    for word, values in arguments.FILTER_VALUES.items():
        flow_filter.parse_filters({word: values[0] if word == "assured" else list(values)})


def test_values_by_comma_and_by_repeating() -> None:
    args = cli.parser().parse_args(
        shlex.split("list --proto tcp,udp --proto icmp --assured --min-bytes 10 --fields src,dst")
    )
    assert arguments.given(args, flow_filter.QUERY_WORDS) == {
        "proto": ["tcp", "udp", "icmp"],
        "assured": "true",
        "min_bytes": "10",
        "fields": ["src", "dst"],
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "COMMAND"),
        ("lits", "invalid choice: 'lits'. Did you mean list? See ct --help"),
        ("help lits", "ct help: argument COMMAND: invalid choice: 'lits'. Did you mean list?"),
        ("-o json list", "ct: unrecognized arguments: -o. Options follow a command"),
        ("stats extra", "ct stats: unrecognized arguments: extra. See ct stats --help"),
        ("attach eth0 --program ingres", "invalid choice: 'ingres'. Did you mean ingress?"),
        (
            "list -o jsno",
            "ct list: argument -o/--output: invalid choice: 'jsno'. Did you mean json?",
        ),
        ("list --proto tpc", "Did you mean tcp?"),
        ("load --set timeouts.tcp_establised=5", "Did you mean timeouts.tcp_established?"),
        ("watch --event destory", "Did you mean destroy?"),
        (
            "list --porto tcp",
            "ct list: unrecognized arguments: --porto tcp. Did you mean --port? See ct list --help",
        ),
        ("list --prot tcp", "unrecognized arguments: --prot tcp"),
        ("list -o xml", "-o/--output: invalid choice: 'xml'"),
        ("list --proto tpc", "proto: 'tpc' is not valid: give icmp, tcp"),
        ("list --src 10.0.0.300", "src: '10.0.0.300' is not valid: give an IPv4"),
        ("list --dport 80,http", "dport[1]: 'http' is not valid: give a port"),
        ("list --sort size", "sort: 'size' is not valid: give one of"),
        ("list --sort -size", "sort: '-size' is not valid: give one of"),
        ("list --sort -o json", "argument --sort: expected one argument"),
        (
            "list --src 10.0.0.1 --dst ::1",
            "dst: '::1' is not valid: both ends of a flow are of one family",
        ),
        ("show tcp 10.0.0.1:80 2001:db8::1", "both ends of a flow are of one family"),
        ("flush --proto tcp", "yes: it is not given, and there is no terminal"),
        (
            "flush --proto tcp --lock-timeout -1 --yes",
            "argument --lock-timeout: -1 is not valid: give 0 or more",
        ),
        ("rollback --generation 0", "argument --generation: 0 is not valid: give 1 or more"),
        (
            "load --set checksum=off",
            "set: 'checksum' is not valid: it is compiled in; give the directory",
        ),
        (
            "attach eth0@ --program ingress",
            "interface: 'eth0@' is not valid: give the name of a namespace after the @",
        ),
        ("detach eth0 eth1@ --dry-run", "interface: 'eth1@' is not valid"),
        ("list --limit some", "limit: 'some' is not valid: give a whole number"),
        ("list --fields colour", "fields: 'colour' is not valid: give some of"),
        ("list --extended", "extended: True is not valid: it belongs to -o conntrack"),
        ("list --window", "window: True is not valid: the format table has no place for it"),
        ("list -o json --window --input x", "window: True is not valid: a file"),
        ("count --limit 3", "limit: it belongs to --group-by"),
        ("count --group-by colour", "--group-by: 'colour' is not valid"),
        ("summary --state open", "state: 'open' is not valid"),
        (
            "show tcp 10.0.0.1:80",
            "tuple: 'tcp 10.0.0.1:80' is not valid: give PROTO SRC[:PORT] DST[:PORT]",
        ),
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
        (
            "attach eth0 eth0 --program ingress",
            "ct attach: interface 2: 'eth0' is not valid: the interface is already in interface 1",
        ),
        ("detach", "interface: name the interfaces, or give --all"),
        ("detach eth0 --all", "but not both"),
    ],
)
def test_a_wrong_use_is_told_in_one_line(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{line} {NOWHERE}" if line else line) == exit_status.USAGE
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err.count("\n") == 1
        and printed.err.startswith("ct")
        and words in printed.err
    ), printed


EMPTY = [
    *(
        f"{command} --proto tcp --src ''"
        for command in (
            "list",
            "count",
            "summary",
            "top",
            "watch",
            "export",
            "graph",
            "flush --yes",
            "flush --dry-run",
        )
    ),
    *(
        f"flush --yes --proto tcp --src {value}"
        for value in ("''", "' '", "10.0.0.1,", ",", "10.0.0.1,,10.0.0.2", "10.0.0.1 --src ''")
    ),
    *(
        "flush --yes --all --state ''",
        "flush --yes --assured ''",
        "flush --yes --min-bytes '' --proto tcp",
        "flush --all --yes --pin-root ''",
    ),
    *(
        "list --fields ''",
        "list --sort ''",
        "list --limit ''",
        "list --input ''",
        "count --group-by ''",
        "watch --event ''",
        "watch --save ''",
        "graph --lab ''",
    ),
    *(
        "import ''",
        "load ''",
        "load --set ''",
        "attach '' --program ingress",
        "detach ''",
        "show tcp '' 10.0.0.1 10.0.0.2",
        "gc --state-dir ''",
    ),
    *(
        "serve --socket ''",
        "serve --group ''",
        "run --listen ''",
        "status --pin-root ''",
        "verify --state-dir ''",
        "rollback --pin-root ''",
    ),
]


@pytest.mark.parametrize("line", EMPTY)
def test_an_empty_word_is_an_error_before_anything_is_looked_at(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of an unset variable: left out, a filter would let a deletion take more."""
    assert run(line if "--pin-root" in line else f"{line} {NOWHERE}") == exit_status.USAGE
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err.count("\n") == 1
        and printed.err.startswith(f"ct {line.split()[0]}: ")
        and "empty" in printed.err
    ), printed


@pytest.mark.parametrize("path", ["bpf", "/sys/fs/bpf/", "/sys/../sys/fs/bpf", "./x"])
def test_a_pin_root_that_is_no_plain_path_is_a_wrong_use(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"status --pin-root {path}") == exit_status.USAGE
    assert f"ct status: --pin-root: {path!r} is not valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("a needs root: run the task with become: true.", "a needs root: run as root."),
        (
            "/sys/x may not be opened: no. Run as root (in a playbook: become: true).",
            "/sys/x may not be opened: no. Run as root.",
        ),
        (
            "Entering a network namespace needs root: run as root, with become for instance.",
            "Entering a network namespace needs root: run as root.",
        ),
        (
            "Detach it, or give takeover: true to have it replaced.",
            "Detach it, or give --takeover to have it replaced.",
        ),
        (
            "Lower the MTU, or give mode: generic or auto.",
            "Lower the MTU, or give --mode generic or auto.",
        ),
        ("detach it (state: absent).", "detach it (ct detach)."),
        (
            "x: give another pin_root; lock_timeout says how long.",
            "x: give another --pin-root; --lock-timeout says how long.",
        ),
        ("interfaces[0].name: there is none", "interface 1: there is none"),
        ("interfaces[2]: eth0: no; see interfaces[1]", "interface 3: eth0: no; see interface 2"),
        ("/srv/pin_root/xdp_program.c: no such file", "/srv/pin_root/xdp_program.c: no such file"),
    ],
)
def test_messages_of_the_library_are_in_the_words_of_the_command(message: str, said: str) -> None:
    assert ct_words.spoken(message, ct_words.option_names(cli.parser())) == said


def test_no_message_that_the_command_can_print_asks_for_become() -> None:
    """Whatever is added to the library."""
    for name, text in ct_content.sources().items():
        if name != "ct/words.py":
            assert not re.search(
                r"become: true|with become", ct_words.spoken(re.sub(r'"\s*\n\s*f?"', "", text), ())
            ), name


def test_help_and_version_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("help") == run("--help") == exit_status.DONE
    printed = capsys.readouterr().out
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :] and "flush" in printed
    assert run("help flush") == run("flush --help") == exit_status.DONE
    printed = capsys.readouterr().out
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :] and printed.startswith(
        "usage: ct flush"
    )
    assert run("version") == run("--version") == exit_status.DONE
    one, other = capsys.readouterr().out.splitlines()
    assert one == other and one.startswith("ct ")


class Open(fakes.FakeTables):
    """Tables that are opened and closed."""

    def __enter__(self) -> Open:
        return self

    def __exit__(self, *dummy: object) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "said", "left"),
    [
        ("--all --dry-run", "would delete 3 live flows, and 2 expired entries", 5),
        ("--all --yes", "3 live flows deleted, and 2 expired entries", 0),
        ("--proto tcp --yes", "2 flows deleted", 3),
        ("--proto udp --dry-run", "would delete 1 flow", 5),
    ],
)
def test_flush_tells_live_flows_from_what_had_only_expired(
    options: str,
    said: str,
    left: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = [fakes.entry(sport=1), fakes.entry(sport=2), fakes.entry(proto=fakes.UDP)]
    source = Open(
        {
            "ctt": [
                *live,
                fakes.entry(sport=3, left=-1),
                fakes.entry(proto=fakes.UDP, sport=4, left=-2),
            ]
        }
    )
    monkeypatch.setattr(sources, "open_tables", lambda args: source)
    monkeypatch.setattr(flow_table, "writing", lambda *dummy: source)
    monkeypatch.setattr(bpffs, "check", lambda pin_root: True)
    assert run(f"flush {options}") == exit_status.DONE
    assert capsys.readouterr().out.splitlines()[-1] == said and len(source.entries["ctt"]) == left


# ---------------------------------------------------------------- standard streams
@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command as it is installed."""
    prefix = tmp_path_factory.mktemp("prefix")
    ct_archive.converge(str(prefix), ct_content.want())
    return str(prefix / ct_archive.COMMAND)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of flows, of 1 to 3 packets."""
    path = tmp_path_factory.mktemp("saved") / "flows.json"
    source = fakes.FakeTables({"ctt": [fakes.entry(sport=at, orig=(at, at)) for at in (2, 3, 1)]})
    pieces: list[bytes] = []
    flow_read.read(
        source,
        flow_filter.parse_query({}),
        flow_output.writer("json", (), False, False),
        pieces.append,
    )
    path.write_bytes(b"".join(pieces))
    return str(path)


@pytest.mark.parametrize(
    ("line", "streams", "status", "said"),
    [
        ("list --input {saved}", ">&-", 1, "ct list: standard output is closed."),
        ("flush --all --yes", ">&-", 1, "ct flush: standard output is closed."),
        ("list --help", ">&-", 1, "ct list: standard output is closed."),
        (
            "list --input {saved}",
            ">/dev/full",
            1,
            "ct list: standard output cannot be written: No space left on device.",
        ),
        (
            "list --help",
            ">/dev/full",
            1,
            "ct list: standard output cannot be written: No space left on device.",
        ),
        (
            "--version",
            ">/dev/full",
            1,
            "ct: standard output cannot be written: No space left on device.",
        ),
        ("lits", "2>/dev/full", 2, ""),
        ("list --input {saved}", "2>&- <&- >/dev/null", 0, ""),
        ("flush --all", "<&-", 2, "ct flush: yes: it is not given"),
        ("list --help", "| true", 0, ""),
    ],
)
def test_standard_streams_that_are_closed_or_full(
    line: str, streams: str, status: int, said: str, archive: str, saved: str
) -> None:
    script = f"set -o pipefail; {sys.executable} -S {archive} {line.format(saved=saved)} {streams}"
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == status
        and done.stderr.startswith(said)
        and done.stderr.count("\n") == bool(said)
    ), done


@pytest.mark.parametrize(
    "line",
    [
        "list --sort -orig.packets",
        "list --sort=-orig.packets",
        "list -o table --sort -orig.packets --limit 9",
    ],
)
def test_the_largest_first_is_written_as_elsewhere(
    line: str, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{line} --input {saved}") == exit_status.DONE
    assert [row.split()[4] for row in capsys.readouterr().out.splitlines()[1:]] == ["3", "2", "1"]


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "count",
        "summary",
        "top",
        "stats",
        "show tcp 10.0.0.1 10.0.0.2",
        "flush --all --yes",
        "gc",
        "status",
        "verify",
        "load",
        "rollback",
    ],
)
def test_without_a_bpf_file_system(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{command} {NOWHERE}") == exit_status.FAILED
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "/nonexistent" in printed.err, (
        printed
    )


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{command} --help") == exit_status.DONE
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: ct {command}".rstrip()) and (
        not command or "--pin-root" in printed
    )


def test_the_version_is_the_collections(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == exit_status.DONE
    assert (
        capsys.readouterr().out
        == f"ct {yaml.safe_load((ROOT / 'galaxy.yml').read_text('utf-8'))['version']}\n"
    )


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "conntrack"])
def test_the_first_flows_are_printed_before_the_others_are_read(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fakes.FakeTables(
        {"ctt": [fakes.entry(sport=sport) for sport in range(1, 3001)]}, batch=300
    )
    read_by_then: list[int] = []
    monkeypatch.setattr(sources, "open_tables", lambda args: contextlib.nullcontext(source))
    monkeypatch.setattr(
        printing,
        "put",
        lambda piece: read_by_then.append(source.batches_read) if len(piece) > 1 else None,
    )
    assert cli.main(["list", "-o", form]) == exit_status.DONE
    assert (
        min(number for number in read_by_then if number) == 1
        and source.batches_read == 10
        and len(read_by_then) >= 10
    )


# ---------------------------------------------------------------- what came from elsewhere reaches
EVIL = "\x1b[2J\x9b31m\u202e"


def test_errors_quote_without_what_a_terminal_obeys(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"flows{EVIL}"
    path.write_text(f"{EVIL}\n", "utf-8")
    for command in ("list", "count"):
        assert run(f"{command} --input {shlex.quote(str(path))} {NOWHERE}") == exit_status.FAILED
        said = capsys.readouterr()
        assert (
            said.out == ""
            and said.err.rstrip("\n").isprintable()
            and "flows\\u001b[2J\\u009b31m\\u202e:1: '" in said.err
        ), said.err


def test_what_is_said_keeps_its_lines_and_no_escape_code(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    printing.say(f"r1{EVIL}\ndone\ud800")
    printing.say_json({"host": f"r1{EVIL}"})
    out = capfdbinary.readouterr().out.decode("utf-8")
    first, rest = out.split("\n", 2)[:2], out.split("\n", 2)[2]
    assert first == ["r1\\u001b[2J\\u009b31m\\u202e", "done\\ud800"]
    assert json.loads(rest) == {"host": f"r1{EVIL}"} and rest.replace("\n", "").isprintable()
