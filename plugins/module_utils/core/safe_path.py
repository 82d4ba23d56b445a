# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths that root trusts: what they may be called, who may change them, and how files are made and
read there.

Root loads programs and starts services by what it finds at a path. So a path is checked once, where
it enters; whatever is found there has to be root's, and nobody else's to change; a file is read
once, and what was read is what is checked; what is made gets its permissions whatever the umask is.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import typing as t

from .errors import ConntrackError, bad_value

#: What paths are made of, besides letters and digits: nothing that a unit of systemd, a shell or a
#: string of C takes for anything else.
SIGNS = "/._-+@:=,~"
#: As much of a path as leaves room for what stands below it; PATH_MAX in
#: include/uapi/linux/limits.h is 4096.
PATH_BYTES = 1024
#: NAME_MAX in include/uapi/linux/limits.h.
NAME_BYTES = 255
#: Groups that are root in all but name. Debian's /usr/local belongs to ``staff`` (its policy,
#: 9.1.2).
_ADMINS = ("root", "staff", "wheel")
#: More than any manifest or object has.
_MOST_BYTES = 1 << 28
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


# ---------------------------------------------------------------- names
def check_text(field: str, value: str, mend: str) -> None:
    """Check what an absolute path is called; nothing is looked at.

    :param mend: what to give in place of one that is not absolute, or has ``..``, ``//`` or a slash
        at its end.
    :raises ConntrackError: naming the field, the value and the mend.
    """
    if not os.path.isabs(value) or os.path.normpath(value) != value or value.startswith("//"):
        raise bad_value(field, value, mend)
    if not all(sign.isalnum() or sign in SIGNS for sign in value):
        raise bad_value(
            field,
            value,
            "give an absolute path without white space, quotes, '%', '$', ';' and '\\': letters,"
            f" digits and {SIGNS} are fine",
        )
    if len(os.fsencode(value)) > PATH_BYTES or any(
        len(os.fsencode(name)) > NAME_BYTES for name in value.split("/")
    ):
        raise bad_value(
            field,
            value,
            f"it is too long; give at most {PATH_BYTES} bytes, and {NAME_BYTES} for each name",
        )


# ---------------------------------------------------------------- whose it is
def foreign(found: os.stat_result, sticky: bool = False) -> str:
    """Return why something is not root's alone to change, for people; "" where it is. For another
    user than root, the own count as root's.

    :param sticky: a directory in which users can not touch what others have made, as /tmp, is fine.
    """
    if found.st_uid not in (0, os.geteuid()):
        return (
            "it belongs to the user"
            f" {_name_of(lambda: pwd.getpwuid(found.st_uid).pw_name, found.st_uid)}"
        )
    if stat.S_ISLNK(found.st_mode) or (sticky and found.st_mode & stat.S_ISVTX):
        return ""
    if found.st_mode & stat.S_IWOTH:
        return "every user may write to it"
    if found.st_mode & stat.S_IWGRP and found.st_gid != 0:
        group = _name_of(lambda: grp.getgrgid(found.st_gid).gr_name, found.st_gid)
        # a group of one, as many systems give each user
        own = _name_of(lambda: pwd.getpwuid(found.st_uid).pw_name, found.st_uid)
        return "" if group in (*_ADMINS, own) else f"the group {group} may write to it"
    return ""


def _name_of(look: t.Callable[[], str], number: int) -> str:
    try:
        return look()
    except KeyError:
        return str(number)


def refuse_foreign(path: str, found: os.stat_result | None = None, sticky: bool = False) -> None:
    """Refuse what is not root's alone to change; what is not there is fine.

    :param found: what was found there, of an open file for instance; else the path is looked at,
        and no symbolic link followed.
    :param sticky: see foreign().
    :raises ConntrackError: naming the path, who could change it, and the mend.
    """
    if found is None:
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # who may not look may not open either
            return
    why = foreign(found, sticky)
    if why:
        mend = (
            "make it root's"
            if found.st_uid not in (0, os.geteuid())
            else f"take that right away: chmod go-w {path}"
        )
        raise ConntrackError(
            f"{path}: {why}, and root trusts what is there. Look at what it holds, then {mend}, or"
            " remove it."
        )


def refuse_foreign_way(path: str) -> None:
    """Refuse a path of which somebody else than root could let another one take the place: by a
    directory above it, or a symbolic link in it.

    :raises ConntrackError: see refuse_foreign().
    """
    for end in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        while os.path.dirname(end) != end:
            end = os.path.dirname(end)
            refuse_foreign(end, sticky=True)
    if os.path.islink(path):
        refuse_foreign(path)


# ---------------------------------------------------------------- made and read
def make_dirs(path: str, mode: int) -> None:
    """Make a directory, and those above it that are missing, each with these permissions whatever
    the umask is. One that is there stays as it is.

    :raises OSError: the file system refuses.
    """
    if os.path.isdir(path):
        return
    if os.path.dirname(path) != path:
        make_dirs(os.path.dirname(path) or ".", mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return  # another run has just made it
    if stat.S_IMODE(os.stat(path).st_mode) & 0o777 != mode:
        os.chmod(path, mode)


def create(path: str, mode: int = 0o600) -> t.BinaryIO:
    """Make a file that is not there, to be written, with these permissions whatever the umask is.
    What a killed run left of that name goes.

    :raises OSError: the file system refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        os.unlink(path)
        fd = os.open(path, flags, mode)
    file = os.fdopen(fd, "wb")
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)
    return file


def read(path: str, trusted: bool = False) -> bytes:
    """Return a file's content, read once: what is checked afterwards is what was read.

    A named pipe would hand out something else each time that it is opened, and let a run wait for
    ever.

    :param trusted: root acts on it: it has to be root's alone to change, and no symbolic link.
    :raises OSError: where it is not there, or may not be read.
    :raises ConntrackError: where it is no regular file, too large, or somebody else may change it.
    """
    try:
        fd = os.open(
            path,
            os.O_RDONLY
            | os.O_NONBLOCK
            | os.O_NOCTTY
            | os.O_CLOEXEC
            | (os.O_NOFOLLOW if trusted else 0),
        )
    except OSError as exc:
        if exc.errno == errno.ELOOP and trusted:
            raise _no_file(path, stat.S_IFLNK) from None
        raise
    try:
        found = os.fstat(fd)
        if trusted:
            refuse_foreign(path, found)
        if not stat.S_ISREG(found.st_mode):
            raise _no_file(path, stat.S_IFMT(found.st_mode))
        with open(fd, "rb", closefd=False) as file:
            data = file.read(_MOST_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > _MOST_BYTES:
        raise ConntrackError(
            f"{path}: it has more than {_MOST_BYTES >> 20} MiB, which no file of the collection"
            " has. Remove it."
        )
    return data


def _no_file(path: str, kind: int) -> ConntrackError:
    return ConntrackError(
        f"{path}: it is {_KINDS.get(kind, 'something else')}, and a regular file is needed. Put the"
        " file itself there."
    )
