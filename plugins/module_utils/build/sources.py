# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of the chain's sources: its layout, and the order in which its files are included.

``stages`` has a file for each program, ``lib`` the headers, ``templates`` what is rendered. A file
names those that it needs in lines of its own, as ``#include "lib/flow.h"``, seen from the
directory of the sources.
"""

from __future__ import annotations

import os
import re
import typing as t

from ..core.errors import ConntrackError, bad_value

STAGES = "stages"
LIBRARY = "lib"
TEMPLATES = "templates"
FOLDERS = (STAGES, LIBRARY, TEMPLATES)
#: The template that includes all other files.
MAIN = f"{TEMPLATES}/chain.c.j2"

_INCLUDE = re.compile(r'^#include "([^"\n]*)".*$', re.MULTILINE)
_NAME = re.compile(rf"({'|'.join(FOLDERS)})/[\w+-][\w.+-]*")


def stage_file(program: str) -> str:
    """Return the file of a program of the chain.

    >>> stage_file("ct")
    'stages/ct.c'
    """
    return f"{STAGES}/{program}.c"


def check_layout(directory: str) -> None:
    """:raises ConntrackError: where a directory does not hold sources, or has all in one folder."""
    if not os.path.isdir(directory):
        raise bad_value(
            "src", directory, "give a readable directory that holds the chain's sources"
        )
    flat = os.path.basename(MAIN)
    if os.path.exists(os.path.join(directory, flat)) and not os.path.exists(
        os.path.join(directory, MAIN)
    ):
        raise bad_value(
            "src",
            directory,
            f"it has {flat} and its other files in one folder, where no file says what it needs:"
            f" start from a copy of the collection's files/bpf, which has {STAGES} (programs),"
            f" {LIBRARY} (*.h) and {TEMPLATES} (*.j2)",
        )


def file_names(directory: str) -> set[str]:
    """Return the bare names of the chain's files; none where there is no such directory."""
    folders = (os.path.join(directory, folder) for folder in FOLDERS)
    return {name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}


def _read(directory: str, name: str, wanted_by: str) -> str:
    path = os.path.join(directory, name)
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError as exc:
        raise ConntrackError(f"src: {path} is not there: {wanted_by}.") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConntrackError(f"src: {path} can not be read: {exc}.") from exc


def read_main(directory: str) -> str:
    """Return the template that includes all other files.

    :raises ConntrackError: where it can not be read.
    """
    return _read(directory, MAIN, "it includes all other files")


def read_in_order(directory: str, programs: t.Iterable[str]) -> dict[str, str]:
    """Return the text of the programs' files and of all that these include, each behind what it
    includes; in place of an include line is an empty one.

    :raises ConntrackError: where a file is missing, can not be read, or includes itself by way of
        others; it names the file and the line that want it.
    """
    done: dict[str, str] = {}
    open_files: list[str] = []

    def add(name: str, wanted_by: str) -> None:
        if name in done:
            return
        if name in open_files:
            circle = " -> ".join([*open_files[open_files.index(name) :], name])
            raise ConntrackError(f"src: {wanted_by}, in a circle: {circle}.")
        text = _read(directory, name, wanted_by)
        open_files.append(name)
        for match in _INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            place = f"{os.path.join(directory, name)} line {line}"
            if not _NAME.fullmatch(match[1]):
                raise ConntrackError(
                    f'src: {place} includes "{match[1]}": name a file in one of the folders'
                    f" {', '.join(FOLDERS)}, as {LIBRARY}/flow.h."
                )
            add(match[1], f"{place} includes {match[1]}")
        open_files.pop()
        done[name] = _INCLUDE.sub("", text)

    for program in programs:
        add(stage_file(program), "each stage has a file of its name")
    return done
