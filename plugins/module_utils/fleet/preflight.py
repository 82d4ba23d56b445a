# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host can take the wanted chain, and how it is before: nothing is changed.

``look`` asks the host; what it saw is judged by pure functions, each of which returns Problems.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import typing as t

from ..attach import converge as attach
from ..attach import model as attach_model
from ..attach import observe as attach_observe
from ..attach import plan as attach_plan
from ..attach import record as attach_record
from ..build import features, render
from ..chain import forwarding
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..chain import settings as chain_settings
from ..core import libraries, safe_path
from ..core.errors import ConntrackError
from ..generation import converge as generation
from ..generation import health, manifest, state_dir
from ..kernel import bpf, bpffs, device, netdev, netfilter, netns
from ..service import archive as ct_archive
from ..service import status as ct_status
from ..service import unit as ct_unit
from . import soak

#: How the chain is built; only the first needs a compiler on the host.
BUILDS = ("bcc", "clang", "object")
LIBBPF_MINIMUM = "0.8"
#: Room that has to be left in the state directory: a manifest has some 100 KiB, an object file up
#: to 1.5 MiB, and each is written beside the one before.
DISK_BYTES = 4 << 20
#: What compiling takes for a moment beside the tables, most of it LLVM's.
COMPILER_BYTES = 160 << 20
#: What the kernel keeps of each entry beside key and value: struct htab_elem with its list, and its
#: share of the buckets.
_ENTRY_OVERHEAD = 64
#: Before this release what BPF takes counts against RLIMIT_MEMLOCK.
_NO_MEMLOCK = (5, 11)


# ---------------------------------------------------------------- what keeps a host from it
@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that keeps the chain off a host.

    :ivar field: the option it is about, or what of the host.
    :ivar value: what is there.
    :ivar problem: what is wrong with it, for people.
    :ivar mend: what to do about it.
    """

    field: str
    value: str
    problem: str
    mend: str

    def as_dict(self) -> dict[str, str]:
        """Return the form in which the module reports it."""
        return dataclasses.asdict(self)


def told(field: str, value: str, exc: ConntrackError) -> Problem:
    """Return the problem that an error of the library tells of; what follows its first sentence is
    how to mend it.
    """
    problem, dummy, mend = exc.message.partition(". ")
    return Problem(field, value, f"{problem.rstrip('.')}.", mend)


# ---------------------------------------------------------------- memory
@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of memory.

    :ivar needed: what the new tables take that are not handed on, and the compiler.
    :ivar held: what the tables of now take.
    :ivar available: what can be had without swapping, by the machine's or the control group's
        account, whichever is less.
    :ivar memlock: the limit that kernels before 5.11 hold BPF to; None where there is none, or the
        kernel does not look at it.
    """

    needed: int
    held: int
    available: int
    memlock: int | None = None


def table_bytes(kind: str, key_size: int, value_size: int, entries: int, cpus: int) -> int:
    """Return what the kernel sets aside for a map, within a few percent."""
    if kind == "ringbuf":
        return entries
    value = (value_size + 7) // 8 * 8
    if kind in ("lru_hash", "hash"):
        return entries * ((key_size + 7) // 8 * 8 + value + _ENTRY_OVERHEAD)
    return entries * value * (cpus if kind.startswith("percpu") else 1)


def needed_bytes(
    wanted: t.Iterable[chain_maps.MapSpec], there: t.Mapping[str, bpf.MapInfo], cpus: int
) -> int:
    """Return what the wanted maps take beside those that are there: one of the same size is handed
    on.
    """
    total = 0
    for spec in wanted:
        have = there.get(spec.name)
        if not (spec.inherited and have is not None and have.max_entries == spec.entries):
            total += table_bytes(spec.kind, spec.key_size, spec.value_size, spec.entries or 0, cpus)
    return total


def judge_memory(memory: Memory) -> t.Iterator[Problem]:
    """Return what is wrong with the memory."""
    if memory.needed > memory.available:
        yield Problem(
            "table_size",
            mebibytes(memory.available),
            f"the new tables and what loads them take {mebibytes(memory.needed)} of memory,"
            f" available are {mebibytes(memory.available)}.",
            "Give smaller tables (table_size, table_size6, half_open_size, half_open_size6), or"
            " free memory.",
        )
    if memory.memlock is not None and memory.needed > memory.memlock:
        yield Problem(
            "memlock",
            mebibytes(memory.memlock),
            f"this kernel holds BPF to RLIMIT_MEMLOCK, which is {mebibytes(memory.memlock)}, and"
            f" {mebibytes(memory.needed)} are needed.",
            "Raise the limit (LimitMEMLOCK=, limits.conf), or boot Linux 5.11 or later.",
        )


def mebibytes(number: int) -> str:
    """Return bytes for people."""
    return f"{number / (1 << 20):.0f} MiB"


def group_room(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """Return how many bytes the control group of this process, and those above it, still let it
    have; None where they set no limit.
    """
    try:
        with open(own, encoding="ascii") as lines:
            where = next(line.strip()[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    room = None
    directory = os.path.normpath(root + where)
    while directory.startswith(root) and directory != root:
        with contextlib.suppress(OSError, ValueError):  # no limit there
            with (
                open(os.path.join(directory, "memory.max"), encoding="ascii") as most,
                open(os.path.join(directory, "memory.current"), encoding="ascii") as now,
            ):
                left = max(int(most.read()) - int(now.read()), 0)
            room = left if room is None else min(room, left)
        directory = os.path.dirname(directory)
    return room


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = next(
            int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")
        )
    room = group_room()
    return free if room is None else min(free, room)


# ---------------------------------------------------------------- libraries
@dataclasses.dataclass(frozen=True)
class Library:
    """A library on the host.

    :ivar found: its version, None where it is missing, "unknown" where it does not say.
    :ivar wanted: the oldest that will do, "" where any does.
    :ivar needed: whether the wanted chain needs it.
    :ivar packages: what it is in, by the name of the package manager.
    """

    name: str
    found: str | None
    wanted: str
    needed: bool
    packages: t.Mapping[str, str]

    @property
    def good(self) -> bool:
        """Whether it will do."""
        return self.found is not None and (
            not libraries.release(self.found)
            or libraries.release(self.found) >= libraries.release(self.wanted or "0")
        )


def judge_libraries(
    libraries: t.Iterable[Library], manager: str | None, install: bool
) -> t.Iterator[Problem]:
    """Return what is wrong with the libraries; those that are missing and can be installed are no
    problem, those that are too old are.

    :param manager: ``dpkg`` or ``rpm``; None where the host has neither.
    """
    for one in libraries:
        if not one.needed or one.good or (one.found is None and install and manager is not None):
            continue
        what = (
            "is missing"
            if one.found is None
            else f"has version {one.found}, and {one.wanted} or later is needed"
        )
        package = one.packages.get(manager or "", " or ".join(sorted(set(one.packages.values()))))
        mend = (
            f"Install the package {package}."
            if one.found is None
            else f"Upgrade the package {package}."
        )
        yield Problem("libraries", one.name, f"{one.name} {what}.", mend)


def would_install(libraries: t.Iterable[Library], manager: str | None, install: bool) -> list[str]:
    """Return the packages that are missing and would be installed."""
    return (
        sorted({one.packages[manager] for one in libraries if one.needed and one.found is None})
        if install and manager
        else []
    )


def _libbpf() -> str | None:
    try:
        version = bpf.library().libbpf_version_string
    except (ConntrackError, AttributeError) as exc:
        return None if isinstance(exc, ConntrackError) else "unknown"
    version.restype = ctypes.c_char_p
    return str(version().decode()).lstrip("v")


def _python_library(name: str) -> str | None:
    """Return the version of a library of this interpreter, without the cost of importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    with (
        contextlib.suppress(OSError),
        open(os.path.join(os.path.dirname(spec.origin), "version.py"), encoding="utf-8") as source,
    ):
        said = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", source.read())
        if said:
            return said[1]
    return "unknown"


_SAY_VERSION = (
    "import importlib, sys; m = importlib.import_module(sys.argv[1]); print(getattr(m,"
    " '__version__', 'unknown'))"
)


def _version(name: str) -> str | None:
    """Return the version of a library of this interpreter or, as the modules do, of one of the
    system's.
    """
    found = _python_library(name)
    for interpreter in libraries.others() if found is None else ():
        done = subprocess.run(
            [interpreter, "-c", _SAY_VERSION, name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return found


def look_libraries(build: str) -> list[Library]:
    """Return the libraries that there are."""
    bcc, pyroute2 = libraries.LIBRARIES["bcc"], libraries.LIBRARIES["pyroute2"]
    headers = "there" if os.path.exists("/usr/include/linux/bpf.h") else None
    return [
        Library("libbpf", _libbpf(), LIBBPF_MINIMUM, True, {"dpkg": "libbpf1", "rpm": "libbpf"}),
        Library(
            "bcc",
            _version("bcc"),
            bcc.minimum,
            build == "bcc",
            {"dpkg": bcc.debian, "rpm": bcc.fedora},
        ),
        Library(
            "linux headers",
            headers,
            "",
            build == "bcc",
            {"dpkg": "linux-libc-dev", "rpm": "kernel-headers"},
        ),
        Library(
            "pyroute2",
            _python_library("pyroute2"),
            pyroute2.minimum,
            False,
            {"dpkg": pyroute2.debian, "rpm": pyroute2.fedora},
        ),
    ]


def _manager() -> str | None:
    return "dpkg" if shutil.which("dpkg-query") else "rpm" if shutil.which("rpm") else None


# ---------------------------------------------------------------- the disk
def disk_room(directory: str) -> tuple[int, bool]:
    """Return (bytes that root can write below a directory, which need not exist yet; whether a file
    can be made there).
    """
    nearest = directory
    while not os.path.isdir(nearest):
        nearest = os.path.dirname(nearest)
    room = os.statvfs(nearest)
    # some file systems do not count files
    return (room.f_bfree * room.f_frsize, room.f_files == 0 or room.f_ffree > 1)


def judge_disk(directory: str, free: int, files: bool) -> t.Iterator[Problem]:
    """Return what is wrong with the room for the state directory."""
    if free < DISK_BYTES or not files:
        what = (
            f"{free >> 10} KiB are free, {DISK_BYTES >> 10} KiB are needed"
            if free < DISK_BYTES
            else "its file system can hold no more files"
        )
        yield Problem(
            "state_dir",
            directory,
            f"{directory}: {what}.",
            "Make room there, or give another state_dir.",
        )


# ---------------------------------------------------------------- interfaces
def look_interfaces(
    paths: bpffs.Paths,
    interfaces: t.Sequence[t.Mapping[str, t.Any]],
    mode: str,
    takeover: bool,
    forward: str = chain_settings.FORWARDS[0],
) -> tuple[list[dict[str, t.Any]], list[Problem]]:
    """Return the wanted interfaces as they are, and what keeps the chain off them.

    :param forward: what the chain is to forward, one of chain.FORWARDS.
    """
    try:
        attach_model.check("present", interfaces, mode)
        chosen = attach.choose("present", interfaces, mode, True)
        haves = attach_observe.observe(paths, chosen.wants, forward)
    except ConntrackError as exc:
        return [], [told("interfaces", exc.message.partition(":")[0], exc)]
    found: list[dict[str, t.Any]] = []
    problems = [
        Problem(
            "interfaces",
            one.partition(":")[0],
            one,
            "Correct the entry, or make the interface first.",
        )
        for one in chosen.missing
    ]
    for want, have in zip(chosen.wants, haves):
        one, why = _look_interface(want, have)
        found.append(one)
        if have.missing:
            field = have.missing.partition(":")[0]
            problems.append(
                Problem(
                    field,
                    want.label,
                    have.missing.partition(": ")[2],
                    "Correct the name, or make it first.",
                )
            )
            continue
        if want.mode == "native" and why and have.attached is None:
            problems.append(
                Problem(
                    f"{want.field}.mode",
                    "native",
                    f"{want.label}: {why}.",
                    "Give mode: generic or auto.",
                )
            )
        if have.forwards is not None:
            problems += [
                Problem(
                    "forward",
                    forward,
                    f"{want.label}: {problem}.",
                    f"{mend}, or give forward: off.",
                )
                for problem, mend in forwarding.problems(have.forwards)
            ]
        try:
            attach_plan.make_plan(
                [want], [dataclasses.replace(have, forwards=None)], {}, takeover, True
            )
        except ConntrackError as exc:
            problems.append(told(want.field, want.label, exc))
    return found, problems


def look_forwarding(
    forward: str, interfaces: t.Sequence[t.Mapping[str, t.Any]]
) -> dict[str, t.Any] | None:
    """Return which rulesets the chain would pass by; None where it is to forward nothing.

    :param interfaces: those that it is to be attached to; where there are none, it is the namespace
        that the caller is in that is looked at.
    """
    if forward == chain_settings.FORWARDS[0]:
        return None
    rules = {}
    for where in {item.get("netns"): None for item in interfaces} or {None: None}:
        if where is None or netns.exists(where):
            with netns.entered(where):
                rules[where] = netfilter.look()
    return {
        "forward": forward,
        "namespaces": [forwarding.as_dict(where, seen) for where, seen in rules.items()],
        "past": forwarding.shown(rules),
    }


def judge_unfiltered(forward: str, unfiltered: bool) -> t.Iterator[Problem]:
    """Return what is wrong with forwarding that nobody said may pass the firewall by."""
    try:
        render.check_unfiltered(forward, unfiltered)
    except ConntrackError as exc:
        problem, dummy, mend = exc.message.partition(", so it takes ")
        yield Problem("forward", forward, f"{problem.partition(': ')[2]}.", f"It takes {mend}")


def _look_interface(
    want: attach_model.Want, have: attach_model.Have
) -> tuple[dict[str, t.Any], str]:
    """Return one interface, and why its driver can not run the program; "" where it can, or nobody
    knows.
    """
    driver, native = device.Driver("", ""), None
    if have.ifindex:
        with netns.entered(want.netns):
            driver, native = device.driver(want.name), device.native(have.ifindex)
    why = (
        f"the driver {driver.name or 'of this interface'} runs no XDP programs"
        if native is False
        else ""
    )
    if have.too_long is not None:
        why = (
            f"the MTU of the veth's other end is {have.too_long}, and native XDP takes"
            f" {attach_model.VETH_MAX_MTU} at most"
        )
    attached = have.attached
    return {
        "name": want.name,
        "netns": want.netns,
        "ifindex": have.ifindex or None,
        "driver": driver.name or None,
        "native": False if why else native,
        "why_not_native": why,
        "big_tcp": have.big,
        "modes": (
            ["generic"]
            if why
            else ["native", "generic"]
            if native
            else ["unknown"]
            if have.ifindex
            else []
        ),
        "program": None if attached is None else attached.program.hook or attached.program.name,
        "mode": None if attached is None else attached.mode,
        "foreign": attached is not None and attached.program.hook is None,
        "vlan_offloads": (
            None
            if have.forwards is None
            else [offload.what or "not known" for offload in have.forwards.offloads]
        ),
    }, why


# ---------------------------------------------------------------- what there is of the collection
def traces(
    paths: bpffs.Paths, prefix: str = ct_archive.PREFIX, unit_directory: str = ct_unit.DIRECTORY
) -> list[str]:
    """Return all that there is of the collection on the host: pins, links, files, directories, and
    our programs on interfaces of this namespace.
    """
    found = [
        path
        for path in (paths.base, state_dir.directory(paths), bpffs.RUN_DIR)
        if os.path.lexists(path)
    ]
    found += [
        path
        for path, target in paths.seed_links().items()
        if os.path.islink(path) and os.readlink(path) == target
    ]
    files = [
        *(
            os.path.join(prefix, name)
            for name in (ct_archive.COMMAND, ct_archive.MANUAL, ct_archive.COMPLETION)
        ),
        *(os.path.join(unit_directory, name) for name in (ct_unit.NAME, ct_unit.RESTORE_NAME)),
    ]
    found += [path for path in files if is_ours(path)]
    for index, name in socket.if_nameindex():
        with contextlib.suppress(bpf.BpfError):  # gone since
            for number in netdev.link_facts(index).xdp.values():
                info = health.program(number)
                if (
                    info is not None
                    and info.name in chain_programs.HOOKS
                    and _uses_jump_table(info)
                ):
                    found.append(f"XDP program {info.name} on {name}")
    return found


def _uses_jump_table(info: bpf.ProgInfo) -> bool:
    for number in info.map_ids:
        with bpf.closing(bpf.map_get_fd_by_id(number)) as fd:
            if bpf.map_info(fd).name == "jt":
                return True
    return False


def is_ours(path: str) -> bool:
    """Tell whether a file is one that the collection has made."""
    try:
        return ct_archive.MARK.encode() in safe_path.read(path)
    except (OSError, ConntrackError):
        return False


# ---------------------------------------------------------------- the chain before
def attached(paths: bpffs.Paths) -> list[dict[str, t.Any]]:
    """Return the interfaces that the chain is attached to through its links, as xdp_attach takes
    them.
    """
    return [
        {
            "name": want.name,
            "netns": want.netns,
            "program": there.attached.program.hook,
            "mode": there.attached.mode,
        }
        for want, there in ct_status.attached(paths)
        if there.attached is not None and there.attached.program.hook in chain_programs.HOOKS
    ]


def before(paths: bpffs.Paths, have: generation.Have, prefix: str) -> dict[str, t.Any]:
    """Return what a run that goes wrong has to put back, as ct_put_back takes it."""
    dummy, timeouts, knobs = (
        chain_settings.settings_of(have.settings)
        if len(have.settings) == chain_settings.SETTINGS_BYTES
        else (0, {}, {})
    )
    return {
        "generation": have.generation,
        "digest": have.digest if have.generation is not None else None,
        "timeouts": timeouts,
        "settings": knobs,
        "interfaces": attached(paths),
        "command": is_ours(os.path.join(prefix, ct_archive.COMMAND)),
        "service": is_ours(os.path.join(ct_unit.DIRECTORY, ct_unit.NAME)),
    }


def on_disk(paths: bpffs.Paths) -> dict[str, t.Any]:
    """Return what is written down in the state directory."""
    there = manifest.look(paths)
    return {
        "generation": there.active,
        "digest": None if there.made_of is None else there.made_of.get("digest"),
        "generations": list(there.numbers),
        "interfaces": attach_record.interfaces(paths),
    }


@dataclasses.dataclass(frozen=True)
class Need:
    """What is wanted of the host.

    :ivar sizes: entries of the tables, by the names of chain.maps().
    :ivar forward: what the chain is to forward, one of chain.FORWARDS.
    :ivar forward_unfiltered: whether that may pass the firewall by.
    """

    interfaces: t.Sequence[t.Mapping[str, t.Any]]
    mode: str
    takeover: bool
    sizes: t.Mapping[str, int]
    events: bool
    build: str
    install: bool
    prefix: str = ct_archive.PREFIX
    forward: str = chain_settings.FORWARDS[0]
    forward_unfiltered: bool = False


def look(paths: bpffs.Paths, need: Need) -> dict[str, t.Any]:
    """Return the module's result.

    :raises ConntrackError: without the rights to look.
    """
    if os.geteuid() != 0:
        raise ConntrackError(
            "Looking at BPF and at what is attached needs root: run the task with become: true."
        )
    problems: list[Problem] = []
    libraries, manager = look_libraries(need.build), _manager()
    problems += judge_libraries(libraries, manager, need.install)
    release = platform.release()
    result: dict[str, t.Any] = {
        "kernel": {"release": release, "machine": platform.machine(), "missing_features": None},
        "libraries": [{**dataclasses.asdict(one), "good": one.good} for one in libraries],
        "would_install": would_install(libraries, manager, need.install),
        "interfaces": [],
        "forwarding": look_forwarding(need.forward, need.interfaces),
        "chain": None,
        "before": None,
        "flows": None,
        "figures": None,
        "memory": None,
        "python": sys.version.partition(" ")[0],
    }
    checks: tuple[tuple[str, str, t.Callable[[], object]], ...] = (
        ("pin_root", paths.pin_root, lambda: bpffs.check(paths.pin_root)),
        ("pin_root", paths.pin_root, lambda: bpffs.check_places(paths)),
        ("state_dir", paths.state_dir, lambda: state_dir.check(paths)),
    )
    for field, value, check in checks:
        try:
            check()
        except ConntrackError as exc:
            problem = told(field, value, exc)
            if not any(one.problem == problem.problem for one in problems):
                problems.append(problem)
    problems += judge_unfiltered(need.forward, need.forward_unfiltered)
    free, files = disk_room(state_dir.directory(paths))
    problems += judge_disk(paths.state_dir, free, files)
    result["disk"] = {"path": paths.state_dir, "free_bytes": free}
    # without it nothing can be asked of BPF; it is a problem, or will be installed
    if libraries[0].found is not None:
        try:
            problems += _look_bpf(paths, need, result)
        except ConntrackError:
            # which keep all else from being looked at
            if not {"pin_root", "state_dir"} & {problem.field for problem in problems}:
                raise
    result["problems"] = [problem.as_dict() for problem in problems]
    result["ok"] = not problems
    return result


def _look_bpf(paths: bpffs.Paths, need: Need, result: dict[str, t.Any]) -> t.Iterator[Problem]:
    missing = features.missing()
    result["kernel"]["missing_features"] = missing
    for one in missing:
        yield Problem(
            "kernel",
            result["kernel"]["release"],
            f"it lacks {one}.",
            "Boot a kernel of that release or later.",
        )
    have = generation.observe(paths)
    facts = generation.facts(have, paths)
    result["chain"] = {
        name: facts[name]
        for name in ("generation", "digest", "healthy", "faults", "since", "kept", "settings")
    }
    result["disk"].update(on_disk(paths))
    result["before"] = before(paths, have, need.prefix)
    result["found"] = traces(paths, need.prefix)
    with contextlib.suppress(ConntrackError):  # nothing is loaded, or what is has another layout
        figures = soak.read_tables(paths.pin_root)
        result["figures"], result["flows"] = figures, figures["flows"]
    wanted, cpus = chain_maps.maps(**need.sizes, events=need.events), bpf.possible_cpus()
    memory = Memory(
        needed_bytes(wanted, have.maps, cpus) + (COMPILER_BYTES if need.build == "bcc" else 0),
        sum(
            table_bytes(_kind(info), info.key_size, info.value_size, info.max_entries, cpus)
            for info in have.maps.values()
        ),
        _available(),
        _memlock(result["kernel"]["release"]),
    )
    result["memory"] = dataclasses.asdict(memory)
    yield from judge_memory(memory)
    result["interfaces"], problems = look_interfaces(
        paths, need.interfaces, need.mode, need.takeover, need.forward
    )
    yield from problems


def _kind(info: bpf.MapInfo) -> str:
    return next((kind for kind, number in chain_maps.MAP_TYPES.items() if number == info.kind), "")


def _memlock(release: str) -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return (
        None
        if limit == resource.RLIM_INFINITY or libraries.release(release) >= _NO_MEMLOCK
        else limit
    )
