# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that change as a whole or not at all, written in bounded memory."""

from __future__ import annotations

import contextlib
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
        raise bad_value("mode", text, "give the file's permissions as an octal number in quotes, as '0640'")
    return mode


def check_dest(dest: str) -> None:
    """Refuse a ``dest`` that can not become a file.

    :raises ConntrackError: when it is not absolute, is a directory, or its directory does not exist.
    """
    if not os.path.isabs(dest):
        raise bad_value("dest", dest, "give an absolute path")
    if os.path.isdir(dest):
        raise bad_value("dest", dest, "it is a directory; give the path of a file")
    if not os.path.isdir(os.path.dirname(dest)):
        raise bad_value("dest", dest, f"the directory {os.path.dirname(dest)} does not exist; make it first")


@contextlib.contextmanager
def replacing(dest: str, mode: int, dry: bool) -> t.Iterator[_Replacement]:
    """Give a ``with`` block something to write the new content of ``dest`` into; the file changes at the block's end, as a whole.

    The content goes to a file beside, which takes the place of ``dest`` by one rename, unless both are the same already.

    :param mode: permission bits of the file.
    :param dry: only find out whether the file would change.
    :raises ConntrackError: when the file can not be written.
    """
    try:
        with contextlib.ExitStack() as stack:
            if dry:
                temporary: t.BinaryIO = stack.enter_context(open(os.devnull, "wb"))
                name = None
            else:
                fd, name = tempfile.mkstemp(prefix=f".{os.path.basename(dest)}.", dir=os.path.dirname(dest))
                stack.callback(_remove, name)
                temporary = stack.enter_context(open(fd, "wb"))
            replacement = _Replacement(temporary, dest, mode)
            yield replacement
            replacement.close()
            if name is not None and replacement.changed:
                os.chmod(name, mode)
                os.replace(name, dest)
    except OSError as exc:
        if isinstance(exc, ConntrackError):
            raise
        raise ConntrackError(f"dest: {dest} can not be written: {exc.strerror}.") from exc


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class _Replacement:
    """The new content of a file, compared with the old one as it is written.

    :ivar changed: whether content or mode differ from those of the file; known after close().
    """

    def __init__(self, out: t.BinaryIO, dest: str, mode: int) -> None:
        self._out = out
        self._old: t.BinaryIO | None = None
        with contextlib.suppress(FileNotFoundError):
            self._old = open(dest, "rb")  # noqa: SIM115
        self.changed = self._old is None or stat.S_IMODE(os.fstat(self._old.fileno()).st_mode) != mode

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
