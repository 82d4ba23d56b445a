# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``ct`` that delete flows: flush and gc."""

from __future__ import annotations

import sys

from ...core.errors import ConntrackError
from ...flows import filter as flow_filter
from ...flows import table as flow_table
from ...kernel import bpffs
from .. import arguments, exit_status, printing, sources
from ..arguments import Arguments, Command, Parser


def _flush_words(command: Parser) -> None:
    command.add_argument("--all", action="store_true", help="delete every flow")
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")
    arguments.add_changing(command)
    arguments.add_filters(command)


def _flush(args: Arguments) -> int:
    from ...flows import delete as flow_delete

    with arguments.check_arguments():
        filters = flow_filter.parse_filters(arguments.given(args, flow_filter.FILTER_WORDS))
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
        with (
            sources.open_tables(args) as tables,
            sources.show_progress(tables, "reading") as watched,
        ):
            found = flow_delete.delete(watched, choice, limit=flow_filter.DEFAULT_LIMIT, dry=True)
        if args.dry_run:
            for step in found.plan:
                printing.say(f"would delete {step.name}")
            printing.say(f"would delete {_live_and_expired(found.count, found.expired)}")
            return exit_status.DONE
        if not _agreed(f"Delete {_live_and_expired(found.count, found.expired)}?"):
            raise ConntrackError("nothing was deleted.")
    with (
        flow_table.writing(args.pin_root, args.lock_timeout) as tables,
        sources.show_progress(tables, "deleting") as watched,
    ):
        done = flow_delete.delete(watched, choice, limit=0)
    printing.say(_live_and_expired(done.deleted, done.deleted_expired, " deleted"))
    return exit_status.DONE


def _live_and_expired(count: int, expired: int, done: str = "") -> str:
    """Return how many live flows there are among entries, and how many entries had only expired.

    >>> _live_and_expired(3, 1, " deleted"), _live_and_expired(3, 0)
    ('2 live flows deleted, and 1 expired entry', '3 flows')
    """
    if not expired:
        return f"{printing.number_of(count, 'flow')}{done}"
    live = f"{printing.number_of(count - expired, 'live flow')}{done}"
    return f"{live}, and {printing.number_of(expired, 'expired entry')}"


def _agreed(question: str) -> bool:
    """Ask the user, on a terminal."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _gc(args: Arguments) -> int:
    from ...flows import delete as flow_delete

    bpffs.check(args.pin_root)
    if args.dry_run:
        with (
            sources.open_tables(args) as tables,
            sources.show_progress(tables, "reading") as watched,
        ):
            found = flow_delete.delete(watched, flow_delete.EXPIRED, limit=0, dry=True).count
        printing.say(f"would delete {printing.number_of(found, 'entry')} whose time is over")
        return exit_status.DONE
    with (
        flow_table.writing(args.pin_root, args.lock_timeout) as tables,
        sources.show_progress(tables, "sweeping") as watched,
    ):
        deleted = flow_delete.sweep(watched)
    printing.say(f"{printing.number_of(deleted, 'entry')} deleted whose time was over")
    return exit_status.DONE


COMMANDS = {
    "flush": Command(
        "delete flows",
        _flush_words,
        _flush,
        "It says how many there are and asks, unless --yes is given. The next packet of a deleted"
        " flow begins a new one.",
    ),
    "gc": Command(
        "delete the entries whose time is over",
        arguments.add_changing,
        _gc,
        "Readers never show them, but they take room.",
    ),
}
