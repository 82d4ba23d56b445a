# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each path answers: flows, a summary, health and metrics; the original's request at /.

How many ask at once, and how much one of them can make the server do, is bounded here.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
import typing as t

from ...core.errors import ConntrackError, bad_value
from ...flows import collect as flow_collect
from ...flows import filter as flow_filter
from ...flows import output as flow_output
from ...flows import progress
from ...flows import read as flow_read
from ...flows import table as flow_table
from ...kernel import bpffs
from .. import metrics as ct_metrics
from .. import status as ct_status
from ..fresh import Fresh
from . import query_forward
from . import room as http_room
from .exchange import JSON, Exchange
from .request import FORM_WORDS, Refusal, check_request, parse_or_refuse

#: Requests at once that read flows; of those, ones that sort more than SORTED of them, which takes
#: memory for each.
READERS, SORTERS = 8, 1
SORTED = 10_000
#: Requests for a summary, and for metrics. One summary is made at a time, the others wait; those
#: who ask for metrics share one reading.
SUMMARIES, SCRAPES = 4, 8
#: The same for each user of the host, besides root.
EACH_READERS, EACH_SUMMARIES, EACH_SCRAPES = 4, 2, 4
#: Flows that are sorted without a limit of SORTED, and groups of a summary: some 350 and 600 bytes
#: each.
MOST_SORTED, MOST_GROUPS = 250_000, 100_000
#: Seconds that a summary waits for its turn, and between two looks whether its client still does.
_TURN_SECONDS, _LOOK_SECONDS = 30.0, 0.1
_MEDIA = {
    "json": JSON,
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "table": "text/plain; charset=utf-8",
    "conntrack": "text/plain; charset=utf-8",
}


class Shared:
    """What all requests share.

    :param paths: of the chain; it need not be loaded.
    :param sweeps: what the service that the server is a part of tells of its sweeps.
    :param log: takes a line about what went wrong and nobody is told.
    """

    def __init__(
        self, paths: bpffs.Paths, sweeps: ct_metrics.Sweeps | None, log: t.Callable[[str], object]
    ) -> None:
        self.paths, self._sweeps, self._log = paths, sweeps, log
        self.health = Fresh(lambda: ct_status.health_of(paths))
        self.readers = http_room.Places(READERS, EACH_READERS)
        self.sorters = http_room.Places(SORTERS, SORTERS)
        self.summaries = http_room.Places(SUMMARIES, EACH_SUMMARIES)
        self.scrapes = http_room.Places(SCRAPES, EACH_SCRAPES)
        self.summing = threading.Lock()
        self._exporter: ct_metrics.Exporter | None = None

    @property
    def exporter(self) -> ct_metrics.Exporter:
        """What answers /metrics.

        :raises ConntrackError: where the library is missing.
        """
        if self._exporter is None:
            self._exporter = ct_metrics.Exporter(
                self.paths, self.health.get, self._sweeps, self._log
            )
        return self._exporter


class Handler(Exchange):
    """Answers the requests of one connection; see Exchange."""

    def __init__(
        self,
        shared: Shared,
        guest: http_room.Guest,
        over_tcp: bool,
        log: t.Callable[[str], object],
        client_address: t.Any,
        server: socketserver.BaseServer,
    ) -> None:
        self.shared = shared
        super().__init__(guest, over_tcp, log, client_address, server)

    def dispatch(self) -> None:
        """Answer a request, or say why not."""
        self.unread = (
            "Transfer-Encoding" in self.head
            or self.head.get("Content-Length", "0").strip("0") != ""
        )
        try:
            with check_request():
                url = self.target_here()
            methods = ROUTES.get(url.path)
            if methods is None:
                raise Refusal(
                    404,
                    f"{url.path}: there is nothing here. Ask for"
                    f" {', '.join(path for path in ROUTES if path != '/')}.",
                )
            run = methods.get("GET" if self.command == "HEAD" else self.command)
            if run is None:
                allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
                raise Refusal(
                    405,
                    f"{self.command} does not go with {url.path}: use {allowed}.",
                    {"Allow": allowed},
                )
            run(self, url.query)
        except Refusal as exc:
            self.refuse(exc.status, exc.message, exc.headers, exc.body)
        except flow_collect.TooMany as exc:
            self.refuse(422, exc.message)
        except ConntrackError as exc:
            self.refuse(503, exc.message)
        except (ConnectionError, socket.timeout):
            raise
        except OSError as exc:
            self.refuse(500, f"the system refuses it: {exc}.")
        except Exception as exc:  # whatever it is, the client is to hear of it, and the log as well
            self.log(f"{self.path[:100]}: {type(exc).__name__}: {exc}")
            self.refuse(500, "the server failed at it; its log says how.")

    def _flows(self, text: str) -> None:
        """Answer with flows, in one of the forms of ct list."""
        words = parse_or_refuse(
            text, (*(word for word in flow_filter.QUERY_WORDS if word != "group_by"), *FORM_WORDS)
        )
        with check_request():
            form = words.pop("output", "json")
            if form not in flow_output.FORMATS:
                raise bad_value("output", form, f"give one of {', '.join(flow_output.FORMATS)}")
            extended, window = (
                flow_filter.flag(word, words.pop(word, "") or "true") if word in words else False
                for word in ("extended", "window")
            )
            query = flow_filter.parse_query(words)
            writer = flow_output.writer(form, query.fields, extended, window)
            if extended and form != "conntrack":
                raise bad_value("extended", True, "it belongs to output=conntrack")
        self._list(_MEDIA[form], query, writer, window)

    def _list(
        self, kind: str, query: flow_filter.Query, writer: flow_output.Writer, window: bool = False
    ) -> None:
        """Stream flows."""
        all_sorted = query.sort is not None and (query.limit is None or query.limit > SORTED)
        with contextlib.ExitStack() as held:
            held.enter_context(
                self.place(self.shared.readers, "requests for flows are being answered")
            )
            if all_sorted:
                held.enter_context(
                    self.place(
                        self.shared.sorters,
                        f"request has all flows sorted (give a limit of at most {SORTED}, or leave"
                        " sort out)",
                    )
                )
            tables = self._read_for_client(
                held.enter_context(flow_table.FlowTables(self.shared.paths.pin_root))
            )
            self.stream(
                kind,
                lambda put: flow_read.read(
                    tables,
                    query,
                    writer,
                    put,
                    summary=False,
                    window=window,
                    listing=False,
                    most_sorted=MOST_SORTED if all_sorted else None,
                ),
            )

    def _summary(self, text: str) -> None:
        """Answer with totals, and groups where they are asked for."""
        words = parse_or_refuse(text, (*flow_filter.FILTER_WORDS, "group_by", "limit"))
        with check_request():
            query = flow_filter.parse_query(words)
            if "limit" in words and not query.group_by:
                raise ConntrackError(
                    "limit: it belongs to group_by; leave it out, or say by what to group."
                )
        if not query.group_by:
            query = flow_filter.Query(query.filters, limit=0)
        with (
            self.place(self.shared.summaries, "summaries are asked for"),
            self._turn(),
            flow_table.FlowTables(self.shared.paths.pin_root) as tables,
        ):
            reading = flow_read.read(self._read_for_client(tables), query, most_groups=MOST_GROUPS)
        found = t.cast("dict[str, t.Any]", reading.summary)
        if query.group_by:
            found = {**found, "groups": reading.groups, "group_count": reading.group_count}
        self.answer(200, JSON, f"{flow_output.dumps(found)}\n".encode())

    @contextlib.contextmanager
    def _turn(self) -> t.Iterator[None]:
        """Around the one summary that is made at a time.

        :raises Refusal: where that takes too long.
        """
        deadline = time.monotonic() + _TURN_SECONDS
        while not self.shared.summing.acquire(timeout=_LOOK_SECONDS):
            self.check_client()
            if time.monotonic() > deadline:
                raise Refusal(
                    503,
                    f"another summary has been made for {_TURN_SECONDS:g} s. Try again later.",
                    {"Retry-After": "10"},
                )
        try:
            yield
        finally:
            self.shared.summing.release()

    def _healthz(self, text: str) -> None:
        """Answer whether the chain works."""
        parse_or_refuse(text, ())
        try:
            found = self.shared.health.get()
        except ConntrackError as exc:
            raise Refusal(
                503, exc.message, body={"healthy": False, "generation": None, "faults": []}
            ) from exc
        if not found["healthy"]:
            raise Refusal(
                503,
                "; ".join(f"{fault['fault']} {fault['object']}" for fault in found["faults"]),
                body=found,
            )
        self.answer(200, JSON, f"{flow_output.dumps(found)}\n".encode())

    def _metrics(self, text: str) -> None:
        """Answer with what Prometheus takes."""
        parse_or_refuse(text, ())
        try:
            with self.place(self.shared.scrapes, "requests for metrics are being answered"):
                body, kind = self.shared.exporter.answer(self.head.get("Accept"))
        except ct_metrics.NoLibrary as exc:
            raise Refusal(501, exc.message) from exc
        self.answer(200, kind, body)

    def _forward(self, text: str) -> None:
        """Answer the one request that the original knows."""
        parse_or_refuse(text, ())
        trace = query_forward.parse(self.read_body())
        try:
            self._list(JSON, flow_filter.parse_query({}), query_forward.ForwardWriter(trace))
        except Refusal:
            raise
        except ConntrackError as exc:
            if self.streaming:
                raise
            raise query_forward.refusal(503, query_forward.NO_ANSWER, exc.message, trace) from exc

    def _read_for_client(self, tables: flow_table.FlowTables) -> flow_table.Source:
        """Return tables whose reading ends when the client leaves."""
        return t.cast(
            "flow_table.Source", progress.Watched(tables, lambda dummy: self.check_client())
        )


#: What is answered: by path the methods, and what answers them.
ROUTES: dict[str, dict[str, t.Callable[[Handler, str], None]]] = {
    "/flows": {"GET": Handler._flows},
    "/summary": {"GET": Handler._summary},
    "/metrics": {"GET": Handler._metrics},
    "/healthz": {"GET": Handler._healthz},
    "/": {"POST": Handler._forward},
}
