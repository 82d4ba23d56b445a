# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command ``ct`` is made of: the library's own modules, those that it imports, and what its parser says of it.

Runs where Ansible runs, so that a module on a target need not bring all of that along to see that nothing is to be done.
"""

from __future__ import annotations

import os
import re

from . import bpffs, ct_archive, ct_cli, ct_manual
from .errors import ConntrackError

_PACKAGE = "ebpf_conntrack"
#: The first lines of the archive: until the command takes Ctrl-C itself the kernel ends it, for an exception in the middle of an import may be dropped.
_BEGIN = "import signal\nif signal.getsignal(signal.SIGINT) is signal.default_int_handler:\n    signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
#: An import from this package. Parsing the sources for them would take ten times as long as all the rest.
_IMPORT = re.compile(r"^[ \t]*from \.(\w*) import (\([^)]*\)|[^#\n]*)", re.MULTILINE)


def sources() -> dict[str, str]:
    """Return the text of each module that the command needs, by name.

    :raises ConntrackError: where one can not be read.
    """
    found: dict[str, str] = {}
    wanted = [ct_cli.__name__.rpartition(".")[2]]
    while wanted:
        name = wanted.pop()
        if name not in found:
            path = os.path.join(os.path.dirname(__file__), f"{name}.py")
            try:
                with open(path, encoding="utf-8") as file:
                    found[name] = file.read()
            except OSError as exc:
                raise ConntrackError(f"{path} can not be read: {exc.strerror}. Install the collection again.") from exc
            wanted += imports(found[name])
    return dict(sorted(found.items()))


def imports(text: str) -> list[str]:
    """Return the modules of this package that a module imports, at its top or later.

    >>> imports("from . import a, b as c\\nfrom .d import e\\nimport os")
    ['a', 'b', 'd']
    """
    return [
        name
        for module, names in _IMPORT.findall(text)
        for name in ([module] if module else [one.split()[0] for one in names.strip("()").split(",") if one.strip()])
    ]


def content(pin_root: str = bpffs.STANDARD, state_dir: str = bpffs.STATE_DIR) -> ct_archive.Content:
    """Return what the command's files are made of.

    :param pin_root: what holds where the command is not told otherwise; likewise the next one.
    """
    start = f"{_BEGIN}import sys\nfrom {_PACKAGE}.ct_cli import main\nsys.exit(main(pin_root={pin_root!r}, state_dir={state_dir!r}))\n"
    modules = {"__main__.py": start, f"{_PACKAGE}/__init__.py": "", **{f"{_PACKAGE}/{name}.py": text for name, text in sources().items()}}
    parser = ct_cli.parser(pin_root, state_dir)
    return ct_archive.Content(modules, ct_manual.man_page(parser), ct_manual.bash_completion(parser))


def want(pin_root: str = bpffs.STANDARD, state_dir: str = bpffs.STATE_DIR) -> ct_archive.Want:
    """Return the same for ct_archive.converge()."""
    made = content(pin_root, state_dir)
    return ct_archive.Want(made.digest, lambda: made)
