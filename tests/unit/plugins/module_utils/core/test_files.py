# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that change as a whole or not at all."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import files
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError


def put(dest: pathlib.Path, *pieces: bytes, mode: int = 0o640, dry: bool = False) -> bool:
    with files.replacing(str(dest), mode, dry) as file:
        for piece in pieces:
            file.write(piece)
    return file.changed


def test_write_again_change(tmp_path: pathlib.Path) -> None:
    dest = tmp_path / "flows"
    assert put(dest, b"a", b"bc")
    assert dest.read_bytes() == b"abc"
    assert stat.S_IMODE(dest.stat().st_mode) == 0o640
    before = dest.stat()
    assert not put(dest, b"ab", b"c")
    assert (dest.stat().st_ino, dest.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for pieces in ((b"ab",), (b"abc", b"d"), (b"abd",), ()):
        assert put(dest, *pieces, dry=True)
        assert dest.read_bytes() == b"abc"
    assert put(dest, b"ab")
    assert dest.read_bytes() == b"ab"
    assert os.listdir(tmp_path) == ["flows"]


def test_what_is_no_file_is_replaced_and_neither_waited_for_nor_written_into(
    tmp_path: pathlib.Path,
) -> None:
    """Somebody else may have put it there, in a directory as /tmp."""
    target, dest = tmp_path / "target", tmp_path / "flows"
    target.write_bytes(b"abc")
    target.chmod(0o640)
    os.mkfifo(dest)
    assert put(dest, b"abc") and dest.is_file()
    dest.unlink()
    dest.symlink_to(target)
    assert (
        put(dest, b"abc")
        and not dest.is_symlink()
        and dest.read_bytes() == target.read_bytes() == b"abc"
    )
    assert not put(dest, b"abc")


def test_the_mode_is_part_of_it(tmp_path: pathlib.Path) -> None:
    dest = tmp_path / "flows"
    put(dest, b"a")
    assert put(dest, b"a", mode=0o600)
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600
    assert not put(dest, b"a", mode=0o600)


def test_a_dry_run_makes_no_file(tmp_path: pathlib.Path) -> None:
    assert put(tmp_path / "flows", b"a", dry=True)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    dest = tmp_path / "flows"
    put(dest, b"old")
    with pytest.raises(RuntimeError):
        with files.replacing(str(dest), 0o640, False) as file:
            file.write(b"new")
            raise RuntimeError
    assert dest.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["flows"]


def test_a_file_that_can_not_be_written_is_named() -> None:
    with pytest.raises(ConntrackError, match="dest: /proc/flows can not be written: "):
        put(pathlib.Path("/proc/flows"), b"a")


@pytest.mark.parametrize(
    ("dest", "mend"),
    [
        ("flows.json", "give an absolute path"),
        ("/nowhere/at/all/flows", "the directory /nowhere/at/all does not exist"),
        ("/proc", "it is a directory"),
    ],
)
def test_bad_destinations(dest: str, mend: str) -> None:
    with pytest.raises(ConntrackError, match=mend):
        files.check_dest(dest)


def test_modes() -> None:
    assert files.file_mode("0640") == files.file_mode("640") == 0o640
    for bad in ("u=rw", "0o8", "-1", "7777", "", "420x"):
        with pytest.raises(ConntrackError, match="mode: "):
            files.file_mode(bad)
