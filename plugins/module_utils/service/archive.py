# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``ct`` as files on a host: one archive that Python runs, its manual page and its
completion.

What they are made of comes from the controller (ct/content.py), only when it is needed: each file
ends with a seal, the digest of what it was made of and the digest of itself, so a file that is
current and whole is known by that. What is compiled may differ from run to run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import marshal
import os
import stat
import sys
import typing as t
import zipfile
import zlib

from ..core import files, lock, safe_path
from ..core.errors import ConntrackError, bad_value
from ..core.plan import Plan, Step

#: What tells the files that the collection installs from those of others.
MARK = "ebpf.conntrack"
PREFIX = "/usr/local"
_SYSTEM = (PREFIX, "/usr", "/")
COMMAND, MANUAL, COMPLETION = (
    "bin/ct",
    "share/man/man8/ct.8",
    "share/bash-completion/completions/ct",
)
_MODES = {COMMAND: 0o755, MANUAL: 0o644, COMPLETION: 0o644}
#: The directories that go when they are empty.
_OWN_DIRECTORIES = ("share/man/man8", "share/bash-completion/completions", "share/bash-completion")
#: Those that go besides, the last of them the prefix itself, where it is not a system's.
_PREFIX_DIRECTORIES = ("share/man", "share", "bin", ".")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
#: A compiled module whose source is not looked at again (PEP 552).
_UNCHECKED = (1).to_bytes(4, "little")


# ---------------------------------------------------------------- what they are made of
class Content(t.NamedTuple):
    """What the files are made of.

    :ivar modules: the text of each file of the archive, by its path there.
    :ivar manual: the manual page.
    :ivar completion: the completion.
    """

    modules: dict[str, str]
    manual: str
    completion: str

    @property
    def digest(self) -> str:
        """Return what is the same for the same content."""
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Want:
    """What the files are to be made of.

    :ivar digest: of the content.
    :ivar content: gives it; called when a file is to be made.
    """

    digest: str
    content: t.Callable[[], Content]


def pack(content: Content) -> bytes:
    """Return the content in the form in which it travels to a target."""
    return zlib.compress(json.dumps(content).encode(), 9)


def unpack(packed: bytes) -> Content:
    """Return what pack() was given.

    :raises ConntrackError: where it is not of its making.
    """
    try:
        modules, manual, completion = json.loads(zlib.decompress(packed))
        return Content(dict(modules), str(manual), str(completion))
    except (ValueError, TypeError, zlib.error) as exc:
        raise ConntrackError("content: it is filled in and can not be given.") from exc


# ---------------------------------------------------------------- the archive
def interpreter() -> str:
    """Return the Python that is to run the command: the system's one of the version that runs now,
    not that of a virtual environment.
    """
    system = os.path.join(sys.base_prefix, "bin", "python3")
    return system if os.path.exists(system) else sys.executable


def _made_of(digest: str) -> str:
    """Return the digest of all that an installed file depends on."""
    return hashlib.sha256(
        repr((interpreter(), importlib.util.MAGIC_NUMBER, digest)).encode()
    ).hexdigest()


def _seal(made_of: str, body: bytes) -> bytes:
    """Return what stands at a file's end: what it was made of, and what all before must be."""
    return f"{MARK} {made_of} {hashlib.sha256(body).hexdigest()}\n".encode()


def archive(content: Content) -> bytes:
    """Return the command as one file."""
    made_of = _made_of(content.digest)
    out = io.BytesIO()
    out.write(f"#!{interpreter()} -I\n".encode())
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as made:
        for name, text in content.modules.items():
            raw = text.encode()
            made.writestr(zipfile.ZipInfo(name, _LONG_AGO), raw, zipfile.ZIP_DEFLATED)
            code = marshal.dumps(compile(raw, name, "exec", dont_inherit=True))
            compiled = (
                importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(raw) + code
            )
            made.writestr(zipfile.ZipInfo(f"{name}c", _LONG_AGO), compiled, zipfile.ZIP_DEFLATED)
        made.comment = _seal(made_of, b"")
    body = out.getvalue()[: -len(made.comment)]
    return body + _seal(made_of, body)


def is_current(data: bytes, digest: str) -> bool:
    """Tell whether a file was made of the content of this digest, and is whole."""
    made_of = _made_of(digest)
    body = data[: -len(_seal(made_of, b""))]
    return data == body + _seal(made_of, body)


# ---------------------------------------------------------------- the files
def _read(path: str) -> tuple[bytes, int] | None:
    """Return a file's content and permissions; None where there is none. One that is another user's
    is not current, whatever it holds.
    """
    try:
        found, data = os.stat(path), safe_path.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data, -1 if found.st_uid not in (0, os.geteuid()) else stat.S_IMODE(found.st_mode)


def converge(
    prefix: str, want: Want | None, check_mode: bool = False, patience: float = lock.SECONDS
) -> Plan:
    """Install the command, or take it away: the plan that was needed.

    :param want: what the files are to be made of; None where they are to be absent.
    :param patience: how long to wait for another run, in seconds.
    :raises ConntrackError: for a file of somebody else, directories that others may write to, and
        what the file system refuses.
    """
    check_prefix(prefix)
    try:
        with contextlib.ExitStack() as stack:
            # then there is nothing that another run could be at
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(
                    lock.held(prefix, patience, make=None if check_mode or want is None else 0o755)
                )
            there = {
                name: _read(os.path.join(prefix, name)) for name in (COMMAND, MANUAL, COMPLETION)
            }
            _refuse_foreign(prefix, there)
            plan = (
                _plan_absent(prefix, there) if want is None else _plan_present(prefix, there, want)
            )
            if not check_mode:
                for step in plan:
                    _apply(step)
                if want is None:
                    for name in _OWN_DIRECTORIES + (
                        () if prefix in _SYSTEM else _PREFIX_DIRECTORIES
                    ):
                        with contextlib.suppress(OSError):  # not there, or in use
                            os.rmdir(os.path.normpath(os.path.join(prefix, name)))
    except OSError as exc:
        if isinstance(exc, ConntrackError):
            raise
        raise bad_value(
            "prefix",
            prefix,
            f"{exc.filename}: {exc.strerror}; run as root, or give another directory",
        ) from exc
    return plan


def check_prefix(prefix: str) -> None:
    """Check where the command is, or is to be: root runs it, so nobody else may put another one
    there.

    :raises ConntrackError: naming the prefix, or the directory that others may write to.
    """
    safe_path.check_text("prefix", prefix, f"give the absolute path of a directory, as {PREFIX}")
    if os.path.lexists(prefix) and not os.path.isdir(prefix):
        raise bad_value("prefix", prefix, f"it is not a directory; give one, as {PREFIX}")
    for name in (COMMAND, MANUAL, COMPLETION):
        safe_path.refuse_foreign_way(os.path.join(prefix, name))


def _refuse_foreign(prefix: str, there: t.Mapping[str, tuple[bytes, int] | None]) -> None:
    for name, found in there.items():
        if found is not None and MARK.encode() not in found[0]:
            raise ConntrackError(
                f"{os.path.join(prefix, name)} is not the collection's. Move it, or give another"
                " prefix."
            )


def _plan_present(prefix: str, there: t.Mapping[str, tuple[bytes, int] | None], want: Want) -> Plan:
    steps = []
    for name, mode in _MODES.items():
        found, path = there[name], os.path.join(prefix, name)
        data = found[0] if found is not None and is_current(found[0], want.digest) else None
        if data is None or found != (data, mode):
            data = data or _made(name, want.content())
            action, reason = (
                ("create", "it is missing")
                if found is None
                else ("change", "it is another release's, or was changed")
            )
            steps.append(
                Step(
                    action,
                    "file",
                    path,
                    reason,
                    found and describe(*found),
                    describe(data, mode),
                    (data, mode),
                )
            )
    return steps


def _made(name: str, content: Content) -> bytes:
    """Return a file."""
    if name == COMMAND:
        return archive(content)
    text = f'{content.manual}.\\" ' if name == MANUAL else f"{content.completion}# "
    return text.encode() + _seal(_made_of(content.digest), text.encode())


def _plan_absent(prefix: str, there: t.Mapping[str, tuple[bytes, int] | None]) -> Plan:
    return [
        Step(
            "delete",
            "file",
            os.path.join(prefix, name),
            "the command is to be absent",
            describe(*found),
            None,
        )
        for name, found in there.items()
        if found
    ]


def describe(data: bytes, mode: int) -> str:
    return (
        f"{'of another user' if mode < 0 else f'mode {mode:04o}'}, sha256"
        f" {hashlib.sha256(data).hexdigest()[:16]}"
    )


def _apply(step: Step) -> None:
    if step.args is None:
        os.unlink(step.name)
        return
    data, mode = step.args
    safe_path.make_dirs(os.path.dirname(step.name), 0o755)
    with files.replacing(step.name, mode, dry=False) as file:
        file.write(data)
