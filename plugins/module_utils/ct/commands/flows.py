# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``ct`` that read flows once: list, count, summary, stats, show and graph."""

from __future__ import annotations

import dataclasses
import typing as t

from ...core.errors import ConntrackError, bad_value
from ...flows import collect as flow_collect
from ...flows import filter as flow_filter
from ...flows import output as flow_output
from ...kernel import bpffs
from .. import arguments, exit_status, printing, sources
from ..arguments import Arguments, Command, Misused, Parser

#: What ct graph draws; json is the graph itself.
GRAPHS = ("html", "svg", "mermaid", "dot", "json")


def _list_words(command: Parser) -> None:
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
    arguments.add_output(command, ("table", "json", "jsonl", "csv", "conntrack"))
    command.add_argument(
        "--extended",
        action="store_true",
        help="with -o conntrack: begin each line with the network protocol",
    )
    command.add_argument(
        "--window", action="store_true", help="with -o json or jsonl: show the windows of TCP flows"
    )
    arguments.add_input(command)
    arguments.add_filters(command)


def _count_words(command: Parser) -> None:
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
    arguments.add_output(command, ("text", "json"))
    arguments.add_input(command)
    arguments.add_filters(command)


def _summary_words(command: Parser) -> None:
    arguments.add_output(command, ("text", "json"))
    arguments.add_filters(command)


def _stats_words(command: Parser) -> None:
    arguments.add_output(
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
    arguments.add_output(command, ("text", "json"))


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
    arguments.add_filters(command)


def _list(args: Arguments) -> int:
    from ...flows import read as flow_read

    with arguments.check_arguments():
        query = flow_filter.parse_query(arguments.given(args, flow_filter.QUERY_WORDS))
        writer = flow_output.writer(args.output, query.fields, args.extended, args.window)
        if args.extended and args.output != "conntrack":
            raise bad_value("extended", True, "it belongs to -o conntrack")
        if args.window and args.input is not None:
            raise bad_value(
                "window", True, "a file of flows has none that could be read back; leave it out"
            )
    with (
        sources.open_source(args) as source,
        sources.show_progress(source, "reading", printing=True) as source,
    ):
        flow_read.read(
            source, query, writer, printing.put, summary=False, window=args.window, listing=False
        )
    return exit_status.DONE


def _reading(args: Arguments) -> flow_collect.Reading:
    """Read all, and keep no flow."""
    from ...flows import read as flow_read

    with arguments.check_arguments():
        query = flow_filter.parse_query(arguments.given(args, flow_filter.QUERY_WORDS))
    with sources.open_source(args) as source, sources.show_progress(source, "reading") as source:
        return flow_read.read(
            source, query if query.group_by else dataclasses.replace(query, limit=0)
        )


def _count(args: Arguments) -> int:
    if args.limit is not None and not args.group_by:
        raise Misused("limit: it belongs to --group-by; leave it out, or say by what to group.")
    reading = _reading(args)
    if args.output == "json":
        printing.say_json(
            {"count": reading.count, **({"groups": reading.groups} if args.group_by else {})}
        )
    elif args.group_by:
        from ..text import groups

        printing.put(groups(reading.groups).encode())
    else:
        printing.say(str(reading.count))
    return exit_status.DONE


def _summary(args: Arguments) -> int:
    from ..text import summary

    found = t.cast("dict[str, t.Any]", _reading(args).summary)
    if args.output == "json":
        printing.say_json(found)
    else:
        printing.put(summary(found).encode())
    return exit_status.DONE


def _stats(args: Arguments) -> int:
    from .. import text as ct_text

    with sources.open_tables(args) as tables:
        per_cpu, counters, guests = (
            tables.cpu_counters(),
            tables.counters(),
            tables.guest_counters(),
        )
    evicted = t.cast("dict[str, t.Any]", _reading(args).summary)["counters"]["evicted"]
    if args.output == "conntrack":
        printing.put(flow_output.stats_lines(per_cpu, evicted).encode())
    elif args.output == "json":
        printing.say_json(ct_text.stats_record(counters, evicted, guests))
    else:
        printing.put(ct_text.stats(counters, evicted, guests, args.all).encode())
    return exit_status.DONE


def _show(args: Arguments) -> int:
    from ...flows import address as flow_address
    from ...flows import read as flow_read
    from .. import text as ct_text

    with arguments.check_arguments():
        wanted = flow_address.parse(" ".join(args.tuple))
    with sources.open_tables(args) as tables:
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
        printing.say_json([{**record, "why": ct_text.why(record, timeouts)} for record in found])
    else:
        printing.put("\n".join(ct_text.flow_in_full(record, timeouts) for record in found).encode())
    return exit_status.DONE


def _graph(args: Arguments) -> int:
    from .. import graph as ct_graph
    from ..picture import forms as picture_forms

    words = arguments.given(args, flow_filter.FILTER_WORDS)
    with arguments.check_arguments():
        flow_filter.parse_filters(words)
    bpffs.check(args.pin_root)
    found = ct_graph.read(bpffs.Paths(args.pin_root, args.state_dir), words, args.lab)
    if args.output == "json":
        printing.say_json(found)
    else:
        printing.put(picture_forms.FORMS[args.output](found).encode())
    return exit_status.DONE


COMMANDS = {
    "list": Command(
        "print the flows",
        _list_words,
        _list,
        "It prints as it reads, so the first lines come at once. Flows whose time is over are left"
        " out.",
    ),
    "count": Command("count flows", _count_words, _count, "Flows whose time is over do not count."),
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
    "graph": Command(
        "draw namespaces, links, hooks and flows",
        _graph_words,
        _graph,
        "Flows between the same two places in the same state are one edge, as wide as its bytes and"
        " coloured by its state. The page and the picture load nothing, so they can be looked at"
        " anywhere. Without a chain there are no flows in it.",
    ),
}
