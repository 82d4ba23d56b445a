# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``ct`` about the chain: status, verify, load, rollback, attach and detach."""

from __future__ import annotations

import os
import typing as t

from ...chain.programs import HOOKS
from ...core.errors import ConntrackError, bad_value
from ...flows import table as flow_table
from ...kernel import bpffs
from .. import arguments, exit_status, printing
from ..arguments import Arguments, Command, Misused, Parser


def _status_words(command: Parser) -> None:
    arguments.add_output(command, ("text", "json"))


def _rollback_words(command: Parser) -> None:
    command.add_argument(
        "--generation",
        type=arguments.at_least(1),
        metavar="N",
        help="the generation to go to; the last good one when not given",
    )
    arguments.add_changing(command)


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
    arguments.add_changing(command)


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
    arguments.add_changing(command)


def _detach_words(command: Parser) -> None:
    command.add_argument(
        "interface",
        nargs="*",
        metavar="INTERFACE",
        help="NAME, or NAME@NETNS in a named network namespace",
    )
    command.add_argument("--all", action="store_true", help="every interface that runs the chain")
    arguments.add_changing(command)


def _loaded(args: Arguments) -> bpffs.Paths:
    """Return where the chain is pinned.

    :raises ConntrackError: where none is, or the user may not look.
    """
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
    from ...service import status as ct_status
    from .. import text as ct_text

    found = ct_status.status(_loaded(args))
    if args.output == "json":
        printing.say_json(found)
    else:
        printing.put(ct_text.status(found).encode())
    return exit_status.DONE if found["healthy"] else exit_status.FAILED


def _verify(args: Arguments) -> int:
    from ...flows import progress
    from ...service import status as ct_status

    healthy = True
    with progress.show("proving", printing=True):
        for line, good in ct_status.verify(_loaded(args)):
            healthy = healthy and good
            printing.say(f"{'ok  ' if good else 'FAIL'} {line}")
    return exit_status.DONE if healthy else exit_status.FAILED


def _rollback(args: Arguments) -> int:
    from ...generation import converge as generation

    plan, dummy = generation.roll_back(
        _loaded(args), args.generation, args.dry_run, args.lock_timeout
    )
    printing.say_plan(plan, args.dry_run)
    return exit_status.DONE


def _load(args: Arguments) -> int:
    from ...flows import progress
    from ...generation import converge as generation
    from ...generation import reload

    with arguments.check_arguments():
        changes = reload.parse(args.set)
        reload.check(changes, args.source)
        policy = generation.Policy() if args.keep is None else generation.Policy(keep=args.keep)
        generation.check(generation.Want("", {}, 1), policy)
    bpffs.check(args.pin_root)
    paths = bpffs.Paths(args.pin_root, args.state_dir)
    with progress.show("loading the chain"):
        plan, dummy = reload.load(
            paths,
            reload.wanted(paths, changes, args.source),
            args.dry_run,
            policy,
            args.lock_timeout,
        )
    printing.say_plan(plan, args.dry_run)
    return exit_status.DONE


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
    from ...attach import converge as attach
    from ...attach import model as attach_model
    from ...attach import typed as attach_typed
    from ...core.plan import Step

    with arguments.check_arguments():
        attach_model.check(state, interfaces or (), mode)
    paths = _loaded(args)
    if args.dry_run or state == "absent":  # a run that attaches sees it itself
        attach_typed.check_typed(paths, state, interfaces or (), mode)
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
        printing.warn(args, warning)
    printing.say_plan([Step(**step) for step in result["plan"]], args.dry_run)
    return exit_status.DONE


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


COMMANDS = {
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
    "detach": Command(
        "detach the chain from interfaces",
        _detach_words,
        _detach,
        "An interface that does not run it is left as it is.",
    ),
}
