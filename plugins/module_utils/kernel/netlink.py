# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The netlink codec: attributes, requests, answers and dumps of any of its protocols
(include/uapi/linux/netlink.h).

What was received is parsed where it lies: a message is its buffer with the start of its payload
and its end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import typing as t

#: Protocols of netlink(7).
ROUTE, NETFILTER, GENERIC = 0, 12, 16
#: Flags of a request, and those of one that makes something.
_REQUEST, _ACK, _DUMP, REPLACE, EXCL, CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
#: Types and flags of an answer, and the attribute that holds the kernel's words.
_ERROR, _DONE, _DUMP_INTERRUPTED, _ACK_TLVS, _WORDS = 2, 3, 0x10, 0x200, 1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
NESTED, _TYPE_MASK = 1 << 15, 0x3FFF
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
#: Times that a dump is read, as long as the kernel's tables change meanwhile.
_TRIES = 5
#: Buffer, start of the payload, end.
Message = tuple[bytes, int, int]


class NetlinkError(OSError):
    """The kernel refused a request; the text holds its own words where it gave some.

    :ivar words: the kernel's words, "" where it gave none.
    """

    def __init__(self, number: int, words: str) -> None:
        super().__init__(number, f"{os.strerror(number)}{f' ({words})' if words else ''}")
        self.words = words


# ---------------------------------------------------------------- attributes
def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes, offset: int = 0, end: int | None = None) -> dict[int, bytes]:
    """Return the attributes of a message, or of a nested attribute, by number."""
    found: dict[int, bytes] = {}
    end = len(data) if end is None else end
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def values_of(data: bytes, wanted: int) -> list[bytes]:
    """Return the payloads of all attributes of one number, which a list repeats."""
    found, offset = [], 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        if kind & _TYPE_MASK == wanted:
            found.append(data[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return found


def u32(attributes: t.Mapping[int, bytes], kind: int, default: int = 0) -> int:
    """Return an attribute that is a number."""
    raw = attributes.get(kind)
    return int(_U32.unpack_from(raw)[0]) if raw else default


def text_of(attributes: t.Mapping[int, bytes], kind: int) -> str:
    """Return an attribute that is a text; "" where it is not there."""
    return text(attributes.get(kind, b""))


def text(raw: bytes) -> str:
    """Return a text that ends with a zero."""
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


# ---------------------------------------------------------------- messages
def messages(data: bytes) -> t.Iterator[tuple[int, int, int, int, int]]:
    """Yield (type, flags, sequence number, start of the payload, end) of each message received."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, dummy = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            break
        yield kind, flags, sequence, offset + HEADER.size, min(offset + length, len(data))
        offset += (length + 3) & ~3


def _check(flags: int, data: bytes, start: int, end: int) -> None:
    """Raise when an error message is not the acknowledgement that it is otherwise."""
    (code,) = struct.unpack_from("=i", data, start)
    if code == 0:
        return
    words = ""
    if flags & _ACK_TLVS:  # struct nlmsgerr is the number and the request's header, cut by CAP_ACK
        words = text_of(attributes(data, start + 4 + HEADER.size, end), _WORDS)
    raise NetlinkError(-code, words)


class Socket:
    """A netlink socket, which belongs to the namespace that the calling thread is in; a context
    manager.

    :param strict: have the kernel filter dumps by the whole request.
    :param most: bytes of the longest answer.
    """

    def __init__(self, protocol: int = ROUTE, strict: bool = False, most: int = 1 << 16) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        for option in (_CAP_ACK, _EXT_ACK, *((_STRICT,) if strict else ())):
            with contextlib.suppress(OSError):  # older kernels answer wordier or poorer
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._most = most
        self._sequence = 0

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *dummy: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        length = HEADER.size + len(payload)
        self._socket.send(HEADER.pack(length, kind, flags | _REQUEST, self._sequence, 0) + payload)

    def _answers(self) -> t.Iterator[tuple[int, int, bytes, int, int]]:
        """Yield (type, flags, buffer, start of the payload, end) of each message that answers the
        last request.

        :raises NetlinkError: the kernel refused it.
        """
        while True:
            data = self._socket.recv(self._most)
            for kind, flags, sequence, start, end in messages(data):
                if sequence == self._sequence:
                    if kind == _ERROR:
                        _check(flags, data, start, end)
                    yield kind, flags, data, start, end

    def change(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """Send one change and wait for the kernel's answer.

        :raises NetlinkError: the kernel refused it.
        """
        self._send(kind, flags | _ACK, payload)
        for answer, *dummy in self._answers():
            if answer == _ERROR:
                return

    def ask(self, kind: int, payload: bytes) -> Message:
        """Return the one message that answers a question.

        :raises NetlinkError: the kernel refused it.
        """
        self._send(kind, 0, payload)
        dummy, dummy, data, start, end = next(self._answers())
        return data, start, end

    def dump_once(self, kind: int, payload: bytes) -> tuple[list[Message], bool]:
        """Return all messages of a dump, and whether the kernel's tables changed meanwhile.

        :raises NetlinkError: the kernel refused it.
        """
        self._send(kind, _DUMP, payload)
        found: list[Message] = []
        interrupted = False
        for answer, flags, data, start, end in self._answers():
            interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
            if answer == _DONE:
                break
            found.append((data, start, end))
        return found, interrupted

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        """Return all messages of a dump; begun again when the kernel's tables changed meanwhile.

        :raises NetlinkError: the kernel refused it.
        """
        for dummy in range(_TRIES):
            found, interrupted = self.dump_once(kind, payload)
            if not interrupted:
                break
        return found
