# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make HTML pages of the documentation of modules, plugins and roles, in build/docs/html.

    .venv/bin/python tests/tools/docs.py

antsibull-docs writes the pages as reStructuredText, Sphinx makes HTML of them. Both, and the theme,
come with the tools in .venv.
"""

from __future__ import annotations

import pathlib
import shutil
import sys

from tree import BUILD, VENV, Argv, copy_tree, environment, run

DOCS = BUILD / "docs"
CONF = """
project = "ebpf.conntrack"
html_title = project
copyright = "The ebpf.conntrack authors"
extensions = ["sphinx.ext.intersphinx", "sphinx_antsibull_ext"]
pygments_style = "ansible"
highlight_language = "YAML+Jinja"
html_theme = "alabaster"
html_theme_options = {"page_width": "1200px", "sidebar_width": "260px", "fixed_sidebar": True}
html_show_sphinx = False
html_use_smartypants = True
suppress_warnings = ["ref.ref"]  # labels of Ansible's own pages, which are not fetched
"""


def build() -> str:
    """Build the pages anew; return what went wrong, "" when nothing did."""
    shutil.rmtree(DOCS, ignore_errors=True)
    (DOCS / "rst").mkdir(parents=True)
    DOCS.chmod(0o755)
    (DOCS / "rst").chmod(0o755)
    copy_tree()
    pages: Argv = [
        VENV / "antsibull-docs",
        "collection",
        "--use-current",
        "--squash-hierarchy",
        "--fail-on-error",
        "--dest-dir",
        DOCS / "rst",
        "ebpf.conntrack",
    ]
    html: Argv = [
        VENV / "sphinx-build",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        DOCS / "rst",
        DOCS / "html",
    ]
    for argv in (pages, html):
        status, out = run(
            argv, BUILD, environment(ANSIBLE_COLLECTIONS_PATH=str(BUILD)), 10, quiet=True
        )
        if status:
            return out or f"{argv[0]} ended with {status}"
        (DOCS / "rst/conf.py").write_text(CONF, encoding="utf-8")
    return ""


def main() -> int:
    """Build, and say where the pages are; return the exit status."""
    failed = build()
    pages = sorted(path.name for path in pathlib.Path(DOCS / "html").glob("*.html"))
    print(failed or f"{len(pages)} pages: {DOCS / 'html/index.html'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
