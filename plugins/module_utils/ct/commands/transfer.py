# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``ct`` that take flows from host to host: export and import."""

from __future__ import annotations

import contextlib
import dataclasses
import sys

from ...core.errors import ConntrackError, bad_value
from ...flows import filter as flow_filter
from ...flows import table as flow_table
from ...kernel import bpffs
from .. import arguments, exit_status, printing, sources
from ..arguments import Arguments, Command, Parser


def _export_words(command: Parser) -> None:
    arguments.add_filters(command)


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
    arguments.add_output(command, ("text", "json"))
    arguments.add_changing(command)


def _export(args: Arguments) -> int:
    from ...handoff import stream as handoff

    with arguments.check_arguments():
        filters = flow_filter.parse_filters(arguments.given(args, flow_filter.FILTER_WORDS))
        if sys.stdout.isatty():
            raise ConntrackError(
                "output: it is not for people to read. Send it to a file, or through a pipe to ct"
                " import."
            )
    with sources.open_tables(args) as tables, sources.show_progress(tables, "exporting") as watched:
        handoff.export(watched, filters, printing.put)
    return exit_status.DONE


def _import(args: Arguments) -> int:
    from ...handoff import stream as handoff

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
        with sources.open_tables(
            args
        ):  # whoever has no chain is told so before the stream is waited for
            pass
        reader = stack.enter_context(
            handoff.Reader(file, "standard input" if args.file == "-" else args.file)
        )
        tables = stack.enter_context(
            sources.open_tables(args)
            if args.dry_run
            else flow_table.writing(args.pin_root, args.lock_timeout)
        )
        done = handoff.take(tables, reader, args.on_conflict, args.dry_run)
    if args.output == "json":
        printing.say_json({**dataclasses.asdict(done), "host": reader.header["host"]})
    else:
        printing.say(handoff.describe(done, reader.header, args.dry_run))
    return exit_status.FAILED if done.no_room else exit_status.DONE


COMMANDS = {
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
}
