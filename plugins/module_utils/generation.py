# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations: one loaded instance of the chain each, observed, planned and put in place of the one before.

A generation is pinned whole under ``gen/<N>``. It is built beside the active one, takes over the flow tables, is proved
with a frame, takes the interfaces over one by one (bpf_link_update leaves no packet unseen), and only then becomes active by
one rename. What a killed run left behind has no ``active`` link to it and goes with the next run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import struct
import time
import typing as t

from . import bpf, bpffs, build_bcc, chain, clock, handover
from .bpffs import Paths
from .errors import ConntrackError, bad_value
from .plan import Plan, Step, irrevocable
from .plan import apply as apply_steps
from .render import MAP_DIR

#: Suffix of a generation's directory while it is built; a finished one has a bare number.
_UNFINISHED = "_new"
#: How long a frame may still be on its way through the old chain after its interfaces were handed over.
_GRACE_SECONDS = 0.02
_XDP_PASS = 2
#: A frame of no known protocol: the loader's proof that the chain runs from its entry to its end.
_PROBE = bytes(12) + b"\xff\xff" + bytes(46)
#: What the maps hold whose entries go along into a map of another size.
_COPIED = "struct ct_entry"
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
#: Seconds. A jiffies count must fit 31 bits at the highest tick rate, 1000 Hz.
_TIMEOUT_RANGE = (1, (1 << 31) // 1000 - 1)
_KNOB_RANGES = {"tcp_loose": (0, 1), "tcp_be_liberal": (0, 1), "tcp_ignore_invalid_rst": (0, 1), "tcp_max_retrans": (1, 255)}


@dataclasses.dataclass(frozen=True)
class Want:
    """The wanted chain.

    :ivar text: the rendered C, with MAP_DIR for the directory of the maps' pins.
    :ivar headers: the stub tree that it is compiled with.
    :ivar table_size: entries of the IPv4 flow table.
    :ivar table_size6: entries of the IPv6 flow table.
    :ivar timeouts: seconds by name of chain.TIMEOUTS; what is missing has the kernel's default.
    :ivar knobs: values by name of chain.KNOBS; likewise.
    """

    text: str
    headers: t.Mapping[str, str]
    table_size: int
    timeouts: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    knobs: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    table_size6: int = chain.TABLE_SIZE

    @property
    def digest(self) -> str:
        """128 bits, in hex, of what is compiled."""
        source = hashlib.sha256(self.text.encode())
        for name in sorted(self.headers):
            source.update(f"\0{name}\0{self.headers[name]}".encode())
        return source.hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Have:
    """What is there.

    :ivar generation: number of the active generation; None where none is.
    :ivar digest: of the active generation's source.
    :ivar layout: version of its maps' layout.
    :ivar settings: bytes of its settings.
    :ivar programs: by slot, those that are pinned.
    :ivar maps: by name.
    :ivar faults: what keeps the active generation from working, for people.
    :ivar leftovers: names below ``gen`` that are not the active generation.
    :ivar links: the pinned bpf_links by pin name, with the hook each one's program serves (None where it can not be told).
    :ivar no_paths: those of the seed's paths that are missing.
    """

    generation: int | None = None
    digest: str = ""
    layout: int = 0
    settings: bytes = b""
    programs: t.Mapping[int, bpf.ProgInfo] = dataclasses.field(default_factory=dict)
    maps: t.Mapping[str, bpf.MapInfo] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    links: t.Mapping[str, tuple[bpf.LinkInfo, str | None]] = dataclasses.field(default_factory=dict)
    no_paths: tuple[str, ...] = ()


def check(want: Want) -> None:
    """:raises ConntrackError: naming the first setting that is unknown or out of range."""
    low, high = _TIMEOUT_RANGE
    for name, value in want.timeouts.items():
        if name not in chain.TIMEOUTS:
            raise bad_value("timeouts", name, f"known are {', '.join(chain.TIMEOUTS)}")
        if not low <= value <= high:
            raise bad_value(f"timeouts.{name}", value, f"give {low} to {high} seconds")
    for name, value in want.knobs.items():
        if name not in chain.KNOBS:
            raise bad_value("settings", name, f"known are {', '.join(chain.KNOBS)}")
        low, high = _KNOB_RANGES[name]
        if not low <= value <= high:
            raise bad_value(f"settings.{name}", value, f"give {low} to {high}")


@contextlib.contextmanager
def _as_root() -> t.Iterator[None]:
    """Around what only root can do.

    :raises ConntrackError: where the user is not let.
    """
    try:
        yield
    except PermissionError as exc:
        raise ConntrackError(f"{exc.filename}: permission denied: run as root, with become for instance.") from exc


# ---------------------------------------------------------------- observe
def _pinned(path: str) -> t.Any:
    """Open a pin for a ``with`` block; nothing where it is not there."""
    try:
        return bpf.closing(bpf.obj_get(path))
    except FileNotFoundError:
        return contextlib.nullcontext(None)
    except bpf.BpfError as exc:
        if exc.errno == 2:  # ENOENT
            return contextlib.nullcontext(None)
        raise


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def read_meta(fd: int) -> dict[str, int]:
    """Return ``meta`` by the names of chain.META."""
    values = {}
    for name, index in chain.META.items():
        raw = bpf.map_lookup(fd, _U32.pack(index), _U64.size)
        values[name] = _U64.unpack(raw)[0] if raw else 0
    return values


def _observe_links(paths: Paths, programs: t.Mapping[int, bpf.ProgInfo]) -> dict[str, tuple[bpf.LinkInfo, str | None]]:
    hooks = {program.id: program.name for program in programs.values() if program.name in chain.HOOKS}
    links = {}
    for name in _names(paths.link_dir):
        with _pinned(os.path.join(paths.link_dir, name)) as fd:
            if fd is None:
                continue
            info = bpf.link_info(fd)
            hook = hooks.get(info.prog_id)
            if hook is None and info.prog_id:
                with bpf.closing(bpf.prog_get_fd_by_id(info.prog_id)) as prog:
                    name_there = bpf.prog_info(prog).name
                hook = name_there if name_there in chain.HOOKS else None
            links[name] = (info, hook)
    return links


@_as_root()
def observe(paths: Paths) -> Have:
    """Read the kernel: the active generation, its health, and what else lies around.

    :raises ConntrackError: for a user that may not.
    """
    no_paths = tuple(path for path in paths.seed_links() if not os.path.lexists(path))
    if not bpffs.mounted(paths.pin_root):
        return Have(no_paths=no_paths)
    try:
        generation = int(os.path.basename(os.readlink(paths.active)))
    except (FileNotFoundError, ValueError):
        generation = None
    leftovers = tuple(name for name in _names(paths.gen) if name != str(generation))
    if generation is None or not os.path.isdir(paths.gen_dir(generation)):
        return Have(leftovers=leftovers, links=_observe_links(paths, {}), no_paths=no_paths)
    faults: list[str] = []
    programs: dict[int, bpf.ProgInfo] = {}
    maps: dict[str, bpf.MapInfo] = {}
    meta: dict[str, int] = {}
    settings = b""
    for name, slot in chain.SLOTS.items():
        with _pinned(paths.prog(slot)) as fd:
            if fd is None:
                faults.append(f"the pin of {name} is missing")
            else:
                programs[slot] = bpf.prog_info(fd)
    for spec in chain.maps():
        with _pinned(paths.map(spec.name)) as fd:
            if fd is None:
                faults.append(f"the pin of the map {spec.name} is missing")
                continue
            maps[spec.name] = bpf.map_info(fd)
            if spec.name == "meta":
                meta = read_meta(fd)
            elif spec.name == "settings":
                settings = bpf.map_lookup(fd, _U32.pack(0), maps[spec.name].value_size) or b""
            elif spec.name == "jt":
                faults += _slot_faults(fd, programs)
    digest = f"{meta.get('digest_high', 0):016x}{meta.get('digest_low', 0):016x}"
    links = _observe_links(paths, programs)
    return Have(generation, digest, meta.get("layout", 0), settings, programs, maps, tuple(faults), leftovers, links, no_paths)


def _slot_faults(jt: int, programs: t.Mapping[int, bpf.ProgInfo]) -> list[str]:
    faults = []
    for name, slot in chain.SLOTS.items():
        raw = bpf.map_lookup(jt, _U32.pack(slot), _U32.size)
        found = _U32.unpack(raw)[0] if raw else None
        if found is None:
            faults.append(f"slot {slot} ({name}) is empty")
        elif slot in programs and found != programs[slot].id:
            faults.append(f"slot {slot} ({name}) holds program {found}, pinned is {programs[slot].id}")
    return faults


# ---------------------------------------------------------------- plan
def _interface(key: str) -> str:
    """Return a link's interface as people write it, ``name`` or ``name@netns``."""
    netns, ifname = bpffs.interface_of(key)
    return ifname if netns is None else f"{ifname}@{netns}"


def _why_new(have: Have, want: Want) -> str | None:
    if have.generation is None:
        return "no chain is loaded"
    if have.faults:
        return "; ".join(have.faults)
    if have.digest != want.digest:
        return "the sources or what is compiled into them changed"
    return None


def plan_present(have: Have, want: Want, settings: bytes) -> Plan:
    """Return the steps from what is there to the wanted chain.

    :param settings: the bytes that the map ``settings`` is to hold on this host.
    :raises ConntrackError: when the flow table of the active generation has a layout that can not be handed on.
    """
    why = _why_new(have, want)
    steps = []
    if why is None:
        if have.settings != settings:
            steps.append(Step("change", "map", "settings", "timeouts or switches differ", _settings_shown(have.settings), _settings_shown(settings)))
        return steps + _plan_links(have, have.generation) + _plan_paths(have) + _plan_leftovers(have)
    if "meta" in have.maps and have.layout != chain.LAYOUT_VERSION:
        raise ConntrackError(
            f"the flow table of generation {have.generation} has layout {have.layout}, this release has {chain.LAYOUT_VERSION}: "
            "they can not be handed on. Remove the chain (state: absent), which forgets its flows, and load it again."
        )
    number = max([have.generation or 0, *(int(name) for name in have.leftovers if name.isdigit())]) + 1
    before = f"generation {have.generation}, digest {have.digest}" if have.generation is not None else None
    steps.append(Step("load", "generation", str(number), why, None, f"digest {want.digest}, {len(chain.SLOTS)} programs"))
    for spec in chain.maps(want.table_size, want.table_size6):
        there = have.maps.get(spec.name)
        if spec.inherited and there and there.max_entries != spec.entries:
            reason = f"another size: {'the entries are copied' if spec.value == _COPIED else 'it starts empty'}"
            steps.append(Step("change", "map", spec.name, reason, f"{there.max_entries} entries", f"{spec.entries} entries", args=(number, spec)))
    steps += _plan_links(have, number)
    steps.append(Step("activate", "generation", str(number), "the pins lead to it from here on", before, f"generation {number}"))
    steps += _plan_paths(have)
    if have.generation is not None:
        steps.append(Step("delete", "generation", str(have.generation), f"replaced by generation {number}", before, None))
    return steps + _plan_leftovers(have)


def _plan_links(have: Have, number: int | None) -> Plan:
    """Return the hand-over of the interfaces that do not run this generation's programs."""
    current = {info.id for info in have.programs.values()} if number == have.generation else set()
    after = f"generation {number}"
    return [
        Step("replace", "link", _interface(key), f"{hook} of {after} takes the interface over", f"program {info.prog_id}", after, args=(number, key))
        for key, (info, hook) in have.links.items()
        if hook and info.ifindex and info.prog_id not in current
    ]


def _plan_paths(have: Have) -> Plan:
    return [Step("create", "path", path, "it leads to the active generation", None, "symbolic link") for path in have.no_paths]


def _plan_leftovers(have: Have) -> Plan:
    return [Step("delete", "generation", name, "left behind by a run that did not end", f"gen/{name}", None) for name in have.leftovers]


def plan_absent(have: Have) -> Plan:
    """Return the steps that take the chain away.

    :raises ConntrackError: while interfaces are attached.
    """
    attached = [_interface(key) for key, (info, dummy) in have.links.items() if info.ifindex]
    if attached:
        raise ConntrackError(f"the chain is attached to {', '.join(attached)}: detach it first (xdp_attach with state: absent).")
    steps = [Step("delete", "link", _interface(key), "its interface is gone", f"link {info.id}", None, args=key) for key, (info, dummy) in have.links.items()]
    if have.generation is not None:
        steps.append(
            Step("delete", "generation", str(have.generation), "the chain is to be absent", f"generation {have.generation}, digest {have.digest}", None)
        )
    return steps + _plan_leftovers(have)


def _settings_shown(raw: bytes) -> str:
    if len(raw) != chain.SETTINGS_BYTES:
        return f"{len(raw)} bytes"
    dummy, timeouts, knobs = chain.settings_of(raw)
    return ", ".join(f"{name}={value}" for name, value in {**timeouts, **knobs}.items())


# ---------------------------------------------------------------- apply
def remove_tree(directory: str) -> None:
    """Remove pins, symlinks and directories below and including ``directory``; what is not there is fine."""
    for where, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(where, name))
        for name in directories:
            path = os.path.join(where, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


class _Builder:
    """Applies the steps of one plan; holds what later steps need of earlier ones until it is closed."""

    def __init__(self, paths: Paths, have: Have, want: Want, settings: bytes) -> None:
        self.paths, self.have, self.want, self.settings = paths, have, want, settings
        self._open = contextlib.ExitStack()
        self._copied: list[tuple[int, int, chain.MapSpec, int]] = []

    def __enter__(self) -> _Builder:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._open.close()

    def do(self, step: Step) -> t.Callable[[], None] | None:
        """Apply one step; return what undoes it."""
        return getattr(self, f"_{step.action}_{step.kind}")(step)

    def _keep(self, fd: int) -> int:
        self._open.callback(bpf.close, fd)
        return fd

    def _load_generation(self, step: Step) -> t.Callable[[], None]:
        """Build, fill, prove and pin the generation beside the active one."""
        final = self.paths.gen_dir(int(step.name))
        building = final + _UNFINISHED
        remove_tree(building)
        try:
            for name in ("prog", "map"):
                os.makedirs(os.path.join(building, name), mode=0o700)
            map_dir = os.path.join(building, "map")
            fds = {spec.name: self._map(spec, map_dir, int(step.name)) for spec in chain.maps(self.want.table_size, self.want.table_size6)}
            programs = {name: self._keep(fd) for name, fd in build_bcc.build(self.want.text.replace(MAP_DIR, map_dir), self.want.headers).items()}
            for name, slot in chain.SLOTS.items():
                bpf.obj_pin(programs[name], os.path.join(building, "prog", f"xdp_{slot}"))
                bpf.map_update(fds["jt"], _U32.pack(slot), _U32.pack(programs[name]))
            _prove(programs["ingress"], fds["stats"])
            os.rename(building, final)
        except BaseException:
            remove_tree(building)
            raise
        return lambda: remove_tree(final)

    def _map(self, spec: chain.MapSpec, map_dir: str, generation: int) -> int:
        """Hand a map on or make it; return its file descriptor."""
        there = self.have.maps.get(spec.name)
        entries = t.cast("int", spec.entries)  # chain.maps() gives every map its size
        if spec.inherited and there and there.max_entries == entries:
            fd = self._keep(bpf.obj_get(self.paths.map(spec.name)))
        else:
            fd = self._keep(bpf.map_create(chain.MAP_TYPES[spec.kind], spec.name, spec.key_size, spec.value_size, entries))
        bpf.obj_pin(fd, os.path.join(map_dir, spec.name))
        if spec.name == "settings":
            bpf.map_update(fd, _U32.pack(0), self.settings)
        elif spec.name == "meta":
            digest = int(self.want.digest, 16)
            first = {"layout": chain.LAYOUT_VERSION, "generation": generation, "digest_high": digest >> 64, "digest_low": digest & (1 << 64) - 1}
            for name, value in first.items():
                bpf.map_update(fd, _U32.pack(chain.META[name]), _U64.pack(value))
        return fd

    def _change_map(self, step: Step) -> t.Callable[[], None] | None:
        if step.args is None:
            return self._change_settings()
        number, spec = step.args
        if spec.value == _COPIED:
            old = self._keep(bpf.obj_get(self.paths.map(spec.name)))
            new = self._keep(bpf.obj_get(os.path.join(self.paths.gen_dir(number), "map", spec.name)))
            with bpf.closing(bpf.obj_get(os.path.join(self.paths.gen_dir(number), "map", "meta"))) as meta:
                self._copied.append((old, new, spec, clock.jiffies_now(read_meta(meta))))
            handover.copy(old, new, spec)
        return None  # the new map goes with its generation

    def _change_settings(self) -> t.Callable[[], None]:
        fd = self._keep(bpf.obj_get(self.paths.map("settings")))
        bpf.map_update(fd, _U32.pack(0), self.settings)
        return lambda: bpf.map_update(fd, _U32.pack(0), self.have.settings)

    def _replace_link(self, step: Step) -> t.Callable[[], None]:
        number, key = step.args
        info, hook = self.have.links[key]
        link = self._keep(bpf.obj_get(os.path.join(self.paths.link_dir, key)))
        old = self._keep(bpf.prog_get_fd_by_id(info.prog_id))
        slot = chain.SLOTS[t.cast("str", hook)]  # only links with a hook are planned
        new = self._keep(bpf.obj_get(os.path.join(self.paths.gen_dir(number), "prog", f"xdp_{slot}")))
        bpf.link_update(link, new, old)
        return lambda: bpf.link_update(link, old, new)

    def _activate_generation(self, step: Step) -> t.Callable[[], None]:
        if self._copied:
            time.sleep(_GRACE_SECONDS)
        for copied in self._copied:
            handover.catch_up(*copied)
        bpffs.swap_symlink(f"gen/{step.name}", self.paths.active)

        def undo() -> None:
            if self.have.generation is not None:
                bpffs.swap_symlink(f"gen/{self.have.generation}", self.paths.active)
            else:
                _remove_symlinks(self.paths)

        return undo

    def _create_path(self, step: Step) -> t.Callable[[], None]:
        bpffs.swap_symlink(self.paths.seed_links()[step.name], step.name)
        return lambda: os.unlink(step.name)

    def _delete_generation(self, step: Step) -> t.Callable[[], None]:
        time.sleep(_GRACE_SECONDS)
        remove_tree(os.path.join(self.paths.gen, step.name))
        return irrevocable

    def _delete_link(self, step: Step) -> t.Callable[[], None]:
        os.unlink(os.path.join(self.paths.link_dir, step.args))
        return irrevocable


def _remove_symlinks(paths: Paths) -> None:
    for path, target in {paths.active: "gen/", **paths.seed_links()}.items():
        bpffs.remove_symlink(target, path)


def _prove(entry: int, stats: int) -> None:
    """Send a frame through the new chain: it must come out as it went in and be counted, so every slot on its way is filled."""
    index = chain.COUNTERS.index("untracked_not_ip")

    def seen() -> int:
        return sum(_U64.unpack(value)[0] for value in bpf.percpu_value(stats, index, _U64.size))

    before = seen()
    run = bpf.prog_test_run(entry, _PROBE)
    if run.retval != _XDP_PASS or run.data_out != _PROBE or seen() <= before:
        raise ConntrackError(
            f"the new chain does not pass a frame as it is: verdict {run.retval} (XDP_PASS is {_XDP_PASS}), "
            f"{'unchanged' if run.data_out == _PROBE else 'changed'}, {'' if seen() > before else 'not '}counted. Nothing was attached."
        )


def apply(plan: Plan, paths: Paths, have: Have, want: Want, settings: bytes) -> None:
    """Apply a plan; on the first failure everything goes back to the generation before.

    What is deleted can not come back, so nothing is until all else is done; where deleting fails, the next run goes on with it.

    :raises ConntrackError: naming the step, what was applied and what was rolled back.
    """
    if plan:
        for path in (paths.active, *paths.seed_links()):
            bpffs.end_swap(path)
    with _Builder(paths, have, want, settings) as builder:
        apply_steps([step for step in plan if step.action != "delete"], builder.do)
        apply_steps([step for step in plan if step.action == "delete"], builder.do)


@contextlib.contextmanager
def _alone(paths: Paths) -> t.Iterator[None]:
    """Keep other runs out.

    :raises ConntrackError: when another run does not end.
    """
    with contextlib.ExitStack() as stack:
        while not _locked(paths, stack):
            stack.close()
        yield


def _locked(paths: Paths, stack: contextlib.ExitStack) -> bool:
    """Lock the base directory; False where the run that this one waited for took it away."""
    try:
        os.makedirs(paths.base, mode=0o700, exist_ok=True)
        inode = os.stat(paths.base).st_ino
        stack.enter_context(bpffs.locked(paths.base))
        return os.stat(paths.base).st_ino == inode
    except FileNotFoundError:
        return False


@_as_root()
def ensure(paths: Paths, want: Want, check_mode: bool = False) -> tuple[Plan, Have]:
    """Bring the wanted chain into place: the plan that was needed, and what is there now.

    :raises ConntrackError: see check(), plan_present() and apply().
    """
    check(want)
    settings = settings_here(want)
    bpffs.check_seed_links(paths)
    if check_mode:
        have = observe(paths)
        return plan_present(have, want, settings), have
    bpffs.ensure_mounted(paths.pin_root)
    try:
        with _alone(paths):
            have = observe(paths)
            plan = plan_present(have, want, settings)
            apply(plan, paths, have, want, settings)
            return plan, observe(paths) if plan else have
    except BaseException:
        _tidy(paths)
        raise


@_as_root()
def remove(paths: Paths, check_mode: bool = False) -> Plan:
    """Take the chain away: the plan that was needed.

    :raises ConntrackError: see plan_absent().
    """
    if not bpffs.mounted(paths.pin_root):
        return []
    try:
        os.stat(paths.base)
    except FileNotFoundError:
        return []
    if check_mode:
        return plan_absent(observe(paths))
    with _alone(paths):
        have = observe(paths)
        plan = plan_absent(have)
        _remove_symlinks(paths)
        apply(plan, paths, have, Want("", {}, 1), b"")
    _tidy(paths)
    return plan


def _tidy(paths: Paths) -> None:
    """Take away the directories that are empty."""
    for directory in (paths.gen, paths.link_dir):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    bpffs.release(paths.pin_root)


def settings_here(want: Want) -> bytes:
    """Return the bytes of ``settings`` on this host."""
    return chain.settings_value(clock.hz(), want.timeouts, want.knobs)


def facts(have: Have, paths: Paths) -> dict[str, t.Any]:
    """Return the chain as modules report it."""
    names = {slot: name for name, slot in chain.SLOTS.items()}
    return {
        "generation": have.generation,
        "digest": have.digest if have.generation is not None else None,
        "healthy": have.generation is not None and not have.faults,
        "faults": list(have.faults),
        "pin_root": paths.pin_root,
        "programs": [
            {"slot": slot, "name": names[slot], "id": info.id, "tag": info.tag, "pin": os.path.join(paths.seed_prog, f"xdp_{slot}")}
            for slot, info in sorted(have.programs.items())
        ],
        "maps": [
            {
                "name": name,
                "id": info.id,
                "type": next((kind for kind, number in chain.MAP_TYPES.items() if number == info.kind), str(info.kind)),
                "key_size": info.key_size,
                "value_size": info.value_size,
                "max_entries": info.max_entries,
                "pin": os.path.join(paths.seed_map, name),
            }
            for name, info in have.maps.items()
        ],
        "settings": _settings_facts(have.settings),
    }


def _settings_facts(raw: bytes) -> dict[str, t.Any]:
    if len(raw) != chain.SETTINGS_BYTES:
        return {}
    hz, timeouts, knobs = chain.settings_of(raw)
    return {"hz": hz, "timeouts": timeouts, **knobs}
