# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, paths, symlinks and locks of the BPF file system; no root, no bpffs: a temporary directory
stands in.
"""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs, pins


@pytest.mark.parametrize(
    "name", ["eth0", "eth0.100", "a/b", "100%", "%2E", "..", "lan@if3", "Ünïcode"]
)
def test_names_come_back(name: str) -> None:
    coded = bpffs.encode(name)
    assert bpffs.decode(coded) == name
    assert "." not in coded and "/" not in coded


@pytest.mark.parametrize("netns", [None, "ns1", "a.b", "x@y", "100%"])
@pytest.mark.parametrize("ifname", ["eth0", "eth0.7", "a@b", "a%40b"])
def test_interface_keys_come_back(netns: str | None, ifname: str) -> None:
    assert bpffs.interface_of(bpffs.interface_key(netns, ifname)) == (netns, ifname)


def test_interface_keys_differ() -> None:
    keys = {
        bpffs.interface_key(netns, name)
        for netns, name in (
            (None, "a@b"),
            ("b", "a"),
            (None, "a%40b"),
            (None, "a.b"),
            (None, "a%2Eb"),
        )
    }
    assert len(keys) == 5


def test_paths() -> None:
    paths = bpffs.Paths("/sys/fs/bpf")
    assert paths.base == "/sys/fs/bpf/ebpf_conntrack"
    assert paths.gen_dir(3) == "/sys/fs/bpf/ebpf_conntrack/gen/3"
    assert paths.active == "/sys/fs/bpf/ebpf_conntrack/active"
    assert paths.link("ns1", "eth0.7") == "/sys/fs/bpf/ebpf_conntrack/link/eth0%2E7@ns1"
    assert paths.prog(0) == "/sys/fs/bpf/ebpf_conntrack/active/prog/xdp_0"
    assert paths.map("ctt") == "/sys/fs/bpf/ebpf_conntrack/active/map/ctt"
    assert paths.seed_links() == {
        "/sys/fs/bpf/prog": "ebpf_conntrack/active/prog",
        "/sys/fs/bpf/map": "ebpf_conntrack/active/map",
    }


def test_swap_symlink(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "active")
    os.symlink("gen/0", path + "%new")  # of a run that was killed between the two calls
    for target in ("gen/1", "gen/2"):
        pins.swap_symlink(target, path)
        assert os.readlink(path) == target
    assert os.listdir(tmp_path) == ["active"]


def test_swap_symlink_refuses_a_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "prog").mkdir()
    with pytest.raises(ConntrackError, match="prog is a directory of somebody else"):
        pins.swap_symlink("ebpf_conntrack/active/prog", str(tmp_path / "prog"))
    assert (tmp_path / "prog").is_dir() and os.listdir(tmp_path) == ["prog"]


def test_seed_links_refuse_what_is_foreign(tmp_path: pathlib.Path) -> None:
    paths = bpffs.Paths(str(tmp_path))
    pins.check_places(paths)
    for path, target in paths.seed_links().items():
        os.symlink(target, path)
    pins.check_places(paths)
    pins.swap_symlink("elsewhere", paths.seed_map)
    with pytest.raises(
        ConntrackError, match=r"map is a symbolic link of somebody else, to elsewhere"
    ):
        pins.check_places(paths)


@pytest.mark.parametrize(
    "pin_root, word",
    [
        ("relative", "absolute path"),
        ("/sys/fs/../fs/bpf", "absolute path"),
        ("/sys/fs/bpf/", "absolute path"),
        ("/etc/passwd", "not a directory"),
        ("/", "not on a BPF file system"),
        ("/nowhere/at/all", "mount -t bpf bpf /nowhere/at/all"),
        ("//sys/fs/bpf", "absolute path"),
        ('/sys/fs/bpf/a", 0)', "without white space, quotes"),
        ("/sys/fs/bpf/a\nExecStartPre=/bin/sh", "without white space, quotes"),
        ("/sys/fs/bpf/%n", "without white space, quotes"),
        ("/sys/fs/bpf/" + "a" * 256, "too long"),
        ("/sys/fs/bpf" + "/a" * 100, "too long"),
    ],
)
def test_bad_pin_roots(pin_root: str, word: str) -> None:
    with pytest.raises(ConntrackError) as raised:
        bpffs.check(pin_root)
    assert raised.value.message.startswith(f"pin_root: {pin_root!r} is not valid: ")
    assert word in raised.value.message


MOUNTS = [("/", "ext4"), ("/sys", "sysfs"), ("/sys/fs/bpf", "bpf"), ("/run/with space", "bpf")]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/sys/fs/bpf", True),
        ("/sys/fs/bpf/deep/er", True),
        ("/sys/fs/bpfx", False),
        ("/sys", False),
        ("/run/with space/x", True),
        ("/run", False),
    ],
)
def test_mounted(monkeypatch: pytest.MonkeyPatch, path: str, expected: bool) -> None:
    monkeypatch.setattr(bpffs, "_mounts", lambda: MOUNTS)
    monkeypatch.setattr(os.path, "realpath", lambda given: given)
    assert bpffs.mounted(path) is expected


def test_the_upper_mount_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpffs, "_mounts", lambda: [*MOUNTS, ("/sys/fs/bpf", "tmpfs")])
    assert not bpffs.mounted("/sys/fs/bpf")


def test_a_missing_standard_mount_is_to_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpffs, "_mounts", lambda: [("/", "ext4"), ("/sys", "sysfs")])
    assert bpffs.check(bpffs.STANDARD) is False
    assert bpffs.check(bpffs.STANDARD + "/lab") is False
