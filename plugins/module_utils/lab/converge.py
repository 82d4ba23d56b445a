# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""observe, plan, apply: one lab, as it is wanted."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ..core import lock
from ..core import plan as plans
from ..core.errors import ConntrackError, bad_value
from ..core.plan import Plan, Step
from ..kernel import private_netns, sysctls
from ..kernel.netlink import NetlinkError
from . import model as lab_model
from . import plan as lab_plan
from . import record as lab_record
from . import topology
from .apply import Apply, Attachments
from .kernel import Kernel
from .model import End, Have, Sysctl, SysctlKey, Topology

# plans in one run: the first, what its sysctls changed elsewhere, what setting that right changed,
# and one to spare
_TURNS = 4


def check_sysctls_exist(want: Topology, have: Have) -> None:
    """Refuse sysctls that do not exist where they shall be set; those of links to come are left to
    ``probe``.

    :raises ConntrackError: naming the first.
    """
    ends = want.ends
    for sysctl in want.sysctls:
        known = sysctl.netns is None or sysctl.netns in have.namespaces
        if known and sysctl.key not in have.sysctls and not lab_model.of_link(sysctl.key, ends):
            raise _no_sysctl(sysctl)


def _no_sysctl(sysctl: Sysctl) -> ConntrackError:
    place = "on this host" if sysctl.netns is None else "in a network namespace of this kernel"
    return bad_value(
        "sysctls",
        lab_model.show_sysctl(sysctl.key),
        f"there is no such sysctl {place}: correct the name, or load the module that brings it",
    )


def probe(plan: Plan) -> dict[SysctlKey, str]:
    """Try in a namespace without a name what only the kernel can say: whether it has veth links,
    and takes the sysctls' values.

    :return: those values that the kernel shows otherwise than they were written (``0x1``,
        ``8080,8081``, a shortened address), as it shows them.
    :raises ConntrackError: naming the missing feature, or the value.
    """
    shown: dict[SysctlKey, str] = {}
    wanted = [step.args for step in plan if step.kind == "sysctl" and isinstance(step.args, Sysctl)]
    new_links = [step.args for step in plan if step.kind == "link" and step.action == "create"]
    wanted += [sysctl for dummy, dummy, sysctls in new_links for sysctl in sysctls]
    if not wanted and not new_links:
        return shown
    tried: dict[tuple[str, str, bool], str] = {}
    with private_netns.anonymous(), Kernel() as kernel:
        if new_links:
            _probe_veth(kernel)
        for sysctl in wanted:
            # the links are not in here
            attempt = (topology.of_default(sysctl.path), sysctl.value, sysctl.netns is None)
            if attempt not in tried:
                tried[attempt] = _probe_sysctl(sysctl, attempt[0])
            if tried[attempt] != sysctl.value:
                shown[sysctl.key] = tried[attempt]
    return shown


def _probe_veth(kernel: Kernel) -> None:
    one, two = (
        End(name, None, (), topology.DEFAULT_MTU, f"02:00:00:00:00:0{i}")
        for i, name in ((1, "probe0"), (2, "probe1"))
    )
    try:
        kernel.new_veth("", one, two)
    except NetlinkError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENODEV):
            raise ConntrackError(
                "This kernel has no veth links (CONFIG_VETH): load the module veth, or boot a"
                f" kernel that has it. It says: {exc}"
            ) from exc
        raise


def _probe_sysctl(sysctl: Sysctl, path: str) -> str:
    """Return a value as the kernel shows it once it is written."""
    try:
        sysctls.write_sysctl(path, sysctl.value)
        return sysctls.read_sysctl(path) or sysctl.value
    except (FileNotFoundError, NotADirectoryError):
        if sysctl.netns is not None:  # on the host it was found; some exist only there
            raise _no_sysctl(sysctl) from None
    except OSError as exc:
        if sysctl.netns is not None or exc.errno not in (errno.EACCES, errno.EPERM):
            raise bad_value(
                f"sysctls.{lab_model.show_sysctl(sysctl.key)}",
                sysctl.value,
                f"the kernel says {exc.strerror}: correct the value",
            ) from exc
    return topology.decimal(sysctl.value)  # it exists on the host only, and can not be tried


class Result(t.NamedTuple):
    """What a run found and did.

    :ivar plan: the steps, applied unless it was a check.
    :ivar facts: the lab as it is after the run (in check mode: as it was).
    """

    plan: Plan
    facts: dict[str, t.Any]


def converge(
    want: Topology,
    check: bool = False,
    patience: float = lock.SECONDS,
    attachments: Attachments | None = None,
) -> Result:
    """Make the lab what is wanted, changing only what differs.

    A sysctl can change what no step is about: other sysctls, addresses, routes. So where one was
    set the plan is made again, until nothing is left to be done.

    :param want: from topology.parse or topology.absent.
    :param check: only plan.
    :param patience: how long to wait for another run, in seconds.
    :param attachments: takes care of the chain on interfaces that go; None: nobody does.
    :raises ConntrackError: foreign objects, a sysctl or a feature that the kernel lacks, settings
        that change each other without end, or a step that failed (then ``applied`` and
        ``rolled_back``).
    :raises ImportError: pyroute2 is missing.
    """
    if os.geteuid() != 0:
        raise ConntrackError("Network namespaces need root: run as root, with become for instance.")
    want = topology.without_missing(want, lambda path: os.path.exists(f"/proc/sys/{path}"))
    found = _planned(want, check, attachments)
    if check or (found is not None and not (found[1] or lab_record.unfinished(want.lab))):
        have, plan = t.cast("tuple[Have, Plan]", found)
        return Result(plan, lab_plan.facts(want, have))
    with Kernel() as kernel:
        with lock.held(lab_model.RECORD_DIR, patience, make=0o755), _tidied():
            lab_record.end_write(want.lab)
            plan = _settle(kernel, want, attachments)
            with plans.applied(plan):
                have = kernel.observe(want, links_only=True)
        with plans.applied(plan):
            kernel.wait_running(
                [link for key in want.ends if (link := have.links.get(key)) and not link.running]
            )
    return Result(plan, lab_plan.facts(want, have))


def _settle(kernel: Kernel, want: Topology, attachments: Attachments | None) -> Plan:
    """Apply plans until nothing is left to be done; return all their steps.

    :raises ConntrackError: see converge().
    """
    done: Plan = []
    for dummy in range(_TURNS):
        with plans.applied(done) if done else contextlib.nullcontext():
            # another run may have changed what was read before
            have, plan = _plan(kernel, want, attachments)
            with Apply(kernel, want, have, attachments) as do:
                plans.apply(plan, do)
        done += plan
        if not any(_reaches_further(step) for step in plan):
            return done
    again = ", ".join(dict.fromkeys(step.name for step in plan))
    with plans.applied(done):
        raise ConntrackError(
            f"Lab {want.lab!r} does not come to rest: {again} had to be set {_TURNS} times, so they"
            " change each other. Remove one of them."
        )


def _reaches_further(step: Step) -> bool:
    """Say whether a step sets a sysctl, by itself or with the link that it makes."""
    return (
        step.kind == "sysctl"
        or (step.action, step.kind) == ("create", "link")
        and bool(step.args[2])
    )


def _planned(
    want: Topology, check: bool, attachments: Attachments | None
) -> tuple[Have, Plan] | None:
    """Return what is there and the plan; None where another run seems to be in the middle of its
    work.
    """
    try:
        with Kernel() as kernel:
            return _plan(kernel, want, attachments)
    except (ConntrackError, OSError):
        if check:
            raise
    return None


@contextlib.contextmanager
def _tidied() -> t.Iterator[None]:
    """Remove the directory of the records afterwards, when none is in it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(lab_model.RECORD_DIR)


def _plan(kernel: Kernel, want: Topology, attachments: Attachments | None) -> tuple[Have, Plan]:
    have = kernel.observe(want)
    check_sysctls_exist(want, have)
    plan = lab_plan.make(want, have)
    shown = probe(plan)
    if shown:
        plan = lab_plan.make(topology.with_values(want, shown), have)
    return have, plan if attachments is None else attachments.around(plan)
