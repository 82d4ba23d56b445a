# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads when a library is missing, too old or not the one meant, and where else it is
looked for.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible.module_utils.common import respawn as respawn_api
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import libraries


class Ended(Exception):
    """Stands for the end of the process."""


class FakeModule:
    """Takes the failure as AnsibleModule does."""

    def fail_json(self, **result: t.Any) -> t.NoReturn:
        raise Ended(result)


def library(name: str, **fields: str) -> libraries.Library:
    """Return a library that nothing but the test has."""
    return libraries.Library(
        **{
            "name": name,
            "minimum": "1.2",
            "attribute": "Thing",
            "debian": "python3-x",
            "fedora": "python3-y",
            **fields,
        }
    )


@pytest.fixture
def installed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> t.Iterator[t.Callable[[str, str], None]]:
    """Return a function that installs a one-file library with the given text."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def install(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        names.append(name)

    yield install
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.9", "0.26"), ("0.7.1", "0.7.2"), ("0.7", "0.7.2"), ("0.26.0", "0.26.0.1"), ("", "0")],
)
def test_versions_compare_by_number(older: str, newer: str) -> None:
    assert libraries.release(older) < libraries.release(newer)


def test_a_distribution_suffix_does_not_count() -> None:
    assert libraries.release("0.26.0+ds-1") == (0, 26, 0)


def test_a_library_that_is_there_is_no_problem(installed: t.Callable[[str, str], None]) -> None:
    installed("ctdeps_good", "Thing = 1\n__version__ = '1.10'\n")
    assert libraries.check(library("ctdeps_good")) is None


def test_an_unknown_version_is_no_problem(installed: t.Callable[[str, str], None]) -> None:
    installed("ctdeps_plain", "Thing = 1\n")
    assert libraries.check(library("ctdeps_plain")) is None


def test_absent() -> None:
    problem = libraries.check(library("ctdeps_absent"))
    assert problem == libraries.Problem(library("ctdeps_absent"))
    assert (
        libraries.describe(problem, ["/usr/bin/python3 (Python 3.11.2)"])
        == "ctdeps_absent 1.2 or newer is needed and was not found by /usr/bin/python3 (Python"
        " 3.11.2). Install the package python3-x (Debian, Ubuntu) or python3-y (Fedora, RHEL)."
    )


def test_too_old(installed: t.Callable[[str, str], None]) -> None:
    installed("ctdeps_old", "Thing = 1\n__version__ = '1.1.9'\n")
    problem = libraries.check(library("ctdeps_old", fedora="python3-x"))
    assert problem is not None
    assert problem.as_dict() == {
        "library": "ctdeps_old",
        "found": "1.1.9",
        "wanted": "1.2",
        "packages": {"debian": "python3-x", "fedora": "python3-x"},
    }
    assert (
        libraries.describe(problem, ["a", "b"])
        == "ctdeps_old 1.2 or newer is needed and was found as version 1.1.9 by a and b. Install"
        " the package python3-x."
    )


def test_another_library_of_that_name(installed: t.Callable[[str, str], None]) -> None:
    installed("ctdeps_other", "__version__ = '9'\n")
    problem = libraries.check(library("ctdeps_other", hint="Mind the name."))
    assert problem is not None
    assert "it has no Thing, so it is another library of that name" in libraries.describe(
        problem, ["a"]
    )
    assert libraries.describe(problem, ["a"]).endswith(" Mind the name.")


def test_broken(installed: t.Callable[[str, str], None]) -> None:
    installed("ctdeps_broken", "raise OSError('libthing.so.0: cannot open shared object file')\n")
    problem = libraries.check(library("ctdeps_broken"))
    assert problem is not None
    assert (
        "could not be imported by a (OSError: libthing.so.0: cannot open shared object file)"
        in libraries.describe(problem, ["a"])
    )


def test_an_interpreter_that_is_not_there_has_nothing() -> None:
    assert not libraries.imports("/nonexistent/python3", [library("sys")])


def test_an_interpreter_is_asked_for_all_libraries() -> None:
    present = libraries.Library("json", "1", "dumps", "", "")
    assert libraries.imports(sys.executable, [present])
    assert not libraries.imports(sys.executable, [present, library("ctdeps_absent")])


def test_require_starts_again_where_the_libraries_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def respawn(interpreter: str) -> t.NoReturn:
        raise Ended(interpreter)

    monkeypatch.setitem(libraries.LIBRARIES, "ctdeps_absent", library("ctdeps_absent"))
    monkeypatch.setattr(respawn_api, "has_respawned", lambda: False)
    monkeypatch.setattr(libraries, "others", lambda: ["/a", "/b", "/c"])
    monkeypatch.setattr(libraries, "imports", lambda interpreter, wanted: interpreter != "/a")
    monkeypatch.setattr(respawn_api, "respawn_module", respawn)
    with pytest.raises(Ended, match="^/b$"):
        libraries.require(t.cast(t.Any, FakeModule()), "ctdeps_absent")


@pytest.mark.parametrize("respawned", [True, False])
def test_require_fails_where_nobody_has_them(
    monkeypatch: pytest.MonkeyPatch, respawned: bool
) -> None:
    monkeypatch.setitem(libraries.LIBRARIES, "ctdeps_absent", library("ctdeps_absent"))
    monkeypatch.setattr(respawn_api, "has_respawned", lambda: respawned)
    monkeypatch.setattr(libraries, "others", lambda: ["/a"])
    monkeypatch.setattr(libraries, "imports", lambda interpreter, wanted: False)
    with pytest.raises(Ended) as ended:
        libraries.require(t.cast(t.Any, FakeModule()), "ctdeps_absent")
    result = ended.value.args[0]
    assert [each["library"] for each in result["missing_libraries"]] == ["ctdeps_absent"]
    assert sys.executable in result["msg"]
    assert (" and /a" in result["msg"]) is not respawned


def test_require_is_silent_where_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        libraries.LIBRARIES, "json", libraries.Library("json", "1", "dumps", "", "")
    )
    libraries.require(t.cast(t.Any, FakeModule()), "json")


def test_a_bare_environment_starts_again_under_the_python_that_it_is_made_of(
    tmp_path: pathlib.Path,
) -> None:
    """Its python is a link to the system's, and yet has none of the system's libraries."""
    system = next((path for path in libraries.SYSTEM_PYTHONS if os.path.exists(path)), None)
    if system is None:
        pytest.skip("there is no system Python")
    ask = (
        "import sys; sys.path +="
        f" {[path for path in sys.path if path] + [os.path.dirname(libraries.__file__)]!r}; import"
        " libraries; print(libraries.others())"
    )
    subprocess.run([system, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    done = subprocess.run(
        [tmp_path / "bin/python", "-c", ask], capture_output=True, text=True, check=True
    )
    assert system in done.stdout
