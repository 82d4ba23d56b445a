# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``ct`` as files on a host: one archive that Python runs, its manual page and its completion.

The archive holds the library's own modules, those that the command imports, compiled as well so that it starts at once. Each file ends with a seal: the
digest of the sources that it was made of, and the digest of itself. So a file that is current and whole is known without making it again, for which nothing
of the command need be imported; and what is compiled may differ from run to run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import marshal
import os
import re
import stat
import sys
import typing as t
import zipfile

from . import bpffs, flow_file, lock
from .errors import ConntrackError, bad_value
from .plan import Plan, Step

#: What tells the files that the collection installs from those of others.
MARK = "ebpf.conntrack"
PREFIX = "/usr/local"
_SYSTEM = (PREFIX, "/usr", "/")
COMMAND, MANUAL, COMPLETION = "bin/ct", "share/man/man8/ct.8", "share/bash-completion/completions/ct"
_MODES = {COMMAND: 0o755, MANUAL: 0o644, COMPLETION: 0o644}
#: The directories that go when they are empty.
_OWN_DIRECTORIES = ("share/man/man8", "share/bash-completion/completions", "share/bash-completion")
#: Those that go besides, the last of them the prefix itself, where it is not a system's.
_PREFIX_DIRECTORIES = ("share/man", "share", "bin", ".")
_PACKAGE = "ebpf_conntrack"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
#: A compiled module whose source is not looked at again (PEP 552).
_UNCHECKED = (1).to_bytes(4, "little")
#: An import from this package. Parsing all sources for them would take ten times as long as all the rest of a run that changes nothing.
_IMPORT = re.compile(r"^[ \t]*from \.(\w*) import (\([^)]*\)|[^#\n]*)", re.MULTILINE)


# ---------------------------------------------------------------- the archive
def sources() -> dict[str, str]:
    """Return the text of each module that the command needs, by name."""
    found: dict[str, str] = {}
    wanted = ["ct_cli"]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _source(name)
            wanted += imports(found[name])
    return dict(sorted(found.items()))


def _source(name: str) -> str:
    """Return a module's text, wherever this one was imported from: a directory, or the archive in which it came to the target."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(os.path.join(os.path.dirname(__file__), f"{name}.py"), encoding="utf-8") as file:
        return file.read()
    text = None
    # importlib's find_spec() would have each of them compiled, which is most of what a run takes
    with contextlib.suppress(ImportError):
        text = getattr(__spec__ and __spec__.loader, "get_source", lambda dummy: None)(f"{__package__}.{name}")
    if text is None:
        raise ConntrackError(f"{__package__}.{name}: its source can not be read. Install the collection again.")
    return str(text)


def imports(text: str) -> list[str]:
    """Return the modules of this package that a module imports, at its top or later.

    >>> imports("from . import a, b as c\nfrom .d import e\nimport os")
    ['a', 'b', 'd']
    """
    return [
        name
        for module, names in _IMPORT.findall(text)
        for name in ([module] if module else [one.split()[0] for one in names.strip("()").split(",") if one.strip()])
    ]


def interpreter() -> str:
    """Return the Python that is to run the command: the system's one of the version that runs now, not that of a virtual environment."""
    system = os.path.join(sys.base_prefix, "bin", "python3")
    return system if os.path.exists(system) else sys.executable


def _files(pin_root: str, state_dir: str) -> dict[str, str]:
    start = f"import sys\nfrom {_PACKAGE}.ct_cli import main\nsys.exit(main(pin_root={pin_root!r}, state_dir={state_dir!r}))\n"
    return {"__main__.py": start, f"{_PACKAGE}/__init__.py": "", **{f"{_PACKAGE}/{name}.py": text for name, text in sources().items()}}


def _made_of(files: t.Mapping[str, str]) -> str:
    """Return the digest of everything that an installed file depends on."""
    return hashlib.sha256(repr((interpreter(), importlib.util.MAGIC_NUMBER, _source("ct_manual"), sorted(files.items()))).encode()).hexdigest()


def _seal(made_of: str, body: bytes) -> bytes:
    """Return what stands at a file's end: what it was made of, and what all before must be."""
    return f"{MARK} {made_of} {hashlib.sha256(body).hexdigest()}\n".encode()


def _holds(data: bytes, made_of: str) -> bool:
    """Tell whether a file was made of these sources, and is whole."""
    body = data[: -len(_seal(made_of, b""))]
    return data == body + _seal(made_of, body)


def _archive(files: t.Mapping[str, str], made_of: str) -> bytes:
    out = io.BytesIO()
    out.write(f"#!{interpreter()} -I\n".encode())
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as made:
        for name, text in files.items():
            raw = text.encode()
            made.writestr(zipfile.ZipInfo(name, _LONG_AGO), raw, zipfile.ZIP_DEFLATED)
            code = marshal.dumps(compile(raw, name, "exec", dont_inherit=True))
            compiled = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(raw) + code
            made.writestr(zipfile.ZipInfo(f"{name}c", _LONG_AGO), compiled, zipfile.ZIP_DEFLATED)
        made.comment = _seal(made_of, b"")
    body = out.getvalue()[: -len(made.comment)]
    return body + _seal(made_of, body)


def archive(pin_root: str = bpffs.STANDARD, state_dir: str = bpffs.STATE_DIR) -> bytes:
    """Return the command as one file.

    :param pin_root: what holds where the command is not told otherwise; likewise the next one.
    """
    files = _files(pin_root, state_dir)
    return _archive(files, _made_of(files))


def is_current(data: bytes, pin_root: str = bpffs.STANDARD, state_dir: str = bpffs.STATE_DIR) -> bool:
    """Tell whether a file is the command of these sources, its manual page or its completion, and whole."""
    return _holds(data, _made_of(_files(pin_root, state_dir)))


# ---------------------------------------------------------------- the files
def _read(path: str) -> tuple[bytes, int] | None:
    """Return a file's content and permissions; None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def converge(
    state: str,
    prefix: str,
    pin_root: str = bpffs.STANDARD,
    state_dir: str = bpffs.STATE_DIR,
    check_mode: bool = False,
    patience: float = lock.SECONDS,
) -> Plan:
    """Install the command, or take it away: the plan that was needed.

    :param state: ``present`` or ``absent``.
    :param patience: how long to wait for another run, in seconds.
    :raises ConntrackError: for a file of somebody else, and what the file system refuses.
    """
    if not os.path.isabs(prefix) or os.path.normpath(prefix) != prefix:
        raise bad_value("prefix", prefix, f"give the absolute path of a directory, as {PREFIX}")
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # then there is nothing that another run could be at
                stack.enter_context(lock.held(prefix, patience, make=None if check_mode or state == "absent" else 0o755))
            there = {name: _read(os.path.join(prefix, name)) for name in (COMMAND, MANUAL, COMPLETION)}
            _refuse_foreign(prefix, there)
            plan = _plan_present(prefix, there, pin_root, state_dir) if state == "present" else _plan_absent(prefix, there)
            if not check_mode:
                for step in plan:
                    _apply(step)
                if state == "absent":
                    for name in _OWN_DIRECTORIES + (() if prefix in _SYSTEM else _PREFIX_DIRECTORIES):
                        with contextlib.suppress(OSError):  # not there, or in use
                            os.rmdir(os.path.normpath(os.path.join(prefix, name)))
    except OSError as exc:
        if isinstance(exc, ConntrackError):
            raise
        raise bad_value("prefix", prefix, f"{exc.filename}: {exc.strerror}; run as root, or give another directory") from exc
    return plan


def _refuse_foreign(prefix: str, there: t.Mapping[str, tuple[bytes, int] | None]) -> None:
    for name, found in there.items():
        if found is not None and MARK.encode() not in found[0]:
            raise ConntrackError(f"{os.path.join(prefix, name)} is not the collection's. Move it, or give another prefix.")


def _plan_present(prefix: str, there: t.Mapping[str, tuple[bytes, int] | None], pin_root: str, state_dir: str) -> Plan:
    files = _files(pin_root, state_dir)
    made_of = _made_of(files)
    steps = []
    for name, mode in _MODES.items():
        found, path = there[name], os.path.join(prefix, name)
        data = found[0] if found is not None and _holds(found[0], made_of) else None
        if data is None or found != (data, mode):
            if data is None:
                data = _archive(files, made_of) if name == COMMAND else _described(name, made_of, pin_root, state_dir)
            action, reason = ("create", "it is missing") if found is None else ("change", "it is another release's, or was changed")
            steps.append(Step(action, "file", path, reason, found and shown(*found), shown(data, mode), (data, mode)))
    return steps


def _described(name: str, made_of: str, pin_root: str, state_dir: str) -> bytes:
    """Return the manual page or the completion."""
    from . import ct_cli, ct_manual  # what the command is made of, which is much; only when a file is to be made

    parser = ct_cli.parser(pin_root, state_dir)
    text = f'{ct_manual.man_page(parser)}.\\" ' if name == MANUAL else f"{ct_manual.bash_completion(parser)}# "
    return text.encode() + _seal(made_of, text.encode())


def _plan_absent(prefix: str, there: t.Mapping[str, tuple[bytes, int] | None]) -> Plan:
    return [Step("delete", "file", os.path.join(prefix, name), "the command is to be absent", shown(*found), None) for name, found in there.items() if found]


def shown(data: bytes, mode: int) -> str:
    return f"mode {mode:04o}, sha256 {hashlib.sha256(data).hexdigest()[:16]}"


def _apply(step: Step) -> None:
    if step.args is None:
        os.unlink(step.name)
        return
    data, mode = step.args
    os.makedirs(os.path.dirname(step.name), mode=0o755, exist_ok=True)
    with flow_file.replacing(step.name, mode, dry=False) as file:
        file.write(data)
