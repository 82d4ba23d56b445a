# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The library's messages in the words of the command ``ct``.

The library speaks to users of the modules: ``takeover: true``, ``state: absent``, ``become``. Who
typed a command has options. What stands in a path is left as it is.
"""

from __future__ import annotations

import argparse
import re
import typing as t

#: Not within a word, a path or an option.
_ALONE = r"(?<![\w./-]){}(?![\w/-])"
_PHRASES: tuple[tuple[str, str], ...] = (
    (r"run the task with become: true|run as root, with become for instance", "run as root"),
    (r" \(in a playbook: become: true\)|, with become(?: for instance)?", ""),
    (r"\(xdp_attach with state: absent\)", "(ct detach)"),
    (r"\bstate: absent", "ct detach"),
    (r"\b(?:ebpf\.conntrack\.)?netns_lab\b", "the Ansible module netns_lab"),
    (
        r"\b[Rr]un (?:ebpf\.conntrack\.)?xdp_program(?: first| again)?",
        "Run xdp_program in a playbook, or ct load here",
    ),
    (r"\bas xdp_program has them\b", "as the Ansible module xdp_program has them"),
    (r"\bsrc(?=: .* sources)", "source"),
    (r"\bmode: (?=auto\b|generic\b|native\b)", "--mode "),
)
#: One of several that are named, as ``interfaces[0].name``: people count from 1.
_INTERFACE = re.compile(r"\binterfaces\[(\d+)\](?:\.\w+)?")


def spoken(message: str, options: t.Iterable[str]) -> str:
    """Return a message of the library as the command says it.

    >>> spoken("Give takeover: true, mode: auto, or another pin_root.", ("takeover", "pin_root"))
    'Give --takeover, --mode auto, or another --pin-root.'

    :param options: the command's options, by the names that the modules have for them.
    """
    message = _INTERFACE.sub(lambda found: f"interface {int(found[1]) + 1}", message)
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    for name in options:
        typed = f"--{name.replace('_', '-')}"
        message = re.sub(_ALONE.format(rf"{name}: true"), typed, message)
        if "_" in name:
            message = re.sub(_ALONE.format(name), typed, message)
    return message


def option_names(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Return the names of the options of all commands, as modules have them.

    :param parser: of the whole command line.
    """
    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    found: dict[str, None] = {}
    for command in commands.choices.values():
        found.update((one.dest, None) for one in command._actions if one.option_strings)
    del found["help"]
    return tuple(found)
