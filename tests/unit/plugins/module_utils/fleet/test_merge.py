# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flows of several hosts in one file: what belongs together, what is told of it, and in how
much memory.
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import collector
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import merge as flow_merge
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import (
    merge_output as flow_merge_output,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import run as fleet_run
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow

Record = dict[str, t.Any]
NETS = {"r1": ["10.1.0.1/24", "10.2.0.1/24"], "r2": ["10.2.0.2/24", "10.3.0.1/24"], "r3": []}


def record(
    src: str = "10.1.0.9",
    dst: str = "10.3.0.9",
    sport: int = 4000,
    dport: int = 80,
    packets: int = 5,
    turn: bool = False,
    **more: t.Any,
) -> Record:
    """A flow; the way back has one packet less."""
    there = {
        "src": src,
        "dst": dst,
        "sport": sport,
        "dport": dport,
        "packets": packets,
        "bytes": packets * 100,
    }
    back = {
        "src": dst,
        "dst": src,
        "sport": dport,
        "dport": sport,
        "packets": packets - 1,
        "bytes": (packets - 1) * 100,
    }
    found = {
        "family": "ipv4",
        "proto": "tcp",
        "state": "ESTABLISHED",
        "assured": True,
        "seen_reply": True,
        "timeout": 100,
    }
    found.update(
        orig=back if turn else there,
        reply=there if turn else back,
        dir="ingress",
        age=7,
        idle=0,
        related={"packets": 0, "bytes": 0},
    )
    return {**found, **more}


def ping(src: str, dst: str, number: int = 7) -> Record:
    found = record(
        src, dst, proto="icmp", state="REPLIED", icmp={"type": 8, "code": 0, "id": number}
    )
    for side in ("orig", "reply"):
        del found[side]["sport"], found[side]["dport"]
    return found


@pytest.fixture
def merged(tmp_path: pathlib.Path) -> t.Callable[..., Record]:
    def merge(flows: dict[str, list[Record]], check_mode: bool = False, **more: t.Any) -> Record:
        sources = []
        for host, records in flows.items():
            path = tmp_path / f"{host}.in"
            path.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
            sources.append({"host": host, "path": str(path), "networks": NETS.get(host)})
        params = {name: option.get("default") for name, option in fleet_run.OPTIONS.items()}
        zones = more.pop("zones", {})
        params.update(
            sources=[{**one, "zone": zones.get(one["host"], "")} for one in sources],
            dest=str(tmp_path / "out.jsonl"),
        )
        params.update(more)
        return fleet_run.report(params, check_mode)

    return merge


def lines(result: Record) -> list[Record]:
    return [
        json.loads(line) for line in pathlib.Path(result["dest"]).read_text("utf-8").splitlines()
    ]


def test_a_connection_on_two_hosts_is_one(merged: t.Callable[..., Record]) -> None:
    result = merged(
        {"r2": [record(packets=4)], "r1": [record(packets=5), record(sport=4001, packets=2)]}
    )
    assert (result["hosts"], result["flows"], result["connections"], result["joined"]) == (
        {"r2": 1, "r1": 2},
        3,
        2,
        1,
    )
    found = lines(result)
    assert [(one["host"], one["path"], one["ordered"], one["orig"]["sport"]) for one in found] == [
        ("r1", ["r1", "r2"], True, 4000),
        ("r2", ["r1", "r2"], True, 4000),
        ("r1", ["r1"], True, 4001),
    ], "in the order in which packets pass them"
    assert {
        name: value for name, value in found[1].items() if name not in ("host", "path", "ordered")
    } == record(packets=4), "the record is as it was"
    assert (result["packets"], result["bytes"]) == (
        5 + 4 + 2 + 1,
        1200,
    ), "each connection counts once, as who saw most has it"
    assert result["paths"] == [
        {"path": ["r1", "r2"], "ordered": True, "connections": 1, "packets": 9, "bytes": 900},
        {"path": ["r1"], "ordered": True, "connections": 1, "packets": 3, "bytes": 300},
    ]
    assert result["path_count"] == 2
    assert result["top"]["src"] == [
        {"src": "10.1.0.9", "connections": 2, "packets": 12, "bytes": 1200}
    ]
    assert result["top"]["service"] == [
        {
            "dst": "10.3.0.9",
            "proto": "tcp",
            "port": 80,
            "connections": 2,
            "packets": 12,
            "bytes": 1200,
        }
    ]


def test_who_picked_it_up_in_the_middle_may_have_the_sides_the_wrong_way_round(
    merged: t.Callable[..., Record],
) -> None:
    result = merged(
        {"r1": [record(packets=9, age=60)], "r2": [record(packets=5, turn=True, age=3)]},
        view="paths",
    )
    (found,) = lines(result)
    assert (found["path"], found["ordered"], found["orig"]["src"]) == (
        ["r1", "r2"],
        True,
        "10.1.0.9",
    ), "the one that has known it longest is believed"
    assert [
        (one["host"], one["orig"]["packets"], one["reply"]["packets"], one.get("turned"))
        for one in found["seen"]
    ] == [
        ("r1", 9, 8, None),
        ("r2", 5, 4, True),
    ]
    assert (found["orig"]["packets"], found["reply"]["packets"]) == (9, 8)


def test_pings_of_both_sides_with_the_same_id_are_two(merged: t.Callable[..., Record]) -> None:
    result = merged(
        {
            "r1": [ping("10.1.0.9", "10.3.0.9"), ping("10.3.0.9", "10.1.0.9")],
            "r2": [ping("10.1.0.9", "10.3.0.9")],
        }
    )
    assert (result["connections"], result["joined"]) == (2, 1)
    assert "port" not in result["top"]["service"][0]


def test_the_same_addresses_in_another_zone_are_somebody_else(
    merged: t.Callable[..., Record],
) -> None:
    flows = {"r1": [record()], "r2": [record()]}
    assert merged(flows)["connections"] == 1
    assert merged(flows, zones={"r2": "other"})["connections"] == 2


def test_an_order_that_is_not_known_is_said_to_be_so(merged: t.Callable[..., Record]) -> None:
    result = merged({"r3": [record()], "r1": [record()]})
    assert result["paths"][0] == {
        "path": ["r1", "r3"],
        "ordered": False,
        "connections": 1,
        "packets": 9,
        "bytes": 900,
    }
    page = pathlib.Path(
        merged({"r3": [record()], "r1": [record()]}, format="html")["dest"]
    ).read_text("utf-8")
    assert "r1, r3" in page and "not known" in page and "an arrow leads to each of them" in page


def test_hosts_that_can_not_be_read_are_named(
    merged: t.Callable[..., Record], tmp_path: pathlib.Path
) -> None:
    cut = record()
    del cut["reply"]
    result = merged({"r1": [record()], "r2": [record(), cut]}, unread={"r3": "it was unreachable"})
    assert result["hosts"] == {"r1": 1}
    why = (
        f"{tmp_path}/r2.in:2: that is no whole flow, as ct list -o jsonl writes it (reply: it is"
        " missing)."
    )
    assert result["unread"] == {"r3": "it was unreachable", "r2": why}
    assert [one["host"] for one in lines(result)] == ["r1"], "nothing is taken of a damaged file"
    with pytest.raises(
        ConntrackError,
        match=(
            r"^sources: none of the hosts could be read: r9: it is off; r2: .*r2\.in:1: that is no"
            r" whole flow"
        ),
    ):
        merged({"r2": [cut]}, unread={"r9": "it is off."})


def test_csv_has_the_same(merged: t.Callable[..., Record]) -> None:
    flows = {"r1": [record(vlan=[10, 20]), ping("10.1.0.9", "10.3.0.9")], "r2": [record(packets=4)]}
    result = merged(flows, format="csv")
    with open(result["dest"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["host", "path", "ordered", *flow.COLUMNS]
    tcp = [row for row in rows if row["proto"] == "tcp"]
    assert [
        (row["host"], row["path"], row["ordered"], row["orig.packets"], row["vlan"]) for row in tcp
    ] == [
        ("r1", "r1 r2", "true", "5", "10 20"),
        ("r2", "r1 r2", "true", "4", ""),
    ]
    assert [row["icmp.id"] for row in rows if row["proto"] == "icmp"] == ["7"]
    with open(
        merged(flows, format="csv", view="paths")["dest"], encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["counts"]) for row in rows if row["proto"] == "tcp"] == [
        ("r1 r2", "r1=5/4 r2=4/3")
    ]


def test_the_page_has_a_picture_and_loads_nothing(merged: t.Callable[..., Record]) -> None:
    result = merged(
        {"r1": [record()], "r2": [record(packets=4)]}, format="html", unread={"r<3>": "no route"}
    )
    page = pathlib.Path(result["dest"]).read_text("utf-8")
    assert "<svg" in page and "r1 → r2" in page and "r&lt;3&gt;" in page and "no route" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "<script" not in page
    ends = set(re.findall(r'data-from="([^"]*)" data-to="([^"]*)"', page))
    assert ends == {("10.1.0.9", "r1"), ("r1", "r2"), ("r2", "10.3.0.9")}


def test_many_addresses_share_a_box(merged: t.Callable[..., Record]) -> None:
    result = merged(
        {"r1": [record(src=f"10.1.0.{number}", packets=number + 1) for number in range(2, 40)]},
        format="html",
    )
    page = pathlib.Path(result["dest"]).read_text("utf-8")
    assert page.count('class="place outside"') == 13 and flow_merge_output.OTHERS in page
    assert len(result["top"]["src"]) == 10


def test_a_second_run_changes_nothing(
    merged: t.Callable[..., Record], tmp_path: pathlib.Path
) -> None:
    flows = {"r1": [record()]}
    assert merged(flows, check_mode=True)["changed"] and not (tmp_path / "out.jsonl").exists()
    assert merged(flows)["changed"] and not merged(flows)["changed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.jsonl",
        "r1.in",
    ], "nothing is left beside it"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {"dest": "/tmp/fleet"},
            (
                "dest: '/tmp/fleet' is not valid: let its name end in one of jsonl, csv, html, or"
                " give format."
            ),
        ),
        (
            {"collector": "http://x:1"},
            (
                "collector: 'http://x:1' is not valid: give tcp://HOST:PORT or udp://HOST:PORT, an"
                " IPv6 address in brackets."
            ),
        ),
        ({"collector": "tcp://x"}, "collector: 'tcp://x' is not valid: "),
        ({"collector": "tcp://x:99999"}, "collector: 'tcp://x:99999' is not valid: "),
        ({"limit": -1}, "limit: -1 is not valid: give 0 or more."),
        ({"mode": "rw"}, "mode: 'rw' is not valid: "),
    ],
)
def test_bad_options_are_refused(merged: t.Callable[..., Record], words: Record, said: str) -> None:
    with pytest.raises(ConntrackError) as caught:
        merged({"r1": [record()]}, **words)
    assert caught.value.message.startswith(said)


def test_a_host_stands_there_once(tmp_path: pathlib.Path) -> None:
    source = flow_merge.Source("r1", str(tmp_path / "none"))
    with pytest.raises(ConntrackError, match=r"^sources: 'r1' is not valid: it is there twice"):
        flow_merge.merge([source, source], str(tmp_path))


# ---------------------------------------------------------------- a collector
def test_a_collector_gets_json_lines_over_tcp(merged: t.Callable[..., Record]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        got: list[bytes] = []

        def read() -> None:
            with server.accept()[0] as client:
                while piece := client.recv(65536):
                    got.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        result = merged(
            {"r1": [record()], "r2": [record()]},
            collector=f"tcp://127.0.0.1:{server.getsockname()[1]}",
        )
        reader.join(10)
    assert result["sent"] == 2
    assert [json.loads(line) for line in b"".join(got).splitlines()] == lines(result), (
        "the same as in the file"
    )


def test_a_collector_gets_a_datagram_for_each_over_udp(merged: t.Callable[..., Record]) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::1", 0))
        server.settimeout(10)
        result = merged(
            {"r1": [record()], "r2": [record()]},
            dest=None,
            view="paths",
            collector=f"udp://[::1]:{server.getsockname()[1]}",
        )
        (one,) = [json.loads(server.recv(65536)) for dummy in range(result["sent"])]
    assert one["path"] == ["r1", "r2"] and "dest" not in result


def test_a_collector_that_is_not_there_is_named(
    merged: t.Callable[..., Record], tmp_path: pathlib.Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(
        ConntrackError,
        match=(
            f"^collector: {where} does not take it: Connection refused. See whether it listens"
            " there.$"
        ),
    ):
        merged({"r1": [record()]}, collector=where)
    assert not (tmp_path / "out.jsonl").exists()
    assert merged({"r1": [record()]}, collector=where, check_mode=True)["sent"] == 0
    assert collector.parse("udp://logs.example.net:514") == ("udp", "logs.example.net", 514)


# ---------------------------------------------------------------- memory
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_does_not_grow_with_the_flows(tmp_path: pathlib.Path) -> None:
    """Five times as many flows, which are 7 MB more, take about as much."""
    peaks = []
    code = (
        "import re, sys\n"
        "from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import merge as"
        " flow_merge, merge_output as flow_merge_output\n"
        "flow_merge._CACHE_KIB = 512\n"
        # the peak of whoever started this does not count
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "out = open('/dev/null', 'wb')\n"
        "done = flow_merge.merge([flow_merge.Source('r1', sys.argv[1])], sys.argv[2],"
        " flow_merge_output.JsonLines('flows'), out.write)\n"
        "print(done.connections, re.search(r'VmHWM:\\s+([0-9]+)',"
        " open('/proc/self/status').read())[1])\n"
    )
    root = pathlib.Path(flow_merge.__file__).parents[5]
    text = json.dumps(record(src="10.1.SRC"))
    for number in (4_000, 20_000):
        path = tmp_path / f"{number}.in"
        path.write_text(
            "".join(text.replace("SRC", f"{one >> 8}.{one & 255}") + "\n" for one in range(number)),
            "utf-8",
        )
        environment = {**os.environ, "PYTHONPATH": str(root.parent)}
        told = subprocess.run(
            [sys.executable, "-c", code, str(path), str(tmp_path)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        count, peak = map(int, told.split())
        assert count == number
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 3_000, f"{peaks} KiB"
