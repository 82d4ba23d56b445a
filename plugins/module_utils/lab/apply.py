# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the steps of a lab's plan are done, and undone."""

from __future__ import annotations

import time
import typing as t

from ..core import plan as plans
from ..core.plan import Plan, Step
from ..kernel import ethtool, netns, private_netns, sysctls
from . import kernel as lab_kernel
from . import model as lab_model
from . import namespaces
from . import record as lab_record
from . import sysctls as lab_sysctls
from .channel import Channel
from .kernel import Kernel
from .model import Address, End, Have, HaveRoute, Key, Recorded, Route, Sysctl, SysctlKey, Topology


def _nothing(dummy_result: object) -> None:
    """Drop a result: what undoes a step returns none."""


def _set_vlan_offload(key: Key, on: bool) -> None:
    """Let an interface's VLAN tags travel beside its frames, or in them."""
    with netns.entered(key[0]):
        ethtool.set_features(key[1], dict.fromkeys(ethtool.VLAN_OFFLOADS, on))


class Apply:
    """Applies the steps of one plan; each method takes a step's ``args`` and returns what undoes
    it.
    """

    def __init__(
        self, kernel: Kernel, want: Topology, have: Have, attachments: Attachments | None = None
    ) -> None:
        self._kernel = kernel
        self._attachments = attachments
        self._want = want
        self._have = have
        self._claims: namespaces.Claims | None = None
        self._methods: dict[tuple[str, str], t.Callable[[t.Any], plans.Undo]] = {
            ("create", "netns"): self._create_netns,
            ("delete", "netns"): self._delete_netns,
            ("create", "link"): self._create_link,
            ("change", "link"): self._change_link,
            ("delete", "link"): self._delete_link,
            ("create", "address"): lambda args: self._set_address(args[0], args[1], present=True),
            ("delete", "address"): lambda args: self._set_address(args[0], args[1], present=False),
            ("create", "route"): self._set_route,
            ("change", "route"): self._set_route,
            ("delete", "route"): self._delete_route,
            ("change", "sysctl"): self._set_sysctl,
        }

    def __enter__(self) -> Apply:
        return self

    def __exit__(self, *dummy: object) -> None:
        if self._claims is not None:
            self._claims.close()

    def __call__(self, step: Step) -> plans.Undo:
        """Apply one step."""
        if step.kind == "xdp" and self._attachments is not None:
            return self._attachments.do(step)
        if step.kind == "record":
            return (
                self._hand_over(*step.args)
                if isinstance(step.args, tuple)
                else self._record(step.args)
            )
        return self._methods[step.action, step.kind](step.args)

    def _create_netns(self, name: str) -> plans.Undo:
        if self._claims is None:
            self._claims = namespaces.Claims(self._want.mark)
        with private_netns.anonymous():
            channel = Channel()
        try:
            self._kernel.set_link(channel, 1, up=True, alias=self._want.mark)
            self._claims.mount(channel.netns_fd, name)
        except BaseException:
            channel.close()
            raise
        self._kernel.adopt(name, channel)
        return lambda: self._remove_netns(name)

    def _remove_netns(self, name: str) -> None:
        self._kernel.forget(name)
        namespaces.remove(name)

    def _delete_netns(self, name: str) -> plans.Undo:
        self._remove_netns(name)
        return plans.irrevocable

    def _create_link(self, args: tuple[End, End, list[Sysctl]]) -> plans.Undo:
        one, two, wanted = args
        mark = self._want.mark
        self._kernel.new_veth(mark, one, two)
        try:
            for sysctl in wanted:
                with netns.entered(sysctl.netns):
                    sysctls.write_sysctl(sysctl.path, sysctl.value)
            for end, peer in ((one, two), (two, one)):
                channel = self._kernel.channel(end.netns)
                self._kernel.set_link(
                    channel,
                    0,
                    up=True,
                    name=end.name,
                    alias=lab_model.alias_of(mark, peer.key),
                    group=0,
                )
                _set_vlan_offload(end.key, False)
        except BaseException:
            self._remove_link(one.key)
            raise
        return lambda: self._remove_link(one.key)

    def _remove_link(self, key: Key) -> None:
        self._kernel.delete_link(self._want.mark, key, self._kernel.index(key))

    def _change_link(self, args: tuple[Key, int, dict[str, t.Any], dict[str, t.Any]]) -> plans.Undo:
        key, index, new, old = args
        self._set_link(key, index, new)
        return lambda: self._set_link(key, index, old)

    def _set_link(self, key: Key, index: int, wanted: t.Mapping[str, t.Any]) -> None:
        attributes = {name: value for name, value in wanted.items() if name != "vlan_offload"}
        if attributes:
            self._kernel.set_link(self._kernel.channel(key[0]), index, **attributes)
        if "vlan_offload" in wanted:
            _set_vlan_offload(key, wanted["vlan_offload"])

    def _delete_link(self, args: tuple[list[tuple[Key, int]], bool]) -> plans.Undo:
        alive, goes_with_namespace = args
        for key, index in alive:
            if goes_with_namespace and self._vanishes(key, index):
                continue
            self._kernel.delete_link(self._want.mark, key, index)
        return plans.irrevocable if alive else None

    def _vanishes(self, key: Key, index: int) -> bool:
        """Wait until the kernel has taken the link of a deleted namespace away; it works through
        all of them at once, in the background.
        """
        deadline = time.monotonic() + lab_kernel.VANISH_SECONDS
        channel = self._kernel.channel(key[0])
        while channel.get_link(index) is not None:
            if time.monotonic() > deadline:  # a process still lives in the namespace
                return False
            time.sleep(lab_kernel.POLL_SECONDS)
        return True

    def _set_address(self, key: Key, address: Address, present: bool) -> plans.Undo:
        if not self._kernel.address(key, address, present):
            return None
        return lambda: _nothing(self._kernel.address(key, address, not present))

    def _set_route(self, args: tuple[Route, HaveRoute | None]) -> plans.Undo:
        route, before = args
        # also where the one before went since it was seen
        if self._kernel.route(route, present=True):
            return lambda: _nothing(self._kernel.route(route, present=False))
        return (
            None if before is None else lambda: _nothing(self._kernel.route(before, present=True))
        )

    def _delete_route(self, route: HaveRoute) -> plans.Undo:
        # it went since it was seen, and is not ours to bring back
        if not self._kernel.route(route, present=False):
            return None
        return lambda: _nothing(self._kernel.route(route, present=True))

    def _set_sysctl(self, args: Sysctl | tuple[str | None, t.Mapping[str, str]]) -> plans.Undo:
        """Set one sysctl, or write a recorded set of them back."""
        name = args.netns if isinstance(args, Sysctl) else args[0]
        with netns.entered(name):
            if isinstance(args, Sysctl):
                before = lab_sysctls.snapshot(args.path)
                sysctls.write_sysctl(args.path, args.value)
            else:
                before = {
                    path: value
                    for recorded in args[1]
                    for path, value in lab_sysctls.snapshot(recorded).items()
                }
                lab_sysctls.write_back(args[1])

        def undo() -> None:
            with netns.entered(name):
                lab_sysctls.write_back(before)

        return undo

    def _record(self, wanted: list[tuple[Sysctl, t.Mapping[str, str] | None]]) -> plans.Undo:
        """Write down what the lab sets, and the values before, where an earlier run has not done
        so.
        """
        record: dict[SysctlKey, Recorded] = {}
        for sysctl, previous in wanted:
            if previous is None:
                with netns.entered(sysctl.netns):
                    previous = lab_sysctls.snapshot(sysctl.path)
            record[sysctl.key] = Recorded(sysctl.value, netns.inode(sysctl.netns) or 0, previous)
        lab_record.write_record(self._want.lab, record)
        return lambda: lab_record.write_record(self._want.lab, self._have.record)

    def _hand_over(self, heir: str, key: SysctlKey, previous: t.Mapping[str, str]) -> plans.Undo:
        """Give the values from before this lab to another lab that needs the same sysctl."""
        before = lab_record.read_record(heir)
        lab_record.write_record(
            heir, {**before, key: Recorded(before[key].wanted, before[key].inode, previous)}
        )
        return lambda: lab_record.write_record(heir, before)


class Attachments(t.Protocol):
    """What of the chain stands on the lab's interfaces; see lab_attachments."""

    def around(self, plan: Plan) -> Plan:
        """Return the plan with the steps that the chain needs before and after it."""

    def do(self, step: Step) -> plans.Undo:
        """Apply one of these steps."""
