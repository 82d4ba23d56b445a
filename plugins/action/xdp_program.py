# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of xdp_program: read the sources, render them, send the text along, and the frames that are to be replayed."""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.ebpf.conntrack.plugins.module_utils import capture, guests, replay
from ansible_collections.ebpf.conntrack.plugins.module_utils.errors import ConntrackError, bad_value
from ansible_collections.ebpf.conntrack.plugins.module_utils.render import SIZES, Settings, pack, read_headers, render

_FILES = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "files")
#: The chain that comes with the collection.
SOURCES = os.path.join(_FILES, "bpf")
#: The guests that come with it.
GUESTS = os.path.join(SOURCES, "guests")
#: The frames that are replayed where no capture is given.
CAPTURE = os.path.join(_FILES, "replay.pcap")

#: The module's options that only this action fills in, with what they are filled in from.
RENDERED = "rendered"
FRAMES = "replay_frames"
FILLED_IN = {RENDERED: "src", FRAMES: "replay.frames"}


def whole_number(field: str, value: t.Any) -> int:
    """Return an option as an int, as the module's own argument spec would.

    :raises ConntrackError: where it is none.
    """
    try:
        return int(str(value))
    except ValueError:
        raise bad_value(field, value, "give a whole number") from None


def settings_of(args: t.Mapping[str, t.Any]) -> Settings:
    """Return what is compiled in, of a task's arguments.

    :raises ConntrackError: where one has not its type.
    """
    given: dict[str, t.Any] = {name: whole_number(name, args[name]) for name in SIZES if args.get(name) is not None}
    for name in ("fused", "events"):
        if args.get(name) is not None:
            try:
                given[name] = boolean(args[name])
            except TypeError:
                raise bad_value(name, args[name], "give true or false") from None
    for name in ("checksum", "forward"):
        if args.get(name) is not None:
            given[name] = "off" if args[name] is False else str(args[name])  # YAML takes a bare off for false
    return Settings(**given)


def guests_of(args: t.Mapping[str, t.Any], find: t.Callable[[str], str], source: str) -> tuple[guests.Guest, ...]:
    """Return the guests of a task's arguments, with the text of those that come from a file.

    :raises ConntrackError: see guests.parse() and guests.read().
    """

    def find_guest(path: str) -> str:
        ours = os.path.join(GUESTS, path)
        return ours if not os.path.exists(find(path)) and os.path.exists(ours) else find(path)

    taken = os.listdir(source) if os.path.isdir(source) else ()
    return guests.read(guests.parse(args.get("guests") or ()), find_guest, taken)


def rendered(args: t.Mapping[str, t.Any], find: t.Callable[[str], str]) -> dict[str, t.Any]:
    """Return the module's arguments for a task's: with the rendered chain, where one is wanted.

    :param find: makes a path of the controller absolute.
    :raises ConntrackError: where the sources or what is compiled into them are no good.
    """
    for name, source in FILLED_IN.items():
        if name in args:
            raise ConntrackError(f"{name}: it is filled in from {source} and can not be given.")
    if (args.get("state") or "present") != "present":
        return dict(args)
    settings = settings_of(args)
    source = find(str(args["src"])) if args.get("src") else SOURCES
    text = render(source, settings, guests_of(args, find, source))
    headers = read_headers(source if os.path.isdir(os.path.join(source, "stub")) else SOURCES)
    return {**args, RENDERED: pack(text, headers)}


def frames(args: t.Mapping[str, t.Any], find: t.Callable[[str], str]) -> bytes | None:
    """Return the capture that goes along, as a pcap file; None where nothing is to be replayed.

    :param find: makes a path of the controller absolute.
    :raises ConntrackError: where it can not be read or is none, or an option is no good.
    """
    if (args.get("state") or "present") != "present" or args.get("verify") != "replay":
        return None
    options = args.get("replay") or {}
    if not isinstance(options, t.Mapping):
        raise bad_value("replay", options, "give a dictionary")
    limit = replay.LIMIT if options.get("limit") is None else whole_number("replay.limit", options["limit"])
    replay.check_limit(limit)
    path = find(str(options["frames"])) if options.get("frames") else CAPTURE
    try:
        with open(path, "rb") as source:
            return capture.write(capture.read(source, path, limit))
    except OSError as exc:
        raise bad_value("replay.frames", path, f"give a readable capture: {exc.strerror}") from exc


class ActionModule(ActionBase):
    """Render on the controller, load on the target."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run the module with the rendered text in place of the source's path."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            args = rendered(self._task.args, self._loader.path_dwim)
            sent = frames(self._task.args, self._loader.path_dwim)
        except ConntrackError as exc:
            return {**result, "failed": True, "msg": exc.message, **exc.facts}
        if sent is not None:
            args[FRAMES] = self._send(sent)
        result.update(self._execute_module(module_name="ebpf.conntrack.xdp_program", module_args=args, task_vars=task_vars))
        for name in FILLED_IN:
            result.get("invocation", {}).get("module_args", {}).pop(name, None)  # nobody wants to read that
        return result

    def _send(self, data: bytes) -> str:
        """Put a file into the task's directory on the target, which goes with the task; return its path.

        A capture is too long for the module's arguments, see render.pack().
        """
        directory = self._connection._shell.tmpdir or self._make_tmp_path()
        path: str = self._connection._shell.join_path(directory, FRAMES)
        self._transfer_data(path, data)
        self._fixup_perms2((directory, path))
        return path
