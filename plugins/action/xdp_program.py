# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of xdp_program: read the sources, render them, send the text along, and the
frames that are to be replayed.

Where the chain is not compiled on the target, the module is asked first whether it needs an object,
and for which machine: a run that changes nothing neither compiles nor sends one. In check mode it
is made, or looked for, and not sent.
"""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import (
    signature as object_signature,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import sources
from ansible_collections.ebpf.conntrack.plugins.module_utils.build.object import Built, Target
from ansible_collections.ebpf.conntrack.plugins.module_utils.build.render import (
    SIZES,
    UNFILTERED,
    Settings,
    check_settings,
    check_unfiltered,
    pack,
    read_headers,
    render,
    unpack,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    bad_value,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import capture
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import run as replay
from ansible_collections.ebpf.conntrack.plugins.plugin_utils import transfer

_FILES = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "files"
)
#: The chain that comes with the collection.
SOURCES = os.path.join(_FILES, "bpf")
#: The guests that come with it.
GUESTS = os.path.join(SOURCES, "guests")
#: The frames that are replayed where no capture is given.
CAPTURE = os.path.join(_FILES, "replay.pcap")

#: The module's options that only this action fills in, with what they are filled in from.
RENDERED = "rendered"
FRAMES = "replay_frames"
OBJECT = "object_file"
MANIFEST = "object_manifest"
FILLED_IN = {RENDERED: "src", FRAMES: "replay.frames", OBJECT: "build", MANIFEST: "build"}
#: Where a chain is compiled, besides bcc on the target; and which options belong to each alone.
BUILDS = {"bcc": (), "clang": ("compiler", "object_cache"), "object": ("objects", "signers")}
#: What the module returns where it needs an object.
WANTED = "object_wanted"


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

    :raises ConntrackError: where one has not its type, or something is to be forwarded and nobody
        said that it may pass the firewall by.
    """
    given: dict[str, t.Any] = {
        name: whole_number(name, args[name]) for name in SIZES if args.get(name) is not None
    }
    for name in ("fused", "events", UNFILTERED):
        if args.get(name) is not None:
            try:
                given[name] = boolean(args[name])
            except TypeError:
                raise bad_value(name, args[name], "give true or false") from None
    for name in ("checksum", "forward"):
        if args.get(name) is not None:
            # YAML takes a bare off for false
            given[name] = "off" if args[name] is False else str(args[name])
    unfiltered = given.pop(UNFILTERED, False)
    settings = Settings(**given)
    check_settings(settings)
    check_unfiltered(settings.forward, unfiltered)
    return settings


def guests_of(
    args: t.Mapping[str, t.Any], find: t.Callable[[str], str], source: str
) -> tuple[guests.Guest, ...]:
    """Return the guests of a task's arguments, with the text of those that come from a file.

    :raises ConntrackError: see guests.parse() and guests.read().
    """

    def find_guest(path: str) -> str:
        ours = os.path.join(GUESTS, path)
        return ours if not os.path.exists(find(path)) and os.path.exists(ours) else find(path)

    return guests.read(
        guests.parse(args.get("guests") or ()), find_guest, sources.file_names(source)
    )


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
    limit = (
        replay.LIMIT
        if options.get("limit") is None
        else whole_number("replay.limit", options["limit"])
    )
    replay.check_limit(limit)
    path = find(str(options["frames"])) if options.get("frames") else CAPTURE
    try:
        with open(path, "rb") as source:
            return capture.write(capture.read(source, path, limit))
    except OSError as exc:
        raise bad_value("replay.frames", path, f"give a readable capture: {exc.strerror}") from exc


# ---------------------------------------------------------------- the object
def build_of(args: t.Mapping[str, t.Any]) -> str:
    """Return where the chain is compiled, a key of BUILDS.

    :raises ConntrackError: where it is none, or an option is given that belongs to another.
    """
    build = str(args.get("build") or "bcc")
    if build not in BUILDS:
        raise bad_value("build", build, f"give one of {', '.join(BUILDS)}")
    for other, names in BUILDS.items():
        given = [name for name in names if args.get(name) and other != build]
        if given:
            raise bad_value(
                given[0],
                args[given[0]],
                f"it belongs to build: {other}, and this is build: {build}",
            )
    if build == "object" and not args.get("objects"):
        raise ConntrackError(
            "objects: it is missing: build: object takes the object from that directory on the"
            " controller."
        )
    return build


def prelude_of(source: str) -> str:
    """Return the header that clang reads in front of the chain.

    :param source: the directory of the chain's sources; where it has none, the collection's is
        taken.
    :raises ConntrackError: where it can not be read.
    """
    there = os.path.join(source, build_clang.PRELUDE)
    path = there if os.path.exists(there) else os.path.join(SOURCES, build_clang.PRELUDE)
    try:
        with open(path, encoding="utf-8") as header:
            return header.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConntrackError(f"src: {path} can not be read: {exc}.") from exc


def object_for(
    args: t.Mapping[str, t.Any], packed: str, target: Target, find: t.Callable[[str], str]
) -> Built:
    """Return the object of a task's chain: compiled now, or before, or taken from where it was
    prepared.

    :param packed: the rendered chain, as it is sent.
    :param find: makes a path of the controller absolute.
    :raises ConntrackError: where it can not be compiled, is not there, or is not good.
    """
    text, headers = unpack(packed)
    prelude = prelude_of(find(str(args["src"])) if args.get("src") else SOURCES)
    settings = settings_of(args)
    name = build_clang.wanted(text, headers, prelude, target)
    if build_of(args) == "clang":
        compiler = str(args.get("compiler") or build_clang.COMPILER)
        compiler = find(compiler) if os.path.dirname(compiler) else compiler
        cache = os.path.expanduser(str(args.get("object_cache") or build_clang.CACHE))
        return build_clang.cached(
            find(cache),
            name,
            compiler,
            lambda: build_clang.build(text, headers, prelude, settings, target, compiler),
        )[0]
    directory = find(os.path.expanduser(str(args["objects"])))
    return prepared(
        directory,
        name,
        object_file.described(object_file.settings_of(settings, text), target),
        target,
        object_file.sources_digest(text, headers),
        args,
        find,
    )


def prepared(
    directory: str,
    name: str,
    what: str,
    target: Target,
    sources: str,
    args: t.Mapping[str, t.Any],
    find: t.Callable[[str], str],
) -> Built:
    """Return an object that lies in a directory, once all is right about it.

    :param name: what it is called, and ``what`` it is, for people.
    :raises ConntrackError: where it is not there or not good; it says what is wanted, what there
        is, and how to make it.
    """
    found = object_file.load(directory, name)
    if found is None:
        there = (
            "; ".join(f"{one.digest} ({one.shown})" for one in object_file.listed(directory))
            or "no object at all"
        )
        raise ConntrackError(
            f"objects: {directory} has not the object that is wanted, {name} ({what}). It has"
            f" {there}. Make it with ebpf.conntrack.xdp_object and the same options, or the"
            f" playbook build.yml, with dest: {directory}."
        )
    built, said = found
    path, manifest = object_file.paths(directory, name)
    if args.get("signers"):
        object_signature.check(manifest, said, find(os.path.expanduser(str(args["signers"]))))
    object_file.check(built, target, sources, path)
    return built


class ActionModule(ActionBase):
    """Render on the controller, load on the target."""

    _requires_connection = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the module with the rendered text in place of the source's path."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            build_of(self._task.args)
            args = rendered(self._task.args, self._loader.path_dwim)
            sent = frames(self._task.args, self._loader.path_dwim)
        except ConntrackError as exc:
            return {**result, "failed": True, "msg": exc.message, **exc.facts}
        if sent is not None:
            args[FRAMES] = transfer.send(self, FRAMES, sent)
        answer = self._execute_module(
            module_name="ebpf.conntrack.xdp_program", module_args=args, task_vars=task_vars
        )
        wanted = answer.pop(WANTED, None)
        if wanted:
            try:
                built = object_for(
                    self._task.args, args[RENDERED], Target(**wanted), self._loader.path_dwim
                )
            except ConntrackError as exc:
                return {**result, "failed": True, "msg": exc.message, **exc.facts}
            if "plan" in answer:
                return self._told(result, answer)  # in check mode the object has only to be there
            args.update(
                {
                    OBJECT: transfer.send(self, OBJECT, built.data),
                    MANIFEST: built.manifest.as_text(),
                }
            )
            answer = self._execute_module(
                module_name="ebpf.conntrack.xdp_program", module_args=args, task_vars=task_vars
            )
        return self._told(result, answer)

    @staticmethod
    def _told(result: dict[str, t.Any], answer: dict[str, t.Any]) -> dict[str, t.Any]:
        result.update(answer)
        for name in FILLED_IN:
            # nobody wants to read that
            result.get("invocation", {}).get("module_args", {}).pop(name, None)
        return result
