# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the flow table: the collection's reader next to a bare batch read, to bpftool and to `conntrack -L`.

The table is that of a loaded chain, filled with copies of a connection that went through it. nf_conntrack's is filled with as
many connections in a namespace of its own; the host's nf_conntrack_max is raised for that long where it is too low, which is
possible in the host's own network namespace only.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import functools
import mmap
import os
import pathlib
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import typing as t

import harness
import packet
import tables
from ansible_collections.ebpf.conntrack.plugins.module_utils import bpf, chain, flow_filter, flow_output, flow_table
from chain_under_test import Chain

#: Highest ratio of the summary to the bare batch read, and of JSON lines to `conntrack -L`.
GOAL_SUMMARY, GOAL_LINES = 1.5, 0.5
#: Most MB that writing all flows may take, however many they are.
GOAL_MEMORY = 64

#: A port that no flow of the benchmark has.
NO_PORT = 1
#: Connections of others that nf_conntrack shall have room for besides.
SPARE = 10_000
LIMIT = pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_max")


def bare(fd: int, count: int) -> float:
    """Time a read of the whole table that looks at nothing."""
    seen = 0

    def read() -> None:
        nonlocal seen
        seen = sum(size for size, dummy, dummy in bpf.map_batches(fd, chain.KEY4.size, chain.ENTRY.size))

    took = harness.seconds(read)
    harness.expect("entries read", seen, count)
    return took


def printed(words: c.Sequence[str], unit: bytes, count: int) -> float:
    """Time a command that prints ``count`` flows into a file.

    :param unit: what it prints once for each flow.
    """
    with tempfile.TemporaryFile() as out:
        took = harness.seconds(lambda: subprocess.run(words, stdout=out, stderr=subprocess.DEVNULL, check=True))
        expect_units(" ".join(words[:2]), out, unit, count)
    return took


def expect_units(what: str, text: t.IO[bytes], unit: bytes, count: int) -> None:
    """Hold a text to the number of flows in it."""
    text.seek(0)
    with mmap.mmap(text.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        harness.expect(f"flows from {what}", len(re.findall(re.escape(unit), whole)), count)


def read(under_test: Chain, count: int, words: dict[str, object], form: str | None, summary: bool) -> float:
    """Time one reading by the collection's library, from the pins to the file.

    :param words: the query.
    :param form: the output form; None for records in memory.
    """
    with tempfile.TemporaryFile() as out:

        def once() -> flow_table.Reading:
            with flow_table.FlowTables(under_test.pin_root) as source:
                writer = flow_output.writer(form) if form else None
                return flow_table.read(source, flow_filter.parse_query(words), writer, out.write, summary)

        start = time.perf_counter()
        reading = once()
        out.flush()
        took = time.perf_counter() - start
        if form:
            expect_units(form, out, b"ESTABLISHED", count)
        harness.expect("flows counted", reading.count, count if form or summary else 0)
        if summary:
            harness.expect("flows by state", (reading.summary or {})["by_state"], {"ESTABLISHED": count})
    return took


#: What a process of its own does to write all flows as JSON lines and tell the most memory that it took; the words are pin_root and the file.
READER = """
import sys
from ansible_collections.ebpf.conntrack.plugins.module_utils import flow_filter, flow_output, flow_table
with flow_table.FlowTables(sys.argv[1]) as source, open(sys.argv[2], "wb") as out:
    flow_table.read(source, flow_filter.parse_query({}), flow_output.writer("jsonl"), out.write, summary=False)
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def megabytes(pin_root: str) -> harness.Sample:
    """Return the most memory that a process takes which writes all flows."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as script:
        script.write(f"import sys\nsys.path[:0] = {sys.path!r}\n{READER}")
        script.flush()
        return harness.Sample((int(harness.command([sys.executable, script.name, pin_root, os.devnull])) / 1024,))


@contextlib.contextmanager
def room_for(count: int) -> c.Iterator[bool]:
    """Let nf_conntrack hold ``count`` connections; says whether it can."""
    try:
        before = LIMIT.read_text(encoding="ascii")
        if int(before) < count:
            LIMIT.write_text(str(count), encoding="ascii")
    except OSError:  # no nf_conntrack, or not the host's own network namespace
        yield False
        return
    try:
        yield True
    finally:
        if int(before) < count:
            LIMIT.write_text(before, encoding="ascii")


@contextlib.contextmanager
def kernel_table(count: int) -> c.Iterator[str]:
    """Give a namespace whose nf_conntrack holds ``count`` connections."""
    name = f"eb{secrets.token_hex(3)}"
    harness.command(["ip", "netns", "add", name])
    try:
        with tempfile.NamedTemporaryFile("w", encoding="ascii") as rules:
            for i in range(count):
                source = socket.inet_ntoa((0x0A000000 + i).to_bytes(4, "big"))
                rules.write(
                    f"-A -s {source} -d {packet.SERVER} -r {packet.SERVER} -q {source} -p tcp --sport {packet.SPORT} --dport {packet.DPORT}"
                    f" --reply-port-src {packet.DPORT} --reply-port-dst {packet.SPORT} --state ESTABLISHED -u ASSURED,SEEN_REPLY -t 432000\n"
                )
            rules.flush()
            harness.command(["ip", "netns", "exec", name, "conntrack", "--load-file", rules.name])
        yield name
    finally:
        harness.command(["ip", "netns", "del", name])


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure each size."""
    for count, rounds in options.pick(((100_000, 7), (1_000_000, 5)), ((100_000, 2),)):
        with contextlib.ExitStack() as stack:
            under_test = stack.enter_context(contextlib.closing(Chain(count + count // 4)))
            packet.open_flows([under_test])
            key, entry = under_test.raw_flow(packet.TCP)
            tables.clear(under_test.table)
            tables.clear(under_test.table6, chain.KEY6)
            tables.clear(under_test.half_open)
            tables.fill(under_test.table, count, key, entry)
            pin = under_test.map_pin("ctt")
            cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
                "bare": functools.partial(bare, under_test.table, count),
                "summary": functools.partial(read, under_test, count, {}, None, True),
                "none": functools.partial(read, under_test, count, {"dport": NO_PORT}, None, False),
                "jsonl": functools.partial(read, under_test, count, {}, "jsonl", False),
                "conntrack form": functools.partial(read, under_test, count, {}, "conntrack", False),
                "bpftool": functools.partial(printed, ["bpftool", "-j", "map", "dump", "pinned", pin], b'"key"', count),
            }
            kernel = stack.enter_context(room_for(count + SPARE))
            if kernel:
                listing = ["ip", "netns", "exec", stack.enter_context(kernel_table(count)), "conntrack", "-L"]
                cases["conntrack -L"] = functools.partial(printed, listing, b"ESTABLISHED", count)
            got = harness.interleave(cases, rounds)
            memory = megabytes(under_test.pin_root)
        flows = f"{count // 1000}k flows" if count < 1_000_000 else f"{count // 1_000_000}M flows"
        yield harness.Row("read", f"{flows}: summary", "s", got["summary"], "bare batch read", got["bare"], GOAL_SUMMARY)
        yield harness.Row("read", f"{flows}: filter that none passes", "s", got["none"], "bare batch read", got["bare"])
        yield harness.Row("read", f"{flows}: JSON lines", "s", got["jsonl"], "bare batch read", got["bare"])
        yield harness.Row("read", f"{flows}: JSON lines", "s", got["jsonl"], "bpftool -j map dump", got["bpftool"])
        if kernel:
            yield harness.Row("read", f"{flows}: JSON lines", "s", got["jsonl"], "conntrack -L", got["conntrack -L"], GOAL_LINES)
            yield harness.Row("read", f"{flows}: conntrack form", "s", got["conntrack form"], "conntrack -L", got["conntrack -L"])
        yield harness.Row("read", f"{flows}: JSON lines, peak memory", "MB", memory, goal=GOAL_MEMORY, absolute=True)
