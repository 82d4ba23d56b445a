# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bcc front end: compile the rendered C in process and load its programs.

Importing bcc maps some 110 MB of LLVM, so only a run that builds imports this module's need of it.
No kernel headers are wanted: a stub tree takes their place (files/bpf/stub) and the UAPI headers
are the distribution's.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import shutil
import sys
import typing as t

from ..chain import guests
from ..chain import programs as chain_programs
from ..core import libraries, lock
from ..core.errors import ConntrackError
from ..kernel import bpf, bpf_constants, bpffs

#: Machines on which a CPU's stores become visible in their order, so that releasing a lock needs no
#: barrier.
STORES_IN_ORDER = {"x86_64", "i686", "s390x"}
_UAPI = "/usr/include"
#: Where the headers lie while they are compiled with.
_SCRATCH = os.path.join(bpffs.RUN_DIR, "build")
#: Most lines of a compiler's or verifier's words that a message carries; all of them are in the
#: fact ``compiler_output``.
_SHOWN_LINES = 20
_SHOWN_BYTES = 64 * 1024
#: The lines of a verifier's log that follow the program, or count, instead of naming a fault.
_VERIFIER_TRACE = re.compile(
    r"processed |verification time|stack depth|bpf: |\d+: |;|\(|from |R\d+(_\w+)?="
)
#: The first line of a function's definition, and of one that is a program.
_FUNCTION = re.compile(r"[A-Za-z_].*\([^;]*$")
_PROGRAM = re.compile(r"(PROG|STAGE|GUEST)\(|int \w+\(struct xdp_md \*")


def include_flags(machine: str) -> list[str]:
    """Return the compiler flags by which the UAPI headers are found.

    :param machine: for which is compiled; where its own headers are not here those of this machine
        do, which differ in nothing that the chain uses.
    :raises ConntrackError: where the headers are missing.
    """
    if not os.path.exists(os.path.join(_UAPI, "linux", "bpf.h")):
        raise ConntrackError(
            f"{_UAPI}/linux/bpf.h is missing: install the kernel's user-space headers, "
            "the package linux-libc-dev (Debian, Ubuntu) or kernel-headers (Fedora, RHEL)."
        )
    own = (
        sorted(os.path.dirname(path) for path in glob.glob(f"{_UAPI}/{one}-*/asm"))
        for one in (machine, platform.machine())
    )
    return [
        word
        for directory in (_UAPI, *next(filter(None, own), []))
        for word in ("-idirafter", directory)
    ]


def flags() -> list[str]:
    """Return the compiler flags for this machine.

    :raises ConntrackError: where the UAPI headers are missing.
    """
    result = ["-Werror=implicit-function-declaration", *include_flags(platform.machine())]
    if platform.machine() in STORES_IN_ORDER:
        result.append("-DCT_STORES_IN_ORDER")
    return result


@contextlib.contextmanager
def stderr_to(path: str) -> t.Iterator[None]:
    """Send what C++ writes to file descriptor 2 into a file."""
    saved = os.dup(2)
    try:
        with open(path, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def read_log(path: str) -> str:
    """Return a file's end: a verifier's log can be larger than what is good for a message."""
    with open(path, "rb") as source:
        source.seek(max(0, os.path.getsize(path) - _SHOWN_BYTES))
        return source.read().decode(errors="replace")


def source_lines(text: str, name: str) -> list[str]:
    """Return the lines of one of the files that the rendered text was made of; none where it is not
    one of them.

    >>> source_lines('#line 1 "a.c"\\nint x;\\n#line 1 "b.c"\\nint y;', "b.c")
    ['int y;']
    """
    start = re.search(rf'^#line 1 "{re.escape(name)}"\n', text, re.MULTILINE)
    return text[start.end() :].split("\n#line ", 1)[0].split("\n") if start else []


def source_name(text: str, name: str) -> str:
    """Return the file of the rendered text that has a bare name, as the kernel writes it into a
    verifier's log; the name itself where there is none.

    >>> source_name('#line 1 "stages/ct.c"\\nint x;', "ct.c")
    'stages/ct.c'
    """
    found = re.search(rf'^#line 1 "((?:[^"]*/)?{re.escape(name)})"$', text, re.MULTILINE)
    return found[1] if found else name


def line_before_bcc(lines: t.Sequence[str], number: int) -> int:
    """Return the line of a file for one that the verifier names: bcc puts a line in front of each
    function, and one behind a program's brace.
    """
    added = 0
    for at, line in enumerate(lines, 1):
        function = bool(_FUNCTION.match(line))
        added += function
        if at + added >= number:
            return at
        added += function and bool(_PROGRAM.match(line))
    return number - added


def explain(
    text: str, output: str, line_of: t.Callable[[t.Sequence[str], int], int] = line_before_bcc
) -> str:
    """Return the part of a compiler's or verifier's output that tells the fault, with the lines of
    C it speaks of.

    :param line_of: returns the line of a file, whose lines it is given, for one that the verifier
        names.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    faults = [number for number, line in enumerate(lines) if re.search(r"\berror: ", line)]
    if faults:
        return "\n".join(lines[faults[0] : faults[0] + _SHOWN_LINES])
    places = re.findall(r"@ (\S+?):(\d+)", output)
    if not places:
        return "\n".join(lines[-_SHOWN_LINES:])
    told = [line for line in lines if not _VERIFIER_TRACE.match(line.strip())][-3:]
    name, number = source_name(text, places[-1][0]), places[-1][1]
    source = source_lines(text, name)
    at = line_of(source, int(number))
    return "\n".join(
        [
            *told,
            (
                f"{name}:{at}:"
                f" {source[at - 1].strip() if 0 < at <= len(source) else '(line not found)'}"
            ),
        ]
    )


def _check_shapes(module: t.Any, names: t.Iterable[str]) -> None:
    """Compare the maps that were pinned before with what the text says of them: bcc takes whatever
    lies at the path.

    :raises ConntrackError: where one has another shape.
    """
    from bcc.libbcc import lib

    for name in names:
        table = lib.bpf_table_id(module.module, name.encode())
        numbers = ("type", "key_size", "leaf_size", "max_entries", "flags")
        wanted = (getattr(lib, f"bpf_table_{what}_id")(module.module, table) for what in numbers)
        guests.check_shape(name, bpf.map_info(lib.bpf_table_fd_id(module.module, table)), *wanted)


@contextlib.contextmanager
def scratch() -> t.Iterator[str]:
    """Give a ``with`` block an empty directory, which goes afterwards. It is always the same, so
    that the next build takes away what a killed one left.
    """
    with lock.held(_SCRATCH, make=0o700):
        try:
            for name in os.listdir(_SCRATCH):
                _remove(os.path.join(_SCRATCH, name))
            yield _SCRATCH
        finally:
            _remove(_SCRATCH)
            lock.tidy()


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def tidy() -> None:
    """Take away what a killed build left."""
    # nothing, or a build that goes on
    with contextlib.suppress(FileNotFoundError), contextlib.suppress(ConntrackError):
        with lock.held(_SCRATCH, 0):
            _remove(_SCRATCH)
    lock.tidy()


def build(
    text: str,
    headers: t.Mapping[str, str],
    stages: t.Iterable[str] = (*chain_programs.SLOTS, chain_programs.ADOPT),
    maps: dict[str, int] | None = None,
) -> dict[str, int]:
    """Compile the text and load every program of the chain and of its guests; return a file
    descriptor by name.

    :param text: rendered, with the real directory of the maps' pins, which hold the maps already.
    :param headers: the stub tree: file name below it -> contents.
    :param stages: names of the chain's own programs.
    :param maps: for maps that are not pinned: where to put a file descriptor of each, by name. They
        are opened before bcc closes its own, since the kernel empties a jump table that no process
        has open, some time after that (kernel/bpf/arraymap.c, prog_array_map_clear()).
    :raises ConntrackError: with the compiler's or the verifier's own words and the lines of C that
        they speak of; nothing stays loaded.
    """
    cflags = flags()
    with scratch() as directory:
        for name, content in headers.items():
            path = os.path.join(directory, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as header:
                header.write(content)
        os.environ["BCC_KERNEL_SOURCE"] = directory
        try:
            import bcc  # only when something is built
        except ImportError as exc:
            raise ConntrackError(
                libraries.describe(libraries.Problem(libraries.LIBRARIES["bcc"]), [sys.executable])
            ) from exc

        log = os.path.join(directory, "log")
        what = "compiling the chain"
        loaded: dict[str, int] = {}
        module = None
        try:
            with stderr_to(log):
                module = bcc.BPF(text=text.encode(), cflags=cflags)
                _check_shapes(module, guests.maps_in(text))
                for name in (*stages, *guests.programs_in(text)):
                    what = f"loading {name}"
                    loaded[name] = os.dup(
                        module.load_func(
                            name.encode(), bcc.BPF.XDP, attach_type=bpf_constants.ATTACH_XDP
                        ).fd
                    )
            if maps is not None:
                what = "opening the maps"
                for number in sorted(
                    {one for fd in loaded.values() for one in bpf.prog_info(fd).map_ids}
                ):
                    fd = bpf.map_get_fd_by_id(number)
                    maps[bpf.map_info(fd).name] = fd
        except ConntrackError:
            raise
        except Exception as exc:  # bcc raises bare Exception for everything
            for fd in (*loaded.values(), *(maps or {}).values()):
                os.close(fd)
            output = read_log(log)
            # a compiler tells all itself; of a failed load the exception has the errno's words
            why = (
                ""
                if module is None and output
                else f": {str(exc).partition(chr(10))[0].rpartition(': ')[2]}"
            )
            raise ConntrackError(
                f"{what} failed{why}\n{explain(text, output)}", compiler_output=output
            ) from exc
        finally:
            if module is not None:
                module.cleanup()  # bcc keeps every object open until the process ends otherwise
        return loaded
