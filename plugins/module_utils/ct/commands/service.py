# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``ct`` that serve until they are ended: serve and run."""

from __future__ import annotations

from ...kernel import bpffs
from .. import arguments, exit_status, printing
from ..arguments import Arguments, Command, Parser


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


def _serve(args: Arguments) -> int:
    from ...service import options as service_options
    from ...service.http import server as http_server

    with arguments.check_arguments():
        address = service_options.parse_address(args.socket, args.listen, args.group)
    bpffs.check(args.pin_root)
    http_server.serve(bpffs.Paths(args.pin_root, args.state_dir), address, printing.say)
    return exit_status.DONE


def _run(args: Arguments) -> int:
    from ...service import daemon as ct_daemon
    from ...service import options as service_options

    with arguments.check_arguments():
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
        return exit_status.DONE
    if args.restore:
        return ct_daemon.load(bpffs.Paths(args.pin_root, args.state_dir))
    return service.run()


COMMANDS = {
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
}
