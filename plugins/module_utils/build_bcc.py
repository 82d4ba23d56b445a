# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bcc front end: compile the rendered C in process and load its programs.

Importing bcc maps some 110 MB of LLVM, so only a run that builds imports this module's need of it.
No kernel headers are wanted: a stub tree takes their place (files/bpf/stub) and the UAPI headers are the distribution's.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import tempfile
import typing as t

from . import chain
from .errors import ConntrackError

#: Machines on which a CPU's stores become visible in their order, so that releasing a lock needs no barrier.
_STORES_IN_ORDER = {"x86_64", "i686", "s390x"}
_UAPI = "/usr/include"
#: Most lines of a compiler's or verifier's words that a message carries; all of them are in the fact ``compiler_output``.
_SHOWN_LINES = 20
_SHOWN_BYTES = 64 * 1024


def flags() -> list[str]:
    """Return the compiler flags for this machine.

    :raises ConntrackError: where the UAPI headers are missing.
    """
    if not os.path.exists(os.path.join(_UAPI, "linux", "bpf.h")):
        raise ConntrackError(
            f"{_UAPI}/linux/bpf.h is missing: install the kernel's user-space headers, "
            "the package linux-libc-dev (Debian, Ubuntu) or kernel-headers (Fedora, RHEL)."
        )
    directories = [_UAPI, *sorted(os.path.dirname(path) for path in glob.glob(f"{_UAPI}/{platform.machine()}-*/asm"))]
    result = [word for directory in directories for word in ("-idirafter", directory)]
    if platform.machine() in _STORES_IN_ORDER:
        result.append("-DCT_STORES_IN_ORDER")
    return result


@contextlib.contextmanager
def _stderr_to(path: str) -> t.Iterator[None]:
    """Send what C++ writes to file descriptor 2 into a file."""
    saved = os.dup(2)
    try:
        with open(path, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _read(path: str) -> str:
    """Return a file's end: a verifier's log can be larger than what is good for a message."""
    with open(path, "rb") as source:
        source.seek(max(0, os.path.getsize(path) - _SHOWN_BYTES))
        return source.read().decode(errors="replace")


def source_line(text: str, name: str, line: int) -> str | None:
    """Return a line (from 1) of one of the files that the rendered text was made of.

    >>> source_line('#line 1 "a.c"\\nint x;\\n#line 1 "b.c"\\nint y;\\n', "b.c", 1)
    'int y;'
    """
    start = re.search(rf'^#line 1 "{re.escape(name)}"\n', text, re.MULTILINE)
    if not start:
        return None
    lines = text[start.end() :].split("\n#line ", 1)[0].split("\n")
    return lines[line - 1].strip() if 0 < line <= len(lines) else None


def explain(text: str, output: str) -> str:
    """Return the part of a compiler's or verifier's output that tells the fault, with the lines of C it speaks of."""
    lines = [line for line in output.splitlines() if line.strip()]
    faults = [number for number, line in enumerate(lines) if re.search(r"\berror: ", line)]
    if faults:
        return "\n".join(lines[faults[0] : faults[0] + _SHOWN_LINES])
    places = [(number, found) for number, line in enumerate(lines) for found in re.findall(r"@ (\S+?):(\d+)", line)]
    told = [line for line in lines if not re.match(r"(processed|verification time|stack depth|\d+: |;|\(|from |R\d)", line.strip())][-3:]
    if not places:
        return "\n".join(lines[-_SHOWN_LINES:])
    dummy, (name, number) = places[-1]
    return "\n".join([*told, f"{name}:{number}: {source_line(text, name, int(number)) or '(line not found)'}"])


def build(text: str, headers: t.Mapping[str, str]) -> dict[str, int]:
    """Compile the text and load every program of the chain; return a file descriptor by name.

    :param text: rendered, with the real directory of the maps' pins, which hold the maps already.
    :param headers: the stub tree: file name below it -> contents.
    :raises ConntrackError: with the compiler's or the verifier's own words and the lines of C that they speak of; nothing stays loaded.
    """
    cflags = flags()
    with tempfile.TemporaryDirectory(prefix="ebpf_conntrack_") as directory:
        for name, content in headers.items():
            path = os.path.join(directory, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as header:
                header.write(content)
        os.environ["BCC_KERNEL_SOURCE"] = directory
        import bcc  # guarded by the caller, and only when something is built

        log = os.path.join(directory, "log")
        what = "compiling the chain"
        loaded: dict[str, int] = {}
        try:
            with _stderr_to(log):
                module = bcc.BPF(text=text, cflags=cflags)
                for name in chain.SLOTS:
                    what = f"loading {name}"
                    loaded[name] = os.dup(module.load_func(name, bcc.BPF.XDP, attach_type=chain.ATTACH_TYPE_XDP).fd)
        except Exception as exc:  # bcc raises bare Exception for everything
            for fd in loaded.values():
                os.close(fd)
            output = _read(log)
            raise ConntrackError(f"{what} failed: {exc}".split("\n", 1)[0] + f"\n{explain(text, output)}", compiler_output=output) from exc
        module.cleanup()
        return loaded
