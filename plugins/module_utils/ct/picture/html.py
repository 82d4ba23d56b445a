# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A page of HTML around the SVG picture, with the same in tables."""

from __future__ import annotations

import typing as t

from . import captions, svg

#: A table of the page: title, heads, rows.
Table = tuple[str, t.Sequence[str], t.Sequence[t.Sequence[object]]]
_PAGE = (
    "<!doctype html>\n"
    '<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport"'
    ' content="width=device-width">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src'
    " 'unsafe-inline'; img-src data:\">\n"
    '<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>'
    ":root{{color-scheme:light dark}}body{{margin:1rem;font:14px system-ui,'DejaVu"
    " Sans',sans-serif;background:#fff;color:#1f2328}}"
    "svg{{max-width:100%;height:auto;display:block;margin:0"
    " auto}}table{{border-collapse:collapse;margin:1rem 0}}"
    "caption{{text-align:left;font-weight:600;padding:.3rem 0}}th,td{{border:1px solid"
    " #8c959f;padding:.2rem .5rem;text-align:left}}"
    "td{{max-width:24rem;overflow-wrap:anywhere}}td.n{{text-align:right}}"
    "@media(prefers-color-scheme:dark){{body{{background:#0d1117;color:#e6edf3}}}}"
    "</style>\n</head>\n<body>\n{svg}{tables}</body>\n</html>\n"
)


def draw(graph: captions.Graph) -> str:
    """Return a page with the picture, and the same in tables."""
    names = {place["id"]: place["name"] for place in graph["places"]}
    flows = [
        (
            names[edge["from"]],
            names[edge["to"]],
            edge["state"],
            ", ".join(edge["protos"]),
            edge["flows"],
            edge["packets"],
            edge["bytes"],
        )
        for edge in graph["edges"]
    ]
    interfaces = [
        (
            place["name"],
            one["name"],
            ", ".join(one["addresses"]),
            one["mac"],
            one["mtu"],
            "up" if one["up"] else "down",
            captions.badge(one),
        )
        for place in graph["places"]
        for one in place["interfaces"]
    ]
    tables: list[Table] = [
        ("Flows", ("from", "to", "state", "protocols", "flows", "packets", "bytes"), flows),
        (
            "Interfaces",
            ("namespace", "interface", "addresses", "MAC", "MTU", "state", "XDP"),
            interfaces,
        ),
    ]
    return page(graph, tables)


def page(graph: captions.Graph, tables: t.Iterable[Table]) -> str:
    """Return a page with the picture and these tables."""
    return _PAGE.format(
        title=captions.escaped(graph["title"]),
        svg=svg.draw(graph),
        tables="".join(_table(*one) for one in tables),
    )


_NUMBER = ' class="n"'


def _table(title: str, heads: t.Sequence[str], rows: t.Sequence[t.Sequence[object]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_NUMBER if isinstance(one, int) else ''}>{captions.escaped(one)}</td>"
            for one in row
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        f"<table>\n<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n"
    )
