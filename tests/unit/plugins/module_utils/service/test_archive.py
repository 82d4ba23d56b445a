# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as files: the same from the same sources, whole, and never in the place of somebody
else's.
"""

from __future__ import annotations

import ast
import io
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive

WANT = ct_content.want()
FILES = (ct_archive.COMMAND, ct_archive.MANUAL, ct_archive.COMPLETION)


def test_it_is_made_of_the_library_and_of_nothing_else() -> None:
    library = pathlib.Path(str(ct_content.__file__)).parents[1]
    sources = ct_content.sources()
    packages = {path.parts[0] for path in map(pathlib.PurePath, sources)}
    assert packages == set(ct_content.PACKAGES)
    assert {"ct/cli.py", "flows/table.py", "service/http/server.py"} <= set(sources)
    for name, text in sources.items():
        if name.endswith("__init__.py"):
            continue
        assert text == (library / name).read_text("utf-8")
        tops = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
        assert not [
            one for one in tops if not one.level and str(one.module).startswith("ansible")
        ], name


def test_two_of_them_are_the_same() -> None:
    content = ct_content.content()
    one, other = (
        ct_archive.archive(content),
        ct_archive.archive(ct_archive.unpack(ct_archive.pack(content))),
    )
    assert ct_archive.is_current(one, content.digest) and ct_archive.is_current(
        other, content.digest
    )
    for another in (
        ct_content.content("/sys/fs/bpf/other"),
        ct_content.content(state_dir="/elsewhere"),
    ):
        assert not ct_archive.is_current(one, another.digest)
    with zipfile.ZipFile(io.BytesIO(one)) as a, zipfile.ZipFile(io.BytesIO(other)) as b:
        assert a.namelist() == b.namelist() and all(
            a.read(name) == b.read(name) for name in a.namelist() if name.endswith(".py")
        )


@pytest.mark.parametrize("at", [5, 2000, -2000])
def test_a_damaged_one_is_not_current(at: int) -> None:
    data = bytearray(ct_archive.archive(WANT.content()))
    data[at] ^= 0xFF
    assert not ct_archive.is_current(bytes(data), WANT.digest)


def test_it_runs_without_any_package(tmp_path: pathlib.Path) -> None:
    """Under the interpreter of the tests, without site-packages: from the compiled modules, and
    from the sources where those are of another version.
    """
    path = tmp_path / "ct"
    path.write_bytes(ct_archive.archive(WANT.content()))
    stripped = tmp_path / "stripped"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(stripped, "w") as made:
        for name in whole.namelist():
            made.writestr(
                name,
                whole.read(name) if name.endswith(".py") else b"\0\0\r\n" + whole.read(name)[4:],
            )
    for one in (path, stripped):
        for words, status in (
            (["--version"], 0),
            (["list", "--proto", "tpc"], 2),
            (["status", "--pin-root", "/nonexistent"], 1),
        ):
            done = subprocess.run(
                [sys.executable, "-I", "-S", one, *words],
                env={},
                check=False,
                capture_output=True,
                text=True,
            )
            assert done.returncode == status and "Traceback" not in done.stderr, done


def test_present_twice_and_absent(tmp_path: pathlib.Path) -> None:
    prefix = str(tmp_path / "local")
    foretold = ct_archive.converge(prefix, WANT, check_mode=True)
    assert not os.path.exists(prefix) and [step.action for step in foretold] == ["create"] * 3
    assert len(ct_archive.converge(prefix, WANT)) == 3
    stamps = {name: os.stat(os.path.join(prefix, name)) for name in FILES}
    assert [stat.st_mode & 0o7777 for stat in stamps.values()] == [0o755, 0o644, 0o644]
    assert ct_archive.converge(prefix, WANT) == []
    for name in FILES:
        damaged = pathlib.Path(prefix, name)
        whole = damaged.read_bytes()
        damaged.write_bytes(whole.replace(b"ct", b"tc", 1))
        assert [step.name for step in ct_archive.converge(prefix, WANT, check_mode=True)] == [
            str(damaged)
        ]
        damaged.write_bytes(whole)
        os.utime(damaged, ns=(stamps[name].st_atime_ns, stamps[name].st_mtime_ns))
    assert {name: os.stat(os.path.join(prefix, name)).st_mtime_ns for name in FILES} == {
        name: stat.st_mtime_ns for name, stat in stamps.items()
    }

    os.chmod(os.path.join(prefix, ct_archive.COMMAND), 0o600)
    assert [step.name for step in ct_archive.converge(prefix, WANT)] == [
        os.path.join(prefix, ct_archive.COMMAND)
    ]
    others = ct_content.want("/sys/fs/bpf/other")
    assert [step.action for step in ct_archive.converge(prefix, others)] == ["change"] * 3, (
        "they are made of the defaults too"
    )

    assert len(ct_archive.converge(prefix, None, check_mode=True)) == 3 and os.path.exists(
        os.path.join(prefix, ct_archive.COMMAND)
    )
    assert [step.action for step in ct_archive.converge(prefix, None)] == ["delete"] * 3
    assert ct_archive.converge(prefix, None) == [] and not pathlib.Path(prefix).exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("want", [WANT, None], ids=["present", "absent"])
def test_a_file_of_somebody_else_stays(
    tmp_path: pathlib.Path, name: str, want: ct_archive.Want | None
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n", "utf-8")
    with pytest.raises(ConntrackError, match=f"^{path} is not the collection's. Move it"):
        ct_archive.converge(str(tmp_path), want)
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path] and path.read_text(
        "utf-8"
    ) == "#!/bin/sh\n"


@pytest.mark.parametrize("prefix", ["usr", "/usr/../usr/local", "/dev/null"])
def test_a_bad_prefix(prefix: str) -> None:
    with pytest.raises(ConntrackError, match="^prefix: "):
        ct_archive.converge(prefix, WANT)


def test_content_that_is_none() -> None:
    for data in (b"", b"{}", ct_archive.zlib.compress(b"[1]")):
        with pytest.raises(ConntrackError, match="^content: it is filled in"):
            ct_archive.unpack(data)


def test_nothing_is_made_where_all_is_current(tmp_path: pathlib.Path) -> None:
    """For then the content is not sent at all."""

    def content() -> ct_archive.Content:
        raise AssertionError("it was asked for")

    ct_archive.converge(str(tmp_path), WANT)
    assert ct_archive.converge(str(tmp_path), ct_archive.Want(WANT.digest, content)) == []
