# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the flow table: the collection's reader and its command next to a bare batch read, to
bpftool and to `conntrack -L`.

The table is that of a loaded chain, filled with copies of a connection that went through it.
nf_conntrack's is filled with as many connections in a namespace of its own; the host's
nf_conntrack_max is raised for that long where it is too low, which is possible in the host's own
network namespace only.
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
import tempfile
import time
import typing as t

import harness
import orjson
import packet
import tables
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import collect as flow_collect
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import output as flow_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from chain_under_test import Chain

#: Highest ratio of the summary to the bare batch read, and of JSON lines to `conntrack -L`.
GOAL_SUMMARY, GOAL_LINES = 1.5, 0.5
#: Likewise of the command: of ``ct list -o json`` to a bare batch read and a fast JSON library, and
#: to other tools; of its first line to all lines.
GOAL_JSON, GOAL_AHEAD, GOAL_HEAD = 3.0, 1.0, 0.1
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
        seen = sum(
            size
            for size, dummy, dummy in bpf.map_batches(
                fd, chain_layout.KEY4.size, chain_layout.ENTRY.size
            )
        )

    took = harness.seconds(read)
    harness.expect("entries read", seen, count)
    return took


def printed(words: c.Sequence[str], unit: bytes, count: int) -> float:
    """Time a command that prints ``count`` flows into a file.

    :param unit: what it prints once for each flow.
    """
    with tempfile.TemporaryFile() as out:
        took = harness.seconds(
            lambda: subprocess.run(words, stdout=out, stderr=subprocess.DEVNULL, check=True)
        )
        expect_units(" ".join(words[:2]), out, unit, count)
    return took


def expect_units(what: str, text: t.IO[bytes], unit: bytes, count: int) -> None:
    """Hold a text to the number of flows in it."""
    text.seek(0)
    with mmap.mmap(text.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        harness.expect(f"flows from {what}", len(re.findall(re.escape(unit), whole)), count)


def read(
    under_test: Chain, count: int, words: dict[str, object], form: str | None, summary: bool
) -> float:
    """Time one reading by the collection's library, from the pins to the file.

    :param words: the query.
    :param form: the output form; None for records in memory.
    """
    with tempfile.TemporaryFile() as out:

        def once() -> flow_collect.Reading:
            with flow_table.FlowTables(under_test.pin_root) as source:
                writer = flow_output.writer(form) if form else None
                return flow_read.read(
                    source, flow_filter.parse_query(words), writer, out.write, summary
                )

        start = time.perf_counter()
        reading = once()
        out.flush()
        took = time.perf_counter() - start
        if form:
            expect_units(form, out, b"ESTABLISHED", count)
        harness.expect("flows counted", reading.count, count if form or summary else 0)
        if summary:
            harness.expect(
                "flows by state", (reading.summary or {})["by_state"], {"ESTABLISHED": count}
            )
    return took


def serialised(under_test: Chain, count: int) -> float:
    """Time the least that ``ct list -o json`` can do: a batch read that looks at nothing, and for
    each entry a record that is there already, through orjson.
    """
    with flow_table.FlowTables(under_test.pin_root) as source, tempfile.TemporaryFile() as out:
        records = flow_read.read(
            source, flow_filter.parse_query({"limit": flow_table.BATCH}), summary=False
        ).flows
        seen = 0

        def once() -> None:
            nonlocal seen
            for size, dummy, dummy in bpf.map_batches(
                under_test.table, chain_layout.KEY4.size, chain_layout.ENTRY.size, flow_table.BATCH
            ):
                for start in range(0, size, len(records)):
                    out.write(orjson.dumps(records[: size - start]))
                seen += size
            out.flush()

        took = harness.seconds(once)
        harness.expect("entries read", seen, count)
        expect_units("orjson", out, b"ESTABLISHED", count)
    return took


#: Runs a Python archive, given as the first word, and tells the most memory that the process took.
#: (What wait4() tells includes the process that forked.)
MEASURED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    with open("/proc/self/status") as status:
        sys.stderr.write(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def megabytes(interpreter: str, *words: str) -> harness.Sample:
    """Return the most memory that a command takes which is an archive of Python."""
    done = subprocess.run(
        [interpreter, "-I", "-c", MEASURED, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return harness.Sample((int(done.stderr) / 1024,))


def first_line(words: c.Sequence[str]) -> float:
    """Time a command until its first line; the reader goes away then, which is no error."""
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        line = t.cast("t.IO[bytes]", process.stdout).readline()
        took = time.perf_counter() - start
        t.cast("t.IO[bytes]", process.stdout).close()
    harness.expect("exit status of the command whose reader went away", process.returncode, 0)
    harness.expect("begin of the first line", line[:5], b"PROTO")
    return took


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
                    f"-A -s {source} -d {packet.SERVER} -r {packet.SERVER} -q {source} -p tcp"
                    f" --sport {packet.SPORT} --dport {packet.DPORT} --reply-port-src"
                    f" {packet.DPORT} --reply-port-dst {packet.SPORT} --state ESTABLISHED -u"
                    " ASSURED,SEEN_REPLY -t 432000\n"
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
            tables.clear(under_test.table6, chain_layout.KEY6)
            tables.clear(under_test.half_open)
            tables.fill(under_test.table, count, key, entry)
            pin = under_test.map_pin("ctt")
            command = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "ct")
            pathlib.Path(command).write_bytes(
                ct_archive.archive(ct_content.content(under_test.pin_root))
            )
            ct = [ct_archive.interpreter(), "-I", command]
            cases: dict[str, c.Callable[[], float | dict[str, float]]] = {
                "bare": functools.partial(bare, under_test.table, count),
                "summary": functools.partial(read, under_test, count, {}, None, True),
                "none": functools.partial(read, under_test, count, {"dport": NO_PORT}, None, False),
                "jsonl": functools.partial(read, under_test, count, {}, "jsonl", False),
                "conntrack form": functools.partial(
                    read, under_test, count, {}, "conntrack", False
                ),
                "orjson": functools.partial(serialised, under_test, count),
                "ct list -o json": functools.partial(
                    printed, [*ct, "list", "-o", "json"], b"ESTABLISHED", count
                ),
                "ct list": functools.partial(printed, [*ct, "list"], b"ESTABLISHED", count),
                "ct list | head": functools.partial(first_line, [*ct, "list"]),
                "ct summary": functools.partial(
                    printed, [*ct, "summary"], b"ESTABLISHED %d" % count, 1
                ),
                "bpftool": functools.partial(
                    printed, ["bpftool", "-j", "map", "dump", "pinned", pin], b'"key"', count
                ),
            }
            kernel = stack.enter_context(room_for(count + SPARE))
            if kernel:
                listing = [
                    "ip",
                    "netns",
                    "exec",
                    stack.enter_context(kernel_table(count)),
                    "conntrack",
                    "-L",
                ]
                cases["conntrack -L"] = functools.partial(printed, listing, b"ESTABLISHED", count)
            got = harness.interleave(cases, rounds)
            memory, json_memory = (
                megabytes(ct_archive.interpreter(), command, "list", "-o", form)
                for form in ("jsonl", "json")
            )
        goal = count >= 1_000_000  # in a small table the command's start is most of it
        flows = f"{count // 1000}k flows" if count < 1_000_000 else f"{count // 1_000_000}M flows"
        yield harness.Row(
            "read",
            f"{flows}: summary",
            "s",
            got["summary"],
            "bare batch read",
            got["bare"],
            GOAL_SUMMARY,
        )
        yield harness.Row(
            "read",
            f"{flows}: filter that none passes",
            "s",
            got["none"],
            "bare batch read",
            got["bare"],
        )
        yield harness.Row(
            "read", f"{flows}: JSON lines", "s", got["jsonl"], "bare batch read", got["bare"]
        )
        yield harness.Row(
            "read", f"{flows}: JSON lines", "s", got["jsonl"], "bpftool -j map dump", got["bpftool"]
        )
        if kernel:
            yield harness.Row(
                "read",
                f"{flows}: JSON lines",
                "s",
                got["jsonl"],
                "conntrack -L",
                got["conntrack -L"],
                GOAL_LINES,
            )
            yield harness.Row(
                "read",
                f"{flows}: conntrack form",
                "s",
                got["conntrack form"],
                "conntrack -L",
                got["conntrack -L"],
            )
        yield harness.Row(
            "read",
            f"{flows}: JSON lines, peak memory",
            "MB",
            memory,
            goal=GOAL_MEMORY,
            absolute=True,
        )
        whole = got["ct list -o json"]
        yield harness.Row(
            "read",
            f"{flows}: ct list -o json",
            "s",
            whole,
            "bare batch read and orjson",
            got["orjson"],
            GOAL_JSON if goal else None,
        )
        yield harness.Row(
            "read",
            f"{flows}: ct list -o json",
            "s",
            whole,
            "bpftool -j map dump",
            got["bpftool"],
            GOAL_AHEAD,
        )
        if kernel:
            yield harness.Row(
                "read",
                f"{flows}: ct list -o json",
                "s",
                whole,
                "conntrack -L",
                got["conntrack -L"],
                GOAL_AHEAD,
            )
        yield harness.Row(
            "read",
            f"{flows}: ct list -o json, peak memory",
            "MB",
            json_memory,
            goal=GOAL_MEMORY,
            absolute=True,
        )
        yield harness.Row(
            "read",
            f"{flows}: ct summary",
            "s",
            got["ct summary"],
            "bare batch read",
            got["bare"],
            GOAL_SUMMARY if goal else None,
        )
        yield harness.Row(
            "read",
            f"{flows}: first line of ct list",
            "s",
            got["ct list | head"],
            "all of ct list",
            got["ct list"],
            GOAL_HEAD if goal else None,
        )
