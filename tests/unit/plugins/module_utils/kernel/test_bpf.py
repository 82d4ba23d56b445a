# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The binding's own logic: errors, netlink messages, argument layouts. The kernel's side is in
tests/e2e.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    netdev,
    netlink,
    rtnetlink,
)


def test_an_error_is_both_kinds() -> None:
    error = bpf.BpfError(
        errno.EBUSY, "bpf_link_create(ifindex 7)", "Can't replace active BPF XDP link"
    )
    assert isinstance(error, ConntrackError) and isinstance(error, OSError)
    assert error.errno == errno.EBUSY
    assert (
        str(error)
        == error.message
        == "bpf_link_create(ifindex 7): Device or resource busy (EBUSY): Can't replace active BPF"
        " XDP link"
    )


@pytest.mark.parametrize(
    "number, name",
    [
        (95, "Operation not supported (EOPNOTSUPP)"),
        (524, "Not supported by the kernel (ENOTSUPP)"),
        (9999, "(9999)"),
    ],
)
def test_errno_names(number: int, name: str) -> None:
    assert name in bpf.BpfError(number, "call").message


def test_a_missing_library_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_library", None)
    monkeypatch.setattr(bpf, "LIBRARIES", ("libnone.so.1", "libnone.so.0"))
    with pytest.raises(ConntrackError, match="libbpf1 on Debian.*libbpf on Fedora"):
        bpf.library()


def test_an_old_library_names_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_library", ctypes.CDLL(None))
    monkeypatch.setattr(bpf, "_functions", {})
    with pytest.raises(ConntrackError, match=r"has no bpf_obj_get; version 0\.8 or later"):
        bpf.obj_get("/x")


class _Answers:
    """Stands in for libbpf's functions: each returns the next of the given numbers, or what a
    function given in their place does.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: t.Any) -> None:
        self.calls: list[tuple[t.Any, ...]] = []
        left = list(answers)

        def function(*args: t.Any) -> int:
            self.calls.append(args)
            answer = left.pop(0)
            return answer(*args) if callable(answer) else answer

        monkeypatch.setattr(bpf, "_function", lambda name: function)


def test_both_error_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_style(*args: t.Any) -> int:
        ctypes.set_errno(errno.ENOENT)
        return -1

    _Answers(monkeypatch, old_style, -errno.ENOENT)
    for dummy in range(2):
        with pytest.raises(bpf.BpfError) as raised:
            bpf.obj_get("/x")
        assert raised.value.errno == errno.ENOENT
        assert raised.value.message == "bpf_obj_get(/x): No such file or directory (ENOENT)"


def test_batches_grow_when_a_bucket_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def give(count: int, result: int) -> t.Callable[..., int]:
        def answer(
            fd: int,
            cursor: t.Any,
            next_cursor: t.Any,
            keys: t.Any,
            values: t.Any,
            number: t.Any,
            opts: None,
        ) -> int:
            sizes.append((len(keys), len(values), cursor is not None))
            number._obj.value = count
            keys.raw = bytes(range(count * 4)).ljust(len(keys), b"\xff")
            return result

        return answer

    sizes: list[tuple[int, int, bool]] = []
    _Answers(monkeypatch, give(2, 0), give(0, -errno.ENOSPC), give(3, 0), give(1, -errno.ENOENT))
    got = [
        (count, bytes(keys), len(values))
        for count, keys, values in bpf.map_batches(3, 4, 8, batch=2)
    ]
    assert sizes == [(8, 16, False), (8, 16, True), (16, 32, True), (16, 32, True)]
    assert got == [(2, bytes(range(8)), 16), (3, bytes(range(12)), 24), (1, bytes(range(4)), 8)]


def test_batch_delete_steps_over_missing_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def delete(there: set[bytes]) -> t.Callable[..., int]:
        def answer(fd: int, keys: bytes, number: t.Any, opts: None) -> int:
            asked = [keys[at : at + 2] for at in range(0, len(keys), 2)]
            for done, key in enumerate(asked):
                number._obj.value = done
                if key not in there:
                    return -errno.ENOENT
            number._obj.value = len(asked)
            return 0

        return answer

    _Answers(monkeypatch, *[delete({b"aa", b"bb", b"dd"})] * 9)
    assert bpf_batch.map_delete_batch(3, []) == 0
    assert bpf_batch.map_delete_batch(3, [b"xx", b"aa", b"bb", b"cc", b"dd", b"ee"]) == 3


def test_netlink_attributes_are_padded_and_parsed() -> None:
    raw = (
        netlink.attribute(3, b"lan\0")
        + netlink.attribute(4 | netlink.NESTED, b"abcde")
        + netlink.attribute(5, b"")
    )
    assert len(raw) == 8 + 12 + 4
    assert netlink.attributes(raw) == {3: b"lan\0", 4: b"abcde", 5: b""}
    assert netlink.attributes(raw + b"\0\0\0\0\1\2") == netlink.attributes(
        raw
    )  # a broken tail ends the list


class _Socket:
    """A netlink socket that gives one prepared answer."""

    answer = b""
    sent = b""

    def __init__(self, *args: t.Any) -> None:
        pass

    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def close(self) -> None:
        pass

    def setsockopt(self, *args: t.Any) -> None:
        raise OSError(errno.ENOPROTOOPT, "an old kernel")

    def send(self, data: bytes) -> None:
        _Socket.sent = data

    def recv(self, size: int) -> bytes:
        return _Socket.answer


def _answer(monkeypatch: pytest.MonkeyPatch, kind: int, flags: int, body: bytes) -> None:
    monkeypatch.setattr(netlink.socket, "socket", _Socket)
    _Socket.answer = netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, flags, 1, 0) + body


def test_netlink_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = netlink.attribute(1, b"Peer MTU is too large to set XDP\0")
    _answer(monkeypatch, 2, 0x300, struct.pack("=i", -errno.ERANGE) + bytes(16) + words)
    with pytest.raises(bpf.BpfError) as raised:
        netdev.xdp_set(7, 3, netdev.XDP_FLAGS["native"])
    assert (raised.value.errno, raised.value.words) == (
        errno.ERANGE,
        "Peer MTU is too large to set XDP",
    )


def test_netlink_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, 2, 0, struct.pack("=i", -errno.EBUSY) + bytes(36))
    with pytest.raises(bpf.BpfError) as raised:
        netdev.xdp_set(7, 3, 0)
    assert (raised.value.errno, raised.value.words) == (errno.EBUSY, "")


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, flags, 1, 0) + body


@pytest.mark.parametrize("flags", [0, 0x10])
def test_a_dump_ends_with_its_last_message(monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    """Those that answer another request do not count; 0x10 says that it was interrupted."""
    monkeypatch.setattr(netlink.socket, "socket", _Socket)
    other = netlink.HEADER.pack(netlink.HEADER.size + 4, 16, 2, 7, 0) + b"0000"
    _Socket.answer = other + _message(16, 2 | flags, b"1111") + _message(3, 2, b"\0" * 4)
    found, interrupted = netlink.Socket().dump_once(18, b"")
    assert [data[start:end] for data, start, end in found] == [b"1111"]
    assert interrupted == bool(flags)


@pytest.mark.parametrize(
    "xdp, expected",
    [
        (b"", {}),
        (netlink.attribute(2, b"\0"), {}),
        (
            netlink.attribute(2, b"\1")
            + netlink.attribute(4, struct.pack("=I", 9))
            + netlink.attribute(5, struct.pack("=I", 9)),
            {"native": 9},
        ),
        (
            netlink.attribute(2, b"\2") + netlink.attribute(4, struct.pack("=I", 9)),
            {"generic": 9},
        ),  # before Linux 4.20
        (
            netlink.attribute(2, b"\4")
            + netlink.attribute(6, struct.pack("=I", 9))
            + netlink.attribute(7, struct.pack("=I", 8)),
            {"generic": 9, "offload": 8},
        ),
    ],
)
def test_link_facts(monkeypatch: pytest.MonkeyPatch, xdp: bytes, expected: dict[str, int]) -> None:
    body = (
        rtnetlink.IFINFO.pack(0, 1, 7, 0, 0)
        + netlink.attribute(3, b"lan0\0")
        + netlink.attribute(4, struct.pack("=I", 1500))
        + netlink.attribute(5, struct.pack("=I", 2))
    )
    body += (
        netlink.attribute(23, struct.pack("=QQ", 11, 22))
        + netlink.attribute(18, netlink.attribute(1, b"veth\0"))
        + netlink.attribute(37, struct.pack("=i", 0))
        + netlink.attribute(43 | netlink.NESTED, xdp)
    )
    body += b"".join(
        netlink.attribute(number, struct.pack("=I", size))
        for number, size in ((41, 65536), (58, 65536), (63, 180_000), (64, 200_000))
    )
    _answer(monkeypatch, 16, 0, body)
    assert netdev.link_facts("lan0") == netdev.LinkFacts(
        7, "lan0", "veth", 1500, 2, 0, expected, 11, merges=200_000, leaves=180_000
    )
    assert b"lan0\0" in _Socket.sent


def test_the_pass_program() -> None:
    assert bpf.xdp_pass_insns().hex() == "b700000002000000" + "9500000000000000"
