# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parser of ``ct``, the words that several commands share, and how they are checked."""

from __future__ import annotations

import argparse
import contextlib
import typing as t

from ..core import lock
from ..core.errors import ConntrackError, bad_value, did_you_mean
from ..flows import codec as flow
from ..flows import filter as flow_filter
from . import printing

Arguments = argparse.Namespace


class Misused(ConntrackError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """A parser that raises what is wrong, as one line."""

    def error(self, message: str) -> t.NoReturn:
        """:raises Misused: always."""
        raise Misused(f"{printing.sentence(message)} See {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: t.Any) -> None:
        """Refuse what is none of the choices; of many only the nearest is worth reading."""
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            near = did_you_mean(value, names) or f" Give one of {', '.join(names)}."
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}.{near}")

    def _print_message(self, message: str, file: t.Any = None) -> None:
        """Print help, or the version."""
        printing.put(message.encode(errors="replace"))


# ---------------------------------------------------------------- shared words
FILTER_HELP = {
    "family": "address family: ipv4 or ipv6",
    "proto": "protocol, by name or number",
    "port": "port of either side",
    "dir": "hook on which the initiator's first packet came in: ingress or egress",
    "assured": "whether the flow is assured; without a value, those that are",
    "sport": "port of the initiator",
    "dport": "port that the initiator speaks to",
    "min_bytes": "at least so many bytes in both directions together",
    "min_packets": "at least so many packets in both directions together",
    "src": "address or network of the initiator",
    "dst": "address or network that the initiator speaks to",
    "addr": "address or network of either side",
    "state": "state, in whatever case, as ESTABLISHED, TIME_WAIT, NEW or REPLIED",
    "older_than": "flows that began more than so many seconds ago",
    "idle_for": "flows without a packet for at least so many seconds",
}
#: What the shell offers after a filter; for all others it offers nothing.
FILTER_VALUES = {
    "family": tuple(flow.FAMILIES),
    "proto": tuple(flow.PROTOCOLS.values()),
    "dir": flow.DIRECTIONS,
    "assured": ("true", "false"),
    "state": (*flow.STATES[flow.TCP][1:], *flow.PLAIN_STATES[:2]),
}
FILTERS, OPTIONS = "filters", "options"
ABOUT_FILTERS = (
    "Different filters must all hold; of several values of one, separated by commas or given again,"
    " any."
)
#: One value only.
_SINGLE = ("assured", "min_bytes", "min_packets", "older_than", "idle_for")


def option(word: str) -> str:
    """Return a word as an option.

    >>> option("min_bytes")
    '--min-bytes'
    """
    return f"--{word.replace('_', '-')}"


def add_filters(command: Parser) -> None:
    """Add the options that choose flows."""
    group = command.add_argument_group(FILTERS, ABOUT_FILTERS)
    for word in flow_filter.FILTER_WORDS:
        more: dict[str, t.Any] = {
            "metavar": (
                "SECONDS" if word in ("older_than", "idle_for") else word.rpartition("_")[2].upper()
            )
        }
        if word == "assured":
            more.update(nargs="?", const="true", metavar="BOOL")
        elif word not in _SINGLE:
            more["action"] = "append"
        group.add_argument(option(word), dest=word, help=FILTER_HELP[word], **more)


def add_output(command: Parser, forms: t.Sequence[str], what: str = "how to print it") -> None:
    """Add --output; the first of the forms is the one when it is not given."""
    command.add_argument(
        "-o",
        "--output",
        choices=forms,
        default=forms[0],
        help=f"{what}: {', '.join(forms)}; {forms[0]} when not given",
    )


def add_input(command: Parser) -> None:
    """Add --input."""
    command.add_argument(
        "--input",
        metavar="FILE",
        help=(
            "read the flows that ct list -o json or -o jsonl wrote in place of the tables; - for"
            " standard input"
        ),
    )


def add_changing(command: Parser) -> None:
    """Add the options of all commands that change something: --dry-run and --lock-timeout."""
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    command.add_argument(
        "--lock-timeout",
        type=at_least(0),
        default=lock.SECONDS,
        metavar="SECONDS",
        help=f"how long to wait for another run; {lock.SECONDS} when not given",
    )


# ---------------------------------------------------------------- what was given
def split(field: str, values: t.Sequence[str] | None) -> list[str] | None:
    """Return what stands between commas.

    :raises Misused: where nothing does. It was to be something: without it a filter takes more.
    """
    if values is None:
        return None
    words = [word for value in values for word in value.split(",")]
    if not all(word.strip() for word in words):
        raise Misused(bad_value(field, ",".join(values), "a value between commas is empty").message)
    return words


def refuse_empty(args: Arguments) -> None:
    """:raises Misused: for an option or argument that is empty, as that of an unset variable is."""
    for name, value in vars(args).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and not one.strip():
                mend = "it is empty, as an unset variable is; give a value"
                raise Misused(bad_value(name, one, mend).message)


def at_least(low: int) -> t.Callable[[str], int]:
    """Return what makes a whole number of an option's value, and refuses those below ``low``."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
        if number < low:
            raise argparse.ArgumentTypeError(f"{number} is not valid: give {low} or more")
        return number

    return whole


@contextlib.contextmanager
def check_arguments() -> t.Iterator[None]:
    """Around what only looks at the command line: an error there is a wrong use."""
    try:
        yield
    except ConntrackError as exc:
        raise Misused(exc.message) from exc


def given(args: Arguments, words: t.Iterable[str]) -> dict[str, t.Any]:
    """Return those of the words that the command line gives, as the library takes them."""
    found = ((word, getattr(args, word, None)) for word in words)
    return {
        word: split(word, value) if isinstance(value, list) else value
        for word, value in found
        if value is not None
    }


# ---------------------------------------------------------------- the commands
class Command(t.NamedTuple):
    """One command.

    :ivar does: what it does, for a list.
    :ivar more: what else there is to know; it makes up the manual page.
    :ivar endless: whether it runs until it is told to end, and takes the signals for that itself.
    """

    does: str
    words: t.Callable[[Parser], None]
    run: t.Callable[[Arguments], int]
    more: str
    endless: bool = False
