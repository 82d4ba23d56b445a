# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module xdp_program does, from its parameters to its result.

The chain is loaded, gone back from, or taken away; what is written down is attached again to the
interfaces whose links hold nothing any more.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ..build import clang as build_clang
from ..build import features, render
from ..build import object as object_file
from ..chain import guests
from ..core import plan as plans
from ..core.errors import ConntrackError, bad_value
from ..generation import converge as generation
from ..generation import diagnosis
from ..generation.replay import capture
from ..generation.replay import run as replay
from ..kernel import bpffs
from . import restore

Params = t.Mapping[str, t.Any]


@dataclasses.dataclass
class Outcome:
    """What a run came to.

    :ivar plan: what was done, or in check mode would be.
    :ivar have: what is there now.
    :ivar more: what else the module returns.
    :ivar warnings: what an operator is to know.
    :ivar proof: what was replayed, if anything.
    """

    plan: plans.Plan
    have: generation.Have
    more: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    proof: replay.Proof | None = None


class _ObjectWanted(Exception):
    """The target needs an object before anything can be done.

    :ivar machine: for which it is to be made.
    """

    def __init__(self, machine: dict[str, t.Any]) -> None:
        super().__init__()
        self.machine = machine


def run(params: Params, check_mode: bool, require: t.Callable[[str], None]) -> dict[str, t.Any]:
    """Bring the chain to what is wanted; return the module's result.

    :param params: the module's options, with those that its action part fills in.
    :param require: makes sure that a library can be imported, by its name in core.libraries.
    :raises ConntrackError: for a bad option, and where it cannot be done.
    """
    paths = bpffs.Paths(params["pin_root"], params["state_dir"])
    if params["generation"] is not None and params["state"] != "rolled_back":
        raise bad_value("generation", params["generation"], "it belongs to state: rolled_back")
    bpffs.check_text(paths)
    bpffs.check(paths.pin_root)
    try:
        done = _STATES[params["state"]](paths, params, check_mode, require)
    except _ObjectWanted as exc:
        return {"changed": False, "object_wanted": exc.machine}
    dropped, warnings = generation.outlook(done.plan)
    warnings = [*done.warnings, *warnings]
    if done.proof:
        done.more["replay"] = done.proof.report.as_dict()
        if done.proof.warning:
            warnings.append(done.proof.warning)
    return {
        "changed": bool(done.plan),
        "plan": plans.as_dicts(done.plan),
        "diff": plans.as_diff(done.plan),
        "chain": generation.facts(done.have, paths),
        "mended": [],
        "dropped": dropped,
        **done.more,
        "warnings": warnings,
    }


def _present(
    paths: bpffs.Paths, params: Params, check_mode: bool, require: t.Callable[[str], None]
) -> Outcome:
    proof = _proof_of(params, paths)
    want = _want_of(params)
    policy = generation.Policy(keep=params["keep"], on_schema_change=params["on_schema_change"])
    generation.check(want, policy)
    heard = generation.listen(paths)
    plan, before = generation.ensure(paths, want, True, policy, heard, params["lock_timeout"])
    if any(step.action == "load" for step in plan):
        if want.build == generation.BCC:
            require("bcc")
        features.check()
    more: dict[str, t.Any] = {}
    if want.object is None and generation.needs_object(plan, before, want):
        machine = build_clang.here()._asdict()
        if proof or not check_mode:  # a plan alone does not need the object here
            raise _ObjectWanted(machine)
        more["object_wanted"] = machine
    plan, have = generation.ensure(
        paths,
        want,
        check_mode,
        dataclasses.replace(policy, proof=proof),
        heard,
        params["lock_timeout"],
    )
    done = _attach_again(paths, have, check_mode, params["lock_timeout"])
    more["mended"] = diagnosis.mended(before.faults, done.have.faults)
    return dataclasses.replace(done, plan=plan + done.plan, more=more, proof=proof)


def _rolled_back(
    paths: bpffs.Paths, params: Params, check_mode: bool, dummy: t.Callable[[str], None]
) -> Outcome:
    return Outcome(
        *generation.roll_back(paths, params["generation"], check_mode, params["lock_timeout"])
    )


def _absent(
    paths: bpffs.Paths, params: Params, check_mode: bool, dummy: t.Callable[[str], None]
) -> Outcome:
    plan = generation.remove(paths, check_mode, params["lock_timeout"])
    return Outcome(plan, generation.observe(paths))


_STATES: dict[str, t.Callable[[bpffs.Paths, Params, bool, t.Callable[[str], None]], Outcome]] = {
    "present": _present,
    "rolled_back": _rolled_back,
    "absent": _absent,
}


def _proof_of(params: Params, paths: bpffs.Paths) -> replay.Proof | None:
    """Return what proves a new generation besides the probe."""
    options, frames = params["replay"], params["replay_frames"]
    if params["verify"] != "replay":
        return None
    if not frames:
        raise ConntrackError(
            "replay_frames: it is empty: the module has to be run as ebpf.conntrack.xdp_program,"
            " whose action part sends the capture."
        )
    replay.check_limit(options["limit"])
    with open(frames, "rb") as source:
        packets = capture.read(source, frames, options["limit"])
    return replay.Proof(packets, options["hook"], options["on_difference"], paths)


def _want_of(params: Params) -> generation.Want:
    """Return the generation that is wanted."""
    render.check_unfiltered(params["forward"], params[render.UNFILTERED])
    if not params["rendered"]:
        raise ConntrackError(
            "rendered: it is empty: the module has to be run as ebpf.conntrack.xdp_program, whose"
            " action part renders the sources."
        )
    text, headers = render.unpack(params["rendered"])
    return generation.Want(
        text,
        headers,
        timeouts={
            name: seconds for name, seconds in params["timeouts"].items() if seconds is not None
        },
        knobs={name: int(value) for name, value in params["settings"].items() if value is not None},
        **{name: params[name] for name in render.SIZES},
        pinned=guests.pinned_here(guests.parse(params["guests"])),
        build=generation.BCC if params["build"] == "bcc" else generation.OBJECT,
        object=_object_of(params, text, headers),
    )


def _object_of(params: Params, text: str, headers: dict[str, str]) -> object_file.Built | None:
    """Return the object that was sent, None where there is none yet.

    :raises ConntrackError: where it is not whole, or not one of this chain.
    """
    path, said = params["object_file"], params["object_manifest"]
    if not path or not said:
        return None
    with open(path, "rb") as file:
        built = object_file.Built(object_file.parse(said, "object_manifest"), file.read())
    object_file.check(
        built,
        build_clang.here(),
        object_file.sources_digest(text, headers),
        "the object that was sent",
    )
    return built


def _attach_again(
    paths: bpffs.Paths, have: generation.Have, check_mode: bool, patience: float
) -> Outcome:
    """Attach what is written down to the interfaces whose links hold nothing any more."""
    stale = [fault.object for fault in have.faults if fault.fault == "link_stale"]
    if have.generation is None or not stale:
        return Outcome([], have)
    done = restore.attach_again(paths, check_mode, patience, stale)
    if done.steps and not check_mode:
        have = generation.observe(paths)
    return Outcome(done.steps, have, warnings=[*done.warnings, *done.refused.values()])
