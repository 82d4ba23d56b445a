# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manual page ct(8) and the shell's completion, made of the parser, so that they name what
there is.
"""

from __future__ import annotations

import argparse
import typing as t

from ..service.archive import MARK
from . import arguments, cli, exit_status

_EXAMPLES = (
    (
        "the ten busiest web connections",
        "ct list --proto tcp --dport 80,443 --sort=-bytes --limit 10",
    ),
    ("everything, for a program", "ct list -o json > flows.json"),
    ("the same questions to that file", "ct list --input flows.json --src 10.0.0.0/8 -o conntrack"),
    ("who holds the most flows", "ct count --group-by src --limit 5"),
    ("who sends most now, by source", "ct top --group-by src"),
    ("why a connection is in its state", "ct show tcp 10.0.0.1:40000 10.0.0.2:80"),
    ("a picture of the host", "ct graph > host.html"),
    ("keep what becomes of flows to one server", "ct watch --dst 10.0.0.2 --save events.jsonl"),
    ("give the real flows to another router", "ct export --assured | ssh r2 ct import"),
    ("cut off one client", "ct flush --src 10.0.0.1 --yes"),
)


class Option(t.NamedTuple):
    """One option or positional of a command.

    :ivar names: as they are typed; none for a positional.
    :ivar value: what stands for its value, "" where it takes none.
    :ivar values: what the shell offers for it.
    :ivar group: arguments.FILTERS or arguments.OPTIONS.
    """

    names: tuple[str, ...]
    value: str
    help: str
    values: tuple[str, ...]
    group: str


def commands(parser: argparse.ArgumentParser) -> dict[str, list[Option]]:
    """Return the options of each command."""
    (sub,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    return {
        name: [_option(action, command) for action in command._actions if action.dest != "help"]
        for name, command in sub.choices.items()
    }


def _option(action: argparse.Action, command: argparse.ArgumentParser) -> Option:
    filters = next(
        (group for group in command._action_groups if group.title == arguments.FILTERS), None
    )
    is_filter = filters is not None and action in filters._group_actions
    value = (
        ""
        if action.nargs == 0
        else str(action.metavar or ("FORMAT" if action.dest == "output" else action.dest.upper()))
    )
    values = (
        tuple(map(str, action.choices))
        if action.choices
        else arguments.FILTER_VALUES.get(action.dest, ())
        if is_filter
        else ()
    )
    return Option(
        tuple(action.option_strings),
        value,
        action.help or "",
        values,
        arguments.FILTERS if is_filter else arguments.OPTIONS,
    )


# ---------------------------------------------------------------- ct(8)
def _roff(text: str) -> str:
    """Return text that roff leaves as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text


def _entry(one: Option) -> list[str]:
    named = ", ".join(f"\\fB{_roff(name)}\\fR" for name in one.names)
    value = f"\\fI{_roff(one.value)}\\fR" if one.value else ""
    return [
        ".TP",
        " ".join(filter(None, (named, value))),
        f"{_roff(one.help[:1].upper() + one.help[1:])}.",
    ]


def man_page(parser: argparse.ArgumentParser) -> str:
    """Return the manual page in roff."""
    found = commands(parser)
    lines = [
        f'.\\" {MARK}: made of the parser of ct.',
        f'.TH CT 8 "" "{MARK} {cli.VERSION}" "System Administration"',
        *(".SH NAME", "ct \\- look at and look after the connection tracker in XDP"),
        *(
            ".SH SYNOPSIS",
            ".B ct",
            "\\fICOMMAND\\fR [\\fIOPTIONS\\fR]",
            ".br",
            ".B ct",
            "\\fICOMMAND\\fR \\fB\\-\\-help\\fR",
            ".br",
            ".B ct \\-\\-version",
        ),
        ".SH DESCRIPTION",
        (
            "It reads the flow tables of the chain that is pinned on this host, and changes what it"
            " runs on. It needs root."
        ),
        ".SH COMMANDS",
    ]
    for name, options in found.items():
        command = cli.COMMANDS[name]
        positional = "".join(f" \\fI{_roff(one.value)}\\fR..." for one in options if not one.names)
        filtered = (
            " [\\fIFILTERS\\fR]" if any(one.group == arguments.FILTERS for one in options) else ""
        )
        lines += [
            f".SS ct {name}{positional} [\\fIOPTIONS\\fR]{filtered}",
            _roff(f"{command.does[0].upper()}{command.does[1:]}. {command.more}"),
        ]
        for one in options:
            if one.group != arguments.FILTERS:
                lines += _entry(one)
    lines += [
        ".SH FILTERS",
        arguments.ABOUT_FILTERS,
    ]
    for one in found["list"]:
        if one.group == arguments.FILTERS:
            lines += _entry(one)
    lines.append(".SH EXIT STATUS")
    for code, meaning in exit_status.EXIT_STATUS.items():
        lines += [".TP", f"\\fB{code}\\fR", _roff(meaning)]
    lines.append(".SH EXAMPLES")
    for what, example in _EXAMPLES:
        lines += [".TP", f"{_roff(what[0].upper() + what[1:])}:", f"\\fB{_roff(example)}\\fR"]
    return "\n".join([*lines, ".SH SEE ALSO", "\\fBconntrack\\fR(8), \\fBbpftool\\fR(8)", ""])


# ---------------------------------------------------------------- bash
_BASH = """# {mark}: made of the parser of ct.
_ct() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands} --help --version"
    else
        case "${{COMP_WORDS[1]}} $prev" in
{values}
            {free}) return 0 ;;
            *)
                case "${{COMP_WORDS[1]}}" in
{options}
                esac ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}}
complete -o default -F _ct ct
"""


def bash_completion(parser: argparse.ArgumentParser) -> str:
    """Return the completion for bash."""
    found = commands(parser)
    values, free, options = [], [], []
    for command, all_of in found.items():
        for one in all_of:
            patterns = [f'"{command} {name}"' for name in one.names]
            if one.names and one.values:
                values.append(
                    f'            {" | ".join(patterns)}) words="{" ".join(one.values)}" ;;'
                )
            elif one.names and one.value:
                free += patterns
        names = " ".join(name for one in all_of for name in one.names)
        options.append(f'                    {command}) words="{names} --help" ;;')
    return _BASH.format(
        mark=MARK,
        commands=" ".join(found),
        values="\n".join(values),
        free=" | ".join(free),
        options="\n".join(options),
    )
