# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host has the libraries that building and loading take."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import typing as t

from ...core import libraries
from ...core.errors import ConntrackError
from ...kernel import bpf
from .problem import Problem

#: How the chain is built; only the first needs a compiler on the host.
BUILDS = ("bcc", "clang", "object")
LIBBPF_MINIMUM = "0.8"


@dataclasses.dataclass(frozen=True)
class Library:
    """A library on the host.

    :ivar found: its version, None where it is missing, "unknown" where it does not say.
    :ivar wanted: the oldest that will do, "" where any does.
    :ivar needed: whether the wanted chain needs it.
    :ivar packages: what it is in, by the name of the package manager.
    """

    name: str
    found: str | None
    wanted: str
    needed: bool
    packages: t.Mapping[str, str]

    @property
    def good(self) -> bool:
        """Whether it will do."""
        return self.found is not None and (
            not libraries.release(self.found)
            or libraries.release(self.found) >= libraries.release(self.wanted or "0")
        )


def judge_libraries(
    libraries: t.Iterable[Library], manager: str | None, install: bool
) -> t.Iterator[Problem]:
    """Return what is wrong with the libraries; those that are missing and can be installed are no
    problem, those that are too old are.

    :param manager: ``dpkg`` or ``rpm``; None where the host has neither.
    """
    for one in libraries:
        if not one.needed or one.good or (one.found is None and install and manager is not None):
            continue
        what = (
            "is missing"
            if one.found is None
            else f"has version {one.found}, and {one.wanted} or later is needed"
        )
        package = one.packages.get(manager or "", " or ".join(sorted(set(one.packages.values()))))
        mend = (
            f"Install the package {package}."
            if one.found is None
            else f"Upgrade the package {package}."
        )
        yield Problem("libraries", one.name, f"{one.name} {what}.", mend)


def would_install(libraries: t.Iterable[Library], manager: str | None, install: bool) -> list[str]:
    """Return the packages that are missing and would be installed."""
    return (
        sorted({one.packages[manager] for one in libraries if one.needed and one.found is None})
        if install and manager
        else []
    )


def _libbpf() -> str | None:
    try:
        version = bpf.library().libbpf_version_string
    except (ConntrackError, AttributeError) as exc:
        return None if isinstance(exc, ConntrackError) else "unknown"
    version.restype = ctypes.c_char_p
    return str(version().decode()).lstrip("v")


def _python_library(name: str) -> str | None:
    """Return the version of a library of this interpreter, without the cost of importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    with (
        contextlib.suppress(OSError),
        open(os.path.join(os.path.dirname(spec.origin), "version.py"), encoding="utf-8") as source,
    ):
        said = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", source.read())
        if said:
            return said[1]
    return "unknown"


_SAY_VERSION = (
    "import importlib, sys; m = importlib.import_module(sys.argv[1]); print(getattr(m,"
    " '__version__', 'unknown'))"
)


def _version(name: str) -> str | None:
    """Return the version of a library of this interpreter or, as the modules do, of one of the
    system's.
    """
    found = _python_library(name)
    for interpreter in libraries.others() if found is None else ():
        done = subprocess.run(
            [interpreter, "-c", _SAY_VERSION, name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return found


def observe_libraries(build: str) -> list[Library]:
    """Return the libraries that there are."""
    bcc, pyroute2 = libraries.LIBRARIES["bcc"], libraries.LIBRARIES["pyroute2"]
    headers = "there" if os.path.exists("/usr/include/linux/bpf.h") else None
    return [
        Library("libbpf", _libbpf(), LIBBPF_MINIMUM, True, {"dpkg": "libbpf1", "rpm": "libbpf"}),
        Library(
            "bcc",
            _version("bcc"),
            bcc.minimum,
            build == "bcc",
            {"dpkg": bcc.debian, "rpm": bcc.fedora},
        ),
        Library(
            "linux headers",
            headers,
            "",
            build == "bcc",
            {"dpkg": "linux-libc-dev", "rpm": "kernel-headers"},
        ),
        Library(
            "pyroute2",
            _python_library("pyroute2"),
            pyroute2.minimum,
            False,
            {"dpkg": pyroute2.debian, "rpm": pyroute2.fedora},
        ),
    ]


def manager() -> str | None:
    """Return the package manager of the host, ``dpkg`` or ``rpm``."""
    return "dpkg" if shutil.which("dpkg-query") else "rpm" if shutil.which("rpm") else None
