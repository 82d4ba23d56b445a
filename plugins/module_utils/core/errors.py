# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one kind of error the library raises for things a user can mend, and how modules tell it."""

from __future__ import annotations

import contextlib
import typing as t

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


class ConntrackError(Exception):
    """Something a user can act on.

    :param message: what is wrong and how to mend it, one sentence each; it names the field and the
        value.
    :param facts: extra keys for the module's failure result (``applied``, ``rolled_back``,
        ``compiler_output``, ...).
    """

    def __init__(self, message: str, **facts: t.Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts


def bad_value(field: str, value: object, mend: str, known: t.Iterable[str] = ()) -> ConntrackError:
    """Return the error for one bad input value, in the one wording used everywhere.

    >>> bad_value("links[0].mtu", 20, "give 68 to 65535").message
    'links[0].mtu: 20 is not valid: give 68 to 65535.'

    :param known: the names that are valid, where it is to say which of them is nearest.
    """
    shown = value if isinstance(value, (int, float, bool)) else repr(value)
    return ConntrackError(
        f"{field}: {shown} is not valid: {mend.rstrip('.')}.{did_you_mean(value, known)}"
    )


def is_whole(value: object) -> t.TypeGuard[int]:
    """Tell whether a value that was read, of JSON say, is a whole number. Python takes true and
    false for such.
    """
    return isinstance(value, int) and not isinstance(value, bool)


def did_you_mean(value: object, known: t.Iterable[str]) -> str:
    """Return the question which of the known names was meant, "" where none is near.

    >>> did_you_mean("tpc", ("icmp", "tcp", "udp")), did_you_mean("x", ("tcp",))
    (' Did you mean tcp?', '')
    """
    import difflib  # only where something is wrong: imports are most of a module's run on a target

    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(value).strip().lower(), list(names), n=1)
    return f" Did you mean {names[near[0]]}?" if near else ""


@contextlib.contextmanager
def told_by(module: AnsibleModule) -> t.Iterator[None]:
    """Around all that a module does: an error in it, and what the system refuses, becomes the
    module's failure.
    """
    try:
        yield
    except ConntrackError as exc:
        module.fail_json(msg=exc.message, **exc.facts)
    except OSError as exc:
        module.fail_json(msg=f"The system refuses it: {exc}.")
