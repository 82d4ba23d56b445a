# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``ct``: words to calls of the library, results to text. It decides nothing itself.

What a command needs is imported when it runs, so that reading flows does not pay for the code that
loads chains.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import typing as t

from ..chain.programs import HOOKS
from ..core import lock
from ..core.errors import ConntrackError, bad_value, did_you_mean
from ..core.plan import Plan
from ..core.printable import printable
from ..flows import codec as flow
from ..flows import collect as flow_collect
from ..flows import filter as flow_filter
from ..flows import output as flow_output
from ..flows import table as flow_table
from ..kernel import bpffs
from . import words as ct_words

VERSION = "0.1.0"
_LINES = "\t\n"
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_STATUS = {
    DONE: "All is done, and all is well.",
    FAILED: (
        "It could not be done, or what was asked for is not there or not well: one line on standard"
        " error says what."
    ),
    USAGE: "The command line is wrong; nothing was read or changed.",
}
Arguments = argparse.Namespace


class Misused(ConntrackError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> t.NoReturn:
        """End the process with that line."""
        _complain(self.prog, f"{_sentence(message)} See {self.prog} --help")
        raise SystemExit(USAGE)

    def _check_value(self, action: argparse.Action, value: t.Any) -> None:
        """Refuse what is none of the choices; of many only the nearest is worth reading."""
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            near = did_you_mean(value, names) or f" Give one of {', '.join(names)}."
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}.{near}")

    def _print_message(self, message: str, file: t.Any = None) -> None:
        """Print help, or the version."""
        _put(message.encode(errors="replace"))


def _sentence(text: str) -> str:
    """Return text with the mark that ends a sentence.

    >>> _sentence("It is closed"), _sentence("Did you mean tcp?")
    ('It is closed.', 'Did you mean tcp?')
    """
    text = " ".join(text.split())
    return text if text.endswith("?") else f"{text.rstrip('.')}."


def _complain(who: str, message: str) -> None:
    try:  # it may quote what came from elsewhere
        sys.stderr.write(f"{who}: {printable(_sentence(ct_words.spoken(message, _dests())))}\n")
        sys.stderr.flush()
    except OSError:  # there is nobody to say it to; the exit status still does
        _drop(sys.stderr)


# ---------------------------------------------------------------- the words
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
#: What ct graph draws; json is the graph itself.
GRAPHS = ("html", "svg", "mermaid", "dot", "json")
#: One value only.
_SINGLE = ("assured", "min_bytes", "min_packets", "older_than", "idle_for")


def option(word: str) -> str:
    """Return a word as an option.

    >>> option("min_bytes")
    '--min-bytes'
    """
    return f"--{word.replace('_', '-')}"


def _filters(command: Parser) -> None:
    group = command.add_argument_group(
        FILTERS,
        "Different filters must all hold; of several values of one, separated by commas or given"
        " again, any.",
    )
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


def _form(command: Parser, forms: t.Sequence[str], what: str = "how to print it") -> None:
    command.add_argument(
        "-o",
        "--output",
        choices=forms,
        default=forms[0],
        help=f"{what}: {', '.join(forms)}; {forms[0]} when not given",
    )


def _input(command: Parser) -> None:
    command.add_argument(
        "--input",
        metavar="FILE",
        help=(
            "read the flows that ct list -o json or -o jsonl wrote in place of the tables; - for"
            " standard input"
        ),
    )


def _flows(command: Parser) -> None:
    command.add_argument(
        "--sort", metavar="FIELD", help="sort by a field, or by -FIELD for the largest first"
    )
    command.add_argument("--limit", metavar="N", help="at most so many flows")
    command.add_argument(
        "--fields",
        action="append",
        metavar="FIELDS",
        help="what to show of each flow, separated by commas, as proto,src,dport,reply.bytes",
    )
    _form(command, ("table", "json", "jsonl", "csv", "conntrack"))
    command.add_argument(
        "--extended",
        action="store_true",
        help="with -o conntrack: begin each line with the network protocol",
    )
    command.add_argument(
        "--window", action="store_true", help="with -o json or jsonl: show the windows of TCP flows"
    )
    _input(command)
    _filters(command)


def _counting(command: Parser) -> None:
    command.add_argument(
        "--group-by",
        action="append",
        metavar="FIELDS",
        help="add up flows, packets and bytes by the values of these fields",
    )
    command.add_argument(
        "--limit",
        metavar="N",
        help=(
            "with --group-by: at most so many groups, those with the most flows; 100 when not given"
        ),
    )
    _form(command, ("text", "json"))
    _input(command)
    _filters(command)


def _summary_words(command: Parser) -> None:
    _form(command, ("text", "json"))
    _filters(command)


def _stats_words(command: Parser) -> None:
    _form(
        command,
        ("text", "json", "conntrack"),
        "how to print it; conntrack is a line for each CPU as conntrack -S has it",
    )
    command.add_argument(
        "--all", action="store_true", help="with -o text: show also the counters that are 0"
    )


def _show_words(command: Parser) -> None:
    command.add_argument(
        "tuple",
        nargs="+",
        metavar="TUPLE",
        help=(
            "PROTO SRC[:PORT] DST[:PORT], IPv6 addresses with a port in brackets; either direction"
            " will do"
        ),
    )
    _form(command, ("text", "json"))


def _top_words(command: Parser) -> None:
    command.add_argument(
        "--group-by",
        action="append",
        metavar="FIELDS",
        help="add up the flows by the values of these fields, as src or proto,dport",
    )
    sorts = ("byte-rate", "packet-rate", "bytes", "packets", "flows")
    command.add_argument(
        "--sort",
        choices=sorts,
        default=sorts[0],
        help=f"what comes first: {', '.join(sorts)}; {sorts[0]} when not given",
    )
    command.add_argument(
        "--interval",
        default="2",
        metavar="SECONDS",
        help="seconds from one read to the next; 2 when not given",
    )
    command.add_argument("--limit", metavar="N", help="at most so many flows or groups")
    command.add_argument(
        "--count", type=int, metavar="N", help="print N times instead of drawing on the terminal"
    )
    command.add_argument(
        "--once",
        action="store_const",
        const=1,
        dest="count",
        help="print once, after one interval, as --count 1",
    )
    _form(command, ("text", "json", "jsonl"))
    _filters(command)


def _watch_words(command: Parser) -> None:
    command.add_argument(
        "--event", action="append", metavar="EVENTS", help="only these of new, update and destroy"
    )
    command.add_argument("--limit", metavar="N", help="end after so many events")
    command.add_argument(
        "--save",
        metavar="FILE",
        help=(
            "write the events to a file as well, anew, which --input here and of ct list and ct"
            " count read"
        ),
    )
    _form(
        command,
        ("text", "jsonl", "conntrack"),
        "how to print them; conntrack is a line for each as conntrack -E has it",
    )
    command.add_argument(
        "--input",
        metavar="FILE",
        help=(
            "read the events that --save or -o jsonl wrote in place of the chain's; - for standard"
            " input"
        ),
    )
    _filters(command)


def _changing(command: Parser) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    command.add_argument(
        "--lock-timeout",
        type=_at_least(0),
        default=lock.SECONDS,
        metavar="SECONDS",
        help=f"how long to wait for another run; {lock.SECONDS} when not given",
    )


def _flush_words(command: Parser) -> None:
    command.add_argument("--all", action="store_true", help="delete every flow")
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")
    _changing(command)
    _filters(command)


def _export_words(command: Parser) -> None:
    _filters(command)


def _import_words(command: Parser) -> None:
    command.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="what ct export wrote; standard input when not given, or -",
    )
    command.add_argument(
        "--on-conflict",
        choices=("keep", "newer", "replace"),
        default="keep",
        metavar="POLICY",
        help=(
            "what becomes of a flow that is live here as well: keep it, let the one win that had"
            " the later packet (newer), or replace it; keep when not given"
        ),
    )
    _form(command, ("text", "json"))
    _changing(command)


def _graph_words(command: Parser) -> None:
    command.add_argument(
        "-o",
        "--output",
        choices=GRAPHS,
        default=GRAPHS[0],
        help=f"what to draw it as: {', '.join(GRAPHS)}; {GRAPHS[0]} when not given",
    )
    command.add_argument(
        "--lab", metavar="NAME", help="draw only what belongs to this lab of netns_lab"
    )
    _filters(command)


def _status_words(command: Parser) -> None:
    _form(command, ("text", "json"))


def _rollback_words(command: Parser) -> None:
    command.add_argument(
        "--generation",
        type=_at_least(1),
        metavar="N",
        help="the generation to go to; the last good one when not given",
    )
    _changing(command)


def _load_words(command: Parser) -> None:
    command.add_argument(
        "source",
        nargs="?",
        metavar="DIR",
        help=(
            "a directory of sources, as files/bpf of the collection; what was loaded last when not"
            " given"
        ),
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a size, timeout or switch as xdp_program has it: table_size=262144, timeouts.udp=60",
    )
    command.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="so many of the generations before stay, to go back to; 1 when not given",
    )
    _changing(command)


def _attach_words(command: Parser) -> None:
    command.add_argument(
        "interface",
        nargs="+",
        metavar="INTERFACE",
        help="NAME, or NAME@NETNS in a named network namespace",
    )
    command.add_argument(
        "--program",
        choices=HOOKS,
        required=True,
        help="ingress on the side of the initiators, egress on the other",
    )
    command.add_argument(
        "--mode",
        choices=("auto", "native", "generic"),
        default="auto",
        help="where the program runs; auto tries native first",
    )
    command.add_argument("--takeover", action="store_true", help="replace a foreign XDP program")
    _changing(command)


def _detach_words(command: Parser) -> None:
    command.add_argument(
        "interface",
        nargs="*",
        metavar="INTERFACE",
        help="NAME, or NAME@NETNS in a named network namespace",
    )
    command.add_argument("--all", action="store_true", help="every interface that runs the chain")
    _changing(command)


def _serve_words(command: Parser) -> None:
    command.add_argument(
        "--socket",
        metavar="PATH",
        help="the unix socket to listen on; /run/ebpf_conntrack/ct.sock when not given",
    )
    command.add_argument(
        "--group",
        metavar="GROUP",
        help="a group whose members may read from the socket; root alone when not given",
    )
    command.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help="a loopback address and a TCP port to listen on in place of the socket",
    )


def _run_words(command: Parser) -> None:
    command.add_argument(
        "--sweep-interval",
        type=int,
        default=30,
        metavar="SECONDS",
        help="seconds between two sweeps; 30 when not given",
    )
    command.add_argument(
        "--on-stop",
        choices=("keep", "remove"),
        default="keep",
        help="what becomes of the chain at the end; keep when not given",
    )
    command.add_argument("--no-http", action="store_true", help="do not answer over HTTP")
    _serve_words(command)
    command.add_argument(
        "--mount",
        action="store_true",
        help="only mount the BPF file system where it is missing, and end",
    )
    command.add_argument(
        "--restore",
        action="store_true",
        help="only bring the chain back, and end; the exit status is 3 where none is written down",
    )


def _help_words(command: Parser) -> None:
    command.add_argument(
        "about", nargs="?", choices=COMMANDS, metavar="COMMAND", help="the command"
    )


def _split(field: str, values: t.Sequence[str] | None) -> list[str] | None:
    """Return what stands between commas.

    :raises Misused: where nothing does. It was to be something: without it a filter takes more.
    """
    if values is None:
        return None
    words = [word for value in values for word in value.split(",")]
    if not all(word.strip() for word in words):
        raise Misused(bad_value(field, ",".join(values), "a value between commas is empty").message)
    return words


def _refuse_empty(args: Arguments) -> None:
    """:raises Misused: for an option or argument that is empty, as that of an unset variable is."""
    for name, value in vars(args).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and not one.strip():
                mend = "it is empty, as an unset variable is; give a value"
                raise Misused(bad_value(name, one, mend).message)


def _at_least(low: int) -> t.Callable[[str], int]:
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
def _asked() -> t.Iterator[None]:
    """Around what only looks at the command line: an error there is a wrong use."""
    try:
        yield
    except ConntrackError as exc:
        raise Misused(exc.message) from exc


def _words(args: Arguments, words: t.Iterable[str]) -> dict[str, t.Any]:
    given = ((word, getattr(args, word, None)) for word in words)
    return {
        word: _split(word, value) if isinstance(value, list) else value
        for word, value in given
        if value is not None
    }


# ---------------------------------------------------------------- printing
def _put(piece: bytes) -> None:
    """Write to standard output at once, so that the reader of a pipe starts with the first batch.

    :raises BrokenPipeError: the reader has enough.
    :raises ConntrackError: it cannot be written, as on a full disk.
    """
    if not piece:
        return
    try:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        _drop(sys.stdout)
        raise ConntrackError(_UNWRITABLE.format(exc.strerror)) from exc


_UNWRITABLE = "standard output cannot be written: {}. Some of it may be missing."


def _drop(stream: t.TextIO) -> None:
    """Let what a stream still holds go to nowhere, or the interpreter tries again when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _say(text: str) -> None:
    # names of the system need not be text, nor fit for a terminal
    _put(f"{printable(text, keep=_LINES)}\n".encode())


def _say_json(value: object) -> None:
    _say(json.dumps(value, indent=2, ensure_ascii=False))


def _say_plan(plan: Plan, dry: bool) -> None:
    for step in plan:
        _say(f"{'would ' if dry else ''}{step.action} {step.kind} {step.name}: {step.reason}")
    if not plan:
        _say("nothing to do")


def _number_of(count: int, what: str) -> str:
    """Return a number with its noun.

    >>> _number_of(1, "flow"), _number_of(2, "flow")
    ('1 flow', '2 flows')
    """
    return (
        f"{count} {what}"
        if count == 1
        else f"{count} {what[:-1] + 'ies' if what.endswith('entry') else what + 's'}"
    )


# ---------------------------------------------------------------- reading
@contextlib.contextmanager
def _source(args: Arguments) -> t.Iterator[flow_table.Source]:
    """Open what is to be read: the tables, or a file of flows."""
    if getattr(args, "input", None) is not None:
        from ..flows.saved import SavedFlows

        yield SavedFlows.load(args.input)
        return
    with _tables(args) as tables:
        yield tables


def _tables(args: Arguments) -> flow_table.FlowTables:
    from ..flows import table as flow_table

    bpffs.check(args.pin_root)
    return flow_table.FlowTables(args.pin_root)


@contextlib.contextmanager
def _watched(
    source: flow_table.Source, what: str, printing: bool = False
) -> t.Iterator[flow_table.Source]:
    """Give a source whose reading is shown to whoever waits for it; see ct_progress.shown()."""
    from ..flows import progress

    with progress.shown(what, "entries", printing) as add:
        yield source if add is None else t.cast("flow_table.Source", progress.Watched(source, add))


def _list(args: Arguments) -> int:
    from ..flows import read as flow_read

    with _asked():
        query = flow_filter.parse_query(_words(args, flow_filter.QUERY_WORDS))
        writer = flow_output.writer(args.output, query.fields, args.extended, args.window)
        if args.extended and args.output != "conntrack":
            raise bad_value("extended", True, "it belongs to -o conntrack")
        if args.window and args.input is not None:
            raise bad_value(
                "window", True, "a file of flows has none that could be read back; leave it out"
            )
    with _source(args) as source, _watched(source, "reading", printing=True) as source:
        flow_read.read(
            source, query, writer, _put, summary=False, window=args.window, listing=False
        )
    return DONE


def _reading(args: Arguments) -> flow_collect.Reading:
    """Read all, and keep no flow."""
    from ..flows import read as flow_read

    with _asked():
        query = flow_filter.parse_query(_words(args, flow_filter.QUERY_WORDS))
    with _source(args) as source, _watched(source, "reading") as source:
        return flow_read.read(
            source, query if query.group_by else dataclasses.replace(query, limit=0)
        )


def _count(args: Arguments) -> int:
    if args.limit is not None and not args.group_by:
        raise Misused("limit: it belongs to --group-by; leave it out, or say by what to group.")
    reading = _reading(args)
    if args.output == "json":
        _say_json({"count": reading.count, **({"groups": reading.groups} if args.group_by else {})})
    elif args.group_by:
        from .text import groups

        _put(groups(reading.groups).encode())
    else:
        _say(str(reading.count))
    return DONE


def _summary(args: Arguments) -> int:
    from .text import summary

    found = t.cast("dict[str, t.Any]", _reading(args).summary)
    if args.output == "json":
        _say_json(found)
    else:
        _put(summary(found).encode())
    return DONE


def _stats(args: Arguments) -> int:
    from . import text as ct_text

    with _tables(args) as tables:
        per_cpu, counters, guests = (
            tables.cpu_counters(),
            tables.counters(),
            tables.guest_counters(),
        )
    evicted = t.cast("dict[str, t.Any]", _reading(args).summary)["counters"]["evicted"]
    if args.output == "conntrack":
        _put(flow_output.stats_lines(per_cpu, evicted).encode())
    elif args.output == "json":
        _say_json(ct_text.stats_record(counters, evicted, guests))
    else:
        _put(ct_text.stats(counters, evicted, guests, args.all).encode())
    return DONE


def _show(args: Arguments) -> int:
    from ..flows import address as flow_address
    from ..flows import read as flow_read
    from . import text as ct_text

    with _asked():
        wanted = flow_address.parse(" ".join(args.tuple))
    with _tables(args) as tables:
        found = flow_read.read(
            tables, dataclasses.replace(wanted.query, limit=1 << 31), summary=False, window=True
        ).flows
        timeouts = tables.settings()[0]
    found = [record for record in found if wanted.matches(record)]
    if not found:
        raise ConntrackError(
            f"tuple: no flow {' '.join(args.tuple)} is tracked. ct list --addr"
            f" {wanted.ends[0].address} shows all of that address."
        )
    if args.output == "json":
        _say_json([{**record, "why": ct_text.why(record, timeouts)} for record in found])
    else:
        _put("\n".join(ct_text.flow_in_full(record, timeouts) for record in found).encode())
    return DONE


def _top(args: Arguments) -> int:
    from . import top as ct_top

    with _asked():
        view = ct_top.parse(
            _words(args, (*flow_filter.FILTER_WORDS, "limit", "group_by")), args.sort, args.interval
        )
        if args.count is not None and args.count < 1:
            raise bad_value("count", args.count, "give 1 or more")
    return ct_top.run(lambda: _tables(args), view, _put, args.output, args.count)


def _graph(args: Arguments) -> int:
    from . import draw as graph_draw
    from . import graph as ct_graph

    words = _words(args, flow_filter.FILTER_WORDS)
    with _asked():
        flow_filter.parse_filters(words)
    bpffs.check(args.pin_root)
    found = ct_graph.read(bpffs.Paths(args.pin_root, args.state_dir), words, args.lab)
    if args.output == "json":
        _say_json(found)
    else:
        _put(graph_draw.FORMS[args.output](found).encode())
    return DONE


def _watch(args: Arguments) -> int:
    from ..core import stop
    from ..flows import events
    from ..flows import saved as saved_flows
    from . import watch as ct_watch

    with _asked():
        query = flow_filter.parse_query(_words(args, (*flow_filter.FILTER_WORDS, "limit")))
        kinds = ct_watch.parse_kinds(_split("event", args.event) or ())
        if args.save is not None and args.input is not None:
            raise bad_value(
                "save",
                args.save,
                "it is for what happens now; with --input, send the output of -o jsonl to a file",
            )
    bpffs.check(args.pin_root)
    who = f"ct {args.command}"
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(ct_watch.saving(args.save))
        ending = stack.enter_context(stop.Stop()) if args.input is None else None
        put = ending.guarded(_put, sys.stdout) if ending is not None else _put
        sink = ct_watch.Sink(
            events.Matcher(query.filters, kinds), args.output, put, query.limit, file
        )
        if ending is not None:
            ct_watch.watch(
                bpffs.Paths(args.pin_root, args.state_dir),
                sink,
                lambda message: _complain(who, message),
                ending,
            )
            return DONE
        missing = ct_watch.replay(saved_flows.events(args.input), sink)
    if missing:
        _complain(
            who,
            f"{missing} numbers are missing between the events of the file: they were lost, or"
            " filtered out when it was written",
        )
    return DONE


# ---------------------------------------------------------------- from host to host
def _export(args: Arguments) -> int:
    from ..handoff import stream as handoff

    with _asked():
        filters = flow_filter.parse_filters(_words(args, flow_filter.FILTER_WORDS))
        if sys.stdout.isatty():
            raise ConntrackError(
                "output: it is not for people to read. Send it to a file, or through a pipe to ct"
                " import."
            )
    with _tables(args) as tables, _watched(tables, "exporting") as watched:
        handoff.export(watched, filters, _put)
    return DONE


def _import(args: Arguments) -> int:
    from ..flows import table as flow_table
    from ..handoff import stream as handoff

    bpffs.check(args.pin_root)
    with contextlib.ExitStack() as stack:
        try:
            file = (
                sys.stdin.buffer if args.file == "-" else stack.enter_context(open(args.file, "rb"))
            )
        except OSError as exc:
            raise bad_value(
                "file", args.file, f"give a file that ct export wrote: {exc.strerror}"
            ) from None
        with _tables(args):  # whoever has no chain is told so before the stream is waited for
            pass
        reader = stack.enter_context(
            handoff.Reader(file, "standard input" if args.file == "-" else args.file)
        )
        tables = stack.enter_context(
            _tables(args) if args.dry_run else flow_table.writing(args.pin_root, args.lock_timeout)
        )
        done = handoff.take(tables, reader, args.on_conflict, args.dry_run)
    if args.output == "json":
        _say_json({**dataclasses.asdict(done), "host": reader.header["host"]})
    else:
        _say(handoff.told(done, reader.header, args.dry_run))
    return FAILED if done.no_room else DONE


# ---------------------------------------------------------------- deleting
def _flush(args: Arguments) -> int:
    from ..flows import delete as flow_delete
    from ..flows import table as flow_table

    with _asked():
        filters = flow_filter.parse_filters(_words(args, flow_filter.FILTER_WORDS))
        if bool(filters) == args.all:
            raise ConntrackError(
                "filters: give a filter, or --all for every flow"
                + (", but not both." if args.all else ".")
            )
        if not (args.dry_run or args.yes or sys.stdin.isatty()):
            raise ConntrackError(
                "yes: it is not given, and there is no terminal to ask on. Give --yes, or --dry-run"
                " to see what would go."
            )
    choice = (
        flow_delete.EVERYTHING
        if args.all
        else flow_delete.Choice("the flow matches the filters", filters)
    )
    bpffs.check(args.pin_root)
    if args.dry_run or not args.yes:
        with _tables(args) as tables, _watched(tables, "reading") as watched:
            found = flow_delete.delete(watched, choice, limit=flow_filter.DEFAULT_LIMIT, dry=True)
        if args.dry_run:
            for step in found.plan:
                _say(f"would delete {step.name}")
            _say(f"would delete {_live_and_expired(found.count, found.expired)}")
            return DONE
        if not _agreed(f"Delete {_live_and_expired(found.count, found.expired)}?"):
            raise ConntrackError("nothing was deleted.")
    with (
        flow_table.writing(args.pin_root, args.lock_timeout) as tables,
        _watched(tables, "deleting") as watched,
    ):
        done = flow_delete.delete(watched, choice, limit=0)
    _say(_live_and_expired(done.deleted, done.deleted_expired, " deleted"))
    return DONE


def _live_and_expired(count: int, expired: int, done: str = "") -> str:
    """Return how many live flows there are among entries, and how many entries had only expired.

    >>> _live_and_expired(3, 1, " deleted"), _live_and_expired(3, 0)
    ('2 live flows deleted, and 1 expired entry', '3 flows')
    """
    if not expired:
        return f"{_number_of(count, 'flow')}{done}"
    live = f"{_number_of(count - expired, 'live flow')}{done}"
    return f"{live}, and {_number_of(expired, 'expired entry')}"


def _agreed(question: str) -> bool:
    """Ask the user, on a terminal."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _gc(args: Arguments) -> int:
    from ..flows import delete as flow_delete
    from ..flows import table as flow_table

    bpffs.check(args.pin_root)
    if args.dry_run:
        with _tables(args) as tables, _watched(tables, "reading") as watched:
            found = flow_delete.delete(watched, flow_delete.EXPIRED, limit=0, dry=True).count
        _say(f"would delete {_number_of(found, 'entry')} whose time is over")
        return DONE
    with (
        flow_table.writing(args.pin_root, args.lock_timeout) as tables,
        _watched(tables, "sweeping") as watched,
    ):
        deleted = flow_delete.sweep(watched)
    _say(f"{_number_of(deleted, 'entry')} deleted whose time was over")
    return DONE


# ---------------------------------------------------------------- the chain
def _loaded(args: Arguments) -> bpffs.Paths:
    """Return where the chain is pinned.

    :raises ConntrackError: where none is, or the user may not look.
    """
    from ..flows import table as flow_table

    bpffs.check(args.pin_root)
    paths = bpffs.Paths(args.pin_root, args.state_dir)
    try:
        there = {os.path.basename(paths.active), os.path.basename(paths.gen)} & set(
            os.listdir(paths.base)
        )
    except PermissionError as exc:
        raise ConntrackError(
            f"{paths.base} may not be read: {exc.strerror}. Run as root."
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        there = set()
    if not there:
        raise flow_table.NoChain(
            f"{paths.base}: no chain is loaded there. Run xdp_program, or give the --pin-root that"
            " it was given."
        )
    return paths


def _status(args: Arguments) -> int:
    from ..service import status as ct_status
    from . import text as ct_text

    found = ct_status.status(_loaded(args))
    if args.output == "json":
        _say_json(found)
    else:
        _put(ct_text.status(found).encode())
    return DONE if found["healthy"] else FAILED


def _verify(args: Arguments) -> int:
    from ..flows import progress
    from ..service import status as ct_status

    healthy = True
    with progress.shown("proving", printing=True):
        for line, good in ct_status.verify(_loaded(args)):
            healthy = healthy and good
            _say(f"{'ok  ' if good else 'FAIL'} {line}")
    return DONE if healthy else FAILED


def _rollback(args: Arguments) -> int:
    from ..generation import converge as generation

    plan, dummy = generation.roll_back(
        _loaded(args), args.generation, args.dry_run, args.lock_timeout
    )
    _say_plan(plan, args.dry_run)
    return DONE


def _load(args: Arguments) -> int:
    from ..flows import progress
    from ..generation import converge as generation
    from ..generation import reload

    with _asked():
        changes = reload.parse(args.set)
        reload.check(changes, args.source)
        policy = generation.Policy() if args.keep is None else generation.Policy(keep=args.keep)
        generation.check(generation.Want("", {}, 1), policy)
    bpffs.check(args.pin_root)
    paths = bpffs.Paths(args.pin_root, args.state_dir)
    with progress.shown("loading the chain"):
        plan, dummy = reload.load(
            paths,
            reload.wanted(paths, changes, args.source),
            args.dry_run,
            policy,
            args.lock_timeout,
        )
    _say_plan(plan, args.dry_run)
    return DONE


def _interfaces(names: t.Iterable[str], **more: str) -> list[dict[str, t.Any]]:
    """Return interfaces, written as NAME or NAME@NETNS, as xdp_attach takes them.

    :raises Misused: where nothing follows the @, which is not the host's namespace.
    """
    found = []
    for written in names:
        name, at, namespace = written.partition("@")
        if at and not namespace:
            mend = "give the name of a namespace after the @, or leave both out"
            raise Misused(bad_value("interface", written, mend).message)
        found.append({"name": name, "netns": namespace or None, **more})
    return found


def _converge(
    args: Arguments,
    state: str,
    interfaces: list[dict[str, t.Any]] | None,
    mode: str = "auto",
    takeover: bool = False,
) -> int:
    from ..attach import converge as attach
    from ..attach import model as attach_model
    from ..core.plan import Step

    with _asked():
        attach_model.check(state, interfaces or (), mode)
    paths = _loaded(args)
    if args.dry_run or state == "absent":  # a run that attaches sees it itself
        attach.check_typed(paths, state, interfaces or (), mode)
    result, warnings = attach.converge(
        state,
        interfaces,
        mode,
        takeover,
        paths.pin_root,
        args.dry_run,
        args.lock_timeout,
        args.state_dir,
    )
    for warning in warnings:
        _complain(f"ct {args.command}", warning)
    _say_plan([Step(**step) for step in result["plan"]], args.dry_run)
    return DONE


def _attach(args: Arguments) -> int:
    return _converge(
        args, "present", _interfaces(args.interface, program=args.program), args.mode, args.takeover
    )


def _detach(args: Arguments) -> int:
    if bool(args.interface) == args.all:
        raise Misused(
            "interface: name the interfaces, or give --all for every one"
            + (", but not both." if args.all else ".")
        )
    return _converge(args, "absent", None if args.all else _interfaces(args.interface))


def _serve(args: Arguments) -> int:
    from ..service import options as service_options
    from ..service.http import server as http_server

    with _asked():
        address = service_options.parse_address(args.socket, args.listen, args.group)
    bpffs.check(args.pin_root)
    http_server.serve(bpffs.Paths(args.pin_root, args.state_dir), address, _say)
    return DONE


def _run(args: Arguments) -> int:
    from ..service import daemon as ct_daemon
    from ..service import options as service_options

    with _asked():
        address = (
            None
            if args.no_http
            else service_options.parse_address(args.socket, args.listen, args.group)
        )
        service = ct_daemon.Service(
            service_options.Options(
                bpffs.Paths(args.pin_root, args.state_dir),
                args.sweep_interval,
                args.on_stop,
                address,
            )
        )
    if args.mount:
        ct_daemon.mount(args.pin_root)
        return DONE
    if args.restore:
        return ct_daemon.load(bpffs.Paths(args.pin_root, args.state_dir))
    return service.run()


# ---------------------------------------------------------------- the command itself
def _help(args: Arguments) -> int:
    words = [] if args.about is None else [args.about]
    args.parsers[0].parse_args([*words, "--help"])  # which ends in SystemExit
    return DONE


def _version(args: Arguments) -> int:
    _say(f"ct {VERSION}")
    return DONE


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


COMMANDS = {
    "list": Command(
        "print the flows",
        _flows,
        _list,
        "It prints as it reads, so the first lines come at once. Flows whose time is over are left"
        " out.",
    ),
    "count": Command("count flows", _counting, _count, "Flows whose time is over do not count."),
    "summary": Command(
        "print totals, and how full the tables are",
        _summary_words,
        _summary,
        "The filters narrow the totals; the tables are shown as a whole.",
    ),
    "stats": Command(
        "print the counters by stage and reason",
        _stats_words,
        _stats,
        "Every frame is counted once, at the stage that decided what becomes of it; entries"
        " besides.",
    ),
    "show": Command(
        "print all that is known of one flow, and why it is in its state",
        _show_words,
        _show,
        "A port that is left out stands for any; every flow that fits is shown. The exit status is"
        " 1 when none does.",
    ),
    "top": Command(
        "show who sends most, or who holds most of the table",
        _top_words,
        _top,
        "On a terminal it draws again each interval: b, p, B, P and f choose the order, q ends it."
        " Elsewhere, and with --count, --once or another format, it prints. Rates are what was"
        " counted since the read before, in a second; of groups, SHARE is what part of the entries"
        " in the tables their flows are.",
        endless=True,
    ),
    "graph": Command(
        "draw namespaces, links, hooks and flows",
        _graph_words,
        _graph,
        "Flows between the same two places in the same state are one edge, as wide as its bytes and"
        " coloured by its state. The page and the picture load nothing, so they can be looked at"
        " anywhere. Without a chain there are no flows in it.",
    ),
    "watch": Command(
        "print what becomes of flows, as it happens",
        _watch_words,
        _watch,
        "Events come from a chain that was loaded with the option events. They are numbered, and"
        " those that were lost are counted; when it ends it says how many. Ctrl-C ends it. The"
        " events of a chain have one reader at a time. An entry that makes room for another one"
        " goes without an event.",
        endless=True,
    ),
    "export": Command(
        "write the live flows for another host",
        _export_words,
        _export,
        "What is written goes to ct import, through a file or a pipe: ct export | ssh other ct"
        " import. It says what it is made of, and holds times as time left. Nothing is changed"
        " here: drain the host, or delete the flows, when the other one has them.",
    ),
    "import": Command(
        "take in the flows that ct export wrote on another host",
        _import_words,
        _import,
        "They go on here with their states, counts and the time they had left; TCP windows begin"
        " anew. What is of another format, can not be translated, or is damaged is refused before"
        " anything is done. No flow that is here makes room. The exit status is 1 when there was"
        " not room for all.",
    ),
    "flush": Command(
        "delete flows",
        _flush_words,
        _flush,
        "It says how many there are and asks, unless --yes is given. The next packet of a deleted"
        " flow begins a new one.",
    ),
    "gc": Command(
        "delete the entries whose time is over",
        _changing,
        _gc,
        "Readers never show them, but they take room.",
    ),
    "status": Command(
        "print interfaces, generation, health and how full the tables are",
        _status_words,
        _status,
        "The exit status is 1 when something keeps the chain from working.",
    ),
    "verify": Command(
        "prove that the chain works",
        lambda command: None,
        _verify,
        "It looks for every known fault, compares what the interfaces receive with what is counted,"
        " and sends frames of proof through each hook. They make no entry, and are in no figure.",
    ),
    "load": Command(
        "load the chain that was loaded last, or another one",
        _load_words,
        _load,
        "With no argument it brings back what the state directory tells of, as after a reboot, and"
        " changes nothing where that is in place. What is set with --set holds from then on; sizes"
        " and sources take a new generation, which takes over flows and interfaces. Of a directory,"
        " checksum, fused, forward and events can be set, too, and are as xdp_program has them when"
        " they are not. What is forwarded passes the firewall by, so forward takes"
        " forward_unfiltered=true besides. Building needs bcc, and a directory Jinja2.",
    ),
    "rollback": Command(
        "go back to the generation before",
        _rollback_words,
        _rollback,
        "Flows and counters of now are kept. A second run changes nothing.",
    ),
    "attach": Command(
        "attach the chain to interfaces",
        _attach_words,
        _attach,
        "An interface that runs the program already is left as it is.",
    ),
    "serve": Command(
        "answer over HTTP what the reading commands print",
        _serve_words,
        _serve,
        "On a unix socket, or on a TCP port that only this host can reach. It changes nothing. It"
        " ends with SIGTERM or SIGINT.",
        endless=True,
    ),
    "run": Command(
        "look after the chain until told to end",
        _run_words,
        _run,
        "It brings the chain back as it was last in use, attaches it where interfaces come back,"
        " deletes the entries whose time is over, and answers over HTTP as ct serve does. It is"
        " what ct.service runs.",
        endless=True,
    ),
    "detach": Command(
        "detach the chain from interfaces",
        _detach_words,
        _detach,
        "An interface that does not run it is left as it is.",
    ),
    "help": Command(
        "show how a command is used", _help_words, _help, "Without a command it lists all of them."
    ),
    "version": Command(
        "print the version", lambda command: None, _version, "It is that of the collection."
    ),
}


def parser(pin_root: str = bpffs.STANDARD, state_dir: str = bpffs.STATE_DIR) -> Parser:
    """Return the parser of the whole command line.

    :param pin_root: what holds where the option is not given; likewise the next one.
    """
    top = Parser(
        prog="ct",
        description="Look at and look after the connection tracker in XDP.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"ct {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        about = f"{command.does[0].upper()}{command.does[1:]}. {command.more}"
        made = commands.add_parser(name, help=command.does, description=about, allow_abbrev=False)
        command.words(made)
        made.add_argument(
            "--pin-root",
            default=pin_root,
            metavar="DIR",
            help=f"where the chain is pinned; {pin_root} when not given",
        )
        made.add_argument(
            "--state-dir",
            default=state_dir,
            metavar="DIR",
            help=f"where it is written down what it is made of; {state_dir} when not given",
        )
        made.set_defaults(run=command.run, parsers=(top, made))
    return top


@functools.lru_cache(maxsize=1)
def _dests() -> tuple[str, ...]:
    """Return the names of all options, as modules have them."""
    found: dict[str, None] = {"pin_root": None, "state_dir": None}
    for command in COMMANDS.values():
        made = Parser(add_help=False)
        command.words(made)
        found.update((action.dest, None) for action in made._actions if action.option_strings)
    return tuple(found)


def _typed(argv: t.Sequence[str]) -> list[str]:
    """Return the words of a command line, with ``--sort -FIELD`` as one word.

    argparse takes a word that begins with - for an option. That of a field is none here, and
    conntrack's users and ls's write it so.

    >>> _typed(["list", "--sort", "-bytes", "-o", "json"])
    ['list', '--sort=-bytes', '-o', 'json']
    """
    found: list[str] = []
    for word in argv:
        is_field = word[:1] == "-" and word[1:] in flow.ALL_COLUMNS
        if (
            found
            and found[-1] == "--sort"
            and (is_field or (word[1:2].islower() and word[1:2] not in "oyh"))
        ):
            found[-1] = f"--sort={word}"
        else:
            found.append(word)
    return found


def _parse(top: Parser, argv: t.Sequence[str]) -> Arguments:
    """Return the arguments; what is wrong is said by the parser of the command that it is about."""
    words = _typed(argv)
    first = words[0] if words else ""
    if first.startswith("-") and first not in top._option_string_actions:
        top.error(
            f"unrecognized arguments: {first}. Options follow a command, as in ct list {first}"
        )
    args, extra = top.parse_known_args(words)
    if extra:
        command = args.parsers[1]
        known = command._option_string_actions if extra[0].startswith("-") else ()
        near = did_you_mean(extra[0].partition("=")[0], known)
        command.error(f"unrecognized arguments: {' '.join(extra)}.{near}")
    return args


def _open_what_is_closed() -> bool:
    """Open /dev/null in the place of a standard stream that is closed; return whether output is.

    Else the next file that is opened, a map say, takes its number, and what is printed goes there.
    """
    lost = [number for number in range(3) if not _is_open(number)]
    for number in lost:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
        if number == 0:
            sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        if number == 2:
            sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    return 1 in lost


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _interrupts(endless: bool) -> t.Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt where work has to be undone.

    The archive starts with the kernel's own handling, since an exception is dropped where it comes
    up in the import system. What runs until it is told to end keeps that until its stop.Stop takes
    over.
    """
    if endless or signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def main(
    argv: t.Sequence[str] | None = None,
    pin_root: str = bpffs.STANDARD,
    state_dir: str = bpffs.STATE_DIR,
) -> int:
    """Run the command; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    who = f"ct {words[0]}" if words and words[0] in COMMANDS else "ct"
    if _open_what_is_closed():
        _complain(who, "standard output is closed. Send it to a file, or to /dev/null")
        return FAILED
    try:
        status = _run_line(who, words, parser(pin_root, state_dir))
    except SystemExit as exc:  # of the parser: help, or a wrong use
        status = int(exc.code or DONE)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    except OSError as exc:
        _drop(sys.stdout)
        _complain(who, _UNWRITABLE.format(exc.strerror))
        return status or FAILED
    return status


def _run_line(who: str, words: t.Sequence[str], top: Parser) -> int:
    try:
        args = _parse(top, words)
        _refuse_empty(args)
        with _asked():
            bpffs.check_text(bpffs.Paths(args.pin_root, args.state_dir))
        with _interrupts(COMMANDS[args.command].endless):
            return int(args.run(args))
    except Misused as exc:
        _complain(who, exc.message)
        return USAGE
    except BrokenPipeError:  # whoever read has enough
        _drop(sys.stdout)
        return DONE
    except ConntrackError as exc:
        _complain(who, exc.message)
    except PermissionError as exc:
        _complain(
            who, f"{exc.filename or 'something'} may not be used: {exc.strerror}. Run as root"
        )
    except OSError as exc:
        _complain(who, f"the system refuses it: {exc}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED
