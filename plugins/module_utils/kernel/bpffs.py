# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The BPF file system: where the collection's pins stand, and whether it can be used.

Layout below ``pin_root``::

    ebpf_conntrack/gen/<N>/{prog,map}/   one generation's pins
    ebpf_conntrack/gen/<N>/since -> time when it became active; once another one took over
    ebpf_conntrack/active -> gen/<N>     the generation in use; moved by one rename
    ebpf_conntrack/link/<interface>      the bpf_links
    prog -> ebpf_conntrack/active/prog   the seed's paths
    map -> ebpf_conntrack/active/map
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat

from ..core import lock, safe_path
from ..core.errors import bad_value

#: The one place where a bpffs is mounted when it is missing; every distribution that mounts it does
#: it there.
STANDARD = "/sys/fs/bpf"
#: Facts about this boot, for clean-up; a tmpfs.
RUN_DIR = lock.RUN_DIR
#: Where it is kept what each generation is made of; see state.py.
STATE_DIR = "/var/lib/ebpf_conntrack"
_OURS = "ebpf_conntrack"
LINK, DIRECTORY = "a symbolic link", "a directory"
#: As long as a name of a file that is made of a pin_root can be, with something before or behind
#: it.
_ENCODED_BYTES = safe_path.NAME_BYTES - 32


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


def mount_of(path: str) -> tuple[str, str]:
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
    return mount_of(path)[1] == "bpf"


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

    :return: whether it is there; False when ensure_mounted() has something to do.
    :raises ConntrackError: when it can not become one: not an absolute path, no bpffs, read-only,
        no directory.
    """
    check_path(pin_root)
    if kind_at(os.path.realpath(pin_root)) not in (None, DIRECTORY):
        raise bad_value("pin_root", pin_root, "it is not a directory; give a directory on a bpffs")
    point, kind = mount_of(pin_root)
    if kind == "bpf" and "." in os.path.realpath(pin_root)[len(point) :]:
        raise bad_value("pin_root", pin_root, "a bpffs takes no names with a '.'")
    if kind != "bpf":
        if below_standard(point):
            raise bad_value(
                "pin_root",
                pin_root,
                f"a file system of type {kind} is mounted at {point}, and hides the BPF file"
                f" system; unmount it: umount {point}",
            )
        if below_standard(pin_root):
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
    return nearest == pin_root


def check_text(paths: Paths) -> None:
    """Check what pin_root and the state directory are called; nothing is looked at.

    :raises ConntrackError: naming the option and the mend.
    """
    check_path(paths.pin_root)
    safe_path.check_text(
        "state_dir", paths.state_dir, f"give the absolute path of a directory, as {STATE_DIR}"
    )


def below_standard(path: str) -> bool:
    return path == STANDARD or path.startswith(STANDARD + "/")


def kind_at(path: str) -> str | None:
    """Return what stands at a path, for people; None where nothing does. It looks once: another run
    may be about to take it away.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return LINK if stat.S_ISLNK(mode) else DIRECTORY if stat.S_ISDIR(mode) else "a pin"


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
