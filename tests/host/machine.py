# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that systemd runs, for the time of a test: a container with this machine's own files, of which it changes only copies.

It has its own PID 1, boot, journal, network, and no BPF file system; the kernel is this machine's. What it writes lies in memory that goes with its
supervisor, and outlives its reboots. Units are those of the distribution and those that it is given, none of this machine's.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t

#: Runs in a mount namespace of its own; arguments: the directory for the machine's files, its name, a directory with units, options of systemd-nspawn.
_SUPERVISOR = r"""
set -eu
dir=$1 name=$2 units=$3
shift 3
[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd
mount -t tmpfs -o mode=755 tmpfs /run/systemd
mount -t tmpfs -o mode=755 tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" overlay "$dir/root"
cd "$dir/root"
rm -rf etc/systemd/system var/lib/ebpf_conntrack var/log/journal usr/local/bin/ct etc/machine-id etc/fstab
mkdir -p etc/systemd/system/multi-user.target.wants var/log/journal
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer man-db.timer dpkg-db-backup.timer getty.target console-getty.service \
  systemd-logind.service dbus.socket dbus.service systemd-journal-flush.service \
  systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service systemd-modules-load.service; do
  ln -s /dev/null "etc/systemd/system/$unit"
done
for unit in "$units"/*; do
  [ -e "$unit" ] || continue
  cp "$unit" etc/systemd/system/
  ln -s "../${unit##*/}" etc/systemd/system/multi-user.target.wants/
done
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes
boot=0
while :; do
  boot=$((boot + 1))
  mkdir -p "/sys/fs/cgroup/$name/$boot"
  status=0
  sh -c 'echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"; shift; exec "$@"' sh "$name/$boot" \
    unshare --net systemd-nspawn --quiet --directory="$dir/root" --machine="$name" --hostname=machine --register=no --keep-unit \
    --link-journal=no --resolv-conf=off --timezone=off --capability=all --system-call-filter='bpf perf_event_open' --console=read-only --boot "$@" || status=$?
  find "/sys/fs/cgroup/$name/$boot" -depth -type d -exec rmdir {} + || :
  [ "$status" = 133 ] || break  # systemd-nspawn(1): the machine asked for a reboot
done
"""
_SECONDS = 180
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Machine:
    """The machine; a context manager.

    :param units: the text of more units by name; they start with the machine.
    """

    def __init__(self, units: t.Mapping[str, str]) -> None:
        self.name = f"ctm{secrets.token_hex(3)}"
        self._units = units
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        with contextlib.ExitStack() as stack:
            directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.name}_"))
            stack.callback(shutil.rmtree, directory)
            for below in ("units", "files"):
                (directory / below).mkdir()
            for name, text in self._units.items():
                (directory / "units" / name).write_text(text, "utf-8")
            self._log = directory / "console.log"
            # the overlay has the files of one file system, and the machine has its own /tmp and /run
            elsewhere = ROOT.stat().st_dev != pathlib.Path("/").stat().st_dev or ROOT.parts[1] in ("tmp", "run")
            more = [f"--bind={ROOT}"] if elsewhere else []
            words = [str(directory / "files"), self.name, str(directory / "units"), *more]
            argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SUPERVISOR, "sh", *words]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            stack.callback(self._end)
            self.wait_until_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *dummy: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        """Kill all of it: by its control groups, which nobody else is in."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)  # first, so that it boots no more
        self._process.wait()
        # the cgroup file system is mounted where the supervisor was; this machine may have it elsewhere, or nowhere
        script = (
            '[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup; cd "/sys/fs/cgroup/$1" || exit 0; echo 1 >cgroup.kill;'
            'for i in $(seq 200); do grep -q "^populated 0" cgroup.events && break; sleep 0.05; done; cd ..; find "$1" -depth -type d -exec rmdir {} +'
        )
        subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", self.name], check=True)

    # ------------------------------------------------------------ boots
    def _pid1(self) -> int:
        """Return the machine's first process; 0 while there is none."""
        for directory in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if f"/{self.name}/" in (directory / "cgroup").read_text("utf-8"):
                    found = [line.split() for line in (directory / "status").read_text("utf-8").splitlines() if line.startswith("NSpid:")]
                    if found and found[0][2:] == ["1"]:
                        return int(directory.name)
        return 0

    def boot_id(self) -> str:
        """Return what PID 1 is known by: another one after each boot."""
        pid = self._pid1()
        return f"{pid} {pathlib.Path(f'/proc/{pid}/stat').read_text('utf-8').split()[21]}" if pid else ""

    def wait_until_up(self, before: str = "") -> None:
        """Wait until systemd has started all that is to start.

        :param before: boot_id() of the boot before.
        """
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.console()
            with contextlib.suppress(OSError):
                if self.boot_id() not in ("", before) and self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"):
                    return
            time.sleep(0.1)
        raise AssertionError(f"the machine does not start: {self.console()}")

    def reboot(self) -> None:
        """Let the machine reboot in order, and wait until it is up again."""
        before = self.boot_id()
        self.run("systemctl", "--no-block", "reboot")
        self.wait_until_up(before)

    def console(self) -> str:
        """Return the end of what the machine wrote on its console."""
        return self._log.read_text("utf-8", "replace")[-4000:]

    # ------------------------------------------------------------ commands
    def argv(self, *words: str) -> list[str]:
        """Return the command line that runs a command inside."""
        return ["nsenter", "-t", str(self._pid1()), "-m", "-u", "-i", "-n", "-p", "-C", "--", *words]

    def run(self, *words: str, check: bool = True, stdin: str = "", cwd: str = "/", **environment: str) -> str:
        """Run a command inside; return what it printed."""
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", **environment}
        inside = ["env", "-C", cwd, *words] if cwd != "/" else words
        done = subprocess.run(self.argv(*inside), env=env, input=stdin, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout
