# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ct top on real traffic: its rates next to what was sent, and on a real terminal of 80 columns and
24 lines.
"""

from __future__ import annotations

import bisect
import collections.abc as c
import contextlib
import datetime
import fcntl
import json
import os
import select
import signal
import subprocess
import termios
import threading
import time

import pyte
import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import CLIENT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_ct import Ct, ct, installed

__all__ = ["ct", "installed"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

STREAM = 9000
THERE, BACK = 500, 100
HEAD = 28  # of IPv4 and UDP
PATIENCE = 20


@pytest.fixture
def sent(ct: Ct, wire: Wire) -> c.Iterator[list[float]]:
    """The times at which datagrams went, one of THERE bytes to the server and one of BACK bytes to
    the client each.
    """
    client, server = wire.udp("client", STREAM), wire.udp("server", STREAM)
    times: list[float] = []
    end = threading.Event()

    def stream() -> None:
        while not end.wait(0.004):
            client.sendto(bytes(THERE), (SERVER, STREAM))
            server.sendto(bytes(BACK), (CLIENT, STREAM))
            times.append(time.time())

    sender = threading.Thread(target=stream)
    sender.start()
    yield times
    end.set()
    sender.join()


def test_the_rates_are_what_was_sent(
    ct: Ct, sent: list[float], figure: c.Callable[[str, object], None]
) -> None:
    (batch,) = ct.json("top", "--once", "--interval", "1")
    end = datetime.datetime.fromisoformat(batch["time"]).timestamp()
    number = bisect.bisect(sent, end) - bisect.bisect(sent, end - batch["seconds"])
    first, *others = batch["top"]
    assert (first["orig"]["src"], first["orig"]["sport"], first["orig"]["dport"]) == (
        CLIENT,
        STREAM,
        STREAM,
    ) and len(others) == batch["flows"] - 1 == 3
    assert [one["rate"]["packets"] for one in others] == [0.0] * 3
    ratio = first["rate"]["orig"]["packets"] * batch["seconds"] / number
    figure("packets a second in ct top / sent", f"{ratio:.3f}")
    assert 0.8 < ratio < 1.25, (first["rate"], number, batch["seconds"])
    rate = first["rate"]
    assert rate["orig"]["bytes"] == pytest.approx(
        (THERE + HEAD) * rate["orig"]["packets"], rel=0.01
    )
    assert rate["reply"]["bytes"] == pytest.approx(
        (BACK + HEAD) * rate["reply"]["packets"], rel=0.01
    )

    lines = [
        json.loads(line)
        for line in ct(
            "top",
            "--count",
            "2",
            "--interval",
            "0.3",
            "--group-by",
            "proto",
            "--sort",
            "flows",
            "-o",
            "jsonl",
        ).splitlines()
    ]
    assert [{one["proto"]: one["flows"] for one in line["top"]} for line in lines] == [
        {"udp": 2, "tcp": 1, "icmp": 1}
    ] * 2
    assert lines[1]["top"][0]["share"] == 50.0 and lines[1]["top"][0]["rate"]["packets"] > 0
    text = ct("top", "--once", "--interval", "0.3", "--dport", str(STREAM)).splitlines()
    assert (
        text[0].startswith("ct top  ")
        and text[2].split()[0] == "PROTO"
        and text[3].startswith(f"udp   {CLIENT}:{STREAM} {SERVER}:{STREAM} ")
    )
    assert len(text) == 4


class Terminal:
    """A command on a terminal of its own, as its session's leader, and what the terminal shows."""

    def __init__(
        self, argv: c.Sequence[str], columns: int = 80, lines: int = 24, ignoring: bool = False
    ) -> None:
        """Start it.

        :param ignoring: as a shell without job control starts what ends with &: without SIGINT.
        """

        def prepare() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if ignoring:
                signal.signal(signal.SIGINT, signal.SIG_IGN)

        self.here, self.there = os.openpty()
        termios.tcsetwinsize(self.there, (lines, columns))
        self.before = termios.tcgetattr(self.there)
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.process = subprocess.Popen(
            argv,
            env={"TERM": "xterm"},
            stdin=self.there,
            stdout=self.there,
            stderr=self.there,
            start_new_session=True,
            preexec_fn=prepare,
        )

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def wait(self, what: str, good: c.Callable[[list[str]], object]) -> list[str]:
        """Wait until the screen shows something."""
        deadline = time.monotonic() + PATIENCE
        while not good(self.lines()):
            assert time.monotonic() < deadline, (what, self.lines())
            if select.select([self.here], [], [], 0.2)[0]:
                piece = os.read(self.here, 1 << 16)
                self.written += piece
                self.stream.feed(piece)
        return self.lines()

    def type(self, text: bytes) -> None:
        os.write(self.here, text)

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        termios.tcsetwinsize(self.there, (lines, columns))

    def end(self) -> int:
        """Wait for the end; the terminal has to be as it was."""
        status = self.process.wait(PATIENCE)
        while select.select([self.here], [], [], 0)[0]:
            self.written += os.read(self.here, 1 << 16)
        assert self.written.rfind(b"\x1b[?1049l") > self.written.rfind(b"\x1b[?1049h") > -1, (
            "the screen of before"
        )
        assert self.written.rfind(b"\x1b[?25h") > self.written.rfind(b"\x1b[?25l"), "the cursor"
        assert termios.tcgetattr(self.there) == self.before
        return status


@contextlib.contextmanager
def terminal(argv: c.Sequence[str], ignoring: bool = False) -> c.Iterator[Terminal]:
    made = Terminal(argv, ignoring=ignoring)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.here)
        os.close(made.there)


def test_on_a_terminal(ct: Ct, sent: list[float]) -> None:
    with terminal(ct.argv("top", "--interval", "0.5")) as shown:
        lines = shown.wait(
            "a rate",
            lambda lines: any(
                line.startswith("udp") and line.split()[3] not in ("-", "0") for line in lines
            ),
        )
        assert (
            lines[0].startswith("ct top  ")
            and "4 flows" in lines[0]
            and lines[1].endswith("by bytes/s")
            and lines[2].endswith("q end")
        )
        assert lines[3].split() == ["PROTO", "FROM", "TO", "PKTS/S", "OUT/S", "BACK/S", "BYTES"]
        assert lines[4].startswith(f"udp   {CLIENT}:{STREAM}") and lines[8:] == [""] * 16
        assert sorted(line.split()[0] for line in lines[5:8]) == ["icmp", "tcp", "udp"]
        assert max(map(len, lines)) <= 80 and shown.screen.buffer[3][0].reverse
        shown.type(b"P")
        shown.wait("another order", lambda lines: lines[1].endswith("by packets"))
        shown.resize(50, 6)
        lines = shown.wait("a small terminal", lambda lines: ".." in lines[4] and len(lines) == 6)
        assert lines[4].startswith("udp") and max(map(len, lines)) < 50
        shown.type(b"xq")
        assert shown.end() == 0


@pytest.mark.parametrize("way", ["Ctrl-C", "Ctrl-C, ignored before", "SIGTERM"])
def test_the_terminal_is_restored_whatever_ends_it(ct: Ct, way: str) -> None:
    with terminal(
        ct.argv("top", "--group-by", "proto", "--interval", "30"), ignoring="ignored" in way
    ) as shown:
        lines = shown.wait(
            "the groups", lambda lines: any(line.startswith("udp") for line in lines)
        )
        assert lines[3].split() == [
            "PROTO",
            "FLOWS",
            "SHARE",
            "PKTS/S",
            "OUT/S",
            "BACK/S",
            "PACKETS",
            "BYTES",
        ]
        if way.startswith("Ctrl-C"):
            shown.type(b"\x03")
        else:
            shown.process.send_signal(signal.SIGTERM)
        assert shown.end() == 143 if way == "SIGTERM" else 130


def test_a_terminal_that_can_not_be_drawn_on(ct: Ct) -> None:
    here, there = os.openpty()
    done = subprocess.run(
        ct.argv("top"),
        env={"TERM": "dumb"},
        stdin=there,
        stdout=there,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(here)
    os.close(there)
    assert (
        done.returncode == 1
        and done.stderr.startswith("ct top: TERM: 'dumb' is not valid")
        and done.stderr.count("\n") == 1
    )
