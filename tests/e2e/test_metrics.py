# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics: held against the tables and the chain's counters, checked by promtool, scraped by a real
Prometheus, and shown by rules and dashboard.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import itertools
import json
import pathlib
import re
import socket
import subprocess
import sys
import time
import typing as t
import urllib.parse

import pytest
import yaml
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import metrics as ct_metrics
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import restore
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    server as http_server,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support import syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_ct import Ct, ct, installed
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_health import (
    empty_one_slot,
    pin_another_table_of_another_shape,
    running,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_http import (
    SECONDS,
    ask,
    fill,
    here,
    place,
    pytestmark,
    serving,
)
from prometheus_client import parser

# fixtures and the mark
__all__ = ["ct", "installed", "made", "place", "pytestmark", "rendered", "running", "veth"]

#: Where the set-up puts Prometheus.
PROGRAMS = pathlib.Path(sys.executable).parent
FILES = pathlib.Path(__file__).resolve().parents[2] / "files/prometheus"
#: Metrics by name and labels.
Found = dict[str, dict[frozenset[tuple[str, str]], float]]


def scrape(where: str) -> Found:
    answer = ask(where, "/metrics")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith(
        "text/plain; version=0.0.4"
    ), answer.body
    return parsed(answer.body.decode())


def parsed(text: str) -> Found:
    found: Found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            assert ct_metrics.METRICS[sample.name].kind == family.type and set(
                sample.labels
            ) == set(ct_metrics.METRICS[sample.name].labels)
            values = found.setdefault(sample.name, {})
            assert frozenset(sample.labels.items()) not in values
            values[frozenset(sample.labels.items())] = sample.value
    return found


def one(found: Found, name: str, **labels: str) -> float:
    return found[name][frozenset(labels.items())]


def by(found: Found, name: str, label: str) -> dict[str, float]:
    """The sum of a metric for each value of a label."""
    sums: dict[str, float] = {}
    for labels, value in found[name].items():
        sums[dict(labels)[label]] = sums.get(dict(labels)[label], 0) + value
    return sums


@dataclasses.dataclass
class Sweeps:
    count: int = 3
    failures: int = 1
    deleted: int = 70
    seconds: float = 0.25
    last_seconds: float = 0.0625
    last_time: float = 1.7e9


# ---------------------------------------------------------------- what they say
def test_they_are_what_the_tables_and_the_chain_say(ct: Ct, wire: Wire, place: str) -> None:
    with here(wire.chain.paths, place) as server:
        found = scrape(server.where)
        assert server.log == []
    summary, counted = ct.json("summary"), wire.counters()
    assert (one(found, "ct_up"), one(found, "ct_healthy"), one(found, "ct_generation")) == (1, 1, 1)
    assert found["ct_generation_info"] == {
        frozenset({"generation": "1", "digest": ct.json("status")["digest"]}.items()): 1
    }
    for table in flow.TABLES:
        labels = {"family": table.family, "class": table.flow_class}
        assert (
            one(found, "ct_entries", **labels),
            one(found, "ct_entries_limit", **labels),
        ) == tuple(summary["tables"][table.name][name] for name in ("entries", "capacity"))
    for label, name in (("family", "by_family"), ("proto", "by_proto"), ("state", "by_state")):
        assert by(found, "ct_flows", label) == summary[name]
    assert one(found, "ct_flows", family="ipv4", proto="tcp", state="ESTABLISHED") == 1
    for name in ("created", "reopened", "promoted", "promote_failed", "insert_failed", "forwarded"):
        assert one(found, f"ct_{name}_total") == counted[name], name
    for about, metric in (
        ("invalid", "invalid"),
        ("ignored", "ignored"),
        ("untracked", "untracked"),
        ("deleted", "deleted"),
        ("forward", "forward_left"),
    ):
        told = {
            name.partition("_")[2]: value
            for name, value in counted.items()
            if name.startswith(f"{about}_") and name != "forwarded"
        }
        # what commands deleted stands elsewhere
        assert by(found, f"ct_{metric}_total", "reason") == (
            summary["counters"]["deleted"] if about == "deleted" else told
        )
    verdicts = by(found, "ct_packets_total", "verdict")
    assert verdicts["tracked"] == counted["tracked"] > 0 and verdicts["invalid"] == sum(
        by(found, "ct_invalid_total", "reason").values()
    )
    assert sum(verdicts.values()) == sum(
        counted[name] for name, dummy in chain_counters.OUTCOMES
    ), "each frame is counted once"
    stages = ct.json("stats")["frames"]
    assert [
        by(found, "ct_packets_total", "stage")[stage] for stage in (*ct_metrics.STAGES, "ct")
    ] == [sum(counts.values()) for counts in stages.values()]
    router = wire.ns("router")
    assert found["ct_attached"] == {
        frozenset({"interface": f"ns{number}-lan", "netns": router}.items()): 1 for number in (1, 2)
    }
    assert found["ct_attached_info"] == {
        frozenset(
            {
                "interface": f"ns{number}-lan",
                "netns": router,
                "hook": hook,
                "mode": "native",
            }.items()
        ): 1
        for number, hook in ((1, "ingress"), (2, "egress"))
    }
    assert by(found, "ct_scrape_errors_total", "part") == {
        "tables": 0,
        "health": 0,
        "interfaces": 0,
    }
    assert 0 < one(found, "ct_scrape_duration_seconds") < SECONDS and one(found, "ct_sweeper") == 0
    missing = {"ct_guest_packets_total"} | {
        name for name in ct_metrics.METRICS if name.startswith("ct_sweep") and name != "ct_sweeper"
    }
    assert set(found) == set(ct_metrics.METRICS) - missing


def test_what_a_service_tells_of_its_sweeps(place: str) -> None:
    with http_server.Server(
        bpffs.Paths("/sys/fs/bpf/nothing_here"), service_options.parse_address(place), Sweeps()
    ) as server:
        server.start()
        found = scrape(place)
    assert [
        one(found, f"ct_{name}")
        for name in ("sweeper", "sweeps_total", "sweep_failures_total", "sweep_deleted_total")
    ] == [1, 3, 1, 70]
    assert [
        one(found, f"ct_sweep_{name}")
        for name in ("seconds_total", "last_duration_seconds", "last_timestamp_seconds")
    ] == [0.25, 0.0625, 1.7e9]


def test_what_is_absent_is_said(running: Chain, place: str) -> None:
    with here(running.paths, place) as server:
        assert one(scrape(server.where), "ct_healthy") == 1
        empty_one_slot(running)
        found = scrape(server.where)
        assert (
            one(found, "ct_up"),
            one(found, "ct_healthy"),
            by(found, "ct_faults", "fault")["slot_empty"],
        ) == (1, 0, 1)
        assert sum(by(found, "ct_faults", "fault").values()) == 1
        pin_another_table_of_another_shape(running)
        for number in (1, 2):
            found = scrape(server.where)
            assert (one(found, "ct_up"), one(found, "ct_scrape_errors_total", part="tables")) == (
                0,
                number,
            ) and "ct_entries" not in found
        assert (
            len(server.log) == 1
            and server.log[0].startswith("metrics: tables: ")
            and "key and value have" in server.log[0]
        )
    with here(bpffs.Paths("/sys/fs/bpf/nothing_here"), place) as server:
        found = scrape(server.where)
        assert (one(found, "ct_up"), one(found, "ct_healthy")) == (0, 0) and server.log == []
        assert set(found) == {
            "ct_up",
            "ct_healthy",
            "ct_sweeper",
            "ct_scrape_errors_total",
            "ct_scrape_duration_seconds",
        }
        assert set(by(found, "ct_scrape_errors_total", "part").values()) == {0}, (
            "that nothing is loaded is no error"
        )


def test_an_interface_is_one_series_until_it_is_detached(running: Chain, place: str) -> None:
    """It is gone, is there again without the chain, runs it again; only a detach by name ends the
    series.
    """
    me = frozenset({"interface": "left", "netns": ""}.items())
    one_of_two = {"name": "left", "netns": None, "program": "ingress"}

    def seen() -> tuple[dict[frozenset[tuple[str, str]], float], int]:
        found = scrape(server.where)
        return found.get("ct_attached", {}), len(found.get("ct_attached_info", ()))

    def converge(state: str) -> None:
        attach.converge(
            state,
            [one_of_two],
            "auto",
            False,
            running.paths.pin_root,
            False,
            state_dir=running.paths.state_dir,
        )

    with here(running.paths, place) as server:
        converge("present")
        assert seen() == ({me: 1}, 1)
        subprocess.run(["ip", "link", "del", "left"], check=True)
        assert seen() == ({me: 0}, 0)
        running.ensure()  # forgets the link, and not that the interface is to run the chain
        assert running.observe().faults == () and seen() == ({me: 0}, 0)
        subprocess.run(
            ["ip", "link", "add", "left", "type", "veth", "peer", "name", "right"], check=True
        )
        assert seen() == ({me: 0}, 0)
        assert [step.action for step in restore.attach_again(running.paths).steps] == [
            "attach"
        ] and seen() == ({me: 1}, 1)
        converge("absent")
        assert seen() == ({}, 0)


def test_without_the_library_it_says_which_package(ct: Ct, place: str) -> None:
    with serving(ct, "--socket", place) as where:  # without site-packages
        answer = ask(where, "/metrics")
        assert (
            answer.status == 501
            and "package python3-prometheus-client" in answer.error
            and ask(where, "/healthz").status == 200
        )


def test_openmetrics_is_given_to_those_who_ask(ct: Ct, wire: Wire, place: str) -> None:
    with here(wire.chain.paths, place) as server:
        answer = ask(server.where, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith(
        "application/openmetrics-text"
    ) and answer.body.endswith(b"# EOF\n")


# ---------------------------------------------------------------- counters do not go back
def counters(found: Found) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (name, labels): value
        for name, values in found.items()
        if ct_metrics.METRICS[name].kind == "counter"
        for labels, value in values.items()
    }


def test_counters_go_on_over_generations_of_other_sizes(
    made: Chain, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.ensure()
    made.send(*(udp_frame(4000 + number) for number in range(200)))
    scraped: list[Found] = []
    with here(made.paths, place) as server:

        def look(dummy: int, event: syscalls.Event) -> None:
            if event.name == "bpf PROG_TEST_RUN":  # flows go over so, and frames are proved
                scraped.append(scrape(server.where))

        def run(change: t.Callable[[], object]) -> None:
            syscalls.outcome(lambda: bool(change()), look)

        run(lambda: made.ensure(made.resized(half_open_size=4096), keep=1))
        made.send(*(udp_frame(4000 + number) for number in range(0, 20, 2)))
        run(made.roll_back)
        scraped.append(scrape(server.where))
        assert server.log == []
    assert {1, 2} <= {one(found, "ct_generation") for found in scraped} and one(
        scraped[-1], "ct_generation"
    ) == 1
    for before, after in itertools.pairwise(map(counters, scraped)):
        assert [
            (name, before[name], after.get(name))
            for name in before
            if after.get(name, -1) < before[name]
        ] == []
    for found in scraped:
        assert sum(by(found, "ct_evicted_total", "class").values()) == 0, (
            "no flow was pushed out, only moved"
        )
        assert one(found, "ct_created_total") == 200
    assert one(scraped[-1], "ct_entries", **{"family": "ipv4", "class": "half_open"}) == 200


def test_what_is_pushed_out_is_counted(ct: Ct, wire: Wire, place: str) -> None:
    with here(wire.chain.paths, place) as server:
        before = scrape(server.where)
        fill(wire, 3000)
        after = scrape(server.where)
        left = ct.json("summary")["tables"]["ctt_new"]["entries"]
    # what is emptied between tests is not counted, so that it is taken for pushed out
    gone = {
        name: number - by(before, "ct_evicted_total", "class")[name]
        for name, number in by(after, "ct_evicted_total", "class").items()
    }
    made_since = one(after, "ct_created_total") - one(before, "ct_created_total")
    assert made_since >= 3000 and gone["assured"] == 0
    assert (
        gone["half_open"]
        == made_since
        - (left - one(before, "ct_entries", **{"family": "ipv4", "class": "half_open"}))
        > 1000
    )


# ---------------------------------------------------------------- Prometheus itself
def promtool(*words: str, text: bytes | None = None) -> str:
    done = subprocess.run(
        [PROGRAMS / "promtool", *words],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


def test_promtool_finds_nothing_to_say(wire: Wire, place: str) -> None:
    with http_server.Server(
        wire.chain.paths, service_options.parse_address(place), Sweeps()
    ) as server:
        server.start()
        assert promtool("check", "metrics", text=ask(place, "/metrics").body) == ""
    assert "SUCCESS: 9 rules found" in promtool("check", "rules", str(FILES / "ct.rules.yml"))


#: By alert: series, which of them fire it after ten minutes, by labels.
HOST = 'job="ct", instance="a"'
ALERTS: dict[str, tuple[dict[str, str], bool]] = {
    "CtServiceAbsent": ({f"up{{{HOST}}}": "1x5 0x20"}, True),
    "CtChainAbsent": ({f"ct_up{{{HOST}}}": "1x5 0x20"}, True),
    "CtChainUnhealthy": (
        {
            f"ct_up{{{HOST}}}": "1x30",
            f"ct_healthy{{{HOST}}}": "1x5 0x20",
            f'ct_faults{{{HOST}, fault="slot_empty"}}': "0x5 1x20",
        },
        True,
    ),
    "CtInterfaceDetached": (
        {
            f"ct_up{{{HOST}}}": "1x30",
            f'ct_attached{{{HOST}, interface="eth0", netns=""}}': "1x30",
            f'ct_attached{{{HOST}, interface="eth1", netns="ns1"}}': "1x5 0x20",
        },
        True,
    ),
    "CtTablePressure": (
        {
            f'ct_entries{{{HOST}, family="ipv4", class="assured"}}': "100x2 760x20",
            f'ct_entries_limit{{{HOST}, family="ipv4", class="assured"}}': "1000x30",
        },
        True,
    ),
    "CtAssuredEvicted": (
        {
            f'ct_evicted_total{{{HOST}, class="assured"}}': "0x5 4x20",
            f'ct_evicted_total{{{HOST}, class="half_open"}}': "0x30",
        },
        True,
    ),
    "CtInsertFailed": ({f"ct_insert_failed_total{{{HOST}}}": "7x5 8x20"}, True),
    "CtSweepFailed": ({f"ct_sweep_failures_total{{{HOST}}}": "0x5 1x20"}, True),
    "CtScrapeIncomplete": ({f'ct_scrape_errors_total{{{HOST}, part="tables"}}': "0x5 1x20"}, True),
}
#: All is well: three quarters full, evictions of half-open flows, an old error.
WELL = {
    f"up{{{HOST}}}": "1x30",
    f"ct_up{{{HOST}}}": "1x30",
    f"ct_healthy{{{HOST}}}": "1x30",
    f'ct_attached{{{HOST}, interface="eth0", netns=""}}': "1x30",
    f'ct_entries{{{HOST}, family="ipv4", class="half_open"}}': "750x30",
    f'ct_entries_limit{{{HOST}, family="ipv4", class="half_open"}}': "1000x30",
    f'ct_evicted_total{{{HOST}, class="half_open"}}': "0+100x30",
    f'ct_evicted_total{{{HOST}, class="assured"}}': "5x30",
    f"ct_insert_failed_total{{{HOST}}}": "3x30",
    f'ct_scrape_errors_total{{{HOST}, part="health"}}': "1x30",
}


def test_each_alert_is_raised_by_what_it_is_for_and_by_nothing_else(tmp_path: pathlib.Path) -> None:
    rules = yaml.safe_load((FILES / "ct.rules.yml").read_text("utf-8"))["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == list(ALERTS)
    assert {name for rule in rules for name in re.findall(r"\bct_\w+", rule["expr"])} <= set(
        ct_metrics.METRICS
    )

    def firing(series: dict[str, str], alert: str) -> dict[str, t.Any]:
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": (
                        'count by (alertname) (ALERTS{alertstate="firing",'
                        f' alertname=~"{alert}"}})'
                    ),
                    "eval_time": "14m",
                    "exp_samples": (
                        []
                        if alert == ".*"
                        else [{"labels": f'{{alertname="{alert}"}}', "value": 1}]
                    ),
                }
            ],
        }

    tests = [firing(series, alert) for alert, (series, dummy) in ALERTS.items()] + [
        firing(WELL, ".*"),
        firing({}, "CtServiceAbsent"),
    ]
    path = tmp_path / "tests.yml"
    path.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(FILES / "ct.rules.yml")],
                "evaluation_interval": "1m",
                "tests": tests,
            }
        ),
        "utf-8",
    )
    assert "SUCCESS" in promtool("test", "rules", str(path))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prometheus(tmp_path: pathlib.Path) -> c.Iterator[c.Callable[[str], str]]:
    """Returns a function that starts Prometheus on a target, and returns its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(target: str) -> str:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(FILES / "ct.rules.yml")],
            "scrape_configs": [{"job_name": "ct", "static_configs": [{"targets": [target]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
        where = f"127.0.0.1:{free_port()}"
        options = {
            "config.file": tmp_path / "prometheus.yml",
            "storage.tsdb.path": tmp_path / "data",
            "web.listen-address": where,
            "log.level": "warn",
        }
        argv = [
            str(PROGRAMS / "prometheus"),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        log = (tmp_path / "prometheus.log").open("wb")
        started.append(subprocess.Popen(argv, stdout=log, stderr=log, cwd=tmp_path))
        return f"http://{where}"

    yield start
    for process in started:
        process.terminate()
        process.wait(SECONDS)


def query(where: str, expr: str) -> list[dict[str, t.Any]]:
    answer = ask(where, f"/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
    found = json.loads(answer.body)
    assert found["status"] == "success", (expr, found)
    return t.cast("list[dict[str, t.Any]]", found["data"]["result"])


def test_a_real_prometheus_scrapes_them(
    ct: Ct, wire: Wire, prometheus: c.Callable[[str], str]
) -> None:
    with http_server.Server(
        wire.chain.paths, service_options.parse_address(listen="127.0.0.1:0"), Sweeps()
    ) as server:
        server.start()
        where = prometheus(urllib.parse.urlsplit(server.where).netloc)
        deadline = time.monotonic() + 2 * SECONDS
        while True:
            assert time.monotonic() < deadline
            try:
                if query(where, "count_over_time(ct_up[1m]) >= 3"):
                    break
            except (ConnectionError, ValueError):  # it is starting
                pass
            time.sleep(0.1)
        assert [one["value"][1] for one in query(where, "sum(ct_entries)")] == ["3"] and ct(
            "count"
        ) == "3\n"
        assert {
            one["metric"]["proto"]: one["value"][1]
            for one in query(where, "sum by (proto) (ct_flows)")
        } == {"tcp": "1", "udp": "1", "icmp": "1"}
        assert [one["value"][1] for one in query(where, "ct_up * ct_healthy")] == ["1"]
        assert query(where, 'ALERTS{alertstate="firing"}') == []
        exprs = dashboard_exprs()
        assert len(exprs) > 15
        empty = []
        for expr in exprs:
            for name, value in {
                "$job": "ct",
                "$instance": ".*",
                "$__rate_interval": "30s",
                "$__interval": "30s",
            }.items():
                expr = expr.replace(name, value)
            if not query(where, expr):
                empty.append(expr)
        assert all(" > 0" in expr for expr in empty), (
            "a panel is only empty where nothing is what it shows"
        )


def dashboard_exprs() -> list[str]:
    board = json.loads((FILES / "ct-dashboard.json").read_text("utf-8"))
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]] + [
        one["expr"] for one in board["annotations"]["list"]
    ]


def test_the_dashboard_shows_what_there_is() -> None:
    board = json.loads((FILES / "ct-dashboard.json").read_text("utf-8"))
    used = {name for expr in dashboard_exprs() for name in re.findall(r"\bct_\w+", expr)}
    asked = {
        name
        for variable in board["templating"]["list"]
        for name in re.findall(r"\bct_\w+", str(variable["query"]))
    }
    assert used | asked <= set(ct_metrics.METRICS) and asked == {"ct_up"}
    for name, labels in re.findall(
        r"by \(([\w, ]+)\) \(?(?:rate\()?(ct_\w+)", " ".join(dashboard_exprs())
    ):
        assert set(name.split(", ")) <= set(ct_metrics.METRICS[labels].labels)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for panel in board["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, dummy in cells) < 24, (
        "no panel stands on another"
    )
