# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load the chain on the host itself: again as the state directory has it, with other settings, or
from a directory of sources.

Building takes bcc, unless what was loaded came from an object file: that is kept, too. A directory
of sources takes Jinja2 and bcc. What was loaded before needs no templates: its text is in the state
directory, and the sizes of its tables are numbers in that text.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import typing as t

from ..build import features, render
from ..chain import guests
from ..chain import maps as chain_maps
from ..chain import settings as chain_settings
from ..core import libraries, lock
from ..core.errors import ConntrackError, bad_value
from ..core.plan import Plan
from ..kernel.bpffs import Paths
from . import converge as generation
from . import manifest, state_dir

#: What can be set, by the names that xdp_program's options have, with what a value may be.
_COMPILED = ("checksum", "fused", "forward", "events")
_SAID = (render.UNFILTERED,)  # compiled into nothing, and wanted beside forward
_SWITCHES = ("fused", "events", *_SAID)
NAMES = (
    *render.SIZES,
    *(f"timeouts.{name}" for name in chain_settings.TIMEOUTS),
    *(f"settings.{name}" for name in chain_settings.KNOBS),
    *_COMPILED,
    *_SAID,
)
_FLAGS = {"true": 1, "yes": 1, "false": 0, "no": 0}


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is to be other than it was.

    :ivar sizes: entries of the tables, by name of render.SIZES.
    :ivar timeouts: seconds by name of chain.TIMEOUTS.
    :ivar knobs: by name of chain.KNOBS.
    :ivar compiled: the other fields of render.Settings; they need the sources.
    """

    sizes: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    timeouts: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    knobs: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    compiled: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)


def _number(name: str, value: str) -> int:
    found = _FLAGS.get(value.lower()) if name in _SWITCHES or name.startswith("settings.") else None
    if found is None:
        try:
            found = int(value)
        except ValueError:
            raise bad_value(name, value, "give a whole number") from None
    return found


def parse(words: t.Iterable[str]) -> Changes:
    """Return the changes that are written as NAME=VALUE.

    :raises ConntrackError: for a name that is not known, and a value that is not valid.
    """
    found: dict[str, dict[str, t.Any]] = {"": {}, "timeouts": {}, "settings": {}}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not value:
            raise bad_value("set", word, "give NAME=VALUE, as timeouts.udp=60")
        if name not in NAMES:
            known = (*render.SIZES, "timeouts.NAME", "settings.NAME", *_COMPILED, *_SAID)
            mend = f"known are {', '.join(known)}, as xdp_program has them"
            raise bad_value("set", name, mend, NAMES)
        group, dummy, last = name.rpartition(".")
        found[group][last] = value if name in ("checksum", "forward") else _number(name, value)
    compiled = {name: found[""][name] for name in _COMPILED if name in found[""]}
    for name in _SWITCHES:
        if found[""].get(name, 0) not in (0, 1):
            raise bad_value(name, found[""][name], "give true or false")
    changes = Changes(
        {name: found[""][name] for name in render.SIZES if name in found[""]},
        found["timeouts"],
        found["settings"],
        compiled,
    )
    settings = render.Settings(**changes.sizes, **changes.compiled)
    render.check_settings(settings)
    render.check_unfiltered(settings.forward, bool(found[""].get(render.UNFILTERED)))
    generation.check(
        generation.Want("", {}, chain_maps.TABLE_SIZE, changes.timeouts, changes.knobs)
    )
    return changes


def check(changes: Changes, source: str | None) -> None:
    """:raises ConntrackError: where a change needs a directory of sources, and none is given."""
    if changes.compiled and source is None:
        name = next(iter(changes.compiled))
        raise bad_value("set", name, "it is compiled in; give the directory of the sources, too")


def last(paths: Paths) -> generation.Want | None:
    """Return what the generation is made of that is, or before a reboot was, in use; None where
    nothing tells.

    :raises ConntrackError: where a guest is not pinned any more.
    """
    want = manifest.read(paths, state_dir.active(paths))
    if want is None:
        return None
    # a program has another id after a reboot
    asked = [
        guests.Guest(f"guests[{at}]", guest.slot, pinned=guest.path)
        for at, guest in enumerate(want.pinned)
    ]
    return dataclasses.replace(want, pinned=guests.pinned_here(asked))


def resized(want: generation.Want, sizes: t.Mapping[str, t.Any]) -> generation.Want:
    """Return the same chain with tables of other sizes."""
    made = dataclasses.replace(want, **sizes)
    text = want.text
    for spec in made.maps:
        text = re.sub(
            rf"(\b{spec.name}, )\d+(?=, \"{re.escape(render.MAP_DIR)}/{spec.name}\"\))",
            rf"\g<1>{spec.entries}",
            text,
        )
    return dataclasses.replace(made, text=text)


def wanted(
    paths: Paths, changes: Changes = Changes(), source: str | None = None
) -> generation.Want:
    """Return the chain that is to be loaded: the last one with the changes.

    :param source: a directory of sources in place of the last ones. Sizes, timeouts and switches
        are still the last ones, where there are any; what else is compiled in is as xdp_program has
        it where nothing is said.
    :raises ConntrackError: where nothing tells what to load, or it can not be rendered.
    """
    before = last(paths)
    if source is None:
        if before is None:
            raise ConntrackError(
                f"state_dir: {paths.state_dir} does not tell what was loaded below"
                f" {paths.pin_root}. Give a directory of sources, or run xdp_program."
            )
        check(changes, source)
        want = resized(before, changes.sizes)
    else:
        if before is not None and before.guest_slots:
            names = " and ".join(map(guests.slot_name, before.guest_slots))
            raise ConntrackError(
                f"guests: the last generation has some, in slot {names}, which would be gone. Run"
                " xdp_program, which takes guests."
            )
        sizes = {name: getattr(before, name) for name in render.SIZES} if before is not None else {}
        sizes.update(changes.sizes)
        _need("jinja2")
        text = render.render(source, render.Settings(**sizes, **changes.compiled))
        whole = {**dict.fromkeys(render.SIZES, chain_maps.TABLE_SIZE), **sizes}
        old = (before.timeouts, before.knobs) if before is not None else ({}, {})
        headers = (
            before.headers
            if before is not None and not os.path.isdir(os.path.join(source, "stub"))
            else render.read_headers(source)
        )
        want = generation.Want(text, headers, timeouts=old[0], knobs=old[1], **whole)
    return dataclasses.replace(
        want, timeouts={**want.timeouts, **changes.timeouts}, knobs={**want.knobs, **changes.knobs}
    )


def _need(name: str) -> None:
    """:raises ConntrackError: where a library is missing, with the packages that have it."""
    problem = libraries.check(libraries.LIBRARIES[name])
    if problem is not None:
        raise ConntrackError(libraries.describe(problem, [sys.executable]))


def load(
    paths: Paths,
    want: generation.Want,
    check_mode: bool = False,
    policy: generation.Policy | None = None,
    patience: float = lock.SECONDS,
) -> tuple[Plan, generation.Have]:
    """Bring a chain into place: the plan that was needed, and what is there now. Nothing is
    compiled, and bcc is not asked for, where it is there already.

    :raises ConntrackError: where something is missing that building takes; see generation.ensure().
    """
    heard = generation.listen(paths)
    plan, have = generation.ensure(paths, want, True, policy, heard, patience)
    if check_mode:
        return plan, have
    if any(step.action == "load" for step in plan):
        if want.build == generation.BCC:
            _need("bcc")
        features.check()
    return generation.ensure(paths, want, False, policy, heard, patience)
