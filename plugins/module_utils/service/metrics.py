# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain's numbers for Prometheus. Which metrics there are is data; prometheus_client writes
them down.
"""

from __future__ import annotations

import collections
import dataclasses
import time
import typing as t

from ..chain import counters as chain_counters
from ..core.errors import ConntrackError
from ..flows import codec as flow
from ..flows import filter as flow_filter
from ..flows import read as flow_read
from ..flows import table as flow_table
from ..generation import diagnosis
from ..kernel import bpffs
from . import status as ct_status
from .fresh import Fresh

Labels = tuple[str, ...]
#: (metric, values of its labels, value)
Sample = tuple[str, Labels, float]
Seen = t.TypeVar("Seen")


class Metric(t.NamedTuple):
    """One metric.

    :ivar kind: ``gauge`` or ``counter``.
    :ivar help: what it means.
    :ivar labels: names of its labels.
    """

    kind: str
    help: str
    labels: Labels = ()


METRICS = {
    "ct_up": Metric(
        "gauge",
        "1 when a chain is loaded and its tables can be read, else 0; then all about tables and"
        " packets is missing",
    ),
    "ct_healthy": Metric(
        "gauge", "1 when a chain is loaded and nothing keeps it from working, else 0"
    ),
    "ct_faults": Metric("gauge", "Faults of the chain, by their names", ("fault",)),
    "ct_generation": Metric("gauge", "Number of the active generation"),
    "ct_generation_info": Metric(
        "gauge",
        "The active generation and the digest of its sources; always 1",
        ("generation", "digest"),
    ),
    "ct_attached": Metric(
        "gauge",
        "1 for an interface that runs the chain, 0 for one that is to and does not, gone or not",
        ("interface", "netns"),
    ),
    "ct_attached_info": Metric(
        "gauge",
        "What an interface runs, while it does; always 1",
        ("interface", "netns", "hook", "mode"),
    ),
    "ct_entries": Metric(
        "gauge", "Entries in the tables, those whose time is over included", ("family", "class")
    ),
    "ct_entries_limit": Metric(
        "gauge", "Entries that the tables have room for", ("family", "class")
    ),
    "ct_flows": Metric("gauge", "Flows whose time is not over", ("family", "proto", "state")),
    "ct_created_total": Metric("counter", "Entries made"),
    "ct_reopened_total": Metric(
        "counter", "Entries that became a new connection of the same tuple"
    ),
    "ct_promoted_total": Metric("counter", "Entries that moved to the table of assured flows"),
    "ct_promote_failed_total": Metric(
        "counter", "Packets of assured flows that the table of assured flows had no room for"
    ),
    "ct_deleted_total": Metric("counter", "Entries deleted", ("reason",)),
    "ct_evicted_total": Metric(
        "counter", "Entries that made room for others, by the class of their table", ("class",)
    ),
    "ct_insert_failed_total": Metric("counter", "Entries that could not be made"),
    "ct_packets_total": Metric(
        "counter",
        "Frames, each counted once, by the stage that decided and by what it decided",
        ("stage", "verdict"),
    ),
    "ct_invalid_total": Metric("counter", "Frames that are invalid", ("reason",)),
    "ct_ignored_total": Metric(
        "counter", "Frames of known flows that are let pass and change nothing", ("reason",)
    ),
    "ct_untracked_total": Metric("counter", "Frames that are not tracked", ("reason",)),
    "ct_forwarded_total": Metric("counter", "Packets forwarded past the stack"),
    "ct_forward_left_total": Metric(
        "counter", "Packets that were to be forwarded and were left to the stack", ("reason",)
    ),
    "ct_guest_packets_total": Metric(
        "counter", "Frames that guests saw, by what they did with them", ("guest", "verdict")
    ),
    "ct_sweeper": Metric(
        "gauge",
        "1 when the process that answers also sweeps the tables, else 0; then all about sweeps is"
        " missing",
    ),
    "ct_sweeps_total": Metric("counter", "Sweeps that deleted the entries whose time was over"),
    "ct_sweep_failures_total": Metric("counter", "Sweeps that could not be done"),
    "ct_sweep_deleted_total": Metric("counter", "Entries that sweeps deleted"),
    "ct_sweep_seconds_total": Metric("counter", "Time that sweeps took"),
    "ct_sweep_last_duration_seconds": Metric("gauge", "Time that the last sweep took"),
    "ct_sweep_last_timestamp_seconds": Metric(
        "gauge", "When the last sweep ended, in seconds since 1970"
    ),
    "ct_scrape_errors_total": Metric(
        "counter",
        "What could not be read for an answer, by the part that is missing from it then",
        ("part",),
    ),
    "ct_scrape_duration_seconds": Metric(
        "gauge", "Time that it took to read what this answer says"
    ),
}
PARTS = ("tables", "health", "interfaces")
#: The label ``stage`` of the outcomes, which are those of ct.text.STAGES.
STAGES = {
    "entry": ("untracked_no_meta", "untracked_no_slot"),
    "prs_eth": (
        "untracked_not_ip",
        "untracked_eth_short",
        "untracked_vlan_depth",
        "untracked_pppoe",
    ),
    "prs_ip": ("invalid_ip_header", "invalid_ext_headers", "untracked_limit"),
    "prs_l4": (
        *(
            "invalid_l4_short",
            "invalid_checksum",
            "invalid_tcp_header",
            "invalid_tcp_flags",
            "invalid_gre",
        ),
        *("invalid_sctp_chunks", "untracked_nd"),
    ),
    "frag": ("fragment", "untracked_fragment"),
}
_LAST_STAGE = "ct"
_STAGE_OF = {name: stage for stage, names in STAGES.items() for name in names}


class NoLibrary(ConntrackError):
    """The host has no prometheus_client."""


class Sweeps(t.Protocol):
    """What a process that sweeps the tables tells of it.

    :ivar count: sweeps that were done.
    :ivar failures: those that could not be done.
    :ivar deleted: entries that they deleted.
    :ivar seconds: how long they took, all together.
    :ivar last_seconds: how long the last one took.
    :ivar last_time: when it ended, in seconds since 1970; 0 before the first.
    """

    count: int
    failures: int
    deleted: int
    seconds: float
    last_seconds: float
    last_time: float


# ---------------------------------------------------------------- what is read
@dataclasses.dataclass(frozen=True)
class Tables:
    """What was read of the tables.

    :ivar entries: by table.
    :ivar capacity: by table.
    :ivar shapes: how many flows there are of each shape.
    :ivar counters: see chain.COUNTERS.
    :ivar evicted: by class of table, at least so many; see evicted().
    :ivar guests: what guests did, by their names.
    :ivar moving: whether another generation's flows and counters are being taken over, so that
        neither are all here.
    """

    entries: t.Mapping[str, int]
    capacity: t.Mapping[str, int]
    shapes: t.Mapping[flow.Shape, int]
    counters: t.Mapping[str, int]
    evicted: t.Mapping[str, int]
    guests: t.Mapping[str, t.Mapping[str, int]]
    moving: bool


def read_tables(pin_root: str) -> Tables:
    """Read the tables of the active generation.

    :raises NoChain, ConntrackError: see flow_table.FlowTables.
    """
    with flow_table.FlowTables(pin_root) as source:
        before = source.counters()
        reading = flow_read.read(source, flow_filter.parse_query({"limit": 0}))
        after, guests, meta = source.counters(), source.guest_counters(), source.meta
    tables = t.cast("dict[str, t.Any]", reading.summary)["tables"]
    entries = {name: table["entries"] for name, table in tables.items()}
    by_class = dict.fromkeys(flow.CLASSES, 0)
    for name, table in tables.items():
        by_class[table["class"]] += entries[name]
    with flow_table.FlowTables(pin_root) as again:
        moving = bool(
            meta["source"] or again.meta["source"] or meta["generation"] != again.meta["generation"]
        )
    capacity = {name: table["capacity"] for name, table in tables.items()}
    return Tables(
        entries, capacity, reading.shapes, after, evicted(before, after, by_class), guests, moving
    )


def evicted(
    before: t.Mapping[str, int], after: t.Mapping[str, int], entries: t.Mapping[str, int]
) -> dict[str, int]:
    """Return how many entries made room for others, by class of table: what came into it, did not
    leave it and is not there.

    Packets change the tables while they are read. What came in is taken from before the reading,
    what left from after it: so the number may be too small, and is never too large. The largest one
    seen is always right.

    :param before: counters from before the tables were read, ``after`` those from after it.
    :param entries: by class of table.
    """

    def gone(counters: t.Mapping[str, int]) -> int:
        return sum(value for name, value in counters.items() if name.startswith("deleted_"))

    half_open = (
        before["created"]
        - after["promoted"]
        - (gone(after) - before["assured_deleted"])
        - entries["half_open"]
    )
    assured = before["promoted"] - after["assured_deleted"] - entries["assured"]
    return {"half_open": max(half_open, 0), "assured": max(assured, 0)}


class Ledger:
    """Keeps counters from going back where the chain's do not: between two readings, and while a
    generation takes over from another.
    """

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        self._evicted: dict[str, int] = {}

    def enter(self, tables: Tables) -> tuple[dict[str, int], dict[str, int]]:
        """Take what was read, and return the counters and evictions to show."""
        counters = dict(tables.counters)
        if tables.moving:
            counters = {
                name: max(value, self._counters.get(name, 0)) for name, value in counters.items()
            }
        elif counters["created"] < self._counters.get("created", 0):
            # another chain, which began anew
            self._evicted = {}
        if not tables.moving:
            self._evicted = {
                name: max(value, self._evicted.get(name, 0))
                for name, value in tables.evicted.items()
            }
        self._counters = counters
        return counters, {**dict.fromkeys(flow.CLASSES, 0), **self._evicted}


# ---------------------------------------------------------------- what is shown
def table_samples(
    tables: Tables, counters: t.Mapping[str, int], gone: t.Mapping[str, int]
) -> t.Iterator[Sample]:
    """Return what there is to say of tables, flows and packets.

    :param counters: and ``gone``, evictions by class: see Ledger.
    """
    labels: Labels
    for table in flow.TABLES:
        if table.name in tables.entries:
            labels = (table.family, table.flow_class)
            yield "ct_entries", labels, tables.entries[table.name]
            yield "ct_entries_limit", labels, tables.capacity[table.name]
    flows: collections.Counter[Labels] = collections.Counter()
    for shape, number in tables.shapes.items():
        flows[shape.family, shape.proto, shape.state] += number
    for labels, number in sorted(flows.items()):
        yield "ct_flows", labels, number
    for name in ("created", "reopened", "promoted", "promote_failed", "insert_failed", "forwarded"):
        yield f"ct_{name}_total", (), counters[name]
    for flow_class, number in gone.items():
        yield "ct_evicted_total", (flow_class,), number
    yield from _reason_samples(counters)
    packets: dict[Labels, int] = {}
    for name, dummy in chain_counters.OUTCOMES:
        labels = _STAGE_OF.get(name, _LAST_STAGE), name.partition("_")[0]
        packets[labels] = packets.get(labels, 0) + counters[name]
    for labels, number in packets.items():
        yield "ct_packets_total", labels, number
    for guest, counts in tables.guests.items():
        for verdict in ("passed", "dropped"):
            yield "ct_guest_packets_total", (guest, verdict), counts[verdict]


def _reason_samples(counters: t.Mapping[str, int]) -> t.Iterator[Sample]:
    """Return the counters of what happened for one of several reasons."""
    reasons = {
        "deleted": "ct_deleted_total",
        "forward": "ct_forward_left_total",
        "invalid": "",
        "ignored": "",
        "untracked": "",
    }
    for name, number in counters.items():
        about, dummy, reason = name.partition("_")
        if reason and about in reasons:
            yield reasons[about] or f"ct_{about}_total", (reason,), number


def health_samples(found: t.Mapping[str, t.Any] | None) -> t.Iterator[Sample]:
    """Return what there is to say of the chain's health.

    :param found: generation, digest, faults and whether it is healthy; None where no chain is
        loaded, or nobody could tell.
    """
    yield "ct_healthy", (), bool(found and found["healthy"])
    if found is None:
        return
    faults = collections.Counter(fault["fault"] for fault in found["faults"])
    for name in diagnosis.FAULTS:
        yield "ct_faults", (name,), faults[name]
    yield "ct_generation", (), found["generation"]
    yield "ct_generation_info", (str(found["generation"]), found["digest"]), 1


def interface_samples(paths: bpffs.Paths) -> list[Sample]:
    """Return what there is to say of the interfaces that the chain is to run on.

    What can change while an interface is the same one, hook and mode, is no label of
    ``ct_attached``: that is one series from when it is attached until it is detached, whatever
    becomes of the interface meanwhile.
    """
    found: list[Sample] = []
    for want, have in ct_status.attached(paths):
        labels, there = (want.name, want.netns or ""), have.attached
        hook = there.program.hook if there is not None else None
        found.append(("ct_attached", labels, hook is not None))
        if there is not None and hook is not None:
            found.append(("ct_attached_info", (*labels, hook, there.mode), 1))
    return found


def sweep_samples(sweeps: Sweeps | None) -> t.Iterator[Sample]:
    """Return what there is to say of sweeps."""
    yield "ct_sweeper", (), sweeps is not None
    if sweeps is None:
        return
    yield "ct_sweeps_total", (), sweeps.count
    yield "ct_sweep_failures_total", (), sweeps.failures
    yield "ct_sweep_deleted_total", (), sweeps.deleted
    yield "ct_sweep_seconds_total", (), sweeps.seconds
    if sweeps.last_time:
        yield "ct_sweep_last_duration_seconds", (), sweeps.last_seconds
        yield "ct_sweep_last_timestamp_seconds", (), sweeps.last_time


class Exporter:
    """Answers scrapes; those who ask at the same time share one reading.

    :param health: returns generation, digest, faults and whether the chain is healthy; see
        status.health_of().
    :param sweeps: of the service that this is a part of.
    :param log: takes a line about what could not be read.
    :raises NoLibrary: where prometheus_client is missing.
    """

    def __init__(
        self,
        paths: bpffs.Paths,
        health: t.Callable[[], t.Mapping[str, t.Any]],
        sweeps: Sweeps | None,
        log: t.Callable[[str], object],
    ) -> None:
        self._families, self._choose_encoder, self._registry = _library()
        self._paths, self._health, self._sweeps, self._log = paths, health, sweeps, log
        self._ledger = Ledger()
        self._errors = dict.fromkeys(PARTS, 0)
        self._said: dict[str, str] = {}
        self._fresh = Fresh(lambda: list(self._samples()))
        self._registry.register(self)

    def answer(self, accept: str) -> tuple[bytes, str]:
        """Return the body and its media type.

        :param accept: what the client takes, as its header Accept has it.
        """
        encoder, kind = self._choose_encoder(accept)
        return encoder(self._registry), kind

    def collect(self) -> t.Iterator[t.Any]:
        """Return all metrics: prometheus_client asks."""
        made: dict[str, t.Any] = {}
        for name, labels, value in self._fresh.get():
            metric = METRICS[name]
            if name not in made:
                made[name] = self._families[metric.kind](name, metric.help, labels=metric.labels)
            made[name].add_metric(labels, value)
        return iter(made.values())

    def _samples(self) -> t.Iterator[Sample]:
        began = time.monotonic()
        tables = self._part("tables", lambda: read_tables(self._paths.pin_root))
        yield "ct_up", (), tables is not None
        if tables is not None:
            yield from table_samples(tables, *self._ledger.enter(tables))
        yield from health_samples(self._part("health", self._health))
        yield from self._part("interfaces", lambda: interface_samples(self._paths)) or ()
        yield from sweep_samples(self._sweeps)
        for part, number in self._errors.items():
            yield "ct_scrape_errors_total", (part,), number
        yield "ct_scrape_duration_seconds", (), time.monotonic() - began

    def _part(self, part: str, look: t.Callable[[], Seen]) -> Seen | None:
        """Return what was seen; None where it could not be read, which is counted, and told once.
        That no chain is loaded is no error.
        """
        try:
            found = look()
        except flow_table.NoChain:
            return None
        except OSError as exc:
            said = str(exc)
        except ConntrackError as exc:
            said = exc.message
        else:
            self._said.pop(part, None)
            return found
        self._errors[part] += 1
        if self._said.get(part) != said:
            self._said[part] = said
            self._log(f"metrics: {part}: {said}")
        return None


def _library() -> tuple[dict[str, t.Any], t.Callable[[str], tuple[t.Any, str]], t.Any]:
    """Return what makes metrics by kind, what chooses an encoder, and a registry.

    :raises NoLibrary: naming the package.
    """
    try:
        from prometheus_client import CollectorRegistry, core, exposition
    except ImportError:
        raise NoLibrary(
            "Metrics need the Python library prometheus_client. Install it: package"
            " python3-prometheus-client on Debian and Ubuntu, python3-prometheus_client on Fedora"
            " and RHEL (EPEL)."
        ) from None
    return (
        {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily},
        exposition.choose_encoder,
        CollectorRegistry(),
    )
