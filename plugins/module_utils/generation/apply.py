# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply a plan of generations step by step; each step knows how to undo itself."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
import time
import typing as t

from ..build import bcc as build_bcc
from ..build import load as load_object
from ..build.render import MAP_DIR
from ..chain import guests
from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import programs as chain_programs
from ..core import safe_path
from ..core.errors import ConntrackError
from ..core.plan import Plan, Step, irrevocable
from ..core.plan import apply as apply_steps
from ..flows import schema
from ..kernel import bpf, bpf_constants, pins
from ..kernel.bpffs import Paths
from . import manifest, migrate, probe_whole, state_dir
from .migrate_plan import Inheritance, Legacy, Maps
from .model import BCC, Have, Want

#: Suffix of a generation's directory while it is built; a finished one has a bare number.
_UNFINISHED = "_new"
#: How long a frame may still be on its way through the old chain after its interfaces were handed
#: over.
_GRACE_SECONDS = 0.02
#: Actions that are not undone, in their order.
_FINAL = ("move", "delete")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


def _fill(jt: int, slots: t.Mapping[int, int]) -> None:
    """Put programs into the jump table, and read back that they are there.

    :raises ConntrackError: naming the slot that holds something else.
    """
    for slot, fd in slots.items():
        bpf.map_update(jt, _U32.pack(slot), _U32.pack(fd))
        if bpf.map_lookup(jt, _U32.pack(slot), _U32.size) != _U32.pack(bpf.prog_info(fd).id):
            raise ConntrackError(
                f"slot {slot} of the jump table does not hold the program that was put there."
                " Nothing was attached."
            )


def c_string(text: str) -> str:
    """Return what stands between the quotes of a C string for a text, whatever is in it: C11,
    6.4.5; ``?`` begins a trigraph.

    >>> print(c_string('/sys/fs/bpf/a"b'))
    /sys/fs/bpf/a\\042b
    """
    return "".join(
        (
            sign
            if sign.isascii() and (sign.isalnum() or sign in safe_path.SIGNS)
            else "".join(f"\\{byte:03o}" for byte in os.fsencode(sign))
        )
        for sign in text
    )


def remove_tree(directory: str) -> None:
    """Remove pins, symlinks and directories below and including ``directory``; what is not there is
    fine.
    """
    for where, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(where, name))
        for name in directories:
            path = os.path.join(where, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


class _Builder:
    """Applies the steps of one plan; holds what later steps need of earlier ones until it is
    closed.
    """

    def __init__(self, paths: Paths, have: Have, want: Want, settings: bytes) -> None:
        self.paths, self.have, self.want, self.settings = paths, have, want, settings
        self._open = contextlib.ExitStack()

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

    def _verify_generation(self, dummy: Step) -> None:
        """It was done before the plan was complete."""

    def _load_generation(self, step: Step) -> t.Callable[[], None]:
        """Build, fill, prove and pin the generation beside the active one."""
        number = int(step.name)
        final = self.paths.gen_dir(number)
        building = final + _UNFINISHED
        remove_tree(building)
        try:
            for name in ("prog", "map"):
                safe_path.make_dirs(os.path.join(building, name), 0o700)
            map_dir = os.path.join(building, "map")
            manifest.write(self.paths, number, self.want)
            inherited = step.args.inherited if isinstance(step.args, Legacy) else None
            fds: dict[str, int] = {}
            for spec in self.want.maps:
                fds[spec.name] = self._map(spec, map_dir, number, inherited, fds)
            if self.have.generation is not None:
                guests.hand_maps_on(
                    self.want.text,
                    os.path.join(self.paths.gen_dir(self.have.generation), "map"),
                    map_dir,
                )
            programs = {name: self._keep(fd) for name, fd in self._build(map_dir).items()}
            slots = {slot: programs[name] for name, slot in self.want.compiled.items()}
            slots.update(
                {guest.slot: self._keep(guests.open_pinned(guest)) for guest in self.want.pinned}
            )
            for slot, fd in slots.items():
                bpf.obj_pin(fd, os.path.join(building, "prog", f"xdp_{slot}"))
            if chain_programs.ADOPT in programs:
                bpf.obj_pin(
                    programs[chain_programs.ADOPT],
                    os.path.join(building, "prog", chain_programs.ADOPT),
                )
            own = chain_programs.SLOTS.values()
            _fill(fds["jt"], {slot: fd for slot, fd in slots.items() if slot in own})
            probe_whole.prove_whole(
                {hook: programs[hook] for hook in chain_programs.TRACKING_HOOKS}, fds["stats"]
            )
            # What a guest does with a frame is its own affair: guests come in after the proof,
            # which passes their empty slots over.
            _fill(fds["jt"], {slot: fd for slot, fd in slots.items() if slot not in own})
            if inherited is not None:
                migrate.connect(
                    dataclasses.replace(inherited, new=migrate.read_maps(number, building))
                )
            os.rename(building, final)
        except BaseException:
            remove_tree(building)
            manifest.forget_generation(self.paths, number)
            raise

        def undo() -> None:
            remove_tree(final)
            manifest.forget_generation(self.paths, number)

        return undo

    def _build(self, map_dir: str) -> dict[str, int]:
        """Load every program; return a file descriptor by name."""
        want = self.want
        if want.build == BCC:
            return build_bcc.build(want.text.replace(MAP_DIR, c_string(map_dir)), want.headers)
        if want.object is None:
            raise ConntrackError(
                "what is there changed meanwhile, so that an object is needed, which was not asked"
                " for. Run it again."
            )
        return load_object.load(want.object.data, want.text, map_dir)

    def _map(
        self,
        spec: chain_maps.MapSpec,
        map_dir: str,
        generation: int,
        inherited: Inheritance | None,
        fds: t.Mapping[str, int],
    ) -> int:
        """Hand a map on or make it; return its file descriptor."""
        if inherited is not None and spec.name in inherited.shared:
            fd = self._keep(bpf.map_get_fd_by_id(inherited.old.infos[spec.name].id))
        else:
            entries = t.cast("int", spec.entries)  # chain.maps() gives every map its size
            inner = fds[spec.inner] if spec.inner else None
            fd = self._keep(
                bpf.map_create(
                    bpf_constants.MAP_TYPES[spec.kind],
                    spec.name,
                    spec.key_size,
                    spec.value_size,
                    entries,
                    inner=inner,
                )
            )
        bpf.obj_pin(fd, os.path.join(map_dir, spec.name))
        if spec.name == "settings":
            bpf.map_update(fd, _U32.pack(0), self.settings)
        elif spec.name == "schema":
            bpf.map_update(fd, _U32.pack(0), schema.packed())
        elif spec.name == chain_maps.PROOF_MAP.name:
            # before a program can see it; 0 would be no mark
            bpf.map_update(
                fd, _U32.pack(chain_maps.PROOF["mark"]), b"\1" + os.urandom(_U64.size - 1)
            )
        elif spec.name == "meta":
            digest = int(self.want.digest, 16)
            first = {
                "layout": chain_layout.LAYOUT_VERSION,
                "schema": schema.digest(schema.describe()),
                "generation": generation,
                "digest_high": digest >> 64,
                "digest_low": digest & (1 << 64) - 1,
            }
            for name, value in first.items():
                bpf.map_update(fd, _U32.pack(chain_maps.META[name]), _U64.pack(value))
        return fd

    def _change_map(self, step: Step) -> t.Callable[[], None] | None:
        # a map that starts empty goes with its generation
        return self._change_settings() if step.name == "settings" else None

    def _move_map(self, step: Step) -> t.Callable[[], None]:
        """Take over what another generation's maps hold; where it fails, the flows stay in reach
        and the next run goes on.
        """
        inherited = step.args.inherited
        migrate.finish(self._maps(inherited.new.number), self._maps(inherited.old.number))
        return irrevocable

    def _maps(self, number: int) -> Maps:
        return migrate.read_maps(number, self.paths.gen_dir(number))

    def _change_settings(self) -> t.Callable[[], None]:
        with contextlib.ExitStack() as undo:
            undo.callback(
                self._change_manifest(
                    Step("change", "manifest", str(self.have.generation), "", args=self.want)
                )
            )
            fd = self._keep(bpf.map_get_fd_by_id(self.have.maps["settings"].id))
            bpf.map_update(fd, _U32.pack(0), self.settings)
            undo.callback(bpf.map_update, fd, _U32.pack(0), self.have.settings)
            return undo.pop_all().close

    def _change_manifest(self, step: Step) -> t.Callable[[], None]:
        """Write down which generation is active, and what it is made of."""
        number = int(step.name)
        with contextlib.ExitStack() as undo:
            # each is undone also where it fails itself, for then it can be on the disk without
            # being safe there
            if step.args is not None:
                before = None
                # what somebody else may have changed does not come back
                with contextlib.suppress(ConntrackError):
                    before = manifest.read(self.paths, number)
                (
                    undo.callback(manifest.forget_generation, self.paths, number)
                    if before is None
                    else undo.callback(manifest.write, self.paths, number, before)
                )
                manifest.write(self.paths, number, step.args)
            if self.have.state.active != number:
                undo.callback(manifest.activate, self.paths, self.have.state.active)
                manifest.activate(self.paths, number)
            return undo.pop_all().close

    def _replace_link(self, step: Step) -> t.Callable[[], None]:
        number, key = step.args
        info, hook = self.have.links[key]
        link = self._keep(bpf.obj_get(os.path.join(self.paths.link_dir, key)))
        old = self._keep(bpf.prog_get_fd_by_id(info.prog_id))
        slot = chain_programs.SLOTS[t.cast("str", hook)]  # only links with a hook are planned
        new = self._keep(
            bpf.obj_get(os.path.join(self.paths.gen_dir(number), "prog", f"xdp_{slot}"))
        )
        bpf.link_update(link, new, old)
        return lambda: bpf.link_update(link, old, new)

    def _prove_generation(self, step: Step) -> t.Callable[[], None] | None:
        """Prove a generation that is pinned, and let it take over what is to go over to it."""
        number = int(step.name)
        (kept,) = (one for one in self.have.kept if one.number == number)
        stats = self._keep(bpf.obj_get(self.paths.map_of(number, "stats")))
        entries = {
            hook: self._keep(bpf.obj_get(self.paths.prog_of(number, chain_programs.SLOTS[hook])))
            for hook in chain_programs.TRACKING_HOOKS
        }
        probe_whole.prove_whole(
            entries, stats, guests=not set(kept.programs) <= set(chain_programs.SLOTS.values())
        )
        if not isinstance(step.args, Legacy) or not step.args.inherited.goes_over:
            return None
        inherited = step.args.inherited
        with contextlib.ExitStack() as undo:
            undo.callback(migrate.disconnect, inherited.new)
            migrate.connect(inherited)
            return undo.pop_all().close

    def _activate_generation(self, step: Step) -> t.Callable[[], None]:
        number, before = int(step.name), self.have.generation
        inherited = step.args.inherited if isinstance(step.args, Legacy) else None
        with contextlib.ExitStack() as undo:
            if before is not None and not os.path.lexists(self.paths.since(before)):
                # It was active, and nobody could tell afterwards.
                os.symlink(self.have.since, self.paths.since(before))
                undo.callback(os.unlink, self.paths.since(before))
            if inherited is not None and inherited.goes_over:
                undo.callback(self._give_back, number, inherited.old.number)
                migrate.connect_back(dataclasses.replace(inherited, new=self._maps(number)))
            self._swap_active(number)
            undo.callback(self._swap_active, before)
            undo.callback(manifest.activate, self.paths, self.have.state.active)
            manifest.activate(self.paths, number)
            return undo.pop_all().close

    def _give_back(self, number: int, before: int) -> None:
        """Let the generation before have what packets brought to this one."""
        migrate.finish(self._maps(before), self._maps(number))

    def _swap_active(self, number: int | None) -> None:
        if number is not None:
            pins.swap_symlink(f"gen/{number}", self.paths.active)
        else:
            remove_symlinks(self.paths)

    def _create_path(self, step: Step) -> t.Callable[[], None]:
        pins.swap_symlink(self.paths.seed_links()[step.name], step.name)
        return lambda: os.unlink(step.name)

    def _delete_generation(self, step: Step) -> t.Callable[[], None]:
        time.sleep(_GRACE_SECONDS)
        remove_tree(os.path.join(self.paths.gen, step.name))
        number = step.name.partition("_")[0]
        if number.isdigit():
            manifest.forget_generation(self.paths, int(number))
        return irrevocable

    def _delete_manifest(self, step: Step) -> t.Callable[[], None]:
        manifest.forget(self.paths, step.name)
        return irrevocable

    def _delete_link(self, step: Step) -> t.Callable[[], None]:
        os.unlink(os.path.join(self.paths.link_dir, step.args))
        return irrevocable


def remove_symlinks(paths: Paths) -> None:
    for path, target in {paths.active: "gen/", **paths.seed_links()}.items():
        pins.remove_symlink(target, path)


def apply(plan: Plan, paths: Paths, have: Have, want: Want, settings: bytes) -> None:
    """Apply a plan; on the first failure everything goes back to the generation before.

    What is moved or deleted can not come back, so nothing is until all else is done; where that
    fails, the next run goes on with it.

    :raises ConntrackError: naming the step, what was applied and what was rolled back.
    """
    if plan:
        for path in (paths.active, state_dir.active_link(paths), *paths.seed_links()):
            pins.end_swap(path)
    with _Builder(paths, have, want, settings) as builder:
        with _telling_what_runs(have):
            apply_steps([step for step in plan if step.action not in _FINAL], builder.do)
        for action in _FINAL:
            apply_steps([step for step in plan if step.action == action], builder.do)


@contextlib.contextmanager
def _telling_what_runs(have: Have) -> t.Iterator[None]:
    """Let the error of a run that went back say what the interfaces run now."""
    try:
        yield
    except ConntrackError as exc:
        if have.generation is None or exc.facts.get("not_rolled_back"):
            raise
        end = "\n" if "\n" in exc.message else "" if exc.message.endswith(".") else "."
        message = (
            f"{exc.message}{end} Everything went back: generation {have.generation} still runs."
        )
        raise ConntrackError(message.replace("\n ", "\n"), **exc.facts) from exc
