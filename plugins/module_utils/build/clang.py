# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clang front end: compile the rendered C into an object file, on a host that has a compiler,
for hosts that have none.

It is the text that bcc compiles; what bcc adds to it stands in files/bpf/clang/bcc.h. load_object
loads what comes of it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import typing as t

from ..chain import layout as chain_layout
from ..core import lock, safe_path
from ..core.errors import ConntrackError, bad_value
from . import bcc as build_bcc
from . import features
from . import object as object_file
from .object import Built, Manifest, Target

COMPILER = "clang"
#: The oldest version that knows the atomic instructions that the chain is made of.
MINIMUM = 12
#: Where objects are kept that were compiled for a run.
CACHE = os.path.join("~", ".cache", "ebpf_conntrack", "objects")
#: What the header is called among those that go along with a text, see render.pack().
PRELUDE = "clang/bcc.h"
#: 64-bit registers only, as bcc compiles: with narrower ones (v3) the verifier follows the chain's
#: loops past its bound of a million instructions.
_FLAGS = (
    *(
        "-O2",
        "-g",
        "-mcpu=v2",
        "-fno-ident",
        "-nostdlibinc",
        "-Wall",
        "-Werror=implicit-function-declaration",
    ),
    *(
        f"-Wno-{name}"
        for name in (
            "unused-function",
            "unused-variable",
            "gnu-folding-constant",
            "pointer-sign",
            "address-of-packed-member",
        )
    ),
)
_VERSION = re.compile(r"clang version (\d+)(\S*)")
_MINUTES = 5
#: Seconds to wait for another run that compiles the same.
_PATIENCE = 600
_HEX_DIGITS = 32


def here() -> Target:
    """Return what this machine is."""
    return Target(platform.machine(), sys.byteorder)


def version(compiler: str) -> str:
    """Return a clang's version.

    :raises ConntrackError: where it can not be run, or is too old.
    """
    mend = "install the package clang, or give the path of one"
    try:
        said = subprocess.run(
            [compiler, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise bad_value(
            "compiler",
            compiler,
            f"it can not be run ({getattr(exc, 'strerror', None) or exc}); {mend}",
        ) from exc
    found = _VERSION.search(said)
    if not found:
        raise bad_value(
            "compiler",
            compiler,
            f"it says {said.partition(chr(10))[0]!r}, so it is no clang; {mend}",
        )
    if int(found[1]) < MINIMUM:
        raise bad_value(
            "compiler",
            compiler,
            f"its version is {found[1]}{found[2]}, {MINIMUM} or later is needed; {mend}",
        )
    return found[1] + found[2]


def digest(sources: str, prelude: str, target: Target) -> str:
    """Return what the object of these sources is called: 128 bits, in hex, of all that goes into it
    but the compiler.
    """
    parts = (sources, prelude, *_FLAGS, *target, *chain_flags(target))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_HEX_DIGITS]


def chain_flags(target: Target) -> list[str]:
    """Return what is compiled in for a machine."""
    return ["-DCT_STORES_IN_ORDER"] if target.machine in build_bcc.STORES_IN_ORDER else []


def wanted(text: str, headers: t.Mapping[str, str], prelude: str, target: Target) -> str:
    """Return what the object of a rendered chain is called; see digest()."""
    return digest(object_file.sources_digest(text, headers), prelude, target)


def compile_text(
    text: str, headers: t.Mapping[str, str], prelude: str, target: Target, compiler: str = COMPILER
) -> bytes:
    """Compile a rendered chain; return the object file.

    :raises ConntrackError: with the compiler's own words, and the lines of C that they speak of.
    """
    if target.byteorder != sys.byteorder:  # the headers of this host say how bit-fields lie here
        raise ConntrackError(
            f"the target is {target.byteorder} endian, and this host is not: prepare the object"
            " with xdp_object on one that is, and take it with build: object."
        )
    flags = [*_FLAGS, *build_bcc.include_flags(target.machine), *chain_flags(target)]
    with tempfile.TemporaryDirectory(prefix="ebpf_conntrack.") as directory:
        for name, content in {**headers, PRELUDE: prelude, "chain.c": text}.items():
            path = os.path.join(directory, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
        kind = "bpfel" if target.byteorder == "little" else "bpfeb"
        # what it is told is relative, so that nothing of where it was compiled is in the object
        argv = [
            compiler,
            "-target",
            kind,
            *flags,
            "-I",
            "include",
            "-include",
            PRELUDE,
            "-fdebug-compilation-dir=.",
            "-c",
            "chain.c",
            "-o",
            "chain.o",
        ]
        try:
            done = subprocess.run(
                argv,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60 * _MINUTES,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise bad_value(
                "compiler", compiler, f"it can not be run: {getattr(exc, 'strerror', None) or exc}"
            ) from exc
        if done.returncode:
            raise ConntrackError(
                f"compiling the chain failed\n{build_bcc.explain(text, done.stderr)}",
                compiler_output=done.stderr,
            )
        with open(os.path.join(directory, "chain.o"), "rb") as file:
            return file.read()


def build(
    text: str,
    headers: t.Mapping[str, str],
    prelude: str,
    settings: t.Any,
    target: Target,
    compiler: str = COMPILER,
) -> Built:
    """Compile a rendered chain; return the object with its manifest.

    :param settings: render.Settings that it was rendered with.
    :raises ConntrackError: see version() and compile_text().
    """
    found = version(compiler)
    data = compile_text(text, headers, prelude, target, compiler)
    sources = object_file.sources_digest(text, headers)
    manifest = Manifest(
        digest=digest(sources, prelude, target),
        sources=sources,
        settings=object_file.settings_of(settings, text),
        compiler={"name": "clang", "version": found},
        target=target._asdict(),
        layout=chain_layout.LAYOUT_VERSION,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        kernel=[{"feature": name, "since": since} for name, since, dummy in features.FEATURES],
    )
    return Built(manifest, data)


def cached(
    directory: str, name: str, compiler: str, make: t.Callable[[], Built]
) -> tuple[Built, bool]:
    """Return an object that a directory has of this compiler, or make it and put it there; and
    whether it was made.

    :param name: what it is called.
    :raises ConntrackError: see version() and build().
    """
    safe_path.refuse_foreign_way(os.path.join(directory, name))  # what lies there is loaded by root
    there = object_file.read(directory, name) if os.path.isdir(directory) else None
    if _fits(there, compiler):
        return t.cast("Built", there), False
    with lock.held(directory, _PATIENCE, make=0o755):
        there = object_file.read(directory, name)  # another run may have made it meanwhile
        if _fits(there, compiler):
            return t.cast("Built", there), False
        built = make()
        object_file.write(directory, built)
        return built, True


def _fits(there: Built | None, compiler: str) -> bool:
    return (
        there is not None
        and there.manifest.compiler.get("version") == version(compiler)
        and hashlib.sha256(there.data).hexdigest() == there.manifest.sha256
    )
