# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ending what runs until it is told to end: SIGINT and SIGTERM as a state that is looked at, not as
an exception.

KeyboardInterrupt comes up wherever Python happens to be. Python drops it in a callback of ctypes,
in ``__del__``, in a callback of a weak reference (the import system has some) and in a bare
``except``, as curses.wrapper() has one. A handler that takes a lock deadlocks with the code that it
interrupted, if that holds it: threading.Event.set() does. And a signal that comes between a look at
a flag and the sleep after it is seen only when the sleep is over. So the handler here only notes
the signal, and the kernel's half of it writes to a pipe (signal.set_wakeup_fd) that whoever sleeps
waits for as well.
"""

from __future__ import annotations

import os
import select
import signal
import time
import typing as t

NUMBERS = (signal.SIGINT, signal.SIGTERM)
#: What stands for an error or an end in poll(2).
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Stopped(Exception):
    """The process was told to end.

    :ivar status: its exit status, as a shell has it for a process that a signal ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class Stop:
    """Takes the signals that end the process, also one that was ignored until now; a context
    manager of the main thread.

    :ivar number: the signal that came first; 0 as long as none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._reader = self._writer = -1
        self._before: list[tuple[int, t.Any]] = []
        self._wakeup_before = -1

    def __enter__(self) -> Stop:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # first the pipe: from the first handler on, a signal wakes whoever sleeps
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in NUMBERS:
            self._before.append((number, signal.signal(number, self._note) or signal.SIG_DFL))
        return self

    def __exit__(self, *dummy: object) -> None:
        while self._before:
            number, handler = self._before.pop()
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        for fd in (self._reader, self._writer):
            os.close(fd)

    def _note(self, number: int, dummy_frame: object) -> None:
        self.number = self.number or number

    def __bool__(self) -> bool:
        """Whether a signal came."""
        return bool(self.number)

    def check(self) -> None:
        """:raises Stopped: where a signal came."""
        if self.number:
            raise Stopped(self.number)

    def wait(
        self, seconds: float | None, files: t.Mapping[int, int] | None = None
    ) -> dict[int, int]:
        """Wait for a signal, for one of the files, or for that time to pass.

        :param seconds: None for ever.
        :param files: by descriptor, what poll(2) is to wait for.
        :return: what poll(2) found of the files.
        """
        end = None if seconds is None else time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        for fd, events in (files or {}).items():
            poll.register(fd, events)
        while not self.number:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            # rounded up: the last part of a millisecond would be spent in a busy loop
            found = dict(poll.poll(None if left is None else -int(-left * 1000 // 1)))
            if found.pop(self._reader, 0):
                os.read(self._reader, 4096)  # the handler runs before the next look at the number
            if found or left == 0:
                return found
        return {}

    def guarded(
        self, put: t.Callable[[bytes], None], file: t.IO[t.Any] | None
    ) -> t.Callable[[bytes], None]:
        """Return a function that puts as ``put`` does, and does not wait for a reader after a
        signal: a write that blocks would go on blocking.

        :param put: writes to ``file`` at once. It gets at most PIPE_BUF bytes, which a pipe that
            can be written takes without waiting (pipe(7)).
        :param file: where it has no descriptor, nobody has to wait for it.
        """
        try:
            fd = file.fileno() if file is not None else -1
        except OSError:
            fd = -1
        if fd < 0:
            return put

        def guarded(data: bytes) -> None:
            for at in range(0, len(data), select.PIPE_BUF):
                if not self.number:
                    self.wait(None, {fd: select.POLLOUT})
                if self.number and not writable(fd):
                    self.check()
                put(data[at : at + select.PIPE_BUF])

        return guarded


def writable(fd: int) -> bool:
    """Whether a file takes something at once; an error counts, for a write then tells of it."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def gone(events: int) -> bool:
    """Whether poll(2) told that nobody is at the other end."""
    return bool(events & _GONE)
