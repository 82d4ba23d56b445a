# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written down of generations, and read again; no root, a temporary directory is the state
directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import stat
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import record as attach_record
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import files
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import manifest, state_dir
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs

WANT = generation.Want(
    "the sources",
    {"include/a.h": "a header"},
    65536,
    {"udp": 7},
    {"tcp_loose": 0},
    1024,
    pinned=(guests.Pinned(4, "/sys/fs/bpf/acl", 77, "ab" * 8),),
)


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> bpffs.Paths:
    return bpffs.Paths("/sys/fs/bpf/lab", str(tmp_path / "lib/state"))


def test_what_is_written_is_read_again(paths: bpffs.Paths) -> None:
    manifest.write(paths, 3, WANT)
    assert manifest.read(paths, 3) == WANT
    assert manifest.read(paths, 4) is None and manifest.read(paths, None) is None
    assert manifest.look(paths) == generation.State(None, None, (3,))
    manifest.activate(paths, 3)
    assert manifest.look(paths) == generation.State(3, WANT.made_of, (3,))
    assert manifest.read(paths, state_dir.active(paths)) == WANT


def test_made_of_is_the_same_after_a_round_trip(paths: bpffs.Paths) -> None:
    manifest.write(paths, 3, WANT)
    read = manifest.read(paths, 3)
    assert read is not None and read.made_of == WANT.made_of == json.loads(json.dumps(WANT.made_of))


def test_every_field_tells_wants_apart() -> None:
    changes: dict[str, t.Any] = {
        "text": "others",
        "table_size": 1,
        "timeouts": {},
        "knobs": {},
        "table_size6": 1,
        "pinned": (),
    }
    assert all(
        dataclasses.replace(WANT, **{name: value}).made_of != WANT.made_of
        for name, value in changes.items()
    )


def test_manifest(paths: bpffs.Paths) -> None:
    manifest.write(paths, 3, WANT)
    path = pathlib.Path(manifest.manifest(paths, 3))
    assert path.parent.name == "sys%2Ffs%2Fbpf%2Flab"
    found = json.loads(path.read_text("utf-8"))
    assert (found["generation"], found["pin_root"], found["boot_id"]) == (
        3,
        "/sys/fs/bpf/lab",
        pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    )
    assert found["made_of"]["digest"] == WANT.digest and found["written"].endswith("Z")


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "no JSON", '{"made_of": {}}', '{"made_of": {"digest": "x"}, "rendered": "x"}'],
)
def test_a_damaged_manifest_tells_nothing(paths: bpffs.Paths, content: str) -> None:
    manifest.write(paths, 3, WANT)
    manifest.activate(paths, 3)
    pathlib.Path(manifest.manifest(paths, 3)).write_text(content, "utf-8")
    assert manifest.read(paths, 3) is None


def test_a_manifest_whose_text_was_changed_tells_nothing(paths: bpffs.Paths) -> None:
    manifest.write(paths, 3, WANT)
    path = pathlib.Path(manifest.manifest(paths, 3))
    found = json.loads(path.read_text("utf-8"))
    manifest.write(paths, 3, dataclasses.replace(WANT, text="other sources"))
    other = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**found, "rendered": other["rendered"]}), "utf-8")
    assert manifest.read(paths, 3) is None


def test_an_older_release_knew_fewer_fields(paths: bpffs.Paths) -> None:
    manifest.write(paths, 3, WANT)
    path = pathlib.Path(manifest.manifest(paths, 3))
    found = json.loads(path.read_text("utf-8"))
    for name in ("table_size6", "knobs"):
        del found["made_of"][name]
    path.write_text(json.dumps({**found, "made_of": {**found["made_of"], "unheard": 1}}), "utf-8")
    assert manifest.read(paths, 3) == dataclasses.replace(WANT, table_size6=65536, knobs={})


def test_all_of_it_goes(paths: bpffs.Paths, tmp_path: pathlib.Path) -> None:
    (tmp_path / "lib").mkdir()
    for number in (3, 4):
        manifest.write(paths, number, WANT)
        manifest.activate(paths, number)
    manifest.activate(paths, None)
    manifest.forget_generation(paths, 3)
    assert manifest.look(paths).numbers == (4,)
    manifest.forget_generation(paths, 4)
    manifest.forget_generation(paths, 4)
    assert os.listdir(tmp_path / "lib") == []


def test_interfaces(paths: bpffs.Paths, tmp_path: pathlib.Path) -> None:
    (tmp_path / "lib").mkdir()
    items: list[dict[str, str | None]] = [
        {"name": "eth0", "netns": None, "program": "ingress", "mode": "auto"},
        {"name": "a@b", "netns": "red", "program": "egress", "mode": "native"},
    ]
    assert attach_record.interfaces(paths) == []
    attach_record.write_interfaces(paths, items)
    assert attach_record.interfaces(paths) == items and manifest.look(paths) == generation.State(
        interfaces=True
    )
    for damaged in ("", "[]", "{}", '{"interfaces": [1]}', '{"interfaces": [{"name": "eth0"}]}'):
        (path,) = (tmp_path / "lib/state/sys%2Ffs%2Fbpf%2Flab").iterdir()
        path.write_text(damaged, "utf-8")
        assert attach_record.interfaces(paths) == []
    attach_record.write_interfaces(paths, [])
    attach_record.write_interfaces(paths, [])
    assert os.listdir(tmp_path / "lib") == []


def test_strays(paths: bpffs.Paths) -> None:
    manifest.write(paths, 3, WANT)
    directory = pathlib.Path(manifest.manifest(paths, 3)).parent
    for name in ("4.json.new", "active%new", "note.json", "x"):
        (directory / name).touch()
    assert manifest.look(paths) == generation.State(
        None, None, (3,), ("4.json.new", "active%new", "note.json", "x")
    )


def test_check(paths: bpffs.Paths, tmp_path: pathlib.Path) -> None:
    state_dir.check(paths)
    assert os.listdir(tmp_path) == []
    (tmp_path / "lib").touch()
    for where, words in (
        ("state", "give the absolute path of a directory, as /var/lib/ebpf_conntrack"),
        ("/var/../lib", "give the absolute path"),
        (str(tmp_path / "lib/state"), f"{tmp_path}/lib is not a directory"),
        ("/proc/1/state", "/proc/1 can not be written to; run as root"),
    ):
        with pytest.raises(ConntrackError) as raised:
            state_dir.check(dataclasses.replace(paths, state_dir=where))
        assert (
            raised.value.message.startswith(f"state_dir: {where!r} is not valid: ")
            and words in raised.value.message
        )


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_what_is_written_is_for_root_alone(
    paths: bpffs.Paths, tmp_path: pathlib.Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        manifest.write(paths, 3, from_object())
        manifest.activate(paths, 3)
    finally:
        os.umask(before)
    found = {
        path.name: path.stat().st_mode & 0o777
        for path in (tmp_path / "lib").rglob("*")
        if not path.is_symlink()
    }
    assert found == {"state": 0o700, "sys%2Ffs%2Fbpf%2Flab": 0o700, "3.json": 0o600, "3.o": 0o600}
    assert (tmp_path / "lib").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("which", ["manifest", "object", "directory", "state_dir", "interfaces"])
def test_what_others_may_have_changed_is_not_acted_on(paths: bpffs.Paths, which: str) -> None:
    """Root would load and attach what it says. It is named where it is asked for; the next run
    writes it again, but for directories, which it leaves alone.
    """
    manifest.write(paths, 3, from_object())
    manifest.activate(paths, 3)
    items = [{"name": "eth0", "netns": None, "program": "ingress", "mode": "auto"}]
    attach_record.write_interfaces(paths, items)
    directory = pathlib.Path(state_dir.directory(paths))
    places = {
        "manifest": directory / "3.json",
        "object": directory / "3.o",
        "directory": directory,
        "state_dir": directory.parent,
    }
    path = places.get(which, directory / "interfaces.json")
    path.chmod(0o777)
    with pytest.raises(ConntrackError) as raised:
        attach_record.interfaces(paths) if which == "interfaces" else manifest.read(paths, 3)
    assert raised.value.message.startswith(
        f"{path}: every user may write to it, and root trusts what is there."
    )
    if path.is_dir():
        with pytest.raises(ConntrackError, match=f"{path}: every user may write to it"):
            state_dir.check(paths)
        path.chmod(0o700)
    else:
        assert manifest.look(paths).object == (which == "interfaces")
        manifest.write(paths, 3, from_object())
        attach_record.write_interfaces(paths, items)
        assert path.stat().st_mode & 0o777 == 0o600
    assert (
        manifest.read(paths, 3) == from_object()
        and attach_record.interfaces(paths) == items
        and manifest.look(paths).object
    )


# ---------------------------------------------------------------- object files
def from_object(data: bytes = b"object") -> generation.Want:
    manifest = object_file.Manifest(
        digest="0" * 32,
        sources="1" * 32,
        settings={"checksum": "offload"},
        compiler={"name": "clang", "version": "14.0.6"},
        target={"machine": "x86_64", "byteorder": "little"},
        layout=2,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        kernel=[],
    )
    return dataclasses.replace(
        WANT, build=generation.OBJECT, object=object_file.Built(manifest, data)
    )


def test_an_object_is_kept_beside_the_manifest(paths: bpffs.Paths) -> None:
    want = from_object()
    manifest.write(paths, 3, want)
    manifest.activate(paths, 3)
    read = manifest.read(paths, 3)
    assert read == want and read is not None and read.object == want.object
    assert manifest.look(paths) == generation.State(3, want.made_of, (3,), object=True)
    assert want.made_of == {**WANT.made_of, "build": "object"}, (
        "what the object is is no part of what is wanted"
    )
    manifest.write(paths, 3, dataclasses.replace(want, object=None, timeouts={"udp": 9}))
    read = manifest.read(paths, 3)
    assert read is not None and (read.object, read.timeouts) == (want.object, {"udp": 9}), (
        "without one the one that is there stays"
    )
    manifest.write(paths, 3, WANT)
    assert manifest.read(paths, 3) == WANT and not os.path.exists(manifest.object_path(paths, 3))


def test_an_object_that_is_not_whole_tells_nothing(paths: bpffs.Paths) -> None:
    manifest.write(paths, 3, from_object())
    manifest.activate(paths, 3)
    path = pathlib.Path(manifest.object_path(paths, 3))
    path.write_bytes(b"objec")
    assert manifest.read(paths, 3) is None and not manifest.look(paths).object
    path.unlink()
    assert manifest.read(paths, 3) is None and not manifest.look(paths).object


def test_an_object_goes_with_its_manifest(paths: bpffs.Paths, tmp_path: pathlib.Path) -> None:
    (tmp_path / "lib").mkdir()
    manifest.write(paths, 3, from_object())
    os.unlink(manifest.manifest(paths, 3))
    assert manifest.look(paths).strays == ("3.o",), (
        "as a run leaves it that was killed between the two"
    )
    manifest.write(paths, 3, from_object())
    assert manifest.look(paths).strays == ()
    manifest.forget_generation(paths, 3)
    assert os.listdir(tmp_path / "lib") == []


# ---------------------------------------------------------------- a power cut
class Disk:
    """What a power cut would leave: a file's content is safe from its fsync on, a name from that of
    its directory on.

    :ivar early: the names that were given to files whose content was not safe yet.
    :ivar lost: the directories with names that are not safe.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.early: list[str] = []
        self.lost: set[int] = set()
        self._safe: dict[int, int] = {}  # by inode: bytes
        self._fsync, self._rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)

    def fsync(self, fd: int) -> None:
        self._fsync(fd)
        found = os.fstat(fd)
        self._safe[found.st_ino] = found.st_size
        self.lost.discard(found.st_ino)

    def rename(
        self, source: str, to: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        found = os.lstat(source, dir_fd=src_dir_fd)
        if stat.S_ISREG(found.st_mode) and self._safe.get(found.st_ino) != found.st_size:
            self.early.append(to)
        self._rename(source, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self.lost.add(
            (os.stat(os.path.dirname(to)) if dst_dir_fd is None else os.fstat(dst_dir_fd)).st_ino
        )


def test_what_is_written_down_outlives_a_power_cut(
    paths: bpffs.Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content before name, name before it is told: a manifest, its object, the interfaces, and
    which generation is active.
    """
    disk = Disk(monkeypatch)
    for write in (
        lambda: manifest.write(paths, 1, WANT),
        lambda: manifest.write(paths, 1, dataclasses.replace(WANT, timeouts={"udp": 8})),
        lambda: manifest.activate(paths, 1),
        lambda: attach_record.write_interfaces(
            paths, [{"name": "eth0", "netns": None, "program": "ingress", "mode": "auto"}]
        ),
    ):
        write()
        assert (disk.early, disk.lost) == ([], set())
    assert manifest.read(paths, state_dir.active(paths)) == dataclasses.replace(
        WANT, timeouts={"udp": 8}
    )


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed files", "as on NFS"])
def test_a_file_that_is_replaced_outlives_a_power_cut(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    """The unit and the command are such files, and what is exported."""
    dest = tmp_path / "ct.service"
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE")
        # what a file system answers that has none
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=False)
    disk = Disk(monkeypatch)
    for content in (b"[Unit]\n", b"[Unit]\nDescription=another one\n"):
        with files.replacing(str(dest), 0o644, dry=False) as file:
            file.write(content)
        assert (disk.early, disk.lost, dest.read_bytes()) == ([], set(), content)
