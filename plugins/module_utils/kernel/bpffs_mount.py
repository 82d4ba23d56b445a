# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting the BPF file system where it is missing, and taking that mount away again."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

from ..core import lock, safe_path
from ..core.errors import ConntrackError
from . import bpffs
from .bpffs import Paths

_MOUNT_RECORD = "bpffs"
#: System calls that mount (Linux 5.2), with the same numbers on all machines that share
#: asm-generic/unistd.h; include/uapi/linux/mount.h.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_CLOEXEC, _FSCONFIG_SET_STRING, _FSCONFIG_CREATE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_FDCWD = (
    1,
    1,
    6,
    4,
    -100,
)
#: MOUNT_ATTR_* and MS_* are the same for these, and ST_* of statvfs(3) too: nosuid, nodev, noexec.
_ATTRIBUTES = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
#: mount(2): MS_REMOUNT | MS_BIND changes the attributes of one mount.
_REMOUNT = 0x20 | 0x1000
#: As bpftool, iproute2 and systemd mount it: others have no business there, and could be first at
#: any name.
_MODE = 0o700
#: What the kernel itself puts into a fresh bpffs.
_PRELOADED = {"maps.debug", "progs.debug"}


def can_be_mounted(pin_root: str) -> bool:
    """Tell whether ensure_mounted() can make pin_root usable."""
    return bpffs.mounted(pin_root) or (
        bpffs.below_standard(pin_root)
        and not bpffs.below_standard(bpffs.mount_of(pin_root)[0])
        and os.path.isdir(bpffs.STANDARD)
    )


def usable(pin_root: str) -> bool:
    """Tell whether a pin_root can be used as it is, so that ensure_mounted() has nothing to do.

    :raises ConntrackError: see bpffs.check().
    """
    there = bpffs.check(pin_root)
    return there and not (bpffs.below_standard(bpffs.mount_of(pin_root)[0]) and _is_loose())


def ensure_mounted(pin_root: str) -> bool:
    """Make pin_root usable: mount the bpffs where it is missing (recorded, for release()), make the
    directory.

    :return: whether anything was changed.
    :raises ConntrackError: see check(); also when the kernel refuses the mount.
    """
    if usable(pin_root):
        return False
    if not bpffs.mounted(pin_root):
        _mount()
    elif _is_loose():
        _tighten()
    safe_path.make_dirs(pin_root, 0o700)
    return True


def _record() -> str:
    """Return the file that holds the device number of the bpffs that we mounted."""
    return os.path.join(bpffs.RUN_DIR, _MOUNT_RECORD)


def _mount() -> None:
    """Mount the bpffs. The record of it is there first: a run that is killed in between leaves no
    mount that nobody takes away.
    """
    if not os.path.isdir(bpffs.STANDARD):
        raise ConntrackError(
            f"{bpffs.STANDARD} does not exist: this kernel has no BPF file system"
            " (CONFIG_BPF_SYSCALL), or /sys is not mounted."
        )
    with lock.held(bpffs.RUN_DIR, make=0o755), contextlib.ExitStack() as stack:
        stack.callback(_rmdir, bpffs.RUN_DIR)
        if bpffs.mounted(bpffs.STANDARD):  # another run did it meanwhile
            return
        context = _system_call(_FSOPEN, b"bpf", _CLOEXEC)
        stack.callback(os.close, context)
        _system_call(_FSCONFIG, context, _FSCONFIG_SET_STRING, b"mode", f"{_MODE:o}".encode(), 0)
        _system_call(_FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0)
        mount = _system_call(_FSMOUNT, context, _CLOEXEC, _ATTRIBUTES)
        stack.callback(os.close, mount)
        try:
            with safe_path.create(_record()) as record:
                record.write(f"{os.fstat(mount).st_dev}\n".encode())
            _system_call(
                _MOVE_MOUNT,
                mount,
                b"",
                _AT_FDCWD,
                bpffs.STANDARD.encode(),
                _MOVE_MOUNT_F_EMPTY_PATH,
            )
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_record())
            raise


def _system_call(number: int, *args: int | bytes | None) -> int:
    """Make a system call of those that mount; return its result.

    :raises ConntrackError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(
        libc.syscall(
            ctypes.c_long(number),
            *(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args),
        )
    )
    if result < 0:
        code = ctypes.get_errno()
        raise ConntrackError(
            f"mount -t bpf bpf {bpffs.STANDARD}: {os.strerror(code)}"
            f" ({errno.errorcode.get(code, code)})."
        )
    return result


def _is_ours() -> bool:
    """Tell whether what is mounted is what _mount() mounted; a record that a killed run left half
    written tells of no mount.
    """
    try:
        with open(_record(), encoding="ascii") as lines:
            return lines.read().strip() == str(os.stat(bpffs.STANDARD).st_dev)
    except FileNotFoundError:
        return False


def _is_loose() -> bool:
    """Tell whether our mount lets in more than root: releases before this one mounted it so that
    every user could make a name there.
    """
    if not _is_ours():
        return False
    return (
        os.stat(bpffs.STANDARD).st_mode & 0o777 != _MODE
        or os.statvfs(bpffs.STANDARD).f_flag & _ATTRIBUTES != _ATTRIBUTES
    )


def _tighten() -> None:
    """Give our mount the permissions and attributes that a new one gets. Mounts of others stay as
    they are.
    """
    os.chmod(bpffs.STANDARD, _MODE)
    if (
        ctypes.CDLL(None, use_errno=True).mount(
            None, bpffs.STANDARD.encode(), None, ctypes.c_ulong(_REMOUNT | _ATTRIBUTES), None
        )
        != 0
    ):
        code = ctypes.get_errno()
        raise ConntrackError(
            f"mount -o remount,bind,nosuid,nodev,noexec {bpffs.STANDARD}: {os.strerror(code)}"
            f" ({errno.errorcode.get(code, code)})."
        )


def _rmdir(directory: str) -> None:
    with contextlib.suppress(OSError):  # not there, others keep something in it, or a mount point
        os.rmdir(directory)


def _rmdir_alone(directory: str, *inside: str) -> None:
    """Remove a directory, and those inside, where they are empty and no run has the lock of it: one
    that begins has it before it puts anything there.
    """
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError, lock.Busy),
        lock.held(directory, 0),
    ):
        for path in (*inside, directory):
            _rmdir(path)


def release(pin_root: str) -> None:
    """Undo ensure_mounted() where nothing uses it any more: drop the directories that are empty,
    unmount the bpffs if it is our mount and empty.
    """
    paths = Paths(pin_root)
    _rmdir_alone(paths.base, paths.gen, paths.link_dir)
    if pin_root != bpffs.STANDARD and bpffs.below_standard(pin_root):
        _rmdir(pin_root)
    if os.path.exists(_record()):
        with contextlib.suppress(FileNotFoundError), lock.held(bpffs.RUN_DIR):
            _unmount()


def _unmount() -> None:
    """Take our mount and its record away where nothing is in it."""
    if _is_ours():
        if set(os.listdir(bpffs.STANDARD)) - _PRELOADED:
            return
        if ctypes.CDLL(None, use_errno=True).umount2(bpffs.STANDARD.encode(), 0) != 0:
            return  # somebody stands in it; the record stays for the next time
    os.unlink(_record())
    _rmdir(bpffs.RUN_DIR)
