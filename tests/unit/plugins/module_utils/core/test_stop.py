# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C and SIGTERM end ct top, ct watch, ct serve and ct run, whatever they do at that moment.

Each process here gets its signal at one named moment, from itself, so that no luck is needed: in a
callback of C, in __del__, in a bare except, between a look and the sleep after it, at each line of
the loop, and where SIGINT was ignored before.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import ctypes
import functools
import os
import pathlib
import pty
import select
import signal
import sys
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import stop
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import arguments, cli
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import meter as top_meter
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import output as top_output
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import run as ct_top
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import screen as top_screen
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct.top import view as top_view
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs, link_events
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import daemon as ct_daemon
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    server as http_server,
)
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

SECONDS = 15
FLOWS = [fakes.entry(sport=number) for number in range(1, 10)]
#: What a child ends with where the code under test ended by itself, without a status.
RETURNED = 77


def strike(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def writing(file: t.BinaryIO) -> c.Callable[[bytes], None]:
    def write(piece: bytes) -> None:
        file.write(piece)

    return write


class Child:
    """A process that runs a function; a context manager that leaves none behind."""

    def __init__(self, work: c.Callable[[], object], terminal: bool = False) -> None:
        self.master, self.ended = -1, False
        if terminal:
            self.pid, self.master = pty.fork()
        else:
            self.pid = os.fork()
        if self.pid:
            return
        status = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["TERM"] = "xterm"
            if terminal:
                sys.stdin, sys.stdout, sys.stderr = (
                    os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
                )
            try:
                found = work()
                status = found if isinstance(found, int) else RETURNED
            except KeyboardInterrupt:
                status = 130
        finally:
            os._exit(status)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *dummy: object) -> None:
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.master >= 0:
            os.close(self.master)

    def take(self, seconds: float = 0.0) -> bytes:
        """What it wrote on its terminal."""
        if self.master >= 0 and select.select([self.master], [], [], seconds)[0]:
            with contextlib.suppress(OSError):
                return os.read(self.master, 1 << 16)
        return b""

    def status(self, about: object = "") -> int:
        """Wait for its end; return its exit status."""
        deadline = time.monotonic() + SECONDS
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.ended = True
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, f"the interrupt was lost {about}"
            if not self.take(0.005):
                time.sleep(0.001)


def top(
    source: t.Any = None,
    interval: str = "30",
    output: str = "",
    before: c.Callable[[], object] = lambda: None,
) -> c.Callable[[], object]:
    """ct top on made-up tables; printed where a format is given."""
    tables = source or fakes.FakeTables({"ctt": FLOWS})
    view = top_view.parse({}, "bytes", interval)

    def work() -> object:
        before()
        if output:
            return ct_top.print_batches(
                lambda: contextlib.nullcontext(tables), view, lambda piece: None, output, None
            )
        return top_screen.show(lambda: contextlib.nullcontext(tables), view)

    return work


# ---------------------------------------------------------------- the moments that drop an exceptio
def test_where_an_interrupt_was_ignored_before() -> None:
    """As in what a shell without job control starts with &: then Python has no handler."""
    with Child(
        top(before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)), terminal=True
    ) as child:
        shown = b""
        deadline = time.monotonic() + SECONDS
        while b"tcp" not in shown and time.monotonic() < deadline:
            shown += child.take(0.1)
        os.write(child.master, b"\x03")
        assert child.status() == 130


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Moments(fakes.FakeTables):
    """Tables whose reading interrupts itself at a moment at which Python drops exceptions."""

    def __init__(self, moment: str, number: int = signal.SIGINT) -> None:
        super().__init__({"ctt": FLOWS})
        self.moment, self.signal, self.struck = moment, number, False

    def strike(self) -> None:
        if not self.struck:
            self.struck = True
            strike(self.signal)

    def batches(
        self, opened: flow_table.OpenTable
    ) -> c.Iterator[tuple[int, memoryview, memoryview]]:
        for batch in super().batches(opened):
            if self.moment == "callback":  # as libbpf calls back
                values = (ctypes.c_int * 2)(2, 1)

                def compare(dummy_one: object, dummy_other: object) -> int:
                    self.strike()
                    return 0

                ctypes.CDLL(None).qsort(values, 2, ctypes.sizeof(ctypes.c_int), CALLBACK(compare))
            elif self.moment == "finalizer":

                class Gone:
                    def __del__(self, strike: t.Callable[[], None] = self.strike) -> None:
                        strike()

                Gone()
            elif self.moment == "system call":
                self.strike()
                with contextlib.suppress(OSError, KeyError):
                    os.stat("/nonexistent")
            yield batch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("output", ["", "json"])
@pytest.mark.parametrize("moment", ["callback", "finalizer", "system call"])
def test_while_the_table_is_read(moment: str, output: str, number: int) -> None:
    with Child(top(Moments(moment, number), output=output), terminal=not output) as child:
        assert child.status() == 128 + number


def test_where_curses_swallows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """curses.wrapper() has a bare except around start_color()."""

    def before() -> None:
        import curses

        monkeypatch.setattr(curses, "start_color", strike)

    with Child(top(before=before), terminal=True) as child:
        assert child.status() == 130


def test_between_the_look_and_the_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes after the last look at it, right before poll(2)."""
    asleep = select.poll

    class Late:
        def __init__(self) -> None:
            self._poll = asleep()

        def __getattr__(self, name: str) -> t.Any:
            return getattr(self._poll, name)

        def poll(self, milliseconds: int | None) -> t.Any:
            # the handler runs in this thread, which sleeps by then or is about to
            late = threading.Thread(target=strike)
            late.start()
            late.join()
            return self._poll.poll(milliseconds)

    def work() -> object:
        monkeypatch.setattr(select, "poll", Late)
        with stop.Stop() as ending:
            ending.wait(None)
            return ending.number

    with Child(work) as child:
        assert child.status() == signal.SIGINT


def traced(
    work: c.Callable[[], object],
    seen: set[tuple[str, int]],
    strike_at: tuple[str, int] | None = None,
) -> object:
    """Run it, and add the lines of ct top and of what ends it that it runs. It is interrupted as it
    comes to one of them.
    """
    modules = (ct_top, top_meter, top_output, top_screen, top_view, stop)
    files = {str(module.__file__) for module in modules}

    def trace(frame: t.Any, event: str, dummy: object) -> t.Any:
        if frame.f_code.co_filename not in files:
            return None
        where = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and where not in seen:
            seen.add(where)
            if where == strike_at:
                strike()
        return trace

    sys.settrace(trace)
    try:
        return work()
    finally:
        sys.settrace(None)


def test_at_each_line_of_the_loop(tmp_path: pathlib.Path) -> None:
    """ct top is interrupted once at each line that it runs from its beginning to its third read."""
    record = tmp_path / "lines"

    def count() -> object:
        seen: set[tuple[str, int]] = set()

        class Three(fakes.FakeTables):
            reads = 0

            def batches(self, opened: flow_table.OpenTable) -> c.Iterator[t.Any]:
                self.reads += 1
                if self.reads == 3:
                    record.write_text(
                        "\n".join(f"{file}:{line}" for file, line in sorted(seen)), "utf-8"
                    )
                    os._exit(0)
                return super().batches(opened)

        return traced(top(Three({"ctt": FLOWS}), interval="0.1"), seen)

    with Child(count, terminal=True) as child:
        assert child.status() == 0
    lines = [
        (file, int(line))
        for file, dummy, line in (
            one.rpartition(":") for one in record.read_text("utf-8").splitlines()
        )
    ]
    assert len(lines) > 80
    for start in range(0, len(lines), 16):
        with contextlib.ExitStack() as stack:
            some = [
                (
                    at,
                    stack.enter_context(
                        Child(functools.partial(traced, top(interval="0.1"), set(), at), True)
                    ),
                )
                for at in lines[start : start + 16]
            ]
            assert [(at, status) for at, child in some if (status := child.status(at)) != 130] == []


# ---------------------------------------------------------------- a reader that takes nothing
def test_a_write_that_blocks() -> None:
    """As in ``ct watch | less``, which takes nothing and does not mind Ctrl-C: the handler alone
    would let the write go on waiting.
    """
    reader, writer = os.pipe()

    def work() -> object:
        file = os.fdopen(writer, "wb", buffering=0)
        with stop.Stop() as ending:
            put = ending.guarded(writing(file), file)
            try:
                while True:
                    put(b"x" * 5000)
            except stop.Stopped as exc:
                return exc.status

    with Child(work) as child:
        deadline = time.monotonic() + SECONDS
        while stop.writable(writer) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGTERM)
        assert child.status() == 143
    os.close(reader)
    os.close(writer)


def test_what_is_still_taken_is_still_put() -> None:
    reader, writer = os.pipe()
    with stop.Stop() as ending, os.fdopen(writer, "wb", buffering=0) as file:
        put = ending.guarded(writing(file), file)
        strike()
        put(b"the end")
        assert ending and os.read(reader, 100) == b"the end"
    os.close(reader)


def test_all_is_as_it_was_afterwards() -> None:
    before = (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        signal.set_wakeup_fd(-1),
    )
    with stop.Stop() as ending:
        assert not ending and ending.wait(0.001) == {}
        began = time.monotonic()
        assert ending.wait(0.05) == {} and time.monotonic() - began > 0.04
    assert (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        signal.set_wakeup_fd(-1),
    ) == before


# ---------------------------------------------------------------- ct serve
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_while_it_begins_to_wait(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The signal comes while threading's own lock is held that a handler would take, and at the
    moment between looking and sleeping.
    """
    wait, polling, serving = threading.Condition.wait, select.poll, threading.Event()

    def struck(self: threading.Condition, timeout: float | None = None) -> bool:
        if serving.is_set() and threading.current_thread() is threading.main_thread():
            strike(number)
        return wait(self, timeout)

    def poll() -> t.Any:
        if serving.is_set() and threading.current_thread() is threading.main_thread():
            strike(number)
        return polling()

    def work() -> object:
        monkeypatch.setattr(threading.Condition, "wait", struck)
        monkeypatch.setattr(select, "poll", poll)
        http_server.serve(
            bpffs.Paths("/sys/fs/bpf/nothing_here"),
            service_options.Address(str(tmp_path / "s")),
            lambda dummy: serving.set(),
        )
        return 0

    with Child(work) as child:
        assert child.status() == 0
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- ct run
def service(tmp_path: pathlib.Path) -> ct_daemon.Service:
    paths = bpffs.Paths("/sys/fs/bpf/nothing_here", str(tmp_path / "state"))
    return ct_daemon.Service(service_options.Options(paths, address=None))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("side", ["parent", "child", "late"])
def test_run_while_the_chain_is_brought_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, side: str, number: int
) -> None:
    """The signal comes right at the fork, on either side of it, or while the compiler runs."""
    fork = os.fork

    def struck() -> int:
        pid = fork()
        if (side == "child") == (pid == 0) and side != "late":
            if side == "child":
                strike(number)
            else:
                os.kill(os.getpid(), number)
        return pid

    def work() -> object:
        def load(dummy: object) -> int:
            if side == "late":
                os.kill(os.getppid(), number)
            time.sleep(2 * SECONDS)
            return 0

        monkeypatch.setattr(os, "fork", struck)
        monkeypatch.setattr(ct_daemon, "load", load)
        return service(tmp_path).run()

    with Child(work) as child:
        # the child's own end is a failure to bring the chain back; of the parent it is the end that
        # was asked for
        assert child.status() == (1 if side == "child" else 0)


@pytest.mark.parametrize("moment", ["look", "sweep", "events"])
def test_run_in_its_turns(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def work() -> object:
        made = service(tmp_path)
        monkeypatch.setattr(made, "_bring_back", lambda: True)

        def struck(*dummy: object) -> float:
            strike(signal.SIGTERM)
            return 3600.0

        if moment == "look":
            monkeypatch.setattr(made, "_look", struck)
        elif moment == "sweep":
            made._due["sweep"] = 0.0
            monkeypatch.setattr(made, "_sweep", struck)
        else:
            read = link_events.LinkEvents.read

            def reading(events: link_events.LinkEvents) -> tuple[set[str], bool]:
                strike(signal.SIGTERM)
                return read(events)

            monkeypatch.setattr(link_events.LinkEvents, "read", reading)
        return made.run()

    with Child(work) as child:
        assert child.status() == 0


# ---------------------------------------------------------------- before all that
def test_the_archive_begins_with_what_no_import_drops(tmp_path: pathlib.Path) -> None:
    """While it imports, the kernel ends it; an exception would be dropped in the import system's
    own callbacks.
    """
    text = ct_content.content().modules["__main__.py"]
    package = tmp_path / "ebpf_conntrack"
    (package / "ct").mkdir(parents=True)
    (package / "ct/cli.py").write_text(
        "import os, signal, time, weakref\n"
        "class Module: pass\n"
        "one = Module()\n"
        "seen = weakref.ref(one, lambda dummy: os.kill(os.getpid(), signal.SIGINT))\n"
        "del one\n"  # the callback of a weak reference, as the locks of the import system have one
        "time.sleep(30)\n"
        "def main(**dummy): return 5\n",
        "utf-8",
    )
    (tmp_path / "__main__.py").write_text(text, "utf-8")

    def run(ignored: bool) -> c.Callable[[], object]:
        def work() -> object:
            signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
            os.execv(
                sys.executable,
                [
                    sys.executable,
                    "-I",
                    "-c",
                    f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{text}",
                ],
            )

        return work

    with Child(run(False)) as child:
        assert child.status() == -signal.SIGINT


def test_what_ends_by_itself_is_interrupted_by_an_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that it is undone; and what does not end takes the signal itself."""
    found: dict[str, object] = {}

    def see(args: arguments.Arguments) -> int:
        found[args.command] = signal.getsignal(signal.SIGINT)
        return 0

    commands = {name: command._replace(run=see) for name, command in cli.COMMANDS.items()}
    monkeypatch.setattr(cli, "COMMANDS", commands)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        for words in ("status", "top", "watch", "serve", "run", "gc"):
            assert cli.main([words]) == 0
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    raising, kernel = signal.default_int_handler, signal.SIG_DFL
    assert found == {
        "status": raising,
        "gc": raising,
        "top": kernel,
        "watch": kernel,
        "serve": kernel,
        "run": kernel,
    }
