# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``ct``: words to calls of the library, results to text. It decides nothing itself.

The commands are in commands/, one file a group; here they make up one command line, which is run.
What a command needs is imported when it runs, so that reading flows does not pay for the code that
loads chains.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import typing as t

from ..core.errors import ConntrackError, did_you_mean
from ..flows import codec as flow
from ..kernel import bpffs
from . import arguments, exit_status, printing
from .arguments import Arguments, Command, Misused, Parser
from .commands import chain as chain_commands
from .commands import delete as delete_commands
from .commands import flows as flows_commands
from .commands import live as live_commands
from .commands import service as service_commands
from .commands import transfer as transfer_commands

VERSION = "0.1.0"


def _help_words(command: Parser) -> None:
    command.add_argument(
        "about", nargs="?", choices=COMMANDS, metavar="COMMAND", help="the command"
    )


def _help(args: Arguments) -> int:
    words = [] if args.about is None else [args.about]
    args.parsers[0].parse_args([*words, "--help"])  # which ends in SystemExit
    return exit_status.DONE


def _version(args: Arguments) -> int:
    printing.say(f"ct {VERSION}")
    return exit_status.DONE


_OWN = {
    "help": Command(
        "show how a command is used", _help_words, _help, "Without a command it lists all of them."
    ),
    "version": Command(
        "print the version", lambda command: None, _version, "It is that of the collection."
    ),
}
#: The order in which help and the manual page list them.
_ORDER = (
    *("list", "count", "summary", "stats", "show", "top", "graph", "watch"),
    *("export", "import", "flush", "gc"),
    *("status", "verify", "load", "rollback", "attach", "serve", "run", "detach"),
    *("help", "version"),
)
_ALL = {
    **flows_commands.COMMANDS,
    **live_commands.COMMANDS,
    **transfer_commands.COMMANDS,
    **delete_commands.COMMANDS,
    **chain_commands.COMMANDS,
    **service_commands.COMMANDS,
    **_OWN,
}
COMMANDS = {name: _ALL[name] for name in _ORDER}


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
    top = parser(pin_root, state_dir)
    if _open_what_is_closed():
        printing.complain(who, "standard output is closed. Send it to a file, or to /dev/null", top)
        return exit_status.FAILED
    try:
        status = _run_line(who, words, top)
    except SystemExit as exc:  # of the parser: help, or the version
        status = int(exc.code or exit_status.DONE)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        printing.drop(sys.stdout)
    except OSError as exc:
        printing.drop(sys.stdout)
        printing.complain(who, printing.UNWRITABLE.format(exc.strerror), top)
        return status or exit_status.FAILED
    return status


def _run_line(who: str, words: t.Sequence[str], top: Parser) -> int:
    try:
        args = _parse(top, words)
        arguments.refuse_empty(args)
        with arguments.check_arguments():
            bpffs.check_text(bpffs.Paths(args.pin_root, args.state_dir))
        with _interrupts(COMMANDS[args.command].endless):
            return int(args.run(args))
    except Misused as exc:
        printing.complain(who, exc.message, top)
        return exit_status.USAGE
    except BrokenPipeError:  # whoever read has enough
        printing.drop(sys.stdout)
        return exit_status.DONE
    except ConntrackError as exc:
        printing.complain(who, exc.message, top)
    except PermissionError as exc:
        printing.complain(
            who, f"{exc.filename or 'something'} may not be used: {exc.strerror}. Run as root", top
        )
    except OSError as exc:
        printing.complain(who, f"the system refuses it: {exc}", top)
    except KeyboardInterrupt:
        return exit_status.INTERRUPTED
    return exit_status.FAILED
