# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time, and what the others say; no root, a temporary directory stands in."""

from __future__ import annotations

import collections.abc as c
import contextlib
import fcntl
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import calendar, lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError

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
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
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
            assert (
                raised.value.message.startswith(f"{tmp_path}: another run has the lock: ")
                and words in raised.value.message
            )
            found = re.search(
                rf"process {process.pid} \((.*)\), which runs since (\S+),",
                raised.value.message,
                re.DOTALL,
            )
            assert (
                found is not None and sys.executable in found.group(1) and "fcntl" in found.group(1)
            )
            assert calendar.utc(before - 2) <= found.group(2) <= calendar.utc(time.time() + 2)
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


# ---------------------------------------------------------------- directories that others may read
#: Takes a lock as another user, where this one is root: flock(2) asks for no more than an open
#: file.
USER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
if os.geteuid() == 0:
    os.setresuid(*map(int, sys.argv[2].split(",")))
fcntl.flock(fd, fcntl.LOCK_SH if "shared" in sys.argv else fcntl.LOCK_EX)
if "left" in sys.argv and os.fork():
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""
ROOT, NOBODY = "0,0,0", "65534,65534,65534"


@contextlib.contextmanager
def user_holds(path: pathlib.Path, *words: str) -> c.Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", USER, str(path), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


@pytest.fixture
def shared(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory that every user may read, as /usr/local; the lock files lie beside it."""
    monkeypatch.setattr(lock, "RUN_DIR", str(tmp_path / "facts"), raising=False)
    made = tmp_path / "shared"
    made.mkdir()
    made.chmod(0o755)
    return made


def lock_files(shared: pathlib.Path) -> list[pathlib.Path]:
    return [
        path
        for path in (*shared.parent.glob("facts/*"), *shared.glob("*"), *shared.glob(".*"))
        if path.name.endswith(".lock")
    ]


@pytest.mark.parametrize(
    "words",
    [(NOBODY,), (NOBODY, "shared"), (NOBODY, "left"), ("65534,0,0",)],
    ids=["exclusive", "shared", "left to a child", "setuid"],
)
def test_no_user_can_block_a_run(shared: pathlib.Path, words: tuple[str, ...]) -> None:
    with user_holds(shared, *words):
        with lock.held(str(shared), 0):
            # among themselves they are one at a time as ever
            with pytest.raises(lock.Busy, match=f"process {os.getpid()} "):
                with lock.held(str(shared), 0):
                    pass


def test_a_run_of_an_older_release_is_waited_for_and_named(
    shared: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        monkeypatch.setattr(lock, "_is_roots", lambda pid: True)
    with user_holds(shared, ROOT) as process:
        with pytest.raises(
            lock.Busy,
            match=(
                rf"(?s)shared: another run has the lock: after 0.1 s process {process.pid}"
                r" \(.*fcntl"
            ),
        ):
            with lock.held(str(shared), 0.1):
                pass
        assert lock_files(shared) == [], "who waited for nothing leaves nothing"
        threading.Timer(0.2, process.communicate).start()
        with lock.held(str(shared), 30):
            assert process.stdin is None or process.stdin.closed


@pytest.mark.parametrize("reader", [False, True])
def test_a_run_of_an_older_release_does_not_begin_beside_one(
    shared: pathlib.Path, reader: bool
) -> None:
    """Not where a user has a shared lock there either."""
    with contextlib.ExitStack() as stack:
        if reader:
            stack.enter_context(user_holds(shared, NOBODY, "shared"))
        fd = os.open(shared, os.O_RDONLY)
        stack.callback(os.close, fd)
        with lock.held(str(shared), 0):
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not reader:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_lock_is_a_file_that_only_its_user_can_open(shared: pathlib.Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with lock.held(str(shared), 0):
            (path,) = lock_files(shared)
            assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_uid == os.geteuid()
            assert path.parent.stat().st_mode & 0o022 == 0
            assert os.geteuid() != 0 or list(shared.iterdir()) == [], (
                "nothing lies where a file has a meaning, as in /run/netns"
            )
    finally:
        os.umask(before)
    assert lock_files(shared) == [] and not (shared.parent / "facts").exists()


def test_the_directory_of_the_lock_files_can_be_locked_too(shared: pathlib.Path) -> None:
    facts = shared.parent / "facts"
    with lock.held(str(facts), 0, make=0o755):
        (facts / "mine").touch()
        with pytest.raises(lock.Busy):
            with lock.held(str(facts), 0):
                pass
        (facts / "mine").unlink()
    assert not facts.exists()


def test_what_a_killed_run_left_goes_with_the_next_lock(
    shared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "facts").mkdir(mode=0o755)
    (tmp_path / "facts/other-0123456789abcdef.lock").touch()
    (tmp_path / "facts/used-0123456789abcdef.lock").touch()
    with user_holds(tmp_path / "facts/used-0123456789abcdef.lock", ROOT):
        with lock.held(str(shared), 0):
            pass
        lock.tidy()
        assert [path.name for path in (tmp_path / "facts").iterdir()] == [
            "used-0123456789abcdef.lock"
        ]
    lock.tidy()
    assert not (tmp_path / "facts").exists()


def test_a_symbolic_link_is_another_name_of_the_same(
    shared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "link").symlink_to(shared)
    with lock.held(str(tmp_path / "link"), 0):
        with pytest.raises(lock.Busy):
            with lock.held(str(shared), 0):
                pass


def test_a_shared_directory_that_is_made_again_meanwhile(shared: pathlib.Path) -> None:
    """Both its lock file and the directory are what they were called."""
    done: list[int] = []

    def work(number: int) -> None:
        with lock.held(str(shared), 30, make=0o755):
            done.append(number)
            assert shared.is_dir()
            shared.rmdir()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == list(range(8)) and not shared.exists() and lock_files(shared) == []


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_directory_that_others_may_write_is_not_locked(shared: pathlib.Path, mode: int) -> None:
    """It could be another one by the time that the run works in it."""
    if os.geteuid() == 0:
        os.chown(shared, 0, 12345)
    shared.chmod(mode)
    who = "every user" if mode == 0o777 else "the group "
    with pytest.raises(
        ConntrackError,
        match=(
            f"{shared}: {who}.*may write to it, and root trusts what is there. .* chmod go-w"
            f" {shared}, or remove it"
        ),
    ):
        with lock.held(str(shared), 0):
            pass
    shared.chmod(0o1777)  # as /tmp
    with lock.held(str(shared), 0):
        pass
