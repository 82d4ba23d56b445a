# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The BPF file system: where the collection's pins stand, mounting it, and taking its mount away
again.

Layout below ``pin_root``::

    ebpf_conntrack/gen/<N>/{prog,map}/   one generation's pins
    ebpf_conntrack/gen/<N>/since -> time when it became active; there once another one took over
    ebpf_conntrack/active -> gen/<N>     the generation in use; moved by one rename
    ebpf_conntrack/link/<interface>      the bpf_links
    prog -> ebpf_conntrack/active/prog   the seed's paths
    map -> ebpf_conntrack/active/map
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import re
import stat

from ..core import lock, safe_path
from ..core.errors import ConntrackError, bad_value

#: The one place where a bpffs is mounted when it is missing; every distribution that mounts it does
#: it there.
STANDARD = "/sys/fs/bpf"
#: Facts about this boot, for clean-up; a tmpfs.
RUN_DIR = lock.RUN_DIR
#: Where it is kept what each generation is made of; see state.py.
STATE_DIR = "/var/lib/ebpf_conntrack"
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
_OURS = "ebpf_conntrack"
_SWAPPED_IN = "%new"  # a symlink on its way to its place; no name that encode() made ends so
_LINK, _DIRECTORY = "a symbolic link", "a directory"
#: As long as a name of a file that is made of a pin_root can be, with something before or behind
#: it.
_ENCODED_BYTES = safe_path.NAME_BYTES - 32
#: What the kernel itself puts into a fresh bpffs.
_PRELOADED = {"maps.debug", "progs.debug"}


def encode(name: str) -> str:
    """Return a name fit for a pin: the kernel refuses '.' in bpffs, '/' parts directories, '%' is
    the escape.

    >>> encode("eth0.100"), decode("eth0%2E100")
    ('eth0%2E100', 'eth0.100')
    """
    return re.sub(r"[%./]", lambda found: f"%{ord(found.group()):02X}", name)


def decode(name: str) -> str:
    """Return the name that encode() made ``name`` of."""
    return re.sub(r"%([0-9A-F]{2})", lambda found: chr(int(found.group(1), 16)), name)


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where everything stands below one ``pin_root``, and the state directory."""

    pin_root: str
    state_dir: str = STATE_DIR

    @property
    def base(self) -> str:
        """The directory that holds all that is ours."""
        return os.path.join(self.pin_root, _OURS)

    @property
    def gen(self) -> str:
        """The directory of the generations."""
        return os.path.join(self.base, "gen")

    def gen_dir(self, number: int) -> str:
        """Return the directory of one generation."""
        return os.path.join(self.gen, str(number))

    def since(self, number: int) -> str:
        """Return the symlink whose target is the time at which a generation became active; only
        those that another one took over from have it.
        """
        return os.path.join(self.gen_dir(number), "since")

    @property
    def active(self) -> str:
        """The symlink to the generation in use."""
        return os.path.join(self.base, "active")

    @property
    def link_dir(self) -> str:
        """The directory of the bpf_links."""
        return os.path.join(self.base, "link")

    def link(self, netns: str | None, ifname: str) -> str:
        """Return the pin of one interface's bpf_link."""
        return os.path.join(self.link_dir, interface_key(netns, ifname))

    @property
    def seed_prog(self) -> str:
        """The seed's directory of programs: a symlink of ours."""
        return os.path.join(self.pin_root, "prog")

    @property
    def seed_map(self) -> str:
        """The seed's directory of maps: a symlink of ours."""
        return os.path.join(self.pin_root, "map")

    def prog(self, slot: int) -> str:
        """Return the pin of the active generation's program in one slot."""
        return os.path.join(self.active, "prog", f"xdp_{slot}")

    def map(self, name: str) -> str:
        """Return the pin of one of the active generation's maps."""
        return os.path.join(self.active, "map", encode(name))

    def prog_of(self, number: int, slot: int) -> str:
        """Return the pin of a generation's program in one slot."""
        return os.path.join(self.gen_dir(number), "prog", f"xdp_{slot}")

    def map_of(self, number: int, name: str) -> str:
        """Return the pin of one of a generation's maps."""
        return os.path.join(self.gen_dir(number), "map", encode(name))

    def seed_links(self) -> dict[str, str]:
        """Return the seed's two paths with the targets that they have when they are ours."""
        return {self.seed_prog: f"{_OURS}/active/prog", self.seed_map: f"{_OURS}/active/map"}


def own_root(netns: str, pin_root: str = STANDARD) -> str:
    """Return the pin_root that a namespace's own chain has below another one's.

    >>> own_root("r1"), own_root("r.2", "/sys/fs/bpf/lab")
    ('/sys/fs/bpf/r1', '/sys/fs/bpf/lab/r%2E2')
    """
    return os.path.join(pin_root, encode(netns))


def interface_key(netns: str | None, ifname: str) -> str:
    """Return the pin's name for an interface; an interface's name can hold '@' and '%', so both
    parts are encoded on their own.

    >>> interface_key(None, "eth0.7"), interface_key("ns1", "a@b")
    ('eth0%2E7', 'a%40b@ns1')
    """
    parts = [ifname] if netns is None else [ifname, netns]
    return "@".join(encode(part).replace("@", "%40") for part in parts)


def interface_of(key: str) -> tuple[str | None, str]:
    """Return (netns, ifname) of a pin's name; the reverse of interface_key()."""
    ifname, at, netns = key.partition("@")
    return (decode(netns) if at else None), decode(ifname)


# ---------------------------------------------------------------- mounts
def _mounts() -> list[tuple[str, str]]:
    """Return (mount point, file system type) of every mount, later ones above earlier ones
    (proc(5), mountinfo).
    """
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, dummy, right = line.partition(" - ")
            point = re.sub(
                r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), left.split(" ")[4]
            )
            found.append((point, right.split(" ")[0]))
    return found


def _mount_of(path: str) -> tuple[str, str]:
    """Return (mount point, file system type) of the mount that ``path``, which need not exist, lies
    on.
    """
    real = os.path.realpath(path)
    best = ("/", "")
    for point, kind in _mounts():
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best


def mounted(path: str) -> bool:
    """Tell whether ``path`` lies on a bpffs."""
    return _mount_of(path)[1] == "bpf"


def check_path(pin_root: str) -> None:
    """Check what a pin root is called; nothing is looked at.

    :raises ConntrackError: when no file system whatever could have it, naming the mend.
    """
    safe_path.check_text(
        "pin_root", pin_root, f"give the absolute path of a directory on a bpffs, as {STANDARD}"
    )
    if len(os.fsencode(encode(pin_root))) > _ENCODED_BYTES:
        raise bad_value(
            "pin_root",
            pin_root,
            f"it is too long: {_ENCODED_BYTES} bytes have to be enough for it, with 3 for each '/'"
            " and '.'; give a shorter one",
        )


def check(pin_root: str) -> bool:
    """Check a pin_root without changing anything.

    :return: whether it can be used as it is; False when ensure_mounted() has something to do.
    :raises ConntrackError: when it can not become one: not an absolute path, no bpffs, read-only,
        no directory.
    """
    check_path(pin_root)
    if _kind(os.path.realpath(pin_root)) not in (None, _DIRECTORY):
        raise bad_value("pin_root", pin_root, "it is not a directory; give a directory on a bpffs")
    point, kind = _mount_of(pin_root)
    if kind == "bpf" and "." in os.path.realpath(pin_root)[len(point) :]:
        raise bad_value("pin_root", pin_root, "a bpffs takes no names with a '.'")
    if kind != "bpf":
        if _below_standard(point):
            raise bad_value(
                "pin_root",
                pin_root,
                f"a file system of type {kind} is mounted at {point}, and hides the BPF file"
                f" system; unmount it: umount {point}",
            )
        if _below_standard(pin_root):
            return False
        raise bad_value(
            "pin_root",
            pin_root,
            f"it is not on a BPF file system; use {STANDARD}, or mount one there: mount -t bpf bpf"
            f" {pin_root}",
        )
    nearest = pin_root
    while not os.path.isdir(nearest):
        nearest = os.path.dirname(nearest)
    if os.statvfs(nearest).f_flag & os.ST_RDONLY:
        raise bad_value(
            "pin_root",
            pin_root,
            f"the BPF file system at {point} is mounted read-only; remount it: mount -o remount,rw"
            f" {point}",
        )
    refuse_foreign(Paths(pin_root))
    return nearest == pin_root and not (_below_standard(point) and _is_loose())


def check_text(paths: Paths) -> None:
    """Check what pin_root and the state directory are called; nothing is looked at.

    :raises ConntrackError: naming the option and the mend.
    """
    check_path(paths.pin_root)
    safe_path.check_text(
        "state_dir", paths.state_dir, f"give the absolute path of a directory, as {STATE_DIR}"
    )


def _below_standard(path: str) -> bool:
    return path == STANDARD or path.startswith(STANDARD + "/")


def can_be_mounted(pin_root: str) -> bool:
    """Tell whether ensure_mounted() can make pin_root usable."""
    return mounted(pin_root) or (
        _below_standard(pin_root)
        and not _below_standard(_mount_of(pin_root)[0])
        and os.path.isdir(STANDARD)
    )


def ensure_mounted(pin_root: str) -> bool:
    """Make pin_root usable: mount the bpffs where it is missing (recorded, for release()), make the
    directory.

    :return: whether anything was changed.
    :raises ConntrackError: see check(); also when the kernel refuses the mount.
    """
    if check(pin_root):
        return False
    if not mounted(pin_root):
        _mount()
    elif _is_loose():
        _tighten()
    safe_path.make_dirs(pin_root, 0o700)
    return True


def _record() -> str:
    """Return the file that holds the device number of the bpffs that we mounted."""
    return os.path.join(RUN_DIR, _MOUNT_RECORD)


def _mount() -> None:
    """Mount the bpffs. The record of it is there first: a run that is killed in between leaves no
    mount that nobody takes away.
    """
    if not os.path.isdir(STANDARD):
        raise ConntrackError(
            f"{STANDARD} does not exist: this kernel has no BPF file system (CONFIG_BPF_SYSCALL),"
            " or /sys is not mounted."
        )
    with lock.held(RUN_DIR, make=0o755), contextlib.ExitStack() as stack:
        stack.callback(_rmdir, RUN_DIR)
        if mounted(STANDARD):  # another run did it meanwhile
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
                _MOVE_MOUNT, mount, b"", _AT_FDCWD, STANDARD.encode(), _MOVE_MOUNT_F_EMPTY_PATH
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
            f"mount -t bpf bpf {STANDARD}: {os.strerror(code)} ({errno.errorcode.get(code, code)})."
        )
    return result


def _is_ours() -> bool:
    """Tell whether what is mounted is what _mount() mounted; a record that a killed run left half
    written tells of no mount.
    """
    try:
        with open(_record(), encoding="ascii") as lines:
            return lines.read().strip() == str(os.stat(STANDARD).st_dev)
    except FileNotFoundError:
        return False


def _is_loose() -> bool:
    """Tell whether our mount lets in more than root: releases before this one mounted it so that
    every user could make a name there.
    """
    if not _is_ours():
        return False
    return (
        os.stat(STANDARD).st_mode & 0o777 != _MODE
        or os.statvfs(STANDARD).f_flag & _ATTRIBUTES != _ATTRIBUTES
    )


def _tighten() -> None:
    """Give our mount the permissions and attributes that a new one gets. Mounts of others stay as
    they are.
    """
    os.chmod(STANDARD, _MODE)
    if (
        ctypes.CDLL(None, use_errno=True).mount(
            None, STANDARD.encode(), None, ctypes.c_ulong(_REMOUNT | _ATTRIBUTES), None
        )
        != 0
    ):
        code = ctypes.get_errno()
        raise ConntrackError(
            f"mount -o remount,bind,nosuid,nodev,noexec {STANDARD}: {os.strerror(code)}"
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


def tidy_run_dir() -> None:
    """Remove RUN_DIR where nothing is in it."""
    lock.tidy()


def release(pin_root: str) -> None:
    """Undo ensure_mounted() where nothing uses it any more: drop the directories that are empty,
    unmount the bpffs if it is our mount and empty.
    """
    paths = Paths(pin_root)
    _rmdir_alone(paths.base, paths.gen, paths.link_dir)
    if pin_root != STANDARD and _below_standard(pin_root):
        _rmdir(pin_root)
    if os.path.exists(_record()):
        with contextlib.suppress(FileNotFoundError), lock.held(RUN_DIR):
            _unmount()


def _unmount() -> None:
    """Take our mount and its record away where nothing is in it."""
    if _is_ours():
        if set(os.listdir(STANDARD)) - _PRELOADED:
            return
        if ctypes.CDLL(None, use_errno=True).umount2(STANDARD.encode(), 0) != 0:
            return  # somebody stands in it; the record stays for the next time
    os.unlink(_record())
    _rmdir(RUN_DIR)


# ---------------------------------------------------------------- symlinks
def check_symlink(path: str, target_prefix: str) -> None:
    """Refuse a path that somebody else holds.

    :param target_prefix: what the target of our symlink starts with.
    :raises ConntrackError: when ``path`` is something else than such a symlink.
    """
    kind = _kind(path)
    if kind is None:
        return
    if kind != _LINK:
        raise ConntrackError(
            f"{path} is {kind} of somebody else. Move it away, or give another pin_root."
        )
    safe_path.refuse_foreign(path)
    with contextlib.suppress(FileNotFoundError):  # another run has just taken it away
        target = os.readlink(path)
        if not target.startswith(target_prefix):
            raise ConntrackError(
                f"{path} is a symbolic link of somebody else, to {target}. Move it away, or give"
                " another pin_root."
            )


def _kind(path: str) -> str | None:
    """Return what stands at a path, for people; None where nothing does. It looks once: another run
    may be about to take it away.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _LINK if stat.S_ISLNK(mode) else _DIRECTORY if stat.S_ISDIR(mode) else "a pin"


def check_places(paths: Paths) -> None:
    """Refuse a pin_root in which something foreign stands where the chain has its own.

    :raises ConntrackError: when ``prog`` or ``map`` is no symlink of ours, or one of our
        directories, those of generations among them, is something else.
    """
    for path, target in paths.seed_links().items():
        check_symlink(path, target)
    inside: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        inside += (os.path.join(paths.gen, name) for name in os.listdir(paths.gen))
    for path in (paths.base, paths.gen, paths.link_dir, *inside):
        kind = _kind(path)
        if kind not in (None, _DIRECTORY):
            raise ConntrackError(
                f"{path} is {kind} of somebody else. Move it away, or give another pin_root."
            )


def refuse_foreign(paths: Paths) -> None:
    """Refuse a pin_root where somebody else than root could change what is pinned: its directory,
    those above it, our directories and all pins in them.

    In a BPF file system that every user may write to, anybody can be the first to make
    ``ebpf_conntrack``, and owns it then.

    :raises ConntrackError: naming the path, and who could change it.
    """
    safe_path.refuse_foreign_way(paths.base)
    safe_path.refuse_foreign(paths.base)
    for where, directories, files in os.walk(paths.base):
        for name in (*directories, *files):
            safe_path.refuse_foreign(os.path.join(where, name))


def refuse_foreign_names(paths: Paths) -> None:
    """Refuse only what lies in pin_root itself, below which others can then change nothing: a
    reader looks each time, since it could be another by now.

    :raises ConntrackError: see refuse_foreign().
    """
    for path in (paths.base, *paths.seed_links()):
        safe_path.refuse_foreign(path)


def swap_symlink(target: str, path: str) -> None:
    """Let ``path`` lead to ``target`` from one moment to the next: a new symlink beside it and one
    rename.

    :raises ConntrackError: when something that is no symlink stands at ``path``.
    """
    if os.path.lexists(path) and not os.path.islink(path):
        check_symlink(path, target)
    end_swap(path)
    os.symlink(target, path + _SWAPPED_IN)
    try:
        os.rename(path + _SWAPPED_IN, path)
    except OSError:
        end_swap(path)
        raise


def end_swap(path: str) -> None:
    """Take away what a killed swap_symlink() left beside ``path``."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + _SWAPPED_IN)


def remove_symlink(target_prefix: str, path: str) -> None:
    """Take our symlink away, and what a killed swap_symlink() left beside it; what is not ours
    stays.

    :param target_prefix: what the target of our symlink starts with.
    """
    end_swap(path)
    if os.path.islink(path) and os.readlink(path).startswith(target_prefix):
        os.unlink(path)
