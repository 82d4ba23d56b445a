# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon ``ct run``: brings the chain back, attaches it where interfaces come back, and deletes
entries whose time is over.

One thread does all of it, in turns that end soon: it never waits for the lock, which it asks for
again a moment later, and it sweeps in slices. What is served to others is a Part with threads of
its own; it reads the tables without the lock, so it holds nothing up here.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import select
import signal
import subprocess
import time
import traceback
import typing as t

from ..attach import record as attach_record
from ..core import lock, stop
from ..core.errors import ConntrackError
from ..flows import delete as flow_delete
from ..flows import table as flow_table
from ..kernel import bpffs, bpffs_mount, link_events
from . import options as service_options
from . import sd_notify
from .http import server as http_server
from .options import UNIT, Options

#: How often to look whether what is written down changed, and whether namespaces came.
_LOOK_SECONDS = 1.0
#: How soon to look at a namespace whose name was just made, and to ask again for a lock that
#: another run has.
_SOON_SECONDS = 0.1
#: How often to attach what ought to be attached, although nothing was heard of it.
_CHECK_SECONDS = 60.0
#: Entries that one slice of a sweep deletes before others may have the lock.
_SLICE = 50_000
_FAILED, _NOTHING = 1, 3
_CLONE_NEWNS = 0x20000


@dataclasses.dataclass
class Sweeps:
    """What the sweeps did since the service started; one thread writes it, others read.

    :ivar count: how many sweeps were done.
    :ivar failures: how many could not be done.
    :ivar deleted: how many entries they deleted.
    :ivar seconds: how long they took, all together.
    :ivar last_seconds: how long the last one took.
    :ivar last_time: when it ended, in seconds since 1970; 0 before the first.
    """

    count: int = 0
    failures: int = 0
    deleted: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    last_time: float = 0.0


class Part(t.Protocol):
    """Something that runs beside the daemon's own work in threads of its own."""

    def start(self) -> object:
        """Begin; return when others can rely on it.

        :raises ConntrackError: it can not; the service ends.
        """

    def close(self) -> None:
        """End, without waiting for anybody for long."""


class _Http:
    """What answers over HTTP, from its start on."""

    def __init__(self, service: Service, address: service_options.Address) -> None:
        self._service, self._address = service, address
        self._server: http_server.Server | None = None

    def start(self) -> None:
        """Listen."""
        service = self._service
        self._server = http_server.Server(
            service.options.paths,
            self._address,
            service.sweeps,
            lambda line: sd_notify.log(sd_notify.WARNING, line),
        ).start()
        sd_notify.log(sd_notify.INFO, f"listening on {self._server.where}")

    def close(self) -> None:
        """End."""
        if self._server is not None:
            self._server.close()


def served(service: Service) -> tuple[Part, ...]:
    """Return what runs beside the daemon's own work."""
    return () if service.options.address is None else (_Http(service, service.options.address),)


class Service:
    """The daemon.

    :ivar sweeps: what its sweeps did.
    :ivar parts: what runs beside it.
    """

    def __init__(self, options: Options) -> None:
        service_options.check(options)
        self.options = options
        self.sweeps = Sweeps()
        self.parts = served(self)
        self._paths = options.paths
        self._ending = stop.Stop()
        self._recorded: tuple[int, int] | None = None
        self._wanted: list[dict[str, t.Any]] = []
        self._refused: dict[str, str] = {}
        self._sweep_error = ""
        self._due = {"look": 0.0, "attach": 0.0, "sweep": time.monotonic() + options.sweep_interval}

    # ------------------------------------------------------------ the whole
    def run(self) -> int:
        """Work until told to end; return the exit status."""
        with self._ending:
            status = self._work()
            if not status and self.options.on_stop == "remove" and not _starts_again():
                self._take_away()
        return status

    def _work(self) -> int:
        """Do all but the last: taking the chain away. Return the exit status."""
        with contextlib.ExitStack() as stack:
            events = stack.enter_context(link_events.LinkEvents())
            sd_notify.notify(STATUS="bringing the chain back")
            if not self._bring_back() and not self._ending:
                return _FAILED
            self._turn(events)
            try:
                for part in self.parts:
                    part.start()
                    stack.callback(part.close)
            except (ConntrackError, OSError) as exc:
                sd_notify.log(sd_notify.ERROR, str(exc))
                return _FAILED
            sd_notify.notify(READY=1)
            while not self._ending:
                self._wait(events)
                self._turn(events)
            sd_notify.notify(STOPPING=1)
        return 0

    def _wait(self, events: link_events.LinkEvents) -> None:
        """Wait for a signal, for a change of an interface, or until something is due."""
        watchdog = sd_notify.watchdog_seconds()
        seconds = min(
            [min(self._due.values()) - time.monotonic(), *([watchdog / 3] if watchdog else [])]
        )
        self._ending.wait(max(0.0, seconds), dict.fromkeys(events.files(), select.POLLIN))

    def _turn(self, events: link_events.LinkEvents) -> None:
        """Do what is due."""
        names, more = events.read()
        now = time.monotonic()
        if more or names & {item["name"] for item in self._wanted}:
            self._due["attach"] = now
        if more:
            self._due["look"] = now
        for name, work in (
            ("look", lambda: self._look(events, more)),
            ("attach", self._attach),
            ("sweep", self._sweep),
        ):
            if not self._ending and self._due[name] <= time.monotonic():
                self._due[name] = time.monotonic() + work()
        sd_notify.notify(WATCHDOG=1)

    # ------------------------------------------------------------ the chain
    def _bring_back(self) -> bool:
        """Load the chain elsewhere, since the compiler would stay in the memory of this process;
        return whether all is well.

        Under systemd a unit of its own does it: the kernel charges maps to the control group of
        whoever makes them, for as long as that lives, and this one has a bound.
        """
        unit = os.environ.get(service_options.RESTORE_VARIABLE, "")
        if not unit:
            return self._outcome(_forked(lambda: load(self._paths))) in (0, _NOTHING)
        try:
            asked = subprocess.Popen(
                ["systemctl", "--no-ask-password", "start", unit], stdin=subprocess.DEVNULL
            )
        except OSError as exc:
            sd_notify.log(sd_notify.ERROR, f"systemctl start {unit}: {exc.strerror}")
            return False
        asked.returncode = self._outcome(asked.pid)
        good = asked.returncode == 0
        if not good and not self._ending:
            sd_notify.log(
                sd_notify.ERROR, f"the chain cannot be brought back: journalctl -u {unit} says why"
            )
        return good

    def _outcome(self, pid: int) -> int:
        """Wait for a child, and end it when this process is told to end; return its exit status,
        negative for the signal that ended it.
        """
        with contextlib.ExitStack() as stack:
            fd = os.pidfd_open(pid)
            stack.callback(os.close, fd)
            self._ending.wait(None, {fd: select.POLLIN})
        if self._ending:
            os.kill(pid, signal.SIGTERM)  # it is there until it is waited for
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _take_away(self) -> None:
        from . import restore

        try:
            freed = restore.unload(self._paths)
        except (ConntrackError, OSError) as exc:
            sd_notify.log(sd_notify.ERROR, f"the chain could not be taken away: {exc}")
        else:
            sd_notify.log(
                sd_notify.NOTICE,
                f"the chain was taken away from {', '.join(freed) or 'no interface'}; the next"
                " start brings it back",
            )

    # ------------------------------------------------------------ interfaces
    def _look(self, events: link_events.LinkEvents, hurry: bool) -> float:
        """Follow what is written down, and the namespaces in it; return the seconds until the next
        look.
        """
        stamp = attach_record.interfaces_stamp(self._paths)
        if stamp != self._recorded:
            self._recorded, self._wanted = stamp, []
            self._refused.clear()
            try:
                self._wanted = attach_record.interfaces(self._paths)
            except (ConntrackError, OSError) as exc:
                # somebody else may have changed it: it is named, and nothing is attached by it
                self._complain("", str(exc))
            self._due["attach"] = 0.0
        if events.look({item["netns"] for item in self._wanted}):
            self._due["attach"] = 0.0
        return _SOON_SECONDS if hurry else _LOOK_SECONDS

    def _attach(self) -> float:
        """Attach what ought to be; return the seconds until the next time."""
        if not self._wanted or not os.path.isdir(self._paths.base):
            return _CHECK_SECONDS
        from . import restore

        try:
            done = restore.attach_again(self._paths, patience=0)
        except lock.Busy:
            return _SOON_SECONDS
        except (ConntrackError, OSError) as exc:
            self._complain("", str(exc))
            return _LOOK_SECONDS
        self._refused.pop("", None)
        for step in done.steps:
            sd_notify.log(sd_notify.NOTICE, f"{step.name}: {step.action}: {step.reason}")
        for warning in done.warnings:
            sd_notify.log(sd_notify.WARNING, warning)
        for name, why in done.refused.items():
            self._complain(name, why)
        self._refused = {name: why for name, why in self._refused.items() if name in done.refused}
        waiting = f", waiting for {', '.join(done.waiting)}" if done.waiting else ""
        sd_notify.notify(
            STATUS=(
                f"{len(self._wanted) - len(done.waiting) - len(done.refused)} of"
                f" {len(self._wanted)} interfaces run the chain{waiting}"
            )
        )
        return _CHECK_SECONDS

    def _complain(self, name: str, why: str) -> None:
        """Say what can not be done, once."""
        if self._refused.get(name) != why:
            self._refused[name] = why
            sd_notify.log(sd_notify.ERROR, why)

    # ------------------------------------------------------------ the sweep
    def _sweep(self) -> float:
        """Delete what is over; return the seconds until the next sweep."""
        start = time.monotonic()
        try:
            deleted = _SLICE
            while deleted >= _SLICE and not self._ending:
                deleted = self._slice()
                self.sweeps.deleted += deleted
                sd_notify.notify(WATCHDOG=1)
        except flow_table.NoChain:
            return float(self.options.sweep_interval)
        except lock.Busy:
            return _SOON_SECONDS
        except (ConntrackError, OSError) as exc:
            self.sweeps.failures += 1
            if self._sweep_error != str(exc):
                self._sweep_error = str(exc)
                sd_notify.log(sd_notify.ERROR, f"sweep: {exc}")
            return float(self.options.sweep_interval)
        self._sweep_error = ""
        self.sweeps.count += 1
        self.sweeps.last_seconds, self.sweeps.last_time = time.monotonic() - start, time.time()
        self.sweeps.seconds += self.sweeps.last_seconds
        return float(self.options.sweep_interval)

    def _slice(self) -> int:
        """Return how many entries a slice of a sweep deleted."""
        with flow_table.writing(self._paths.pin_root, 0) as tables:
            return flow_delete.sweep(tables, _SLICE, lambda: bool(self._ending))


def _forked(work: t.Callable[[], int]) -> int:
    """Do something in a child process, which signals end at once; return its id. Its exit status is
    what ``work`` returns.
    """
    # one that came before its handlers are its own would be noted, and nothing more
    signal.pthread_sigmask(signal.SIG_BLOCK, stop.NUMBERS)
    try:
        pid = os.fork()
        if pid:
            return pid
        status = _FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in stop.NUMBERS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stop.NUMBERS)
            status = work()
        except BaseException:
            sd_notify.log(sd_notify.ERROR, traceback.format_exc())
        finally:
            os._exit(status)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop.NUMBERS)


def _starts_again() -> bool:
    """Tell whether systemd ends this process to start it anew: the unit's job says so."""
    asked = ["systemctl", "list-jobs", "--no-legend", "--plain", UNIT]
    try:
        told = subprocess.run(
            asked,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=5,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return any(line.split()[1:3] == [UNIT, "restart"] for line in told.splitlines())


def mount(pin_root: str) -> None:
    """Mount the BPF file system where it is missing, for the whole machine: in the mount namespace
    of its first process, which that of a unit is not.

    :raises ConntrackError: where the kernel does not let it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/1/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(home, _CLONE_NEWNS) != 0:
            raise ConntrackError(
                f"entering the mount namespace of process 1: {os.strerror(ctypes.get_errno())}. Run"
                " as root."
            )
    finally:
        os.close(home)
    bpffs_mount.ensure_mounted(pin_root)


def load(paths: bpffs.Paths) -> int:
    """Bring the chain back and say so; return the exit status: 0, _NOTHING where it is not known
    what to bring back, or _FAILED.
    """
    from . import restore

    try:
        plan, have = restore.load(paths)
    except restore.NothingKept:
        sd_notify.log(
            sd_notify.NOTICE,
            f"no chain is written down in {paths.state_dir} for {paths.pin_root}; it is looked"
            " after once xdp_program has loaded one",
        )
        return _NOTHING
    except (ConntrackError, OSError) as exc:
        sd_notify.log(sd_notify.ERROR, f"the chain can not be brought back: {exc}")
        return _FAILED
    for step in plan:
        sd_notify.log(sd_notify.NOTICE, f"{step.action} {step.kind} {step.name}: {step.reason}")
    sd_notify.log(sd_notify.INFO, f"generation {have.generation} is loaded, digest {have.digest}")
    return 0
