# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's BPF objects by file descriptor: libbpf through ctypes, and the little rtnetlink that
XDP needs.

It holds what bcc's binding lacks (links, batches, test runs, object info), and loads without bcc,
so that readers stay small. Struct layouts: include/uapi/linux/bpf.h, include/uapi/linux/if_link.h,
and libbpf's ``*_opts``, each cut to the fields of libbpf 1.0. Every function raises BpfError when
the kernel refuses, and ConntrackError when libbpf itself is missing or too old. All functions that
return ``int`` named fd return a new file descriptor that the caller closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno as errnos
import os
import socket
import struct
import typing as t

from ..core.errors import ConntrackError

LIBRARIES = ("libbpf.so.1", "libbpf.so.0")
#: Called with the call's name just before each call into the kernel; tests make it raise or exit to
#: break a run at that place.
fault: t.Callable[[str], None] | None = None
#: include/uapi/linux/bpf.h
PROG_TYPE_XDP = 6
ATTACH_XDP = 37
LINK_TYPE_XDP = 6
#: Free nodes of an LRU table that the kernel gives to a CPU at a time (kernel/bpf/bpf_lru_list.c,
#: LOCAL_FREE_TARGET).
LRU_BATCH = 128
BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK = 0, 1, 2, 4
BPF_F_REPLACE = 4
BPF_F_TEST_XDP_LIVE_FRAMES = 2
BPF_STATS_RUN_TIME = 0
OBJECT_NAME_BYTES = 15
#: include/uapi/linux/if_link.h
XDP_FLAGS_UPDATE_IF_NOEXIST = 1
XDP_FLAGS = {"generic": 1 << 1, "native": 1 << 2}
XDP_FLAGS_REPLACE = 1 << 4
#: Errno values that Python names differently than the kernel, or not at all.
_ERRNO_NAMES = {errnos.EOPNOTSUPP: "EOPNOTSUPP", 524: "ENOTSUPP"}
_ERRNO_WORDS = {524: "Not supported by the kernel"}


class BpfError(ConntrackError, OSError):
    """The kernel refused a call.

    :ivar errno: the kernel's number.
    :ivar call: the call, with what it was about.
    :ivar words: the kernel's own words (verifier log, netlink's extended acknowledgement), "" where
        there are none.
    """

    def __init__(self, number: int, call: str, words: str = "") -> None:
        name = _ERRNO_NAMES.get(number) or errnos.errorcode.get(number, str(number))
        said = _ERRNO_WORDS.get(number) or os.strerror(number)
        message = f"{call}: {said} ({name})" + (f": {words}" if words else "")
        ConntrackError.__init__(self, message)
        OSError.__init__(self, number, message)
        self.call = call
        self.words = words

    def __str__(self) -> str:
        return self.message


# ---------------------------------------------------------------- structs
class _Sized(ctypes.Structure):
    """A libbpf opts struct: its first field tells libbpf which fields the caller knows."""

    def __init__(self, **fields: t.Any) -> None:
        super().__init__(sz=ctypes.sizeof(self), **fields)


class _MapCreateOpts(_Sized):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        *(
            (name, ctypes.c_uint32)
            for name in (
                "btf_fd",
                "btf_key_type_id",
                "btf_value_type_id",
                "btf_vmlinux_value_type_id",
                "inner_map_fd",
                "map_flags",
            )
        ),
    ]


class _ProgLoadOpts(_Sized):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        *(
            (name, ctypes.c_uint32)
            for name in (
                "expected_attach_type",
                "prog_btf_fd",
                "prog_flags",
                "prog_ifindex",
                "kern_version",
                "attach_btf_id",
                "attach_prog_fd",
                "attach_btf_obj_fd",
            )
        ),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    ]


class _LinkCreateOpts(_Sized):
    _fields_ = [("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("pad", ctypes.c_uint32)]


class _LinkUpdateOpts(_Sized):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("old_prog_fd", ctypes.c_uint32),
    ]


class _TestRunOpts(_Sized):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_uint32)
            for name in ("type", "id", "key_size", "value_size", "max_entries", "map_flags")
        ),
        ("name", ctypes.c_char * 16),
    ]


class _ProgInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    ]


class _LinkInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),  # of the union: struct xdp
        ("union", ctypes.c_uint32 * 7),
    ]


class MapInfo(t.NamedTuple):
    """What the kernel knows of a map; ``kind`` is its number in enum bpf_map_type, sizes are
    bytes.
    """

    id: int
    kind: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class ProgInfo(t.NamedTuple):
    """What the kernel knows of a program; ``tag`` is hex, ``load_time`` ns since boot, ``run_*``
    stand still without enable_stats().
    """

    id: int
    type: int
    name: str
    tag: str
    jited_len: int
    run_cnt: int
    run_time_ns: int
    map_ids: tuple[int, ...]
    load_time: int


class LinkInfo(t.NamedTuple):
    """What the kernel knows of a bpf_link; ``ifindex`` is 0 when the interface is gone or the link
    is not of type XDP.
    """

    id: int
    prog_id: int
    ifindex: int
    type: int


class TestRun(t.NamedTuple):
    """The outcome of prog_test_run(); ``duration_ns`` is the mean of one run."""

    retval: int
    data_out: bytes
    ctx_out: bytes
    duration_ns: int


class LinkFacts(t.NamedTuple):
    """What rtnetlink says about one interface.

    :ivar kind: ``veth``, ``vlan``, ...; "" for hardware and loopback.
    :ivar peer_ifindex: IFLA_LINK; for a veth the ifindex of the other end, in its namespace.
    :ivar peer_nsid: the id that this namespace has for the peer's, None when the peer lives here.
    :ivar xdp: the attached program's id by mode: ``native``, ``generic``, ``offload``.
    :ivar received: frames since the interface was made.
    :ivar mac: its hardware address, b"" where it has none.
    :ivar type: ARPHRD_* of include/uapi/linux/if_arp.h, what its frames begin with; 1 is Ethernet.
    :ivar master: the ifindex of the bridge, bond, team or VRF that it is part of; 0 where there is
        none.
    :ivar altnames: its alternative names (ip link property, Linux 5.5).
    :ivar merges: bytes of the longest packet that the stack makes of what it receives (GRO).
    :ivar leaves: bytes of the longest packet that senders leave to it to cut up (GSO).
    """

    ifindex: int
    name: str
    kind: str
    mtu: int
    peer_ifindex: int
    peer_nsid: int | None
    xdp: dict[str, int]
    received: int
    mac: bytes = b""
    type: int = 1
    master: int = 0
    altnames: tuple[str, ...] = ()
    merges: int = 0
    leaves: int = 0


# ---------------------------------------------------------------- calling libbpf
_INT, _U32, _U64, _PTR, _STR = (
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_void_p,
    ctypes.c_char_p,
)
_SIGNATURES: dict[str, tuple[t.Any, ...]] = {
    "bpf_obj_get": (_STR,),
    "bpf_obj_pin": (_INT, _STR),
    "bpf_map_create": (_U32, _STR, _U32, _U32, _U32, _PTR),
    "bpf_map_update_elem": (_INT, _PTR, _PTR, _U64),
    "bpf_map_lookup_elem": (_INT, _PTR, _PTR),
    "bpf_map_delete_elem": (_INT, _PTR),
    "bpf_map_delete_batch": (_INT, _PTR, _PTR, _PTR),
    "bpf_map_lookup_batch": (_INT, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR),
    "bpf_map_update_batch": (_INT, _PTR, _PTR, _PTR, _PTR),
    "bpf_map_freeze": (_INT,),
    "bpf_map_get_fd_by_id": (_U32,),
    "bpf_prog_get_fd_by_id": (_U32,),
    "bpf_link_get_fd_by_id": (_U32,),
    "bpf_link_get_next_id": (_U32, _PTR),
    "bpf_obj_get_info_by_fd": (_INT, _PTR, _PTR),
    "bpf_prog_load": (_U32, _STR, _STR, _PTR, ctypes.c_size_t, _PTR),
    "bpf_prog_test_run_opts": (_INT, _PTR),
    "bpf_enable_stats": (_U32,),
    "bpf_link_create": (_INT, _INT, _U32, _PTR),
    "bpf_link_update": (_INT, _INT, _PTR),
    "bpf_link_detach": (_INT,),
    "libbpf_num_possible_cpus": (),
}
_functions: dict[str, t.Any] = {}
_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """Return libbpf, loaded once.

    :raises ConntrackError: when the host has none, naming the packages.
    """
    global _library
    if _library is None:
        for name in LIBRARIES:
            with contextlib.suppress(OSError):
                _library = ctypes.CDLL(name, use_errno=True)
                break
        else:
            raise ConntrackError(
                f"The library libbpf ({' or '.join(LIBRARIES)}) is not on this host. "
                "Install it: package libbpf1 on Debian and Ubuntu, libbpf on Fedora and RHEL."
            )
    return _library


def _function(name: str) -> t.Any:
    if name not in _functions:
        lib = library()
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise ConntrackError(
                f"This host's libbpf has no {name}; version 0.8 or later is needed. Upgrade the"
                " package libbpf1 or libbpf."
            ) from None
        function.argtypes = _SIGNATURES[name]
        function.restype = ctypes.c_int
        _functions[name] = function
    return _functions[name]


def _call(name: str, *args: t.Any, about: str = "") -> int:
    """Call libbpf; ``about`` is what the error shall say between the brackets."""
    function = _function(name)
    if fault is not None:
        fault(name)
    ctypes.set_errno(0)
    result = function(*args)
    if result < 0:
        # libbpf 1.x returns -errno and sets errno; 0.x returns -1 and sets errno
        raise BpfError(ctypes.get_errno() or -result, f"{name}({about})")
    return int(result)


def close(fd: int | None) -> None:
    """Close a file descriptor; None and closed ones are fine."""
    if fd is not None:
        with contextlib.suppress(OSError):
            os.close(fd)


@contextlib.contextmanager
def closing(fd: int) -> t.Iterator[int]:
    """Give the file descriptor to a ``with`` block and close it afterwards."""
    try:
        yield fd
    finally:
        close(fd)


# ---------------------------------------------------------------- pins
def obj_get(path: str) -> int:
    """Open a pinned object. :return: fd."""
    return _call("bpf_obj_get", os.fsencode(path), about=path)


def obj_pin(fd: int, path: str) -> None:
    """Pin an object; EEXIST when the path is taken."""
    _call("bpf_obj_pin", fd, os.fsencode(path), about=path)


# ---------------------------------------------------------------- maps
def map_create(
    kind: int,
    name: str,
    key_size: int,
    value_size: int,
    entries: int,
    flags: int = 0,
    inner: int | None = None,
) -> int:
    """Create a map of enum bpf_map_type ``kind``. :return: fd.

    :param inner: for an array of maps the file descriptor of one like those that it shall hold;
        their sizes may differ.
    """
    opts = _MapCreateOpts(map_flags=flags, inner_map_fd=inner or 0)
    return _call(
        "bpf_map_create",
        kind,
        _object_name(name),
        key_size,
        value_size,
        entries,
        ctypes.byref(opts),
        about=name,
    )


def map_update(fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
    """Write one element. A per-CPU value is one value for each possible CPU, each padded to 8
    bytes.
    """
    _call("bpf_map_update_elem", fd, key, value, flags, about=f"key {key.hex()}")


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Write ``count`` elements whose keys and values stand one behind the other; what is there is
    overwritten.
    """
    done = ctypes.c_uint32(count)
    _call(
        "bpf_map_update_batch", fd, keys, values, ctypes.byref(done), None, about=f"{count} entries"
    )


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the element's ``value_size`` bytes, None when there is none."""
    value = ctypes.create_string_buffer(value_size)
    try:
        _call("bpf_map_lookup_elem", fd, key, value, about=f"key {key.hex()}")
    except BpfError as exc:
        if exc.errno == errnos.ENOENT:
            return None
        raise
    return value.raw


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one element. :return: whether it was there."""
    try:
        _call("bpf_map_delete_elem", fd, key, about=f"key {key.hex()}")
    except BpfError as exc:
        if exc.errno == errnos.ENOENT:
            return False
        raise
    return True


def map_delete_batch(fd: int, keys: t.Sequence[bytes]) -> int:
    """Delete the elements of these keys, in as few calls as can be. :return: how many were there."""
    deleted, start = 0, 0
    while start < len(keys):
        count = ctypes.c_uint32(len(keys) - start)
        try:
            _call(
                "bpf_map_delete_batch",
                fd,
                b"".join(keys[start:]),
                ctypes.byref(count),
                None,
                about=f"{len(keys) - start} keys",
            )
        except BpfError as exc:
            if exc.errno != errnos.ENOENT:
                raise
            start += 1  # the kernel stops at a key that is gone: step over it
        deleted += count.value
        start += count.value
    return deleted


def map_batches(
    fd: int, key_size: int, value_size: int, batch: int = 16384
) -> t.Iterator[tuple[int, memoryview, memoryview]]:
    """Read a whole map in batches.

    :param value_size: the bytes of one value as the kernel copies it out (per-CPU maps: padded to
        8, times possible_cpus()).
    :return: for each batch (count, keys, values): views of exactly ``count`` elements, which the
        next round overwrites.
    """
    # a hash map's cursor is a u32, other kinds use a key; two cursors, because the kernel reads one
    # while it writes the other
    cursors = [ctypes.create_string_buffer(max(key_size, 8)) for dummy in range(2)]
    first, done = True, False
    keys = values = None
    while not done:
        if keys is None or values is None:
            keys, values = (
                ctypes.create_string_buffer(batch * key_size),
                ctypes.create_string_buffer(batch * value_size),
            )
        count = ctypes.c_uint32(batch)
        try:
            _call(
                "bpf_map_lookup_batch",
                fd,
                None if first else cursors[0],
                cursors[1],
                keys,
                values,
                ctypes.byref(count),
                None,
                about=f"{batch} entries",
            )
        except BpfError as exc:
            if (
                exc.errno == errnos.ENOSPC
            ):  # one bucket holds more than a batch: the cursor has not moved
                batch, keys, values = batch * 2, None, None
                continue
            if exc.errno != errnos.ENOENT:
                raise
            done = True
        first = False
        cursors.reverse()
        if count.value:
            yield (
                count.value,
                memoryview(keys)[: count.value * key_size].cast("B"),
                memoryview(values)[: count.value * value_size].cast("B"),
            )


def map_freeze(fd: int) -> None:
    """Make a map read-only for user space."""
    _call("bpf_map_freeze", fd)


def percpu_value(fd: int, index: int, value_size: int) -> list[bytes]:
    """Return element ``index`` of a per-CPU array: one value for each possible CPU."""
    stride = (value_size + 7) // 8 * 8
    raw = map_lookup(fd, struct.pack("=I", index), stride * possible_cpus())
    if raw is None:
        raise BpfError(errnos.ENOENT, f"bpf_map_lookup_elem(index {index})")
    return [raw[at : at + value_size] for at in range(0, len(raw), stride)]


# ---------------------------------------------------------------- facts
def kind_of(fd: int) -> str:
    """Return ``map``, ``prog`` or ``link``, or "" for what is no BPF object; the info call itself
    answers for any of them, in its own layout.
    """
    name = os.readlink(f"/proc/self/fd/{fd}")
    return next(
        (
            kind
            for kind in ("map", "prog", "link")
            if name in (f"anon_inode:bpf-{kind}", f"anon_inode:bpf_{kind}")
        ),
        "",
    )


def _info(fd: int, kind: str, into: ctypes.Structure) -> None:
    if kind_of(fd) != kind:
        raise BpfError(errnos.EINVAL, f"bpf_obj_get_info_by_fd(fd {fd})", f"this is no BPF {kind}")
    length = ctypes.c_uint32(ctypes.sizeof(into))
    _call("bpf_obj_get_info_by_fd", fd, ctypes.byref(into), ctypes.byref(length), about=f"fd {fd}")


def map_info(fd: int) -> MapInfo:
    """Return what the kernel knows of a map."""
    raw = _MapInfo()
    _info(fd, "map", raw)
    return MapInfo(
        raw.id,
        raw.type,
        raw.name.decode(),
        raw.key_size,
        raw.value_size,
        raw.max_entries,
        raw.map_flags,
    )


def prog_info(fd: int) -> ProgInfo:
    """Return what the kernel knows of a program."""
    raw = _ProgInfo()
    _info(fd, "prog", raw)
    ids = (ctypes.c_uint32 * raw.nr_map_ids)()
    if raw.nr_map_ids:
        raw = _ProgInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
        _info(fd, "prog", raw)
    return ProgInfo(
        raw.id,
        raw.type,
        raw.name.decode(),
        bytes(raw.tag).hex(),
        raw.jited_prog_len,
        raw.run_cnt,
        raw.run_time_ns,
        tuple(ids),
        raw.load_time,
    )


def link_info(fd: int) -> LinkInfo:
    """Return what the kernel knows of a bpf_link."""
    raw = _LinkInfo()
    _info(fd, "link", raw)
    return LinkInfo(raw.id, raw.prog_id, raw.ifindex if raw.type == LINK_TYPE_XDP else 0, raw.type)


def map_get_fd_by_id(number: int) -> int:
    """Open a map by its id. :return: fd."""
    return _call("bpf_map_get_fd_by_id", number, about=f"id {number}")


def prog_get_fd_by_id(number: int) -> int:
    """Open a program by its id. :return: fd."""
    return _call("bpf_prog_get_fd_by_id", number, about=f"id {number}")


def link_get_fd_by_id(number: int) -> int:
    """Open a bpf_link by its id. :return: fd."""
    return _call("bpf_link_get_fd_by_id", number, about=f"id {number}")


def link_ids() -> t.Iterator[int]:
    """Return the ids of all bpf_links of the system, in rising order."""
    number = ctypes.c_uint32(0)
    while True:
        try:
            _call(
                "bpf_link_get_next_id",
                number.value,
                ctypes.byref(number),
                about=f"after {number.value}",
            )
        except BpfError as exc:
            if exc.errno == errnos.ENOENT:
                return
            raise
        yield number.value


def possible_cpus() -> int:
    """Return how many values a per-CPU element has."""
    return _call("libbpf_num_possible_cpus")


def lru_spare() -> int:
    """Return how many entries an LRU table has to have beyond those that it is to hold for certain:
    what a CPU has taken is not given to others.
    """
    return possible_cpus() * LRU_BATCH


def enable_stats() -> int:
    """Have the kernel count each program's runs and their time while the returned fd is open."""
    return _call("bpf_enable_stats", BPF_STATS_RUN_TIME)


# ---------------------------------------------------------------- programs
def _object_name(name: str) -> bytes:
    return name.encode()[:OBJECT_NAME_BYTES]


def prog_load(
    insns: bytes,
    name: str = "",
    kind: int = PROG_TYPE_XDP,
    attach_type: int = ATTACH_XDP,
    licence: str = "GPL",
    flags: int = 0,
) -> int:
    """Load a program of raw instructions (8 bytes each), for probes and for the peers' ``pass``
    programs. :return: fd.

    :raises BpfError: with the verifier's log as ``words``.
    """
    log = ctypes.create_string_buffer(1 << 16)
    opts = _ProgLoadOpts(
        expected_attach_type=attach_type,
        prog_flags=flags,
        log_level=1,
        log_size=len(log),
        log_buf=ctypes.cast(log, ctypes.c_char_p),
    )
    try:
        return _call(
            "bpf_prog_load",
            kind,
            _object_name(name),
            licence.encode(),
            insns,
            len(insns) // 8,
            ctypes.byref(opts),
            about=name,
        )
    except BpfError as exc:
        raise BpfError(
            exc.errno or 0, exc.call, log.value.decode(errors="replace").strip()
        ) from None


def xdp_pass_insns() -> bytes:
    """Return the program ``return XDP_PASS``."""
    return struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def prog_test_run(
    fd: int,
    data: bytes,
    repeat: int = 1,
    ctx: bytes | None = None,
    flags: int = 0,
    cpu: int = 0,
    batch_size: int = 0,
    headroom: int = 256,
) -> TestRun:
    """Run a program on a frame.

    :param ctx: bytes of struct xdp_md, where a test sets data_meta, ingress_ifindex, ...; None
        leaves it to the kernel.
    :param flags: BPF_F_TEST_XDP_LIVE_FRAMES sends the frames on for real; then there is no
        ``data_out``.
    :param headroom: by how many bytes the frame may grow on the way.
    """
    live = flags & BPF_F_TEST_XDP_LIVE_FRAMES
    out = ctypes.create_string_buffer(0 if live else len(data) + headroom)
    source = ctypes.create_string_buffer(data, len(data))
    context = ctypes.create_string_buffer(ctx, len(ctx)) if ctx is not None else None
    context_out = ctypes.create_string_buffer(len(ctx)) if ctx is not None and not live else None
    opts = _TestRunOpts(
        data_in=ctypes.addressof(source),
        data_size_in=len(data),
        data_out=None if live else ctypes.addressof(out),
        data_size_out=0 if live else len(out),
        ctx_in=ctypes.addressof(context) if context is not None else None,
        ctx_size_in=len(context) if context is not None else 0,
        ctx_out=ctypes.addressof(context_out) if context_out is not None else None,
        ctx_size_out=len(context_out) if context_out is not None else 0,
        repeat=repeat,
        flags=flags,
        cpu=cpu,
        batch_size=batch_size,
    )
    _call("bpf_prog_test_run_opts", fd, ctypes.byref(opts), about=f"fd {fd}")
    return TestRun(
        opts.retval,
        out.raw[: opts.data_size_out],
        context_out.raw[: opts.ctx_size_out] if context_out is not None else b"",
        opts.duration,
    )


# ---------------------------------------------------------------- links
def link_create(prog_fd: int, ifindex: int, attach_type: int = ATTACH_XDP, flags: int = 0) -> int:
    """Attach a program to an interface of the current namespace through a bpf_link. :return: the
    link's fd.

    The link lives as long as its fd or its pin; a process that dies between the two leaves nothing
    attached.

    :param flags: a value of XDP_FLAGS; 0 leaves the mode to the kernel.
    :raises BpfError: with netlink's words where the kernel has any.
    """
    opts = _LinkCreateOpts(flags=flags)
    try:
        return _call(
            "bpf_link_create",
            prog_fd,
            ifindex,
            attach_type,
            ctypes.byref(opts),
            about=f"ifindex {ifindex}",
        )
    except BpfError as exc:
        words = _why_not(prog_fd, ifindex, flags) if attach_type == ATTACH_XDP else ""
        raise BpfError(exc.errno or 0, exc.call, words) from None


def _why_not(prog_fd: int, ifindex: int, flags: int) -> str:
    """Return the kernel's words for a failed bpf_link_create().

    That call has no place for words, but netlink refuses the same attach for the same reason and
    has one. The request can not replace anything; should it succeed, what it attached is taken away
    again.
    """
    try:
        xdp_set(ifindex, prog_fd, flags | XDP_FLAGS_UPDATE_IF_NOEXIST)
    except BpfError as exc:
        return exc.words
    xdp_set(ifindex, -1, flags | XDP_FLAGS_REPLACE, expected_fd=prog_fd)
    return (
        "the kernel attaches this program through netlink only, a bpf_link for XDP needs Linux 5.9"
    )


def link_update(link_fd: int, new_prog_fd: int, old_prog_fd: int | None = None) -> None:
    """Put another program into a link, without a gap; EPERM when its program is not
    ``old_prog_fd``'s.
    """
    opts = (
        _LinkUpdateOpts(flags=BPF_F_REPLACE, old_prog_fd=old_prog_fd)
        if old_prog_fd is not None
        else _LinkUpdateOpts()
    )
    _call("bpf_link_update", link_fd, new_prog_fd, ctypes.byref(opts), about=f"link fd {link_fd}")


def link_detach(link_fd: int) -> None:
    """Take the link's program off its interface, whoever else holds the link."""
    _call("bpf_link_detach", link_fd, about=f"link fd {link_fd}")


# ---------------------------------------------------------------- rtnetlink
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_RTM_NEWLINK, _RTM_GETLINK, _RTM_SETLINK, _RTM_GETNSID = 16, 18, 19, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_NLMSG_ERROR, _NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_ACK_TLVS, _NLA_F_NESTED, _NLA_TYPE_MASK = (
    2,
    1,
    4,
    0x200,
    1 << 15,
    0x3FFF,
)
_NLMSGERR_ATTR_MSG = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = (
    1,
    3,
    4,
    5,
    10,
    18,
)
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53
_IFLA_GSO_SIZES, _IFLA_GRO_SIZES = (
    (41, 63),
    (58, 64),
)  # IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE; IFLA_GRO_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE
_IFLA_STATS64, _IFLA_LINK_NETNSID, _IFLA_XDP, _IFLA_TARGET_NETNSID = 23, 37, 43, 46
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_XDP_FD, _IFLA_XDP_ATTACHED, _IFLA_XDP_FLAGS, _IFLA_XDP_PROG_ID, _IFLA_XDP_EXPECTED_FD = (
    1,
    2,
    3,
    4,
    8,
)
_XDP_MODES = {
    1: "native",
    2: "generic",
    3: "offload",
}  # enum xdp_attached; 4 is "several", each with an attribute of its own
_IFLA_XDP_PROG_IDS = {5: "native", 6: "generic", 7: "offload"}
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BBHiII")  # family, padding, type, index, flags, change
#: Bytes of a name and of an alternative name, with the zero that ends them
#: (include/uapi/linux/if.h).
IFNAMSIZ, ALTIFNAMSIZ = 16, 128


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _each_attribute(payload: bytes) -> t.Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, payload[at + 4 : at + length]
        at += (length + 3) & ~3


def _attributes(payload: bytes) -> dict[int, bytes]:
    return dict(_each_attribute(payload))


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _u32(raw: bytes | None) -> int:
    return struct.unpack("=I", raw)[0] if raw else 0


def _rtnetlink(call: str, kind: int, flags: int, payload: bytes) -> bytes:
    """Send one request in the current namespace and return the payload of its one answer (b"" for
    an acknowledgement).
    """
    if fault is not None:
        fault(call.partition("(")[0])
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            with contextlib.suppress(OSError):  # kernels before 4.12 have no words to give
                sock.setsockopt(_SOL_NETLINK, option, 1)
        sock.send(
            _HEADER.pack(_HEADER.size + len(payload), kind, _NLM_F_REQUEST | flags, 1, 0) + payload
        )
        answer = sock.recv(1 << 16)
    length, got, got_flags, dummy, dummy = _HEADER.unpack_from(answer)
    body = answer[_HEADER.size : length]
    if got != _NLMSG_ERROR:
        return body
    (error,) = struct.unpack_from("=i", body)
    if error == 0:
        return b""
    # struct nlmsgerr is the number and the request's header (cut there by CAP_ACK); the words
    # follow
    words = (
        _attributes(body[4 + _HEADER.size :]).get(_NLMSGERR_ATTR_MSG, b"")
        if got_flags & _NLM_F_ACK_TLVS
        else b""
    )
    raise BpfError(-error, call, _text(words))


def link_facts(interface: int | str, nsid: int | None = None) -> LinkFacts:
    """Return what rtnetlink says about an interface, by ifindex or by any of its names; ENODEV when
    there is none.

    :param nsid: the current namespace's id for the interface's; None for the current namespace.
    """
    index, wanted = (interface, b"") if isinstance(interface, int) else (0, _named(interface))
    if nsid is not None:
        wanted += _attribute(_IFLA_TARGET_NETNSID, struct.pack("=i", nsid))
    try:
        body = _rtnetlink(
            f"RTM_GETLINK({interface})",
            _RTM_GETLINK,
            0,
            _IFINFO.pack(0, 0, 0, index, 0, 0) + wanted,
        )
    except BpfError as exc:
        if exc.errno == errnos.EINVAL and not index:  # kernels before 5.5 do not know long names
            raise BpfError(errnos.ENODEV, exc.call, exc.words) from None
        raise
    dummy, dummy, arphrd, ifindex, dummy, dummy = _IFINFO.unpack_from(body)
    found = _attributes(body[_IFINFO.size :])
    xdp = _attributes(found.get(_IFLA_XDP, b""))
    programs = {
        mode: _u32(xdp[number]) for number, mode in _IFLA_XDP_PROG_IDS.items() if number in xdp
    }
    attached = xdp.get(_IFLA_XDP_ATTACHED, b"\0")[0]
    if not programs and attached in _XDP_MODES:  # kernels before 4.20 name the one program only
        programs = {_XDP_MODES[attached]: _u32(xdp.get(_IFLA_XDP_PROG_ID))}
    peer_nsid = found.get(_IFLA_LINK_NETNSID)
    return LinkFacts(
        ifindex=ifindex,
        name=_text(found[_IFLA_IFNAME]),
        kind=_text(_attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")),
        mtu=_u32(found.get(_IFLA_MTU)),
        peer_ifindex=_u32(found.get(_IFLA_LINK)),
        peer_nsid=struct.unpack("=i", peer_nsid)[0] if peer_nsid else None,
        xdp=programs,
        received=struct.unpack_from("=Q", found[_IFLA_STATS64])[
            0
        ],  # struct rtnl_link_stats64 starts with rx_packets
        mac=found.get(_IFLA_ADDRESS, b""),
        type=arphrd,
        master=_u32(found.get(_IFLA_MASTER)),
        altnames=tuple(
            _text(raw)
            for kind, raw in _each_attribute(found.get(_IFLA_PROP_LIST, b""))
            if kind == _IFLA_ALT_IFNAME
        ),
        merges=max(_u32(found.get(number)) for number in _IFLA_GRO_SIZES),
        leaves=max(_u32(found.get(number)) for number in _IFLA_GSO_SIZES),
    )


def _named(name: str) -> bytes:
    """Return the attribute that asks for an interface by one of its names; only alternative ones
    are longer than IFNAMSIZ.
    """
    raw = name.encode() + b"\0"
    return _attribute(_IFLA_IFNAME if len(raw) <= IFNAMSIZ else _IFLA_ALT_IFNAME, raw)


def links() -> list[LinkFacts]:
    """Return what rtnetlink says about every interface of the current namespace."""
    found = []
    for index, dummy in socket.if_nameindex():
        try:
            found.append(link_facts(index))
        except BpfError as exc:
            if exc.errno != errnos.ENODEV:  # gone since
                raise
    return found


def namespace_id(handle: int) -> int:
    """Return the id that the current namespace has for another, -1 where it has none;
    LinkFacts.peer_nsid is such a one.
    """
    body = _rtnetlink(
        "RTM_GETNSID",
        _RTM_GETNSID,
        0,
        b"\0" * 4 + _attribute(_NETNSA_FD, struct.pack("=I", handle)),
    )  # struct rtgenmsg
    found = _attributes(body[4:]).get(_NETNSA_NSID)
    return struct.unpack("=i", found)[0] if found else -1


def links_above(ifindex: int, kind: str) -> t.Iterator[dict[int, bytes]]:
    """Return what is peculiar (IFLA_INFO_DATA) to each interface of a kind that stands on another
    one of the current namespace.
    """
    for index, dummy in socket.if_nameindex():
        with contextlib.suppress(BpfError):  # gone since
            body = _rtnetlink(
                f"RTM_GETLINK({index})", _RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, index, 0, 0)
            )
            found = _attributes(body[_IFINFO.size :])
            info = _attributes(found.get(_IFLA_LINKINFO, b""))
            if (
                _u32(found.get(_IFLA_LINK)) == ifindex
                and _text(info.get(_IFLA_INFO_KIND, b"")) == kind
            ):
                yield _attributes(info.get(_IFLA_INFO_DATA, b""))


def xdp_query(ifindex: int) -> dict[str, t.Any]:
    """Return ``{"prog_id", "mode"}`` of the program that sees the interface's frames on the host's
    CPUs; both None when there is none.

    A program on the network card itself counts only when it is the only one.
    """
    programs = link_facts(ifindex).xdp
    for mode in ("native", "generic", "offload"):
        if mode in programs:
            return {"prog_id": programs[mode], "mode": mode}
    return {"prog_id": None, "mode": None}


def xdp_set(ifindex: int, prog_fd: int, flags: int, expected_fd: int | None = None) -> None:
    """Attach a program through netlink, as ``ip link set dev ... xdp`` does; ``prog_fd`` -1
    detaches.

    :param flags: XDP_FLAGS values and XDP_FLAGS_UPDATE_IF_NOEXIST or XDP_FLAGS_REPLACE (then only
        the program of ``expected_fd`` is replaced).
    :raises BpfError: with the kernel's words; netlink never touches a program that a bpf_link holds
        (EBUSY).
    """
    nest = _attribute(_IFLA_XDP_FD, struct.pack("=i", prog_fd)) + _attribute(
        _IFLA_XDP_FLAGS, struct.pack("=I", flags)
    )
    if expected_fd is not None:
        nest += _attribute(_IFLA_XDP_EXPECTED_FD, struct.pack("=i", expected_fd))
    payload = _IFINFO.pack(0, 0, 0, ifindex, 0, 0) + _attribute(_IFLA_XDP | _NLA_F_NESTED, nest)
    _rtnetlink(f"RTM_SETLINK(ifindex {ifindex})", _RTM_SETLINK, _NLM_F_ACK, payload)


def xdp_link_holds(ifindex: int, mode: str, other_prog_fd: int) -> bool:
    """Tell whether the interface's program of that mode is there through a bpf_link, and not
    through netlink.

    It asks netlink to detach ``other_prog_fd``'s program, which is not there: the kernel refuses in
    any case, and says EBUSY when a bpf_link is in the way before it compares the programs
    (net/core/dev.c, dev_xdp_attach).
    """
    try:
        xdp_set(ifindex, -1, XDP_FLAGS[mode] | XDP_FLAGS_REPLACE, expected_fd=other_prog_fd)
    except BpfError as exc:
        return exc.errno == errnos.EBUSY
    return False
