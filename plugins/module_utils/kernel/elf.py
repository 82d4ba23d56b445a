# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object files that clang made, loaded by libbpf: opened from memory, given maps that are there
already, loaded, and their programs taken out.

What libbpf has to say goes to file descriptor 2, the verifier's log of a program that is refused
among it.
"""

from __future__ import annotations

import ctypes
import os
import types
import typing as t

from ..core.errors import ConntrackError
from . import bpf

_INT, _U32, _SIZE, _PTR, _STR, _BOOL = (
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_bool,
)
#: What libbpf returns and takes.
_SIGNATURES: dict[str, tuple[t.Any, tuple[t.Any, ...]]] = {
    "bpf_object__open_mem": (_PTR, (_PTR, _SIZE, _PTR)),
    "bpf_object__load": (_INT, (_PTR,)),
    "bpf_object__close": (None, (_PTR,)),
    "bpf_object__next_map": (_PTR, (_PTR, _PTR)),
    "bpf_object__next_program": (_PTR, (_PTR, _PTR)),
    "bpf_map__name": (_STR, (_PTR,)),
    "bpf_map__type": (_U32, (_PTR,)),
    "bpf_map__key_size": (_U32, (_PTR,)),
    "bpf_map__value_size": (_U32, (_PTR,)),
    "bpf_map__max_entries": (_U32, (_PTR,)),
    "bpf_map__map_flags": (_U32, (_PTR,)),
    "bpf_map__is_internal": (_BOOL, (_PTR,)),
    "bpf_map__reuse_fd": (_INT, (_PTR, _INT)),
    "bpf_map__set_initial_value": (_INT, (_PTR, _PTR, _SIZE)),
    "bpf_program__name": (_STR, (_PTR,)),
    "bpf_program__fd": (_INT, (_PTR,)),
    "bpf_program__set_autoload": (_INT, (_PTR, _BOOL)),
    "bpf_program__set_expected_attach_type": (_INT, (_PTR, _U32)),
}
#: Before version 1.0 libbpf returned an error number in place of a pointer (include/linux/err.h).
_MAX_ERRNO = 4095
#: int (*)(enum libbpf_print_level, const char *, va_list); where a va_list is passed by its
#: address, as on all machines with 64 bits that BPF runs on.
_PRINT = ctypes.CFUNCTYPE(_INT, _INT, _PTR, _PTR)
_DEBUG = 2


@_PRINT
def _print(level: int, words: int, arguments: int) -> int:
    return int(_libc().vdprintf(2, _PTR(words), _PTR(arguments))) if level < _DEBUG else 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class _OpenOpts(ctypes.Structure):
    _fields_ = [("sz", ctypes.c_size_t), ("object_name", ctypes.c_char_p)]


def _function(name: str) -> t.Any:
    try:
        function = getattr(bpf.library(), name)
    except AttributeError:
        raise ConntrackError(
            f"This host's libbpf has no {name}; version 0.8 or later is needed. Upgrade the package"
            " libbpf1 or libbpf."
        ) from None
    function.restype, function.argtypes = _SIGNATURES[name]
    return function


def _call(name: str, *args: t.Any, about: str = "") -> t.Any:
    """Call libbpf; a negative number, and a pointer that is an error's number, are raised."""
    function = _function(name)
    ctypes.set_errno(0)
    result = function(*args)
    if function.restype is _INT and result < 0:
        raise bpf.BpfError(-result if result != -1 else ctypes.get_errno() or 1, f"{name}({about})")
    if (
        function.restype is _PTR
        and result is not None
        and result > (1 << 8 * ctypes.sizeof(_PTR)) - 1 - _MAX_ERRNO
    ):
        raise bpf.BpfError((1 << 8 * ctypes.sizeof(_PTR)) - result, f"{name}({about})")
    return result


#: What libbpf tells of a map, in the order of Map's fields.
_NUMBERS = ("type", "key_size", "value_size", "max_entries", "map_flags")


class Map(t.NamedTuple):
    """A map of an object file, before it is loaded.

    :ivar name: as the file has it.
    :ivar kind: its number in enum bpf_map_type; sizes are bytes.
    :ivar internal: whether it is libbpf's own, which holds constants of the program.
    :ivar handle: libbpf's.
    """

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    internal: bool
    handle: int

    def use(self, fd: int) -> None:
        """Let the programs use a map that is there; its file descriptor stays the caller's."""
        _call("bpf_map__reuse_fd", self.handle, fd, about=self.name)

    def fill(self, value: bytes) -> None:
        """Set what an internal map holds when the programs are loaded."""
        _call("bpf_map__set_initial_value", self.handle, value, len(value), about=self.name)


class Object:
    """An object file. Use as a context manager: at the end of the block libbpf closes all that it
    opened itself.
    """

    def __init__(self, data: bytes, name: str) -> None:
        """Open it; nothing is loaded yet.

        :raises BpfError: where it is none that libbpf understands.
        """
        library = bpf.library()
        library.libbpf_set_print.argtypes, library.libbpf_set_print.restype = (_PTR,), _PTR
        # bcc, which uses the same library, may have silenced it
        library.libbpf_set_print(ctypes.cast(_print, _PTR))
        # libbpf reads from it until it is closed
        self._data = ctypes.create_string_buffer(data, len(data))
        opts = _OpenOpts(sz=ctypes.sizeof(_OpenOpts), object_name=name.encode())
        self._object = _call(
            "bpf_object__open_mem", self._data, len(data), ctypes.byref(opts), about=name
        )
        if not self._object:
            raise bpf.BpfError(ctypes.get_errno() or 22, f"bpf_object__open_mem({name})")

    def __enter__(self) -> Object:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        _call("bpf_object__close", self._object)

    def _handles(self, following: str) -> t.Iterator[int]:
        handle = _call(following, self._object, None)
        while handle:
            yield handle
            handle = _call(following, self._object, handle)

    def maps(self) -> list[Map]:
        """Return its maps."""

        def told(handle: int) -> Map:
            kind, key_size, value_size, max_entries, flags = (
                _call(f"bpf_map__{name}", handle) for name in _NUMBERS
            )
            return Map(
                _call("bpf_map__name", handle).decode(),
                kind,
                key_size,
                value_size,
                max_entries,
                flags,
                _call("bpf_map__is_internal", handle),
                handle,
            )

        return [told(handle) for handle in self._handles("bpf_object__next_map")]

    def load(self, names: t.Iterable[str], attach_type: int) -> dict[str, int]:
        """Load these of its programs; return a file descriptor of each, by name, which the caller
        closes.

        :raises ConntrackError: where the file has no program of a name.
        :raises BpfError: where the kernel refuses one; libbpf has said which.
        """
        handles = {
            _call("bpf_program__name", handle).decode(): handle
            for handle in self._handles("bpf_object__next_program")
        }
        wanted = list(names)
        missing = [name for name in wanted if name not in handles]
        if missing:
            raise ConntrackError(
                f"the object has no program {' and '.join(missing)}; it has {', '.join(handles)}."
            )
        for name, handle in handles.items():
            _call("bpf_program__set_autoload", handle, name in wanted, about=name)
            _call("bpf_program__set_expected_attach_type", handle, attach_type, about=name)
        _call("bpf_object__load", self._object)
        return {
            name: os.dup(_call("bpf_program__fd", handles[name], about=name)) for name in wanted
        }
