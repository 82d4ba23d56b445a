# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Render the chain's sources and settings into one C translation unit.

Runs where Ansible runs: the targets get text and need no Jinja2.
"""

from __future__ import annotations

import base64
import bz2
import dataclasses
import json
import os
import traceback
import typing as t

from ..chain import counters as chain_counters
from ..chain import crc32c
from ..chain import events as chain_events
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..chain import states as chain_states
from ..chain.guests import Guest
from ..core.errors import ConntrackError, bad_value
from . import sources

#: Stands for the directory of the maps' pins, which only the target knows.
MAP_DIR = "@MAP_DIR@"
TABLE_SIZE = (1 << 4, 1 << 26)
#: The options that are sizes of flow tables.
SIZES = ("table_size", "table_size6", "half_open_size", "half_open_size6")
#: What is taken for a right transport checksum.
CHECKSUMS = ("off", "offload", "strict")
#: Names of the map types in bcc's BPF_TABLE.
_BCC_TYPES = {
    "array": "array",
    "array_of_maps": "array_of_maps",
    "hash": "hash",
    "lru_hash": "lru_hash",
    "percpu_array": "percpu_array",
    "prog_array": "prog",
}
#: The option without which nothing is forwarded; it is compiled into nothing.
UNFILTERED = "forward_unfiltered"
#: The options of modules that say what is compiled in, besides sizes; the documentation fragment
#: chain_form tells what they are.
OPTIONS: dict[str, dict[str, t.Any]] = {
    "checksum": {"type": "str", "choices": list(CHECKSUMS), "default": "offload"},
    "fused": {"type": "bool", "default": False},
    "forward": {"type": "str", "choices": list(chain_settings.FORWARDS), "default": "off"},
    UNFILTERED: {"type": "bool", "default": False},
    "events": {"type": "bool", "default": False},
    "guests": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "slot": {"type": "str", "required": True},
            "src": {"type": "path"},
            "pinned": {"type": "path"},
        },
    },
}
#: The programs that go on from one to the next; the hooks come before them.
_STAGES = [name for name in chain_programs.SLOTS if name not in chain_programs.HOOKS]
#: All programs, in the order in which their files stand in the text.
_PROGRAMS = [*_STAGES, *chain_programs.HOOKS, chain_programs.ADOPT]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled into a chain.

    :ivar table_size: entries of the table of assured IPv4 flows.
    :ivar table_size6: entries of the table of assured IPv6 flows.
    :ivar half_open_size: entries of the table of all other IPv4 flows.
    :ivar half_open_size6: entries of the table of all other IPv6 flows.
    :ivar checksum: which transport checksums are right, a key of CHECKSUMS.
    :ivar fused: whether the entry programs do the common packets themselves.
    :ivar forward: what is forwarded past the stack, one of chain.FORWARDS.
    :ivar events: whether the chain tells what becomes of flows, for ``ct watch``.
    """

    table_size: int = chain_maps.TABLE_SIZE
    table_size6: int = chain_maps.TABLE_SIZE
    checksum: str = "offload"
    fused: bool = False
    forward: str = "off"
    half_open_size: int = chain_maps.TABLE_SIZE
    half_open_size6: int = chain_maps.TABLE_SIZE
    events: bool = False


def check_settings(settings: Settings) -> None:
    """:raises ConntrackError: naming the setting, its value and what it may be."""
    low, high = TABLE_SIZE
    for name in SIZES:
        if not low <= getattr(settings, name) <= high:
            raise bad_value(name, getattr(settings, name), f"give {low} to {high} entries")
    if settings.checksum not in CHECKSUMS:
        raise bad_value("checksum", settings.checksum, f"give one of {', '.join(CHECKSUMS)}")
    if settings.forward not in chain_settings.FORWARDS:
        raise bad_value(
            "forward", settings.forward, f"give one of {', '.join(chain_settings.FORWARDS)}"
        )


def check_unfiltered(forward: str, unfiltered: bool) -> None:
    """:raises ConntrackError: where something is to be forwarded, and nobody said that it may pass
    the firewall by.
    """
    if forward != "off" and not unfiltered:
        raise bad_value(
            "forward",
            forward,
            "what the chain forwards meets no rule of the host's firewall, and no NAT, so it takes"
            f" {UNFILTERED}: true as well; or give forward: off",
        )


def _numbered(names: t.Iterable[str]) -> list[tuple[str, int]]:
    return [(name, number) for number, name in enumerate(names)]


def context(settings: Settings, guests: t.Sequence[Guest] = ()) -> dict[str, t.Any]:
    """Return what the templates are rendered with."""
    return {
        "slots": list(chain_programs.SLOTS.items()),
        "meta": list(chain_maps.META.items()),
        "jt_entries": chain_programs.JT_ENTRIES,
        "proof": list(chain_maps.PROOF.items()),
        "counters": _numbered(chain_counters.COUNTERS),
        "pred": _numbered(chain_maps.FLOW_CLASSES),
        "adopt": _numbered(chain_programs.ADOPT_REQUESTS),
        "adopt_keys": chain_programs.ADOPT_KEYS,
        "timeouts": _numbered(chain_settings.TIMEOUTS),
        "knobs": _numbered(chain_settings.KNOBS),
        "longest_timeout": chain_settings.LONGEST_TIMEOUT,
        "clock_slack": chain_settings.CLOCK_SLACK,
        "tcp_classes": _numbered(chain_states.TCP_CLASSES),
        "tcp_states": _numbered([*chain_states.TCP_STATES, "INVALID", "IGNORE"]),
        "sctp_chunks": _numbered(chain_states.SCTP_CHUNKS),
        "sctp_states": _numbered([*chain_states.SCTP_STATES, "INVALID"]),
        "sctp_rows": len(chain_states.SCTP_ROWS) // 2,
        "crc_slices": crc32c.CRC32C_SLICES,
        "maps": chain_maps.maps(
            *(getattr(settings, name) for name in SIZES), events=settings.events
        ),
        "events": settings.events,
        "event_kinds": _numbered(chain_events.EVENT_KINDS),
        "event_words": _numbered(chain_events.EVENT_WORDS),
        "checksum": settings.checksum,
        "fused": settings.fused,
        "forward": settings.forward,
        "forwards": _numbered(chain_settings.FORWARDS),
        "stages": _STAGES,
        "bcc_types": _BCC_TYPES,
        "map_dir": MAP_DIR,
        "guests": guests,
    }


def render(source_dir: str, settings: Settings, guests: t.Sequence[Guest] = ()) -> str:
    """Return the chain as one C text; ``@MAP_DIR@`` stands for the directory of the maps' pins.

    :param source_dir: the directory of the sources, as ``files/bpf``; see sources.
    :param guests: in the order in which they run, as guests.read() returns them.
    :raises ConntrackError: where a source can not be read or rendered (file and line named), or a
        setting is out of range.
    """
    check_settings(settings)
    try:
        # not on targets, which have no use for it: it is a fifth of what a module takes there
        import jinja2
    except ImportError:
        raise ConntrackError(
            "jinja2 is missing in the Python that runs Ansible: install the package python3-jinja2"
            " or `pip install jinja2`."
        ) from None
    sources.check_layout(source_dir)
    texts = {sources.MAIN: sources.read_main(source_dir)}
    texts.update(sources.read_in_order(source_dir, _PROGRAMS))
    files = [name for name in texts if name != sources.MAIN]

    def load(name: str) -> tuple[str, str, None] | None:
        return (texts[name], os.path.join(source_dir, name), None) if name in texts else None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # C, not HTML
    )
    try:
        return environment.get_template(sources.MAIN).render(
            {**context(settings, guests), "files": files}
        )
    except jinja2.TemplateSyntaxError as exc:
        raise ConntrackError(
            f"src: {exc.filename or source_dir} line {exc.lineno}: {exc.message}."
        ) from exc
    except Exception as exc:  # an expression of a template can raise anything
        raise ConntrackError(f"src: {_place(exc, source_dir)}: {exc}.") from exc


def _place(exc: Exception, source_dir: str) -> str:
    """Return the template and the line in which an exception was raised; Jinja2 gives tracebacks
    the templates' own.
    """
    places = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(exc.__traceback__)
    ]
    inside = [f"{name} line {line}" for name, line in places if name.startswith(source_dir)]
    return inside[-1] if inside else source_dir


def pack(text: str, headers: t.Mapping[str, str]) -> str:
    """Return the rendered chain in the form in which it travels to a target.

    A module that starts itself again under another interpreter writes its arguments into a pipe
    before anybody reads it (respawn_module() of ansible-core): more than the 64 KiB that a pipe
    holds, and it waits forever.
    """
    return base64.b85encode(bz2.compress(json.dumps([text, dict(headers)]).encode(), 9)).decode(
        "ascii"
    )


def unpack(packed: str) -> tuple[str, dict[str, str]]:
    """Return (text, headers) as they were given to pack().

    :raises ConntrackError: where it is not of pack()'s making.
    """
    try:
        text, headers = json.loads(bz2.decompress(base64.b85decode(packed)))
        return str(text), dict(headers)
    except (OSError, ValueError, TypeError) as exc:
        raise ConntrackError("rendered: it is filled in from src and can not be given.") from exc


def read_headers(source_dir: str) -> dict[str, str]:
    """Return the stub tree of kernel headers beside the sources: path below it -> contents.

    :raises ConntrackError: where there is none, or a file of it can not be read.
    """
    top = os.path.join(source_dir, "stub")
    headers = {}
    for directory, dummy, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            try:
                with open(path, encoding="utf-8") as header:
                    headers[os.path.relpath(path, top)] = header.read()
            except (OSError, UnicodeDecodeError) as exc:
                raise ConntrackError(f"src: {path} can not be read: {exc}.") from exc
    if not headers:
        raise ConntrackError(
            f"src: {top} is not there: it holds the headers that the chain is compiled with."
        )
    return headers
