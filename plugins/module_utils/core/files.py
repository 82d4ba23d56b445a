# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that change as a whole or not at all, written in bounded memory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import typing as t

from .errors import ConntrackError, bad_value


def file_mode(text: str) -> int:
    """Return the permission bits that an octal number as ``0640`` stands for.

    :raises ConntrackError: when it is none.
    """
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise bad_value(
            "mode", text, "give the file's permissions as an octal number in quotes, as '0640'"
        )
    return mode


def check_dest(dest: str, field: str = "dest") -> None:
    """Refuse a ``dest`` that can not become a file.

    :raises ConntrackError: when it is not absolute, is a directory, or its directory does not
        exist.
    """
    if not os.path.isabs(dest):
        raise bad_value(field, dest, "give an absolute path")
    if os.path.isdir(dest):
        raise bad_value(field, dest, "it is a directory; give the path of a file")
    if not os.path.isdir(os.path.dirname(dest)):
        raise bad_value(
            field, dest, f"the directory {os.path.dirname(dest)} does not exist; make it first"
        )


@contextlib.contextmanager
def replacing(dest: str, mode: int, dry: bool) -> t.Iterator[_Replacement]:
    """Give a ``with`` block something to write the new content of ``dest`` into; the file changes
    at the block's end, as a whole.

    The content goes to a file without a name, which takes the place of ``dest`` by one rename,
    unless both are the same already. So a run that is killed leaves nothing but, at the very end,
    one file beside ``dest``, which the next run takes away.

    :param mode: permission bits of the file.
    :param dry: only find out whether the file would change.
    :raises ConntrackError: when the file can not be written.
    """
    directory, name = os.path.split(dest)
    try:
        with contextlib.ExitStack() as stack:
            if dry:
                temporary: t.BinaryIO = stack.enter_context(open(os.devnull, "wb"))
            else:
                where = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, where)
                _remove(f".{name}.new", where)
                temporary = stack.enter_context(_unnamed(where))
            replacement = _Replacement(temporary, dest, mode)
            yield replacement
            replacement.close()
            if not dry and replacement.changed:
                os.fchmod(temporary.fileno(), mode)
                os.fsync(
                    temporary.fileno()
                    # or a power cut leaves the name on a file without content: of the unit, or the
                    # command
                )
                _place(temporary.fileno(), name, where)
                os.fsync(where)
    except OSError as exc:
        if isinstance(exc, ConntrackError):
            raise
        raise ConntrackError(f"dest: {dest} can not be written: {exc.strerror}.") from exc


def _unnamed(directory: int) -> t.BinaryIO:
    """Open a file without a name in a directory."""
    path = f"/proc/self/fd/{directory}"
    try:
        return open(os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb")
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise

    # some file systems have no unnamed files, NFS for one
    return _named(path)


def _named(path: str) -> t.Any:
    return tempfile.NamedTemporaryFile(dir=path)


def _place(file: int, name: str, directory: int) -> None:
    """Let an open file take the place of ``name``; it is complete, so it does not matter whose file
    takes it when two runs do so at once.
    """
    beside = f".{name}.new"
    for attempt in range(100):
        try:
            # with a dir_fd Python uses linkat(2), which follows the first
            os.link(f"/proc/self/fd/{file}", beside, dst_dir_fd=directory)
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
            return
        except (FileExistsError, FileNotFoundError):  # another run is at the same point
            if attempt == 99:
                raise
            _remove(beside, directory)


def _remove(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _regular(path: str) -> t.BinaryIO | None:
    """Open a file; None where there is none, or something else, as a named pipe that somebody put
    there, for which a run would wait.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # ENXIO: a socket
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return os.fdopen(fd, "rb")


class _Replacement:
    """The new content of a file, compared with the old one as it is written.

    :ivar changed: whether content or mode differ from those of the file; known after close().
    """

    def __init__(self, out: t.BinaryIO, dest: str, mode: int) -> None:
        self._out = out
        self._old = _regular(dest)
        self.changed = (
            self._old is None or stat.S_IMODE(os.fstat(self._old.fileno()).st_mode) != mode
        )

    def write(self, piece: bytes) -> None:
        """Write the next piece."""
        if not self.changed and self._old is not None:
            self.changed = self._old.read(len(piece)) != piece
        self._out.write(piece)

    def close(self) -> None:
        """End writing."""
        self._out.flush()
        if self._old is not None:
            self.changed = self.changed or bool(self._old.read(1))
            self._old.close()
