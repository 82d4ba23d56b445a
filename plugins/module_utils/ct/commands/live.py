# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``ct`` that go on until they are ended: top and watch."""

from __future__ import annotations

import contextlib
import sys

from ...core.errors import bad_value
from ...flows import filter as flow_filter
from ...kernel import bpffs
from .. import arguments, exit_status, printing, sources
from ..arguments import Arguments, Command, Parser


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
    arguments.add_output(command, ("text", "json", "jsonl"))
    arguments.add_filters(command)


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
    arguments.add_output(
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
    arguments.add_filters(command)


def _top(args: Arguments) -> int:
    from ..top import run as ct_top
    from ..top import view as top_view

    with arguments.check_arguments():
        view = top_view.parse(
            arguments.given(args, (*flow_filter.FILTER_WORDS, "limit", "group_by")),
            args.sort,
            args.interval,
        )
        if args.count is not None and args.count < 1:
            raise bad_value("count", args.count, "give 1 or more")
    return ct_top.run(
        lambda: sources.open_tables(args), view, printing.put, args.output, args.count
    )


def _watch(args: Arguments) -> int:
    from ...core import stop
    from ...flows import events
    from ...flows import saved as saved_flows
    from .. import watch as ct_watch

    with arguments.check_arguments():
        query = flow_filter.parse_query(arguments.given(args, (*flow_filter.FILTER_WORDS, "limit")))
        kinds = ct_watch.parse_kinds(arguments.split("event", args.event) or ())
        if args.save is not None and args.input is not None:
            raise bad_value(
                "save",
                args.save,
                "it is for what happens now; with --input, send the output of -o jsonl to a file",
            )
    bpffs.check(args.pin_root)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(ct_watch.saving(args.save))
        ending = stack.enter_context(stop.Stop()) if args.input is None else None
        put = ending.guarded(printing.put, sys.stdout) if ending is not None else printing.put
        sink = ct_watch.Sink(
            events.Matcher(query.filters, kinds), args.output, put, query.limit, file
        )
        if ending is not None:
            ct_watch.watch(
                bpffs.Paths(args.pin_root, args.state_dir),
                sink,
                lambda message: printing.warn(args, message),
                ending,
            )
            return exit_status.DONE
        missing = ct_watch.replay(saved_flows.events(args.input), sink)
    if missing:
        printing.warn(
            args,
            f"{missing} numbers are missing between the events of the file: they were lost, or"
            " filtered out when it was written",
        )
    return exit_status.DONE


COMMANDS = {
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
}
