# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write CHANGELOG.rst from the fragments in changelogs/fragments.

antsibull-changelog makes it in a copy of the tree: what is not released yet stands under the
version of galaxy.yml, while the fragments stay and no release is written down. A unit test says
when the file is behind the fragments.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import tempfile

import yaml
from tree import ROOT, VENV, copy_tree, environment, run

NAME = "CHANGELOG.rst"
#: The file has no dates; the record that is thrown away has to have one.
ANY_DATE = "2000-01-01"


def generated(directory: pathlib.Path) -> pathlib.Path:
    """Make the changelog in an empty directory; return its path.

    :raises RuntimeError: with what the tool printed.
    """
    tree = copy_tree(directory / "ansible_collections/ebpf/conntrack")
    version = str(yaml.safe_load((tree / "galaxy.yml").read_text("utf-8"))["version"])
    record = yaml.safe_load((tree / "changelogs/changelog.yaml").read_text("utf-8"))
    command = ["generate"]
    if version not in record["releases"]:
        command = ["release", "--version", version, "--date", ANY_DATE]
    env = environment(ANSIBLE_COLLECTIONS_PATH=str(directory))
    status, out = run([VENV / "antsibull-changelog", *command], tree, env, 5, quiet=True)
    if status:
        raise RuntimeError(out)
    return tree / NAME


def main() -> int:
    """Write the file; return the exit status."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            shutil.copyfile(generated(pathlib.Path(directory)), ROOT / NAME)
        except RuntimeError as exc:
            print(f"changelog: {exc}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
