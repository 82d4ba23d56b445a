# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's BPF objects by file descriptor: libbpf through ctypes.

It holds what bcc's binding lacks (links, batches, test runs, object info), and loads without bcc,
so that readers stay small. Struct layouts: include/uapi/linux/bpf.h, and libbpf's ``*_opts``, each
cut to the fields of libbpf 1.0. Every function raises BpfError when the kernel refuses, and
ConntrackError when libbpf itself is missing or too old. All functions that return ``int`` named fd
return a new file descriptor that the caller closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno as errnos
import os
import struct
import typing as t

from ..core.errors import ConntrackError
from . import bpf_constants

LIBRARIES = ("libbpf.so.1", "libbpf.so.0")
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


#: C types by the words that _fields() takes.
_TYPES: dict[str, t.Any] = {
    "int": ctypes.c_int,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "size": ctypes.c_size_t,
    "pointer": ctypes.c_void_p,
    "text": ctypes.c_char_p,
    "u8[8]": ctypes.c_uint8 * 8,
    "u32[7]": ctypes.c_uint32 * 7,
    "char[16]": ctypes.c_char * 16,
}


def _fields(*lines: str) -> list[tuple[str, t.Any]]:
    """Return the fields of a struct, of lines that have a type and the names of its fields."""
    return [(name, _TYPES[kind]) for kind, *names in map(str.split, lines) for name in names]


class _MapCreateOpts(_Sized):
    _fields_ = _fields(
        "size sz",
        "u32 btf_fd btf_key_type_id btf_value_type_id btf_vmlinux_value_type_id",
        "u32 inner_map_fd map_flags",
    )


class _ProgLoadOpts(_Sized):
    _fields_ = _fields(
        "size sz",
        "int attempts",
        "u32 expected_attach_type prog_btf_fd prog_flags prog_ifindex kern_version",
        "u32 attach_btf_id attach_prog_fd attach_btf_obj_fd",
        "pointer fd_array func_info",
        "u32 func_info_cnt func_info_rec_size",
        "pointer line_info",
        "u32 line_info_cnt line_info_rec_size log_level log_size",
        "text log_buf",
    )


class LinkCreateOpts(_Sized):
    _fields_ = _fields("size sz", "u32 flags pad")


class _LinkUpdateOpts(_Sized):
    _fields_ = _fields("size sz", "u32 flags old_prog_fd")


class _TestRunOpts(_Sized):
    _fields_ = _fields(
        "size sz",
        "pointer data_in data_out",
        "u32 data_size_in data_size_out",
        "pointer ctx_in ctx_out",
        "u32 ctx_size_in ctx_size_out retval",
        "int repeat",
        "u32 duration flags cpu batch_size",
    )


class _MapInfo(ctypes.Structure):
    _fields_ = _fields("u32 type id key_size value_size max_entries map_flags", "char[16] name")


class _ProgInfo(ctypes.Structure):
    _fields_ = _fields(
        "u32 type id",
        "u8[8] tag",
        "u32 jited_prog_len xlated_prog_len",
        "u64 jited_prog_insns xlated_prog_insns load_time",
        "u32 created_by_uid nr_map_ids",
        "u64 map_ids",
        "char[16] name",
        "u32 ifindex gpl_compatible",
        "u64 netns_dev netns_ino",
        "u32 nr_jited_ksyms nr_jited_func_lens",
        "u64 jited_ksyms jited_func_lens",
        "u32 btf_id func_info_rec_size",
        "u64 func_info",
        "u32 nr_func_info nr_line_info",
        "u64 line_info jited_line_info",
        "u32 nr_jited_line_info line_info_rec_size jited_line_info_rec_size nr_prog_tags",
        "u64 prog_tags run_time_ns run_cnt",
    )


class _LinkInfo(ctypes.Structure):
    _fields_ = _fields("u32 type id prog_id pad", "u32 ifindex", "u32[7] union")  # struct xdp


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


def call(name: str, *args: t.Any, about: str = "") -> int:
    """Call libbpf; ``about`` is what the error shall say between the brackets."""
    function = _function(name)
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
    return call("bpf_obj_get", os.fsencode(path), about=path)


def obj_pin(fd: int, path: str) -> None:
    """Pin an object; EEXIST when the path is taken."""
    call("bpf_obj_pin", fd, os.fsencode(path), about=path)


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
    return call(
        "bpf_map_create",
        kind,
        _object_name(name),
        key_size,
        value_size,
        entries,
        ctypes.byref(opts),
        about=name,
    )


def map_update(fd: int, key: bytes, value: bytes, flags: int = bpf_constants.BPF_ANY) -> None:
    """Write one element. A per-CPU value is one value for each possible CPU, each padded to 8
    bytes.
    """
    call("bpf_map_update_elem", fd, key, value, flags, about=f"key {key.hex()}")


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the element's ``value_size`` bytes, None when there is none."""
    value = ctypes.create_string_buffer(value_size)
    try:
        call("bpf_map_lookup_elem", fd, key, value, about=f"key {key.hex()}")
    except BpfError as exc:
        if exc.errno == errnos.ENOENT:
            return None
        raise
    return value.raw


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one element. :return: whether it was there."""
    try:
        call("bpf_map_delete_elem", fd, key, about=f"key {key.hex()}")
    except BpfError as exc:
        if exc.errno == errnos.ENOENT:
            return False
        raise
    return True


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
            call(
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
            # one bucket holds more than a batch: the cursor has not moved
            if exc.errno == errnos.ENOSPC:
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
    call("bpf_obj_get_info_by_fd", fd, ctypes.byref(into), ctypes.byref(length), about=f"fd {fd}")


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
    return LinkInfo(
        raw.id, raw.prog_id, raw.ifindex if raw.type == bpf_constants.LINK_TYPE_XDP else 0, raw.type
    )


def map_get_fd_by_id(number: int) -> int:
    """Open a map by its id. :return: fd."""
    return call("bpf_map_get_fd_by_id", number, about=f"id {number}")


def prog_get_fd_by_id(number: int) -> int:
    """Open a program by its id. :return: fd."""
    return call("bpf_prog_get_fd_by_id", number, about=f"id {number}")


def link_get_fd_by_id(number: int) -> int:
    """Open a bpf_link by its id. :return: fd."""
    return call("bpf_link_get_fd_by_id", number, about=f"id {number}")


def link_ids() -> t.Iterator[int]:
    """Return the ids of all bpf_links of the system, in rising order."""
    number = ctypes.c_uint32(0)
    while True:
        try:
            call(
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
    return call("libbpf_num_possible_cpus")


# ---------------------------------------------------------------- programs
def _object_name(name: str) -> bytes:
    return name.encode()[: bpf_constants.OBJECT_NAME_BYTES]


def prog_load(
    insns: bytes,
    name: str = "",
    kind: int = bpf_constants.PROG_TYPE_XDP,
    attach_type: int = bpf_constants.ATTACH_XDP,
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
        return call(
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
    live = flags & bpf_constants.BPF_F_TEST_XDP_LIVE_FRAMES
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
    call("bpf_prog_test_run_opts", fd, ctypes.byref(opts), about=f"fd {fd}")
    return TestRun(
        opts.retval,
        out.raw[: opts.data_size_out],
        context_out.raw[: opts.ctx_size_out] if context_out is not None else b"",
        opts.duration,
    )


def link_update(link_fd: int, new_prog_fd: int, old_prog_fd: int | None = None) -> None:
    """Put another program into a link, without a gap; EPERM when its program is not
    ``old_prog_fd``'s.
    """
    opts = (
        _LinkUpdateOpts(flags=bpf_constants.BPF_F_REPLACE, old_prog_fd=old_prog_fd)
        if old_prog_fd is not None
        else _LinkUpdateOpts()
    )
    call("bpf_link_update", link_fd, new_prog_fd, ctypes.byref(opts), about=f"link fd {link_fd}")


def link_detach(link_fd: int) -> None:
    """Take the link's program off its interface, whoever else holds the link."""
    call("bpf_link_detach", link_fd, about=f"link fd {link_fd}")
