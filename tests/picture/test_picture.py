# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures as a browser, graphviz and mermaid see them. The screenshots lie in build/picture
afterwards.

Run it with ``make test-picture``, which installs all three.
"""

from __future__ import annotations

import collections.abc as c
import json
import pathlib
import re
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import graph as ct_graph
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.picture import (
    dot,
    html,
    mermaid,
    phases,
)
from ansible_collections.ebpf.conntrack.tests.e2e.conftest import figure, lab_on_the_wire, wire
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import PORT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_ct import Ct, ct, installed
from ansible_collections.ebpf.conntrack.tests.e2e.test_playbooks import Playbooks, playbooks
from ansible_collections.ebpf.conntrack.tests.unit.graph_fakes import NASTY, everyone, group, host
from playwright import sync_api

__all__ = ["ct", "figure", "installed", "lab_on_the_wire", "playbooks", "wire"]  # fixtures

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEPT = ROOT / "build/picture"
MERMAID = ROOT / ".venv/mermaid/node_modules/mermaid/dist/mermaid.min.js"
#: In the page: for each element its class, and what the browser made of it.
LOOK = """() => [...document.querySelectorAll('svg.ct .flow')].map(one => {
    const line = one.querySelector('.line'), style = getComputedStyle(line);
    const box = one.getBoundingClientRect(), head = getComputedStyle(one.querySelector('.head'));
    return {...one.dataset, colour: style.stroke, width: parseFloat(style.strokeWidth),
            head: head.fill, title: one.querySelector('title').textContent,
            seen: box.width > 0 && box.height > 0};
})"""
TEXTS = """() => [...document.querySelectorAll('svg.ct text')]
    .filter(one => !one.closest('.flow')).map(one => {
    const box = one.getBoundingClientRect(), style = getComputedStyle(one);
    return {text: one.textContent, kind: one.getAttribute('class') || '',
            place: (one.closest('.place') || {dataset: {}}).dataset.place,
            box: [box.left, box.top, box.right, box.bottom], colour: style.fill};
})"""
INSIDE = """() => [...document.querySelectorAll('svg.ct .place')].map(one => {
    const box = one.querySelector('.box').getBoundingClientRect();
    return {place: one.dataset.place, box: [box.left, box.top, box.right, box.bottom]};
})"""


@pytest.fixture(scope="module")
def browser() -> c.Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as running:
        made = running.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        yield made
        made.close()


class Page:
    """A picture in the browser, and what the browser said."""

    def __init__(
        self,
        browser: sync_api.Browser,
        path: pathlib.Path,
        scheme: t.Literal["light", "dark"],
        offline: bool = True,
    ) -> None:
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1280, "height": 900}, offline=offline
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        KEPT.mkdir(parents=True, exist_ok=True)
        self.shot = KEPT / f"{path.stem}-{scheme}.png"
        self.page.screenshot(path=self.shot, full_page=True)

    def close(self, path: pathlib.Path) -> None:
        self.context.close()
        assert self.said == [] and self.asked == [path.as_uri()], (
            "the page loads nothing and complains of nothing"
        )
        assert self.shot.read_bytes().startswith(b"\x89PNG") and self.shot.stat().st_size > 5000


def rgb(colour: str) -> str:
    """Return a colour as the browser tells it."""
    return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour as the browser tells it (WCAG 2, section 1.4.3)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def look(browser: sync_api.Browser, path: pathlib.Path, graph: ct_graph.Graph) -> None:
    """Hold a page against the graph that it shows, on both grounds."""
    names = {place["id"]: place["name"] for place in graph["places"]}
    schemes: tuple[t.Literal["light", "dark"], ...] = ("light", "dark")
    for at, scheme in enumerate(schemes):
        opened = Page(browser, path, scheme)
        flows = {(one["from"], one["to"], one["state"]): one for one in opened.page.evaluate(LOOK)}
        assert set(flows) == {
            (names[edge["from"]], names[edge["to"]], edge["state"]) for edge in graph["edges"]
        }
        for edge in graph["edges"]:
            seen = flows[names[edge["from"]], names[edge["to"]], edge["state"]]
            wanted = rgb(phases.PHASES[phases.phase_of(edge["state"])][:2][at])
            assert (seen["colour"], seen["head"], seen["flows"], seen["seen"]) == (
                wanted,
                wanted,
                str(edge["flows"]),
                True,
            )
            assert f"{edge['bytes']} bytes" in seen["title"]
        by_bytes = sorted(graph["edges"], key=lambda edge: edge["bytes"])
        widths = [
            flows[names[edge["from"]], names[edge["to"]], edge["state"]]["width"]
            for edge in by_bytes
        ]
        assert widths == sorted(widths)

        ground = opened.page.evaluate(
            "() => getComputedStyle(document.querySelector('svg.ct .ground')).fill"
        )
        texts, places = (
            opened.page.evaluate(TEXTS),
            {one["place"]: one["box"] for one in opened.page.evaluate(INSIDE)},
        )
        assert set(places) == set(names.values())
        assert min(contrast(one["colour"], ground) for one in texts) >= 4.4, scheme
        assert min(contrast(one["colour"], ground) for one in flows.values()) >= 3, scheme
        picture = opened.page.evaluate(
            "() => {const b = document.querySelector('svg.ct').getBoundingClientRect(); return"
            " [b.left, b.top, b.right, b.bottom]}"
        )
        for one in texts:
            outer = places[one["place"]] if one["place"] else picture
            assert (
                outer[0] <= one["box"][0]
                and one["box"][2] <= outer[2]
                and outer[1] <= one["box"][1]
                and one["box"][3] <= outer[3]
            ), one
        words = [one["box"] for one in texts if one["kind"] == "words"]
        assert not any(
            a[0] < b[2] and b[0] < a[2] and a[1] + 2 < b[3] and b[1] + 2 < a[3]
            for n, a in enumerate(words)
            for b in words[:n]
        ), "captions collide"
        opened.close(path)


FAKES: dict[str, tuple[list[str], list[dict[str, t.Any]]]] = {
    "two": (
        ["ns1", "ns2"],
        [
            group(0, 1, octets=9000),
            group(1, 0, "udp", "NEW", 5),
            group(0, "192.0.2.7", "tcp", "CLOSE"),
        ],
    ),
    "five": ([f"site{n}" for n in range(5)], everyone(5)),
    "nasty": ([*NASTY, "x" * 60, "W" * 60], everyone(4)),
    "fifty": ([f"ns{n}" for n in range(50)], everyone(50)),
}


@pytest.mark.parametrize("name", FAKES)
def test_pages(browser: sync_api.Browser, name: str, tmp_path: pathlib.Path) -> None:
    graph = ct_graph.build(
        host(FAKES[name][0]), FAKES[name][1], title=name, read_at="2026-01-01T00:00:00Z"
    )
    path = tmp_path / f"{name}.html"
    path.write_text(html.draw(graph), "utf-8")
    look(browser, path, graph)


def test_a_real_lab(browser: sync_api.Browser, ct: Ct, wire: Wire, tmp_path: pathlib.Path) -> None:
    wire.udp("client").sendto(b"x", (SERVER, PORT + 1))
    closed = wire.connect()
    closed.exchange(20_000, 60_000)
    closed.close()
    path = tmp_path / "lab.html"
    path.write_text(ct("graph", "--lab", wire.tag), "utf-8")
    graph = ct.json("graph", "--lab", wire.tag)
    assert {edge["state"] for edge in graph["edges"]} == {
        "ESTABLISHED",
        "REPLIED",
        "TIME_WAIT",
        "NEW",
    }
    look(browser, path, graph)


def test_the_playbook_keeps_a_picture(
    browser: sync_api.Browser, playbooks: Playbooks, tmp_path: pathlib.Path
) -> None:
    playbooks.run("lab")
    playbooks.run("picture", "-e", f"picture_directory={tmp_path} picture_lab={playbooks.tag}")
    path = tmp_path / "localhost.html"
    opened = Page(browser, path, "light")
    assert {one["place"] for one in opened.page.evaluate(INSIDE)} == {
        f"{playbooks.tag}{end}" for end in "12r"
    }
    assert {(one["from"], one["to"]) for one in opened.page.evaluate(LOOK)} == {
        (f"{playbooks.tag}1", f"{playbooks.tag}2")
    }
    opened.close(path)


@pytest.mark.parametrize("name", FAKES)
def test_graphviz_reads_the_dot(name: str) -> None:
    graph = ct_graph.build(host(FAKES[name][0]), FAKES[name][1], title=name)
    done = subprocess.run(
        ["dot", "-Tjson"], input=dot.draw(graph), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (
        done.stderr == ""
        and len(found["objects"]) == len(graph["places"])
        and len(found["edges"]) == len(graph["links"]) + len(graph["edges"])
    )
    assert {one["label"].split("\\n")[0] for one in found["objects"]} >= {"rt"}
    drawn = subprocess.run(
        ["dot", "-Tplain"], input=dot.draw(graph), capture_output=True, text=True, check=True
    ).stdout
    for raw in FAKES[name][0]:
        assert raw.replace('"', '\\"') in drawn, "names stay names"


@pytest.mark.parametrize("name", FAKES)
def test_mermaid_draws_the_flowchart(browser: sync_api.Browser, name: str) -> None:
    graph = ct_graph.build(host(FAKES[name][0]), FAKES[name][1], title=name)
    page = browser.new_page()
    page.set_content("<body></body>")
    page.add_script_tag(path=MERMAID)
    page.evaluate(
        "() => mermaid.initialize({startOnLoad: false, securityLevel: 'strict', maxEdges: 1000})"
    )
    text = mermaid.draw(graph)
    assert page.evaluate("async text => (await mermaid.parse(text)).diagramType", text).startswith(
        "flowchart"
    )
    if len(graph["places"]) < 10:  # mermaid takes long to lay out many
        drawn = page.evaluate(
            "async text => {document.body.innerHTML = (await mermaid.render('one', text)).svg;"
            " return document.body.textContent}",
            text,
        )
        assert all(place["name"] in drawn for place in graph["places"])
    page.close()
