# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The libraries that modules need on a target, and what happens where one is missing.

They are system packages, which a virtual environment's Python does not see. So a module that lacks
one starts itself again under the system's Python; only when that lacks it too does the module fail,
and says what to install.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys
import typing as t

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


@dataclasses.dataclass(frozen=True)
class Library:
    """One library.

    :ivar name: what is imported.
    :ivar minimum: the oldest version that is known to do.
    :ivar attribute: a name that only the right library has.
    :ivar debian: its package on Debian and Ubuntu.
    :ivar fedora: its package on Fedora and RHEL.
    :ivar hint: what else to know when installing it.
    """

    name: str
    minimum: str
    attribute: str
    debian: str
    fedora: str
    hint: str = ""


LIBRARIES: dict[str, Library] = {
    library.name: library
    for library in (
        Library(
            "bcc",
            "0.26",
            "BPF",
            "python3-bpfcc",
            "python3-bcc",
            "The package bcc on PyPI is another thing.",
        ),
        Library("pyroute2", "0.7.2", "IPRoute", "python3-pyroute2", "python3-pyroute2"),
        Library("jinja2", "2.11", "Environment", "python3-jinja2", "python3-jinja2"),
    )
}
#: Where distributions put the Python that sees their packages.
SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A library that cannot be used: its version where one was found, else None, and why the import
    failed, if it did.
    """

    library: Library
    found: str | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, t.Any]:
        """Return the public form, as a failing module returns it in ``missing_libraries``."""
        return {
            "library": self.library.name,
            "found": self.found,
            "wanted": self.library.minimum,
            "packages": {"debian": self.library.debian, "fedora": self.library.fedora},
        }


def release(version: str) -> tuple[int, ...]:
    """Return the numbers a version begins with, for comparing.

    >>> release("0.26.0+ds-1") >= release("0.26")
    True
    """
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def check(library: Library) -> Problem | None:
    """Import a library; return what is wrong with it, or None when it will do."""
    try:
        module = importlib.import_module(library.name)
    except Exception as exc:
        # a broken installation raises anything: OSError for a missing shared object, for one
        absent = isinstance(exc, ModuleNotFoundError) and exc.name == library.name
        return Problem(library, reason="" if absent else f"{type(exc).__name__}: {exc}")
    try:
        version = importlib.metadata.version(library.name)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(module, "__version__", "unknown"))
    if not hasattr(module, library.attribute):
        return Problem(
            library,
            version,
            f"it has no {library.attribute}, so it is another library of that name",
        )
    # A version that says nothing is no reason to refuse a library that imports.
    if release(version) and release(version) < release(library.minimum):
        return Problem(library, version)
    return None


def describe(problem: Problem, interpreters: t.Sequence[str]) -> str:
    """Return the sentences for one problem: the library, the versions found and wanted, the
    interpreters asked, the packages.
    """
    library = problem.library
    where = " and ".join(interpreters)
    found = (
        "was not found"
        if problem.found is None and not problem.reason
        else f"was found as version {problem.found}"
        if problem.found
        else "could not be imported"
    )
    words = f"{library.name} {library.minimum} or newer is needed and {found} by {where}"
    if problem.reason:
        words += f" ({problem.reason})"
    packages = (
        library.debian
        if library.debian == library.fedora
        else f"{library.debian} (Debian, Ubuntu) or {library.fedora} (Fedora, RHEL)"
    )
    return " ".join(filter(None, (f"{words}. Install the package {packages}.", library.hint)))


def imports(interpreter: str, libraries: t.Iterable[Library]) -> bool:
    """Return whether another interpreter can import all of the libraries."""
    code = "\n".join(
        f"import {library.name}\n{library.name}.{library.attribute}" for library in libraries
    )
    try:
        return (
            subprocess.run(
                [interpreter, "-c", code],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            ).returncode
            == 0
        )
    except OSError:
        return False


def others() -> list[str]:
    """Return the system's interpreters that are not the running one.

    A virtual environment's Python is a link to the system's, but looks elsewhere for libraries: it
    is another one.
    """
    own = "" if sys.prefix != sys.base_prefix else os.path.realpath(sys.executable or "")
    return [
        path for path in SYSTEM_PYTHONS if os.path.exists(path) and os.path.realpath(path) != own
    ]


def require(module: AnsibleModule, *names: str) -> None:
    """Make sure that the named libraries can be imported; return only then.

    Where one cannot, the module is run again by a system interpreter that has them all (its result
    is then this module's); where there is none, the module fails with ``missing_libraries``.

    :param names: keys of LIBRARIES.
    """
    wanted = [LIBRARIES[name] for name in names]
    problems = [problem for problem in map(check, wanted) if problem]
    if not problems:
        return
    # the command ct, which has no Ansible, only checks
    from ansible.module_utils.common.respawn import has_respawned, respawn_module

    asked = [f"{sys.executable} (Python {'.'.join(map(str, sys.version_info[:3]))})"]
    if not has_respawned():
        for interpreter in others():
            if imports(interpreter, wanted):
                respawn_module(interpreter)  # ends this process
            asked.append(interpreter)
    module.fail_json(
        msg=" ".join(describe(problem, asked) for problem in problems),
        missing_libraries=[problem.as_dict() for problem in problems],
    )
