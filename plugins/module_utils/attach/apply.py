# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a plan is done, step by step, and undone."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ..chain.programs import SLOTS
from ..core import plan, safe_path
from ..core.errors import ConntrackError
from ..kernel import bpf, bpffs, netdev, netns
from . import model as attach_model
from .model import Attached, Change

#: When native fails for one of these, the driver has no XDP or cannot run it as the interface is
#: set up: MTU, queues, features. All others would stop generic as well, or pass: rights (EPERM),
#: who holds the interface (EBUSY, EEXIST), memory (ENOMEM), a link that went (ENODEV). 524 is
#: ENOTSUPP, which the kernel keeps to itself.
_DRIVER_CANNOT = (errno.EOPNOTSUPP, 524, errno.EINVAL, errno.ERANGE, errno.ENOSPC)
MEND_NATIVE = {
    errno.ERANGE: (
        f"Lower the MTU of the veth's other end to at most {attach_model.VETH_MAX_MTU}, or give"
        " mode: generic or auto."
    ),
    errno.ENOSPC: (
        "Give this end of the veth at least as many rx queues as the other has tx queues (ethtool"
        " -L), or give mode: generic or auto."
    ),
}
_MEND_NATIVE_ELSE = "Give mode: generic or auto."


# ---------------------------------------------------------------- apply
class Applier:
    """Applies the plan's steps; keeps the programs it may have to put back open until it is closed.

    :ivar warnings: what the user should know of steps that went otherwise than at first tried.
    """

    def __init__(self, paths: bpffs.Paths) -> None:
        self.paths = paths
        self.warnings: list[str] = []
        self._fds = contextlib.ExitStack()

    def __enter__(self) -> Applier:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._fds.close()

    def _keep(self, fd: int) -> int:
        self._fds.callback(bpf.close, fd)
        return fd

    def do(self, step: plan.Step) -> plan.Undo:
        """Apply one step. :return: what undoes it."""
        change: Change = step.args
        with self._where(change):
            return (
                self._update(change, change.update)
                if change.update is not None and not change.moved_from
                else self._exchange(change)
            )

    @staticmethod
    def _where(change: Change) -> t.ContextManager[None]:
        """Enter the interface's namespace; where there is no interface there may be no namespace,
        and only a pin is to be removed.
        """
        return netns.entered(change.want.netns if change.have.ifindex else None)

    def _hook(self, change: Change) -> int:
        return self._keep(bpf.obj_get(self.paths.prog(SLOTS[change.want.hook])))

    @staticmethod
    def _move_pin(before: str, after: str) -> t.Callable[[], None]:
        os.rename(before, after)
        return lambda: os.rename(after, before)

    def _update(self, change: Change, attached: Attached) -> t.Callable[[], None]:
        link, new = self._keep(bpf.obj_get(change.have.pin)), self._hook(change)
        old = self._keep(bpf.prog_get_fd_by_id(attached.program.id))
        bpf.link_update(link, new, old)
        return lambda: bpf.link_update(link, old, new)

    def _exchange(self, change: Change) -> plan.Undo:
        """Take away what is in the way and attach; between the two the interface has no program, so
        all that can fail early does so before.
        """
        new = self._hook(change) if change.modes else None
        put_back: list[t.Callable[[], None]] = []

        def undo_all() -> None:
            with self._where(change):
                for undo in reversed(put_back):
                    undo()

        try:
            for path in change.drop_pins:
                put_back.append(self._drop_pin(change, path))
            if change.drop is not None:
                put_back.append(self._drop_foreign(change, change.drop))
            if change.moved_from:
                put_back.append(self._move_pin(change.moved_from, change.have.pin))
            if change.update is not None:
                put_back.append(self._update(change, change.update))
            if new is not None:
                put_back.append(self._attach(change, new))
        except BaseException as exc:  # an interrupt, too, must not leave the interface bare
            try:
                undo_all()
            except bpf.BpfError as undo_exc:
                raise ConntrackError(
                    f"{exc} What was attached before could not be put back: {undo_exc}."
                ) from exc
            raise
        return undo_all

    def _drop_pin(self, change: Change, path: str) -> t.Callable[[], None]:
        link = self._keep(bpf.obj_get(path))
        attached, ifindex = change.have.attached, change.have.ifindex
        live = attached if attached is not None and attached.pin == path else None
        old = self._keep(bpf.prog_get_fd_by_id(live.program.id)) if live is not None else -1
        os.unlink(path)  # first, for it can be put back as it was
        try:
            # not the last fd perhaps: somebody may hold the link besides our pin
            bpf.link_detach(link)
        except BaseException:
            bpf.obj_pin(link, path)
            raise

        def put_back() -> None:
            if live is not None:
                self._pin(
                    self._keep(netdev.link_create(old, ifindex, flags=netdev.XDP_FLAGS[live.mode])),
                    path,
                )

        return put_back

    def _drop_foreign(self, change: Change, foreign: Attached) -> t.Callable[[], None]:
        ifindex = change.have.ifindex
        old, flags = (
            self._keep(bpf.prog_get_fd_by_id(foreign.program.id)),
            netdev.XDP_FLAGS[foreign.mode],
        )
        if foreign.by_link:
            bpf.link_detach(self._keep(bpf.link_get_fd_by_id(foreign.link_ids[0])))
        else:
            netdev.xdp_set(ifindex, -1, flags | netdev.XDP_FLAGS_REPLACE, expected_fd=old)

        def put_back() -> None:
            netdev.xdp_set(ifindex, old, flags | netdev.XDP_FLAGS_UPDATE_IF_NOEXIST)
            if foreign.by_link:
                self.warnings.append(
                    f"{change.want.label}: program {foreign.program.id} is back, but through"
                    " netlink: a detached bpf_link can not be revived."
                )

        return put_back

    def _attach(self, change: Change, prog_fd: int) -> t.Callable[[], None]:
        want, ifindex = change.want, change.have.ifindex
        why = change.why_generic
        for number, mode in enumerate(change.modes):
            try:
                link = self._keep(
                    netdev.link_create(prog_fd, ifindex, flags=netdev.XDP_FLAGS[mode])
                )
                break
            except bpf.BpfError as exc:
                why = exc.words or exc.message
                if exc.errno not in _DRIVER_CANNOT or number + 1 == len(change.modes):
                    mend = (
                        f" {MEND_NATIVE.get(exc.errno, _MEND_NATIVE_ELSE)}"
                        if mode == "native" and exc.errno in _DRIVER_CANNOT
                        else ""
                    )
                    raise ConntrackError(
                        f"{want.field}: {want.label}: the kernel refuses {mode} XDP:"
                        f" {exc.message}.{mend}"
                    ) from exc
        if mode == "generic" and want.mode == "auto":
            self.warnings.append(
                f"{want.label}: attached in generic mode, which is slower, because native was not"
                f" possible: {why}."
            )
        if mode == "generic" and change.have.big:
            self.warnings.append(
                f"{want.label}: packets of up to {change.have.longest} bytes come here (BIG TCP),"
                " and in generic mode the kernel copies each into one piece of memory first: it"
                " drops those for which it finds none. Set gro_max_size and gro_ipv4_max_size (on"
                " the other end of a veth gso_max_size and gso_ipv4_max_size) to"
                f" {attach_model.IP_MOST}, or give mode: native."
            )
        path = change.have.pin
        self._pin(link, path)

        def take_away() -> None:
            bpf.link_detach(link)
            os.unlink(path)

        return take_away

    def _pin(self, link: int, path: str) -> None:
        try:
            safe_path.make_dirs(self.paths.link_dir, 0o700)
            bpf.obj_pin(link, path)
        except Exception:
            bpf.link_detach(link)
            raise


def rmdir(directory: str) -> None:
    """Remove a directory that is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(directory)
