# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command ``ct`` writes: results to standard output, complaints to standard error."""

from __future__ import annotations

import argparse
import json
import os
import sys
import typing as t

from ..core.errors import ConntrackError
from ..core.plan import Plan
from ..core.printable import printable
from . import words as ct_words

_LINES = "\t\n"
UNWRITABLE = "standard output cannot be written: {}. Some of it may be missing."


def sentence(text: str) -> str:
    """Return text with the mark that ends a sentence.

    >>> sentence("It is closed"), sentence("Did you mean tcp?")
    ('It is closed.', 'Did you mean tcp?')
    """
    text = " ".join(text.split())
    return text if text.endswith("?") else f"{text.rstrip('.')}."


def complain(who: str, message: str, parser: argparse.ArgumentParser) -> None:
    """Write one line to standard error, in the words of the command line.

    :param parser: of the whole command line.
    """
    said = ct_words.spoken(message, ct_words.option_names(parser))
    try:  # it may quote what came from elsewhere
        sys.stderr.write(f"{who}: {printable(sentence(said))}\n")
        sys.stderr.flush()
    except OSError:  # there is nobody to say it to; the exit status still does
        drop(sys.stderr)


def warn(args: argparse.Namespace, message: str) -> None:
    """Complain in the name of the command that runs."""
    complain(f"ct {args.command}", message, args.parsers[0])


def put(piece: bytes) -> None:
    """Write to standard output at once, so that the reader of a pipe starts with the first batch.

    :raises BrokenPipeError: the reader has enough.
    :raises ConntrackError: it cannot be written, as on a full disk.
    """
    if not piece:
        return
    try:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        drop(sys.stdout)
        raise ConntrackError(UNWRITABLE.format(exc.strerror)) from exc


def drop(stream: t.TextIO) -> None:
    """Let what a stream still holds go to nowhere, or the interpreter tries again when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def say(text: str) -> None:
    """Write lines; names of the system in them need not be text, nor fit for a terminal."""
    put(f"{printable(text, keep=_LINES)}\n".encode())


def say_json(value: object) -> None:
    """Write a value as JSON that people can read."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def say_plan(plan: Plan, dry: bool) -> None:
    """Write a line for each step."""
    for step in plan:
        say(f"{'would ' if dry else ''}{step.action} {step.kind} {step.name}: {step.reason}")
    if not plan:
        say("nothing to do")


def number_of(count: int, what: str) -> str:
    """Return a number with its noun.

    >>> number_of(1, "flow"), number_of(2, "flow")
    ('1 flow', '2 flows')
    """
    return (
        f"{count} {what}"
        if count == 1
        else f"{count} {what[:-1] + 'ies' if what.endswith('entry') else what + 's'}"
    )
