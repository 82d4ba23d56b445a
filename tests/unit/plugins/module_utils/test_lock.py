# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time, and what the others say; no root, a temporary directory stands in."""

from __future__ import annotations

import collections.abc as c
import contextlib
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import clock, lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.errors import ConntrackError

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(directory: pathlib.Path) -> c.Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until the block ends."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


def test_the_lock_is_for_one(tmp_path: pathlib.Path) -> None:
    with lock.held(str(tmp_path)):
        with pytest.raises(ConntrackError, match="another run has the lock"):
            with lock.held(str(tmp_path), 0):
                pass
    with lock.held(str(tmp_path), 0):
        pass


def test_who_holds_it(tmp_path: pathlib.Path) -> None:
    before = time.time()
    with another_process(tmp_path) as process:
        for seconds, words in ((0, "holds it"), (0.2, "after 0.2 s process")):
            with pytest.raises(ConntrackError) as raised:
                with lock.held(str(tmp_path), seconds):
                    pass
            assert raised.value.message.startswith(f"{tmp_path}: another run has the lock: ") and words in raised.value.message
            found = re.search(rf"process {process.pid} \((.*)\), which runs since (\S+),", raised.value.message, re.DOTALL)
            assert found is not None and sys.executable in found.group(1) and "fcntl" in found.group(1)
            assert clock.utc(before - 2) <= found.group(2) <= clock.utc(time.time() + 2)
    with lock.held(str(tmp_path), 0):
        pass


def test_it_is_waited_for(tmp_path: pathlib.Path) -> None:
    with another_process(tmp_path) as process:
        threading.Timer(0.3, process.communicate).start()
        with lock.held(str(tmp_path), 30):
            assert process.poll() is not None or process.stdin is None or process.stdin.closed


def test_a_holder_that_is_not_seen(tmp_path: pathlib.Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert lock.holder(fd) == "a process that can not be seen from here"
    os.close(fd)
    assert lock.process(1 << 30) == f"process {1 << 30}, which has ended"


def test_a_directory_that_is_missing(tmp_path: pathlib.Path) -> None:
    where = tmp_path / "run"
    with pytest.raises(FileNotFoundError):
        with lock.held(str(where)):
            pass
    with lock.held(str(where), make=0o700):
        assert where.stat().st_mode & 0o777 == 0o700
        where.rmdir()


def test_a_directory_that_is_taken_away_and_made_again(tmp_path: pathlib.Path) -> None:
    where = tmp_path / "run"
    entered = threading.Event()

    def wait() -> None:
        with lock.held(str(where), 30, make=0o700):
            entered.set()
            assert where.is_dir()

    with lock.held(str(where), make=0o700):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        where.rmdir()
        where.mkdir()
        with lock.held(str(where), 0):  # the one that waits has the old directory, this one the new
            pass
        assert not entered.is_set()
    waiting.join(30)
    assert entered.is_set()


def test_a_bad_timeout(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConntrackError, match="lock_timeout: -1 is not valid: give the seconds"):
        with lock.held(str(tmp_path), -1):
            pass
