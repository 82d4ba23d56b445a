# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What generations are described by: what is wanted, what is there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing as t

from ..build import object as object_file
from ..chain import guests
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..core.errors import bad_value
from ..core.plan import Plan
from ..kernel import bpf
from .diagnosis import Fault

#: Seconds. A jiffies count must fit 31 bits at the highest tick rate, 1000 Hz.
_TIMEOUT_RANGE = (1, chain_settings.LONGEST_TIMEOUT)
KEEP_RANGE = (0, 16)
_KNOB_RANGES = {
    "tcp_loose": (0, 1),
    "tcp_be_liberal": (0, 1),
    "tcp_ignore_invalid_rst": (0, 1),
    "tcp_max_retrans": (1, 255),
    "new_flows_per_second": (0, 10_000_000),
}
#: How a chain is built: from its text by bcc, or from an object file that clang made of it.
BCC, OBJECT = "bcc", "object"
#: Stands in the rendered text of a chain with events.
EVENTS_ON = "#define EVENTS 1\n"


@dataclasses.dataclass(frozen=True)
class Want:
    """The wanted chain.

    :ivar text: the rendered C, with MAP_DIR for the directory of the maps' pins.
    :ivar headers: the stub tree that it is compiled with.
    :ivar table_size: entries of the table of assured IPv4 flows.
    :ivar table_size6: entries of the table of assured IPv6 flows.
    :ivar half_open_size: entries of the table of all other IPv4 flows.
    :ivar half_open_size6: entries of the table of all other IPv6 flows.
    :ivar timeouts: seconds by name of chain.TIMEOUTS; what is missing has the kernel's default.
    :ivar knobs: values by name of chain.KNOBS; likewise.
    :ivar pinned: the guests that are no part of the text.
    :ivar build: BCC or OBJECT. It makes no other generation: what runs is the same, and what is
        written down of it says how to build it again.
    :ivar object: the object file, with OBJECT; None where it was not asked for yet, see
        generation_plan.needs_object().
    """

    text: str
    headers: t.Mapping[str, str]
    table_size: int
    timeouts: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    knobs: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    table_size6: int = chain_maps.TABLE_SIZE
    pinned: tuple[guests.Pinned, ...] = ()
    half_open_size: int = chain_maps.TABLE_SIZE
    half_open_size6: int = chain_maps.TABLE_SIZE
    build: str = BCC
    object: object_file.Built | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def maps(self) -> tuple[chain_maps.MapSpec, ...]:
        """The chain's maps, in their sizes."""
        return chain_maps.maps(
            self.table_size,
            self.table_size6,
            self.half_open_size,
            self.half_open_size6,
            events=EVENTS_ON in self.text,
        )

    @property
    def compiled(self) -> dict[str, int]:
        """Slot by name of every program that is compiled."""
        return {**chain_programs.SLOTS, **guests.programs_in(self.text)}

    @property
    def guest_slots(self) -> list[int]:
        """The slots that guests are wanted in."""
        return sorted(
            [*guests.programs_in(self.text).values(), *(guest.slot for guest in self.pinned)]
        )

    @property
    def digest(self) -> str:
        """128 bits, in hex, of what is compiled, and of the guests that are not."""
        source = hashlib.sha256(self.text.encode())
        for name in sorted(self.headers):
            source.update(f"\0{name}\0{self.headers[name]}".encode())
        for guest in self.pinned:
            source.update(f"\0{guest.slot}\0{guest.id}\0{guest.tag}".encode())
        return source.hexdigest()[:32]

    @property
    def made_of(self) -> dict[str, t.Any]:
        """What a manifest says of it beside the text, in JSON's types: all other fields, and the
        digest for what is compiled.
        """
        # manifests of releases that had bcc only do not say so
        left_out = {"text", "headers", "object", *(["build"] if self.build == BCC else [])}
        fields = {
            name: value
            for name, value in dataclasses.asdict(dataclasses.replace(self, object=None)).items()
            if name not in left_out
        }
        return t.cast("dict[str, t.Any]", json.loads(json.dumps({"digest": self.digest, **fields})))

    @classmethod
    def of(cls, text: str, headers: t.Mapping[str, str], made_of: t.Mapping[str, t.Any]) -> Want:
        """Return what a manifest describes; fields that it does not have, since it is an older
        release's, have their defaults.

        :raises TypeError: where something that is no manifest was given.
        """
        fields = {
            field.name: made_of[field.name]
            for field in dataclasses.fields(cls)
            if field.name in made_of
        }
        fields["pinned"] = tuple(guests.Pinned(**guest) for guest in made_of.get("pinned", ()))
        return cls(text=text, headers=headers, **fields)


@dataclasses.dataclass(frozen=True)
class Policy:
    """How the wanted chain takes the place of the one before.

    :ivar keep: so many of the last good generations stay pinned, to go back to.
    :ivar proof: is shown the plan, what is there, what is wanted and the bytes of the settings
        before anything is changed, in check mode too; returns the plan with its own step in it, or
        raises ConntrackError.
    :ivar on_schema_change: what becomes of tables of a layout that is not known: one of
        inheritance.POLICIES.
    """

    keep: int = 1
    proof: t.Callable[[Plan, Have, Want, bytes], Plan] | None = None
    on_schema_change: str = "fail"


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation that is pinned.

    :ivar number: its number.
    :ivar digest: of its source.
    :ivar layout: version of its maps' layout.
    :ivar settings: bytes of its settings.
    :ivar programs: by slot, those that are pinned.
    :ivar maps: by name.
    :ivar faults: what keeps it from working.
    :ivar since: when it became active, "" where nobody knows.
    :ivar source: number of the generation whose flows it has not taken over to the end; 0 where
        there is none.
    """

    number: int
    digest: str = ""
    layout: int = 0
    settings: bytes = b""
    programs: t.Mapping[int, bpf.ProgInfo] = dataclasses.field(default_factory=dict)
    maps: t.Mapping[str, bpf.MapInfo] = dataclasses.field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    since: str = ""
    source: int = 0


@dataclasses.dataclass(frozen=True)
class State:
    """What the state directory holds for one pin_root.

    :ivar active: number of the generation that it calls active; None where it calls none so.
    :ivar made_of: that generation's Want.made_of; None where no manifest tells.
    :ivar numbers: the generations that have a manifest.
    :ivar strays: names of the files that a run which did not end left there.
    :ivar interfaces: whether it is written down which interfaces are attached.
    :ivar object: whether the object file that the active generation is made of is there, and whole.
    """

    active: int | None = None
    made_of: t.Mapping[str, t.Any] | None = None
    numbers: tuple[int, ...] = ()
    strays: tuple[str, ...] = ()
    interfaces: bool = False
    object: bool = False


@dataclasses.dataclass(frozen=True)
class Have:
    """What is there.

    :ivar generation: number of the active generation; None where none is.
    :ivar digest: of the active generation's source; this and the next ones are as those of
        Generation.
    :ivar leftovers: names below ``gen`` of what never was active.
    :ivar links: the pinned bpf_links by pin name, with the hook each one's program serves (None
        where it can not be told).
    :ivar no_paths: those of the seed's paths that are missing.
    :ivar kept: the generations that were active before, the newest first. Those with a higher
        number than the active one were rolled back from.
    :ivar state: what the state directory holds.
    :ivar guest_maps: by name, the maps of the active generation's guests that have a pin.
    :ivar gone: by pin name, those of the links whose interface does not exist any more.
    """

    generation: int | None = None
    digest: str = ""
    layout: int = 0
    settings: bytes = b""
    programs: t.Mapping[int, bpf.ProgInfo] = dataclasses.field(default_factory=dict)
    maps: t.Mapping[str, bpf.MapInfo] = dataclasses.field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    leftovers: tuple[str, ...] = ()
    links: t.Mapping[str, tuple[bpf.LinkInfo, str | None]] = dataclasses.field(default_factory=dict)
    no_paths: tuple[str, ...] = ()
    since: str = ""
    source: int = 0
    kept: tuple[Generation, ...] = ()
    state: State = dataclasses.field(default_factory=State)
    guest_maps: t.Mapping[str, bpf.MapInfo] = dataclasses.field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @property
    def rejected(self) -> tuple[Generation, ...]:
        """The generations that were rolled back from."""
        return tuple(
            one for one in self.kept if self.generation is not None and one.number > self.generation
        )

    @property
    def earlier(self) -> tuple[Generation, ...]:
        """The generations to go back to."""
        return tuple(one for one in self.kept if one not in self.rejected)


def check(want: Want, policy: Policy = Policy()) -> None:
    """:raises ConntrackError: naming the first setting that is unknown or out of range."""
    low, high = KEEP_RANGE
    if not low <= policy.keep <= high:
        raise bad_value("keep", policy.keep, f"give {low} to {high} generations")
    low, high = _TIMEOUT_RANGE
    for name, value in want.timeouts.items():
        if name not in chain_settings.TIMEOUTS:
            raise bad_value("timeouts", name, f"known are {', '.join(chain_settings.TIMEOUTS)}")
        if not low <= value <= high:
            raise bad_value(f"timeouts.{name}", value, f"give {low} to {high} seconds")
    for name, value in want.knobs.items():
        if name not in chain_settings.KNOBS:
            raise bad_value("settings", name, f"known are {', '.join(chain_settings.KNOBS)}")
        low, high = _KNOB_RANGES[name]
        if not low <= value <= high:
            raise bad_value(f"settings.{name}", value, f"give {low} to {high}")
