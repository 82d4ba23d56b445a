# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that systemd runs, in a container with this machine's own files, of which it changes
only copies.

It has its own PID 1, boot, journal and network; the kernel is this machine's. What it writes lies
in memory that goes with its supervisor, and outlives its reboots. Units are those of the
distribution and those that it is given, none of this machine's.

Run as a program this file is the supervisor, which mounts what the machine needs, where nobody else
sees it, and boots it again and again. It needs nothing but Python's own library.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import time

CGROUP = pathlib.Path("/sys/fs/cgroup")
#: systemd-nspawn(1): the machine asked for a reboot.
REBOOT = 133
#: What would take time at each boot, or needs a bus.
IDLE = (
    *(
        f"{name}.timer"
        for name in (
            "apt-daily",
            "apt-daily-upgrade",
            "e2scrub_all",
            "fstrim",
            "man-db",
            "dpkg-db-backup",
        )
    ),
    *(
        "getty.target",
        "console-getty.service",
        "systemd-logind.service",
        "dbus.socket",
        "dbus.service",
        "systemd-journal-flush.service",
    ),
)
#: What has no business in a container: this machine does it.
KERNELS = (
    *(
        "systemd-udevd.service",
        "systemd-udevd-control.socket",
        "systemd-udevd-kernel.socket",
        "systemd-udev-trigger.service",
    ),
    "systemd-modules-load.service",
)
#: What this machine has of its own, and of the collection if it is there, that the container starts
#: without. The directories are there, empty.
EMPTIED = ("etc/systemd/system", "var/log/journal")
HIDDEN = ("var/lib/ebpf_conntrack", "usr/local/bin/ct", "etc/fstab")
#: Mounts cgroup2 where the supervisor has it, kills what is in a control group, and removes it:
#: nobody else is in there.
_END = """
[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd "/sys/fs/cgroup/$1" 2>/dev/null || exit 0
echo 1 >cgroup.kill
for i in $(seq 200); do grep -q "^populated 0" cgroup.events && break; sleep 0.05; done
cd /sys/fs/cgroup
find "$1" -depth -type d -exec rmdir {} +
"""
PRIVATELY = ("unshare", "--mount", "--propagation", "private")


def end_group(group: str) -> None:
    """Kill whatever runs in a control group and those below it, and remove them; one that is not
    there is fine.
    """
    subprocess.run(
        [*PRIVATELY, "sh", "-c", _END, "sh", group], stdin=subprocess.DEVNULL, check=True
    )


def members(group: str, first: bool = False, below: bool = True) -> list[int]:
    """Return the processes in a control group and below it.

    :param first: only one that is PID 1 of a container.
    :param below: whether those below it count.
    """
    found = []
    for directory in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if re.search(
                f"/{group}{'(/|$)' if below else '$'}",
                (directory / "cgroup").read_text("utf-8"),
                re.MULTILINE,
            ):
                status = dict(
                    line.split(":", 1)
                    for line in (directory / "status").read_text("utf-8").splitlines()
                )
                if status["State"].split()[0] != "Z" and (
                    not first or status["NSpid"].split()[1:] == ["1"]
                ):
                    found.append(int(directory.name))
    return found


@dataclasses.dataclass
class Spec:
    """What the supervisor is told, in a file.

    :ivar group: the control group for all of it.
    :ivar hostname: the machine's name.
    :ivar files: text by path, from the root on; those of /etc/ssh can be read by root only.
    :ivar links: what symbolic links lead to, by their path.
    :ivar emptied: directories that are there and have nothing of this machine in them.
    :ivar hidden: what is not there.
    :ivar layers: directories whose files lie over this machine's.
    :ivar size: how much the machine may write, as tmpfs(5) has it.
    :ivar boot: a shell script that runs before each boot in the network namespace of that boot; $1
        is the hostname, @root@ the root directory.
    :ivar options: options of systemd-nspawn.
    :ivar writable: what systemd-nspawn takes as SYSTEMD_NSPAWN_API_VFS_WRITABLE.
    :ivar bpffs: whether each boot finds an empty BPF file system.
    :ivar command: what runs the machine in systemd-nspawn's place, with @root@ for its root
        directory; one that ends well is started again.
    :ivar stays: whether a machine that is off is started again when a file ``start`` appears; else
        all ends.
    """

    group: str
    hostname: str = "machine"
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)
    emptied: list[str] = dataclasses.field(default_factory=list)
    hidden: list[str] = dataclasses.field(default_factory=list)
    layers: list[str] = dataclasses.field(default_factory=list)
    size: str = "50%"
    boot: str = ":"
    options: list[str] = dataclasses.field(default_factory=list)
    writable: str = "yes"
    bpffs: bool = False
    command: list[str] = dataclasses.field(default_factory=list)
    stays: bool = False


class Container:
    """One such machine, seen from outside.

    :param directory: its own, with its specification; whoever has the directory can reach the
        machine.
    """

    def __init__(self, directory: pathlib.Path, spec: Spec | None = None) -> None:
        self.directory = directory
        if spec is not None:
            (directory / "files").mkdir(parents=True)
            (directory / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)), "utf-8")
        self.spec = Spec(**json.loads((directory / "spec.json").read_text("utf-8")))

    def launch(self, *through: str) -> subprocess.Popen[bytes]:
        """Start the supervisor.

        :param through: the start of the command line, for namespaces to run in.
        """
        argv = [
            *through,
            *PRIVATELY,
            sys.executable,
            os.path.abspath(__file__),
            str(self.directory),
        ]
        with (self.directory / "console.log").open("ab") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def console(self) -> str:
        """Return the end of what the machine wrote on its console."""
        return (self.directory / "console.log").read_text("utf-8", "replace")[-4000:]

    # ------------------------------------------------------------ boots
    def pid1(self) -> int:
        """Return the machine's first process; 0 while there is none."""
        return next(iter(members(self.spec.group, first=True)), 0)

    def boots(self) -> int:
        """Return how often it was booted."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.directory / "boots").read_text("ascii") or 0)
        return 0

    def off(self) -> bool:
        """Whether it is off and stays so until start() is called."""
        return (self.directory / "off").exists() and not (self.directory / "start").exists()

    def boot_id(self) -> str:
        """Return what PID 1 is known by: another one after each boot."""
        pid = self.pid1()
        return (
            f"{pid} {pathlib.Path(f'/proc/{pid}/stat').read_text('utf-8').split()[21]}"
            if pid
            else ""
        )

    def cut_power(self) -> None:
        """Let all processes of the machine die at once, and nothing else."""
        end_group(f"{self.spec.group}/{self.boots()}")

    def start(self) -> None:
        """Boot a machine that is off, where its specification has it stay."""
        (self.directory / "start").touch()

    def written(self) -> list[str]:
        """Return what the machine wrote, and took away, since it was first booted; from its root
        on. Of directories only those that are new.
        """
        supervisor = members(self.spec.group, below=False)[0]
        seen = pathlib.Path(f"/proc/{supervisor}/root")
        files = seen / str(self.directory / "files").lstrip("/")
        lower = [files / "own", *(seen / layer.lstrip("/") for layer in self.spec.layers), seen]
        paths = [path.relative_to(files / "upper") for path in (files / "upper").rglob("*")]
        return sorted(
            str(path)
            for path in paths
            if not (
                (files / "upper" / path).is_dir()
                and any((layer / path).is_dir() for layer in lower)
            )
        )

    # ------------------------------------------------------------ commands
    def argv(self, *words: str) -> list[str]:
        """Return the command line that runs a command inside."""
        return ["nsenter", "-t", str(self.pid1()), "-m", "-u", "-i", "-n", "-p", "-C", "--", *words]

    def run(
        self, *words: str, check: bool = True, stdin: str = "", cwd: str = "/", **environment: str
    ) -> str:
        """Run a command inside; return what it printed."""
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            **environment,
        }
        inside = ["env", "-C", cwd, *words] if cwd != "/" else words
        done = subprocess.run(
            self.argv(*inside), env=env, input=stdin, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


# ------------------------------------------------------------ the supervisor
def hide(layer: pathlib.Path, paths: c.Iterable[str], emptied: c.Iterable[str] = ()) -> None:
    """Make a directory of an overlay hide what lies below it.

    :param paths: what is not there any more; from the root on.
    :param emptied: directories that are there, with nothing in them.
    """
    for path in (*paths, *emptied):
        parents(layer, path)
        if path in emptied:
            (layer / path).mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(pathlib.Path("/") / path, layer / path)
            os.setxattr(layer / path, "trusted.overlay.opaque", b"y")
        else:
            # kernel's Documentation/filesystems/overlayfs.rst: a whiteout
            os.mknod(layer / path, 0o020000, os.makedev(0, 0))


def parents(layer: pathlib.Path, path: str) -> None:
    """Make the directories above a path, with the modes that this machine has for them; a symbolic
    link of this machine's is followed.
    """
    above = layer
    for part in pathlib.PurePath(path).parts[:-1]:
        above /= part
        if not above.is_dir():
            above.mkdir()
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(pathlib.Path("/") / above.relative_to(layer), above)


def _lay(layer: pathlib.Path, spec: Spec) -> None:
    """Write what the machine has of its own."""
    hide(layer, [*HIDDEN, *spec.hidden], [*EMPTIED, *spec.emptied])
    masks = {
        f"etc/systemd/system/{unit}": "/dev/null"
        for unit in (IDLE if spec.command else IDLE + KERNELS)
    }
    for path, target in {**masks, **spec.links}.items():
        parents(layer, path)
        (layer / path).symlink_to(target)
    for path, text in {"etc/machine-id": f"{secrets.token_hex(16)}\n", **spec.files}.items():
        parents(layer, path)
        (layer / path).write_text(text, "utf-8")
        (layer / path).chmod(
            0o600 if path.startswith(("etc/ssh/", "root/", "etc/shadow")) else 0o644
        )


def _mount(kind: str, where: pathlib.Path, options: str = "mode=755") -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(where)], check=True)


def mount_cgroups() -> None:
    """Have the one hierarchy of control groups where systemd wants it; for a mount namespace of
    one's own.
    """
    if (
        subprocess.run(
            ["stat", "-fc", "%T", CGROUP], check=True, capture_output=True, text=True
        ).stdout
        != "cgroup2fs\n"
    ):
        _mount("cgroup2", CGROUP, "rw")


def join(group: str) -> None:
    """Put this process into a control group, which is made."""
    (CGROUP / group).mkdir(parents=True, exist_ok=True)
    (CGROUP / group / "cgroup.procs").write_text("0", "ascii")


#: Runs in the network namespace of a boot, and becomes systemd-nspawn.
_BOOT = """
set -eu
script=$1 name=$2
shift 2
sh -euc "$script" sh "$name"
exec "$@"
"""


def _nspawn(files: pathlib.Path, spec: Spec) -> list[str]:
    """Return the command line that boots the machine as a container."""
    argv = [
        "systemd-nspawn",
        "--quiet",
        f"--directory={files}/root",
        f"--machine={spec.hostname}",
        f"--hostname={spec.hostname}",
        "--register=no",
    ]
    argv += [
        "--keep-unit",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--capability=all",
        "--system-call-filter=bpf perf_event_open",
    ]
    argv += ["--console=read-only", "--boot", *spec.options]
    return [*argv, f"--bind={files}/bpf:/sys/fs/bpf"] if spec.bpffs else argv


def supervise(directory: pathlib.Path) -> None:
    """Boot the machine as its specification says; ends when it is off for good."""
    container = Container(directory)
    spec = container.spec
    mount_cgroups()
    join(spec.group)
    pathlib.Path("/run/systemd").mkdir(exist_ok=True)
    _mount("tmpfs", pathlib.Path("/run/systemd"))
    files = directory / "files"
    _mount("tmpfs", files, f"mode=755,size={spec.size}")
    for name in ("own", "upper", "work", "root", "bpf"):
        (files / name).mkdir()
    _lay(files / "own", spec)
    lower = ":".join([str(files / "own"), *spec.layers, "/"])
    _mount(
        "overlay", files / "root", f"lowerdir={lower},upperdir={files}/upper,workdir={files}/work"
    )
    command = [word.replace("@root@", f"{files}/root") for word in spec.command] or _nspawn(
        files, spec
    )
    env = {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": spec.writable}
    boot = 0
    while True:
        boot += 1
        (directory / "boots").write_text(str(boot), "ascii")
        print(f"-- boot {boot}", flush=True)
        group = CGROUP / spec.group / str(boot)
        group.mkdir()
        if spec.bpffs:
            _mount("bpf", files / "bpf", "mode=700")
        enter = [
            "sh",
            "-euc",
            'echo 0 >"$0/cgroup.procs"; exec "$@"',
            str(group),
            "unshare",
            "--net",
        ]
        status = subprocess.run(
            [
                *enter,
                "sh",
                "-c",
                _BOOT,
                "sh",
                spec.boot.replace("@root@", f"{files}/root"),
                spec.hostname,
                *command,
            ],
            env=env,
            check=False,
        ).returncode
        print(f"-- boot {boot} ended: {status}", flush=True)
        if spec.bpffs:
            subprocess.run(["umount", files / "bpf"], check=True)
        subprocess.run(
            ["find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if status == (0 if spec.command else REBOOT):
            continue
        if not spec.stays:
            return
        (directory / "off").touch()
        while not (directory / "start").exists():
            time.sleep(0.05)
        (directory / "off").unlink()
        (directory / "start").unlink()


if __name__ == "__main__":
    supervise(pathlib.Path(sys.argv[1]))
