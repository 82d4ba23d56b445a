# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The binding against the running kernel; what it says is compared with bpftool and ip."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import socket
import struct
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpf_constants,
    bpffs,
    bpffs_mount,
    netdev,
    pins,
    private_netns,
)

HASH, ARRAY, PERCPU_ARRAY, LRU_HASH = 1, 2, 6, 9

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def tool(*argv: str) -> t.Any:
    """Run bpftool or ip and return its JSON."""
    output = subprocess.run(
        [argv[0], "-j", *argv[1:]], check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output or "null")


@pytest.fixture
def prog() -> t.Iterator[int]:
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "probe_pass")) as fd:
        yield fd


@pytest.fixture
def table() -> t.Iterator[int]:
    with bpf.closing(bpf.map_create(LRU_HASH, "probe_table", 6, 12, 4096)) as fd:
        yield fd


@pytest.fixture
def pin_dir() -> t.Iterator[str]:
    bpffs_mount.ensure_mounted("/sys/fs/bpf")
    path = f"/sys/fs/bpf/test{random.randrange(1 << 32):08x}"
    os.mkdir(path)
    yield path
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
    os.rmdir(path)


@pytest.fixture
def veth() -> t.Iterator[int]:
    """One end of a veth pair, both ends in a namespace of no name, which the test runs in."""
    with private_netns.anonymous():
        subprocess.run(
            ["ip", "link", "add", "left", "type", "veth", "peer", "name", "right"], check=True
        )
        yield socket.if_nametoindex("left")


# ---------------------------------------------------------------- objects
def test_prog_info_is_bpftools(prog: int) -> None:
    info = bpf.prog_info(prog)
    shown = tool("bpftool", "prog", "show", "id", str(info.id))
    assert (info.name, info.tag, info.jited_len) == (
        shown["name"],
        shown["tag"],
        shown["bytes_jited"],
    )
    assert shown["type"] == "xdp" and info.type == bpf_constants.PROG_TYPE_XDP
    assert info.map_ids == ()
    assert 0 < info.load_time <= os.times().elapsed * 1e9 + 1e10


def test_map_info_is_bpftools(table: int) -> None:
    info = bpf.map_info(table)
    shown = tool("bpftool", "map", "show", "id", str(info.id))
    assert shown["type"] == "lru_hash" and info.kind == LRU_HASH
    assert (info.name, info.key_size, info.value_size, info.max_entries, info.flags) == (
        shown["name"],
        shown["bytes_key"],
        shown["bytes_value"],
        shown["max_entries"],
        shown["flags"],
    )


def test_long_names_are_cut() -> None:
    with bpf.closing(bpf.map_create(ARRAY, "a_name_of_more_than_15_bytes", 4, 4, 1)) as fd:
        assert bpf.map_info(fd).name == "a_name_of_more_"


def test_objects_are_not_mistaken(prog: int, table: int) -> None:
    for function, fd in ((bpf.map_info, prog), (bpf.prog_info, table), (bpf.link_info, table)):
        with pytest.raises(bpf.BpfError, match="this is no BPF"):
            function(fd)


def test_open_by_id(prog: int, table: int) -> None:
    with bpf.closing(bpf.prog_get_fd_by_id(bpf.prog_info(prog).id)) as fd:
        assert bpf.prog_info(fd).id == bpf.prog_info(prog).id
    with bpf.closing(bpf.map_get_fd_by_id(bpf.map_info(table).id)) as fd:
        assert bpf.map_info(fd) == bpf.map_info(table)
    with pytest.raises(bpf.BpfError) as raised:
        bpf.prog_get_fd_by_id(0x7FFFFFF0)
    assert raised.value.errno == errno.ENOENT


def test_pins(prog: int, pin_dir: str) -> None:
    bpf.obj_pin(prog, f"{pin_dir}/one")
    with bpf.closing(bpf.obj_get(f"{pin_dir}/one")) as fd:
        assert bpf.prog_info(fd).id == bpf.prog_info(prog).id
    with pytest.raises(bpf.BpfError) as raised:
        bpf.obj_pin(prog, f"{pin_dir}/one")
    assert raised.value.errno == errno.EEXIST and f"{pin_dir}/one" in raised.value.message
    with pytest.raises(bpf.BpfError) as raised:
        bpf.obj_get(f"{pin_dir}/none")
    assert raised.value.errno == errno.ENOENT


def test_pins_through_the_seeds_symlinks(prog: int, pin_dir: str) -> None:
    bpf.obj_pin(prog, f"{pin_dir}/xdp_0")
    pins.swap_symlink("xdp_0", f"{pin_dir}/active")
    with bpf.closing(bpf.obj_get(f"{pin_dir}/active")) as fd:
        assert bpf.prog_info(fd).id == bpf.prog_info(prog).id


def test_the_verifiers_words() -> None:
    with pytest.raises(bpf.BpfError) as raised:
        bpf.prog_load(struct.pack("=BBhi", 0x95, 0, 0, 0), "no_r0")
    assert raised.value.errno == errno.EACCES
    assert "R0 !read_ok" in raised.value.words and "R0 !read_ok" in raised.value.message


# ---------------------------------------------------------------- maps
def fill(fd: int, count: int) -> dict[bytes, bytes]:
    entries = {
        struct.pack("=IH", number, 7): struct.pack("=QI", number * 3, number)
        for number in range(count)
    }
    for key, value in entries.items():
        bpf.map_update(fd, key, value)
    return entries


def read(fd: int, batch: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for count, keys, values in bpf.map_batches(fd, 6, 12, batch):
        assert (len(keys), len(values)) == (count * 6, count * 12)
        found.update(
            (bytes(keys[at * 6 : at * 6 + 6]), bytes(values[at * 12 : at * 12 + 12]))
            for at in range(count)
        )
    return found


def test_one_element(table: int) -> None:
    key = b"\1\2\3\4\5\6"
    assert bpf.map_lookup(table, key, 12) is None
    bpf.map_update(table, key, b"twelve bytes", bpf_constants.BPF_NOEXIST)
    assert bpf.map_lookup(table, key, 12) == b"twelve bytes"
    with pytest.raises(bpf.BpfError) as raised:
        bpf.map_update(table, key, b"another dozen"[:12], bpf_constants.BPF_NOEXIST)
    assert raised.value.errno == errno.EEXIST
    assert bpf.map_delete(table, key) is True
    assert bpf.map_delete(table, key) is False


@pytest.mark.parametrize("batch", [1, 7, 4096, 16384])
def test_batches_read_everything_once(batch: int) -> None:
    # a plain hash of few buckets would be as good, but this one has buckets that hold more than a
    # batch of one
    with bpf.closing(bpf.map_create(HASH, "crowded", 6, 12, 1000)) as fd:
        entries = fill(fd, 1000)
        assert read(fd, batch) == entries


def test_an_empty_map_gives_no_batch(table: int) -> None:
    assert list(bpf.map_batches(table, 6, 12)) == []


def test_arrays_are_read_in_batches() -> None:
    with bpf.closing(bpf.map_create(ARRAY, "array", 4, 8, 10)) as fd:
        bpf.map_update(fd, struct.pack("=I", 9), struct.pack("=Q", 99))
        got = [(count, bytes(values)) for count, dummy, values in bpf.map_batches(fd, 4, 8, 4)]
    assert [count for count, dummy in got] == [4, 4, 2]
    assert got[-1][1][-8:] == struct.pack("=Q", 99)


def test_a_map_without_batches_says_so() -> None:
    with (
        bpf.closing(bpf.map_create(bpf_constants.MAP_TYPES["prog_array"], "jumps", 4, 4, 4)) as fd,
        pytest.raises(bpf.BpfError, match="bpf_map_lookup_batch"),
    ):
        list(bpf.map_batches(fd, 4, 4))


def test_batch_delete(table: int) -> None:
    entries = fill(table, 100)
    keys = list(entries)
    gone = [*keys[:10], b"absent", *keys[5:20]]
    assert bpf_batch.map_delete_batch(table, gone) == 20
    assert read(table, 64) == {key: entries[key] for key in keys[20:]}


def test_percpu_values() -> None:
    with bpf.closing(bpf.map_create(PERCPU_ARRAY, "percpu", 4, 4, 2)) as fd:
        cpus = bpf.possible_cpus()
        bpf.map_update(
            fd,
            struct.pack("=I", 1),
            b"".join(struct.pack("=II", cpu + 1, 0) for cpu in range(cpus)),
        )
        assert bpf.percpu_value(fd, 1, 4) == [struct.pack("=I", cpu + 1) for cpu in range(cpus)]
        with pytest.raises(bpf.BpfError):
            bpf.percpu_value(fd, 2, 4)


def attached(ifindex: int) -> dict[str, t.Any]:
    """Return ``{"prog_id", "mode"}`` of the program that sees the interface's frames on the host's
    CPUs; both None when there is none.

    A program on the network card itself counts only when it is the only one.
    """
    programs = netdev.link_facts(ifindex).xdp
    for mode in ("native", "generic", "offload"):
        if mode in programs:
            return {"prog_id": programs[mode], "mode": mode}
    return {"prog_id": None, "mode": None}


def test_freeze() -> None:
    with bpf.closing(bpf.map_create(ARRAY, "frozen", 4, 4, 1)) as fd:
        bpf.call("bpf_map_freeze", fd)
        with pytest.raises(bpf.BpfError) as raised:
            bpf.map_update(fd, bytes(4), bytes(4))
    assert raised.value.errno == errno.EPERM


# ---------------------------------------------------------------- test runs
def test_test_run_returns_frame_and_verdict(prog: int) -> None:
    frame = bytes(range(64))
    run = bpf.prog_test_run(prog, frame, repeat=10)
    assert (run.retval, run.data_out) == (2, frame)
    assert run.duration_ns < 1_000_000


def test_test_run_with_metadata(prog: int) -> None:
    # struct xdp_md: data_meta 0, data 0 (none), ingress_ifindex 1
    context = struct.pack("=6I", 0, 72, 0, 1, 0, 0)
    run = bpf.prog_test_run(prog, bytes(72), ctx=context)
    assert run.retval == 2 and len(run.ctx_out) == len(context)


def test_live_frames_are_counted(prog: int) -> None:
    with private_netns.anonymous():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with bpf.closing(bpf_batch.enable_stats()):
            before = bpf.prog_info(prog).run_cnt
            bpf.prog_test_run(
                prog,
                bytes(64),
                repeat=1000,
                flags=bpf_constants.BPF_F_TEST_XDP_LIVE_FRAMES,
                batch_size=64,
            )
            after = bpf.prog_info(prog)
    assert after.run_cnt - before == 1000 and after.run_time_ns > 0


# ---------------------------------------------------------------- links
def test_link_life(prog: int, veth: int) -> None:
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "second")) as second:
        link = netdev.link_create(prog, veth, flags=netdev.XDP_FLAGS["native"])
        info = bpf.link_info(link)
        assert (info.prog_id, info.ifindex, info.type) == (
            bpf.prog_info(prog).id,
            veth,
            bpf_constants.LINK_TYPE_XDP,
        )
        assert info.id in list(bpf.link_ids())
        assert attached(veth) == {"prog_id": info.prog_id, "mode": "native"}
        (shown,) = tool("ip", "link", "show", "left")
        assert shown["xdp"]["prog"]["id"] == info.prog_id and shown["xdp"]["mode"] == 1
        with pytest.raises(bpf.BpfError) as raised:
            bpf.link_update(link, second, second)
        assert raised.value.errno == errno.EPERM
        bpf.link_update(link, second, prog)
        assert bpf.link_info(link)._replace(prog_id=0) == info._replace(prog_id=0)
        assert attached(veth)["prog_id"] == bpf.prog_info(second).id
        bpf.link_detach(link)
        assert bpf.link_info(link).ifindex == 0 and attached(veth) == {
            "prog_id": None,
            "mode": None,
        }
        bpf.close(link)
    assert info.id not in list(bpf.link_ids())


def test_a_link_without_pin_dies_with_its_fd(prog: int, veth: int) -> None:
    with bpf.closing(netdev.link_create(prog, veth, flags=netdev.XDP_FLAGS["generic"])):
        assert attached(veth)["mode"] == "generic"
    assert attached(veth)["mode"] is None


def test_the_kernels_words_for_a_refused_attach(prog: int, veth: int) -> None:
    subprocess.run(["ip", "link", "set", "right", "mtu", "9000"], check=True)
    with pytest.raises(bpf.BpfError) as raised:
        netdev.link_create(prog, veth, flags=netdev.XDP_FLAGS["native"])
    assert raised.value.errno == errno.ERANGE
    assert "MTU" in raised.value.words
    assert attached(veth)["mode"] is None


def test_who_holds_a_program(prog: int, veth: int) -> None:
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "other")) as other:
        with bpf.closing(netdev.link_create(prog, veth, flags=netdev.XDP_FLAGS["native"])):
            assert netdev.xdp_link_holds(veth, "native", other) is True
        netdev.xdp_set(veth, prog, netdev.XDP_FLAGS["native"])
        assert netdev.xdp_link_holds(veth, "native", other) is False
        assert attached(veth)["prog_id"] == bpf.prog_info(prog).id, "asking must not detach"
        with pytest.raises(bpf.BpfError) as raised:
            netdev.xdp_set(
                veth, -1, netdev.XDP_FLAGS["native"] | netdev.XDP_FLAGS_REPLACE, expected_fd=other
            )
        assert raised.value.errno == errno.EEXIST and raised.value.words


def test_link_facts_are_ips(veth: int) -> None:
    facts = netdev.link_facts("left")
    (shown,) = tool("ip", "-d", "link", "show", "left")
    assert facts == netdev.link_facts(veth)
    assert (facts.ifindex, facts.name, facts.mtu, facts.kind) == (
        shown["ifindex"],
        "left",
        shown["mtu"],
        shown["linkinfo"]["info_kind"],
    )
    assert facts.peer_ifindex == socket.if_nametoindex("right") and facts.peer_nsid is None
    with pytest.raises(bpf.BpfError) as raised:
        netdev.link_facts("none")
    assert raised.value.errno == errno.ENODEV


def test_no_descriptor_is_left_behind(table: int, veth: int) -> None:
    before = os.listdir("/proc/self/fd")
    for dummy in range(3):
        netdev.link_facts(veth)
        list(bpf.map_batches(table, 6, 12))
        bpf.close(bpf.prog_load(bpf.xdp_pass_insns()))
        with pytest.raises(bpf.BpfError):
            bpf.obj_get("/sys/fs/bpf/none")
    assert len(os.listdir("/proc/self/fd")) == len(before)


# ---------------------------------------------------------------- the mount
def test_a_missing_bpffs_is_mounted_and_unmounted_again() -> None:
    """In a mount namespace of its own: mount where missing, keep while in use, take away
    afterwards; refuse a read-only one.
    """
    script = f"""
import os, subprocess, sys
sys.path[:0] = {[path for path in __import__("sys").path if path]!r}
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs, bpffs_mount
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
bpffs.RUN_DIR = {f"/run/test{random.randrange(1 << 32):08x}"!r}
OURS = (0o700, ["nodev", "noexec", "nosuid"])


def options():  # what findmnt(8) and stat(2) say of the mount
    argv = ["findmnt", "-no", "VFS-OPTIONS", bpffs.STANDARD]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    mode = os.stat(bpffs.STANDARD).st_mode & 0o777
    return mode, sorted({{"nosuid", "nodev", "noexec"}} & set(said.strip().split(",")))


os.umask(0)
while bpffs.mounted(bpffs.STANDARD):
    subprocess.run(["umount", bpffs.STANDARD], check=True)
assert bpffs_mount.usable(bpffs.STANDARD + "/deep") is False
assert bpffs_mount.ensure_mounted(bpffs.STANDARD + "/deep") is True
assert bpffs_mount.ensure_mounted(bpffs.STANDARD + "/deep") is False
assert bpffs.mounted(bpffs.STANDARD)
assert options() == OURS, options()
subprocess.run(["mount", "-o", "remount,bind,suid,dev,exec", bpffs.STANDARD], check=True)
os.chmod(bpffs.STANDARD, 0o1777)  # as releases before mounted it
assert bpffs_mount.usable(bpffs.STANDARD) is False
assert bpffs_mount.ensure_mounted(bpffs.STANDARD) is True
assert options() == OURS and bpffs_mount.usable(bpffs.STANDARD) is True
assert bpffs_mount.ensure_mounted(bpffs.STANDARD) is False
os.mkdir(bpffs.STANDARD + "/somebodys")
bpffs_mount.release(bpffs.STANDARD)
assert bpffs.mounted(bpffs.STANDARD), "not while somebody uses it"
os.rmdir(bpffs.STANDARD + "/somebodys")
bpffs_mount.release(bpffs.STANDARD + "/deep")
assert not bpffs.mounted(bpffs.STANDARD) and not os.path.exists(bpffs.RUN_DIR)
subprocess.run(["mount", "-t", "bpf", "bpf", bpffs.STANDARD], check=True)
bpffs_mount.release(bpffs.STANDARD)
assert bpffs.mounted(bpffs.STANDARD), "not ours"
assert bpffs_mount.usable(bpffs.STANDARD) is True
assert bpffs_mount.ensure_mounted(bpffs.STANDARD) is False
assert options()[0] == 0o777, "so it stays as it is"
subprocess.run(["mount", "-o", "remount,ro", bpffs.STANDARD], check=True)
try:
    bpffs.check(bpffs.STANDARD)
except ConntrackError as exc:
    print(exc.message)
"""
    done = subprocess.run(
        ["unshare", "--mount", "/usr/bin/python3", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mounted read-only" in done.stdout and "remount" in done.stdout


def test_what_another_user_made_first_is_not_used() -> None:
    """In a BPF file system that every user may write to; each command and module that reads or
    writes names it, and changes nothing.
    """
    script = f"""
import contextlib, io, os, subprocess, sys
sys.path[:0] = {[path for path in __import__("sys").path if path]!r}
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import cli
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_constants, bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpffs
subprocess.run(["mount", "-t", "bpf", "bpf", bpffs.STANDARD], check=True)
paths = bpffs.Paths(bpffs.STANDARD)
child = os.fork()
if not child:
    os.setresuid(65534, 65534, 65534)
    os.makedirs(paths.base + "/gen/1/map")
    os.symlink("gen/1", paths.active)
    os.symlink("ebpf_conntrack/active/map", paths.seed_map)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
fd = bpf.map_create(bpf_constants.MAP_TYPES["array"], "settings", 4, 8, 1)
bpf.obj_pin(fd, paths.base + "/gen/1/map/settings")


def tree():
    return sorted((where, *names, *files) for where, names, files in os.walk(bpffs.STANDARD))


before = tree()
expected = f"{{paths.base}}: it belongs to the user nobody, and root trusts what is there."
reading = ("list", "count", "stats", "summary", "status", "verify", "graph", "watch", "export")
changing = (
    "flush --all --yes", "gc", "load", "rollback", "attach lo --program ingress", "detach lo",
)
for words in (*reading, *changing):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert cli.main(words.split()) == 1, words
    assert expected in said.getvalue(), (words, said.getvalue())
for call in (
    lambda: converge.remove(paths),
    lambda: converge.observe(paths),
    lambda: attach.converge("absent", None, "auto", False, paths.pin_root, False),
    lambda: flow_table.FlowTables(paths.pin_root),
):
    try:
        call()
        raise AssertionError(call)
    except ConntrackError as exc:
        assert exc.message.startswith(expected), exc.message
assert tree() == before
os.chown(paths.base, 0, 0)
os.chmod(paths.base, 0o700)
try:
    bpffs.check(bpffs.STANDARD)
except ConntrackError as exc:
    print(exc.message)
"""
    done = subprocess.run(
        ["unshare", "--mount", "--net", "/usr/bin/python3", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(
        rf"{bpffs.STANDARD}/ebpf_conntrack/(gen|active): it belongs to the user nobody", done.stdout
    ), done.stdout
