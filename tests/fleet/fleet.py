# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of hosts on this machine, to try playbooks on: each is booted by a systemd of its own,
and is reached by SSH only.

    python tests/fleet/fleet.py up 3            boot hosts h01 to h03 and wait until they answer
    python tests/fleet/fleet.py up-vm           boot v01 too, a virtual machine with Debian's kernel
    python tests/fleet/fleet.py run CMD...      run a command (ansible-playbook) that reaches them
    python tests/fleet/fleet.py inventory       write their inventory and print its path
    python tests/fleet/fleet.py ssh HOST CMD... run a command on a host
    python tests/fleet/fleet.py reboot HOST     an orderly reboot
    python tests/fleet/fleet.py reset HOST      a power cut, and power again
    python tests/fleet/fleet.py poweroff HOST   an orderly end; start HOST boots it
    python tests/fleet/fleet.py crash HOST      a power cut; start HOST boots it
    python tests/fleet/fleet.py partition HOST  cut it off silently; heal HOST ends that
    python tests/fleet/fleet.py fill HOST       fill its disk; empty HOST makes room again
    python tests/fleet/fleet.py console HOST    what it wrote on its console
    python tests/fleet/fleet.py status          one line a host
    python tests/fleet/fleet.py down            end it all
    python tests/fleet/fleet.py leaks           what is left of it; fails when anything is

A host has a network namespace with the interface eth0 to the management network, and eth1 and eth2,
which are like wires (no offloads), to two data networks. The networks are bridges in a network
namespace of the fleet; this machine has no address in them. A host's files are this machine's at
first, without the project, home directories and /usr/local; what it writes is in memory, and
outlives reboots. One can log in as root, and as ops, who may become root with sudo. The kernel is
this machine's. BCC is there where this machine has it; with ``up --bare`` compilers, kernel headers
and BCC are not.
"""

from __future__ import annotations

import argparse
import collections.abc as c
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import typing as t

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / ".ansible/collections"))

from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.tests.fleet import vm
from ansible_collections.ebpf.conntrack.tests.host import container

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: OpenSSH's server and sudo, and what they need, as files: tests/tools/setup.sh lays them there.
SERVERS = ROOT / ".ansible/fleet/servers"
#: Somebody on the hosts besides root, who may become root.
USER, USER_ID = "ops", 1000
SECONDS = 120
VM_SECONDS = 600
SIZE = "192m"
NET, DATA = "10.231.0", "10.232"
DATA_NICS = 2
#: A cut host is reported in seconds: keepalives that are not answered end a connection, and new
#: ones are not waited for longer.
SSH_ARGS = (
    "-o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=3 -o ServerAliveCountMax=3"
)
#: What hosts do without when they are bare, as packages.
COMPILERS = (
    *(
        "*bpfcc*",
        "clang*",
        "libclang*",
        "llvm*",
        "libllvm*",
        "gcc*",
        "cpp*",
        "g++*",
        "tcc",
        "binutils*",
        "make",
    ),
    *(
        "linux-libc-dev",
        "linux-headers-*",
        "linux-kbuild-*",
        "libbpf-dev",
        "libc6-dev",
        "libgcc-*-dev",
        "libstdc++-*-dev",
    ),
)
#: inotify instances of a host; all hosts of a machine share its limit.
INOTIFY = pathlib.Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_BEFORE = pathlib.Path("/run/ebpf_conntrack_fleet.inotify")
INOTIFY_HOST = 16
SSHD_CONFIG = """\
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM yes
UseDNS no
MaxStartups 100:30:200
HostKey /etc/ssh/ssh_host_ed25519_key
Subsystem sftp /usr/lib/openssh/sftp-server
"""
#: The fleet's network namespace. A cut loses frames both ways and leaves the carrier; the
#: controller's own go through input and output.
SWITCH = """
set -eu
ip link set lo up
for name in mgmt data1 data2; do
  ip link add name "$name" type bridge forward_delay 0 mcast_snooping 0
  ip link set "$name" up
done
ip addr add "$1" dev mgmt
nft -f - <<E
table bridge fleet {
  set cut { type ifname; }
  chain input { type filter hook input priority 0; iifname @cut drop; }
  chain forward { type filter hook forward priority 0; iifname @cut drop; oifname @cut drop; }
  chain output { type filter hook output priority 0; oifname @cut drop; }
}
E
"""
#: What a host finds plugged in when it boots; @switch@, @pass@, @user@ and @name@ are filled in.
#: A veth takes what XDP sends back only where its far end has a program itself.
WIRES = """
chown -R @user@:@user@ @root@/home/@name@
switch="nsenter --net=/proc/@switch@/ns/net"
for number in 0 1 2; do
  port="$1_$number" bridge="data$number"
  [ $number != 0 ] || bridge=mgmt
  $switch ip link del "$port" 2>/dev/null || :
  ip link add "eth$number" address "02:fe:0$number:00:00:${1#h}" numrxqueues 2 numtxqueues 2 \\
    type veth peer name "$port" netns @switch@
  $switch ip link set "$port" master "$bridge" up
  if [ $number != 0 ]; then
    ethtool -K "eth$number" tx off tso off gso off >/dev/null
    $switch ip link set "$port" xdpdrv pinned @pass@
  fi
done
"""


class FleetError(Exception):
    """A fleet that does not do what it is told."""


class Fleet:
    """A fleet, by its directory; what one process boots another can use, and end."""

    def __init__(self, directory: pathlib.Path = ROOT / "build/fleet") -> None:
        self.directory = directory
        self.name = f"ctf{hashlib.sha256(str(directory).encode()).hexdigest()[:6]}"
        self.key = directory / "key"
        #: How long up() took.
        self.seconds = 0.0

    # ------------------------------------------------------------ what there is
    def hosts(self) -> list[str]:
        """Return the names of the hosts, in order."""
        return sorted(path.parent.name for path in self.directory.glob("hosts/*/spec.json"))

    def host(self, name: str) -> container.Container:
        """Return a host as a container; tests of what users do reach it by ssh() instead.

        :raises FleetError: there is none of this name.
        """
        if name not in self.hosts():
            raise FleetError(
                f"there is no host {name!r}; there are {', '.join(self.hosts()) or 'none'}"
            )
        return container.Container(self.directory / "hosts" / name)

    @staticmethod
    def address(name: str, network: int = 0) -> str:
        """Return a host's IPv4 address.

        :param network: 0 is the management network, 1 and 2 are the data networks.
        """
        number = (10 if name.startswith("h") else 200) + int(name[1:])
        return f"{DATA}.{network}.{number}" if network else f"{NET}.{number}"

    def _holder(self) -> int:
        found = container.members(f"{self.name}/hold")
        if not found:
            raise FleetError("there is no fleet: boot one with up")
        return min(found)

    # ------------------------------------------------------------ up and down
    def up(self, count: int, bare: bool = False, size: str = SIZE) -> float:
        """Boot hosts that are not there yet and wait until they answer.

        :param count: how many there shall be at least.
        :param bare: whether new hosts have neither compilers nor BCC nor kernel headers.
        :param size: how much a new host can write on its disk, which is memory; as tmpfs(5) has it.
        :return: the seconds that took.
        :raises FleetError: with the console of one that does not answer.
        """
        started = time.monotonic()
        if not container.members(f"{self.name}/hold"):
            self.down()
            self._begin()
        holder = self._holder()
        self._raise_inotify(count)
        names = [f"h{number:02}" for number in range(1, count + 1)]
        for name in names:
            if name not in self.hosts():
                made = container.Container(
                    self.directory / "hosts" / name, self._spec(name, holder, bare, size)
                )
                made.launch("nsenter", "-t", str(holder), "--mount", "--")
                self._until(name, lambda host: host.boots() > 0)
        self._write_known_hosts()
        self.inventory()
        self.wait(*names)
        self.seconds = time.monotonic() - started
        return self.seconds

    def _begin(self) -> None:
        (self.directory / "hosts").mkdir(parents=True)
        for name in ("shared", "bpf", "cp", "keys"):
            (self.directory / name).mkdir()
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleet", "-f", self.key],
            check=True,
        )
        argv = [
            *container.PRIVATELY,
            "--net",
            sys.executable,
            os.path.abspath(__file__),
            "--directory",
            str(self.directory),
            "hold",
        ]
        with (self.directory / "hold.log").open("wb") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        while not (self.directory / "ready").exists():
            if process.poll() is not None:
                raise FleetError((self.directory / "hold.log").read_text("utf-8"))
            time.sleep(0.02)

    def hold(self) -> None:
        """Keep the fleet's network and what its hosts share, in namespaces of this process; never
        returns.
        """
        if not SERVERS.exists():
            sys.exit(f"{SERVERS} is missing: run tests/tools/setup.sh fleet")
        container.mount_cgroups()
        container.join(f"{self.name}/control")
        container.join(f"{self.name}/hold")
        subprocess.run(["sh", "-c", SWITCH, "sh", f"{NET}.1/24"], check=True)
        for kind, where in (("tmpfs", "shared"), ("bpf", "bpf")):
            subprocess.run(["mount", "-t", kind, kind, self.directory / where], check=True)
        with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "fleet_pass")) as program:
            bpf.obj_pin(program, str(self.directory / "bpf/pass"))
        # an overlay takes no layer that lies in another one
        shutil.copytree(
            SERVERS,
            self.directory / "shared/servers",
            symlinks=True,
            ignore=lambda *dummy: [".complete"],
        )
        (self.directory / "shared/bare").mkdir()
        container.hide(self.directory / "shared/bare", compilers())
        (self.directory / "ready").touch()
        while True:
            signal.pause()

    def up_vm(self, name: str = "v01", seconds: float = VM_SECONDS) -> float:
        """Boot a virtual machine with the distribution's kernel besides, which has the same files,
        and wait until it answers.

        :return: the seconds that took.
        :raises FleetError: with the console of one that does not answer.
        """
        self.up(0)
        started = time.monotonic()
        holder = self._holder()
        if name not in self.hosts():
            addresses = [self.address(name, number) for number in range(1 + DATA_NICS)]
            spec = vm.spec(self._spec(name, holder, False, "1g"), self.directory, holder, addresses)
            made = container.Container(self.directory / "hosts" / name, spec)
            made.launch("nsenter", "-t", str(holder), "--mount", "--")
            self._until(name, lambda host: host.boots() > 0)
        self._write_known_hosts()
        self.inventory()
        self.wait(name, seconds=seconds)
        return time.monotonic() - started

    def _spec(self, name: str, holder: int, bare: bool, size: str) -> container.Spec:
        key = self.directory / "keys" / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True
        )
        files = {
            "etc/hostname": f"{name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n",
            "etc/ssh/sshd_config": SSHD_CONFIG,
            "etc/ssh/ssh_host_ed25519_key": key.read_text("utf-8"),
            **{
                f"{home}/.ssh/authorized_keys": self.key.with_suffix(".pub").read_text("utf-8")
                for home in ("root", f"home/{USER}")
            },
            f"etc/sudoers.d/{USER}": f"{USER} ALL=(ALL) NOPASSWD: ALL\n",
            "etc/systemd/journald.conf": (
                "[Journal]\nStorage=persistent\nSystemMaxUse=32M\nRateLimitIntervalSec=0\n"
            ),
            "etc/passwd": with_users(pathlib.Path("/etc/passwd").read_text("utf-8")),
        }
        # hier(7)
        files.update(
            (f"usr/local/{name}/.keep", "")
            for name in ("bin", "etc", "lib", "sbin", "share/man", "src")
        )
        if bare:
            files["var/lib/dpkg/status"] = without_compilers(
                pathlib.Path("/var/lib/dpkg/status").read_text("utf-8")
            )
        for number in range(1 + DATA_NICS):
            required = "" if number == 0 else "RequiredForOnline=no\n"
            text = (
                f"[Match]\nName=eth{number}\n[Link]\n{required}"
                f"[Network]\nAddress={self.address(name, number)}/24\n"
                "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
            )
            files[f"etc/systemd/network/10-eth{number}.network"] = text
        wanted = {
            "multi-user.target": ["ssh.service", "systemd-networkd.service"],
            "network-online.target": ["systemd-networkd-wait-online.service"],
        }
        wires = WIRES
        for word, value in {
            "switch": holder,
            "pass": self.directory / "bpf/pass",
            "user": USER_ID,
            "name": USER,
        }.items():
            wires = wires.replace(f"@{word}@", str(value))
        return container.Spec(
            group=f"{self.name}/{name}",
            hostname=name,
            files=files,
            links={
                f"etc/systemd/system/{target}.wants/{unit}": f"/lib/systemd/system/{unit}"
                for target, units in wanted.items()
                for unit in units
            },
            emptied=["root", "home", "usr/local", "var/tmp", "etc/ssh", "etc/systemd/network"],
            hidden=(
                [] if ROOT.parts[1] in ("root", "home", "tmp", "run") else [str(ROOT).lstrip("/")]
            ),
            layers=[
                str(self.directory / "shared" / layer)
                for layer in (["bare", "servers"] if bare else ["servers"])
            ],
            size=size,
            boot=wires,
            writable="network",
            bpffs=True,
            stays=True,
        )

    def _write_known_hosts(self) -> None:
        lines = []
        for name in self.hosts():
            kind, key = (self.directory / "keys" / f"{name}.pub").read_text("utf-8").split()[:2]
            lines.append(f"{self.address(name)} {kind} {key}\n")
        (self.directory / "known_hosts").write_text("".join(lines), "utf-8")

    def down(self) -> None:
        """End all of it; what is not there is fine."""
        container.end_group(self.name)
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self._put_back_inotify()

    def leaks(self) -> list[str]:
        """Return what is left of the fleet, a line each."""
        found = [f"process {pid}" for pid in container.members(self.name)]
        mounts = pathlib.Path("/proc/self/mounts").read_text("utf-8").splitlines()
        found += [
            f"mount {line.split()[1]}"
            for line in mounts
            if line.split()[1].startswith(f"{self.directory}/")
        ]
        found += [f"directory {self.directory}"] if self.directory.exists() else []
        found += [f"limit {INOTIFY_BEFORE}"] if INOTIFY_BEFORE.exists() and not fleets() else []
        return found

    @staticmethod
    def _raise_inotify(count: int) -> None:
        with _inotify_lock():
            before = int(INOTIFY.read_text("ascii"))
            want = 128 + INOTIFY_HOST * count
            if before < want:
                if not INOTIFY_BEFORE.exists():
                    INOTIFY_BEFORE.write_text(str(before), "ascii")
                INOTIFY.write_text(str(want), "ascii")

    @staticmethod
    def _put_back_inotify() -> None:
        """The last fleet puts the machine's limit back."""
        with _inotify_lock():
            if INOTIFY_BEFORE.exists() and not fleets():
                INOTIFY.write_text(INOTIFY_BEFORE.read_text("ascii"), "ascii")
                INOTIFY_BEFORE.unlink()

    # ------------------------------------------------------------ reaching the hosts
    def argv(self, *words: str) -> list[str]:
        """Return the command line that runs a command where hosts can be reached; what it leaves
        running ends with the fleet.
        """
        holder = self._holder()
        join = f"echo 0 >/proc/{holder}/root/sys/fs/cgroup/{self.name}/control/cgroup.procs"
        return [
            "sh",
            "-euc",
            f'{join}; exec nsenter --net=/proc/{holder}/ns/net -- "$@"',
            "sh",
            *words,
        ]

    def ssh_argv(self, name: str, *words: str) -> list[str]:
        """Return the command line that runs a command on a host; its words are quoted."""
        options = [
            f"UserKnownHostsFile={self.directory}/known_hosts",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
        ]
        options += ["ServerAliveInterval=3", "ServerAliveCountMax=3", "BatchMode=yes"]
        argv = [
            "ssh",
            "-F",
            "none",
            "-i",
            str(self.key),
            *(word for option in options for word in ("-o", option)),
            f"root@{self.address(name)}",
        ]
        return self.argv(*argv, shlex.join(words))

    def ssh(self, name: str, *words: str, check: bool = True, stdin: str = "") -> str:
        """Run a command on a host, by SSH; return what it printed."""
        done = subprocess.run(
            self.ssh_argv(name, *words), input=stdin, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise FleetError(
                f"{name}: {shlex.join(words)}: status {done.returncode}: {done.stdout}{done.stderr}"
            )
        return done.stdout

    def inventory(self) -> pathlib.Path:
        """Write the inventory; return its path."""
        options = (
            f"-o UserKnownHostsFile={self.directory}/known_hosts -o StrictHostKeyChecking=yes -o"
            " IdentitiesOnly=yes"
        )
        content = {
            "fleet": {
                "hosts": {name: {"ansible_host": self.address(name)} for name in self.hosts()},
                "vars": {
                    "ansible_user": "root",
                    "ansible_ssh_private_key_file": str(self.key),
                    "ansible_ssh_common_args": options,
                    "ansible_ssh_args": SSH_ARGS,
                    "ansible_control_path_dir": str(self.directory / "cp"),
                    "ansible_ssh_pipelining": True,
                    "ansible_python_interpreter": "/usr/bin/python3",
                },
            }
        }
        path = self.directory / "inventory.yml"
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")  # which is YAML
        return path

    def wait(self, *names: str, seconds: float = SECONDS) -> None:
        """Wait until hosts answer.

        :raises FleetError: with the console of one that does not.
        """
        with open(f"/proc/{self._holder()}/ns/net", "rb") as namespace:
            for name in self._missing(namespace.fileno(), names, time.monotonic() + seconds):
                raise FleetError(
                    f"{name} does not answer within {seconds:g} s: {self.host(name).console()}"
                )

    def _missing(self, namespace: int, names: c.Sequence[str], deadline: float) -> list[str]:
        left = list(names)

        def watch() -> None:
            """In a thread, for it alone changes its namespace."""
            if ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
                return
            while (
                left
                and time.monotonic() < deadline
                and not any(self.host(name).off() for name in left)
            ):
                left[:] = [name for name in left if not answers(self.address(name))]
                time.sleep(0.05)

        thread = threading.Thread(target=watch)
        thread.start()
        thread.join()
        return left

    # ------------------------------------------------------------ what befalls hosts
    def reboot(self, *names: str) -> None:
        """Let hosts reboot in order, all at once, and wait until they answer again."""
        self._again(names, lambda name: self.ssh(name, "systemctl", "reboot", check=False))

    def reset(self, *names: str) -> None:
        """Cut the power of hosts and switch it on again, and wait until they answer."""

        def cut(name: str) -> None:
            self.host(name).start()
            self.host(name).cut_power()

        self._again(names, cut)

    def _again(self, names: c.Sequence[str], what: c.Callable[[str], object]) -> None:
        before = {name: self.host(name).boots() for name in names}
        for name in names:
            what(name)
        for name in names:
            self._until(name, lambda host: host.boots() > before[host.spec.hostname])
        self.wait(
            *names, seconds=VM_SECONDS if any(name.startswith("v") for name in names) else SECONDS
        )

    def poweroff(self, *names: str) -> None:
        """Let hosts end in order; they stay off."""
        for name in names:
            self.ssh(name, "systemctl", "poweroff", check=False)
        for name in names:
            self._until(name, container.Container.off)

    def crash(self, *names: str) -> None:
        """Cut the power of hosts; they stay off."""
        for name in names:
            self.host(name).cut_power()
            self._until(name, container.Container.off)

    def start(self, *names: str) -> None:
        """Boot hosts that are off, and wait until they answer."""
        self._again(names, lambda name: self.host(name).start())

    def _until(self, name: str, what: c.Callable[[container.Container], bool]) -> None:
        host, deadline = self.host(name), time.monotonic() + SECONDS
        while not what(host):
            if time.monotonic() > deadline:
                raise FleetError(f"{name}: {host.console()}")
            time.sleep(0.02)

    def partition(self, name: str, networks: c.Sequence[int] = (0,)) -> None:
        """Lose silently what goes to a host and comes from it, on the management network unless
        others are named.
        """
        self._cut("add", name, networks)

    def heal(self, name: str, networks: c.Sequence[int] = (0,)) -> None:
        """End a partition()."""
        self._cut("delete", name, networks)

    def _cut(self, verb: str, name: str, networks: c.Sequence[int]) -> None:
        self.host(name)
        ports = ", ".join(f"{name}_{network}" for network in networks)
        subprocess.run(
            self.argv("nft", verb, "element", "bridge", "fleet", "cut", f"{{ {ports} }}"),
            check=True,
        )

    def fill(self, name: str) -> None:
        """Fill a host's disk to the last byte."""
        self.ssh(name, "sh", "-c", "cat /dev/zero >/var/tmp/fill 2>/dev/null", check=False)

    def empty(self, name: str) -> None:
        """Give a host its room back."""
        self.ssh(name, "rm", "-f", "/var/tmp/fill")

    def work(self, name: str) -> float:
        """Return how much processor time a host has taken since it was first booted, in seconds."""
        stat = pathlib.Path(
            f"/proc/{self._holder()}/root/sys/fs/cgroup/{self.name}/{name}/cpu.stat"
        ).read_text("ascii")
        return int(dict(line.split() for line in stat.splitlines())["usage_usec"]) / 1e6

    def status(self) -> list[str]:
        """Return a line for each host."""
        return [
            f"{name} {self.address(name)} {'on' if self.host(name).pid1() else 'off'}, boot"
            f" {self.host(name).boots()}"
            for name in self.hosts()
        ]


def fleets() -> list[int]:
    """Return the processes that hold a fleet on this machine, whoever made it."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if re.search(r"/ctf[0-9a-f]{6}/hold$", path.read_text("utf-8"), re.MULTILINE):
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def _inotify_lock() -> c.Iterator[None]:
    with open("/run/lock/ebpf_conntrack_fleet", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def answers(address: str) -> bool:
    """Whether an SSH server says its name there."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, 22), timeout=2) as connection,
    ):
        return connection.recv(4) == b"SSH-"
    return False


def with_users(passwd: str) -> str:
    """Return the users of a machine, and USER and that of OpenSSH's server among them."""
    kept = [
        line
        for line in passwd.splitlines()
        if line.split(":")[0] != USER and line.split(":")[2:3] != [str(USER_ID)]
    ]
    used = {int(line.split(":")[2]) for line in kept if line.count(":") == 6}
    if not any(line.startswith("sshd:") for line in kept):
        free = next(number for number in range(100, 1000) if number not in used)
        kept.append(f"sshd:x:{free}:65534::/run/sshd:/usr/sbin/nologin")
    return "\n".join([*kept, f"{USER}:*:{USER_ID}:{USER_ID}::/home/{USER}:/bin/sh", ""])


def _is_compiler(package: str) -> bool:
    return any(pathlib.PurePath(package).match(pattern) for pattern in COMPILERS)


def compilers() -> list[str]:
    """Return the files of this machine's compilers, BCC and kernel headers, from the root on."""
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}:${Architecture}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    packages = [
        name.removesuffix(":all") for name in listed if _is_compiler(name.partition(":")[0])
    ]
    if not packages:
        return []
    files = subprocess.run(
        ["dpkg-query", "-L", *packages], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    real = {
        os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        for path in files
        if path.startswith("/")
    }
    found = {
        path.lstrip("/")
        for path in real
        if not path.startswith("/usr/share/doc") and (os.path.islink(path) or os.path.isfile(path))
    }
    # a Python package goes as a whole, since what its files were compiled to belongs to nobody
    return sorted({re.sub(r"(/dist-packages/[^/]+)/.*", r"\1", path) for path in found})


def without_compilers(status: str) -> str:
    """Return dpkg's own table without the packages of compilers()."""
    return "\n\n".join(
        part
        for part in status.split("\n\n")
        if not _is_compiler(part.partition("Package: ")[2].partition("\n")[0])
    )


def main(words: list[str]) -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory",
        type=pathlib.Path,
        default=ROOT / "build/fleet",
        help="what the fleet is known by",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up")
    up.add_argument("count", type=int)
    up.add_argument("--bare", action="store_true")
    up.add_argument("--size", default=SIZE)
    for name in ("up-vm", "down", "inventory", "status", "leaks", "hold"):
        verbs.add_parser(name)
    for name in ("reboot", "reset", "poweroff", "crash", "start"):
        verbs.add_parser(name).add_argument("names", nargs="+")
    for name in ("partition", "heal", "fill", "empty", "console"):
        verbs.add_parser(name).add_argument("name")
    verbs.add_parser("run").add_argument("words", nargs=argparse.REMAINDER)
    ssh = verbs.add_parser("ssh")
    ssh.add_argument("name")
    ssh.add_argument("words", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(words)
    try:
        return _do(Fleet(chosen.directory.resolve()), chosen)
    except FleetError as exc:
        print(f"fleet: {exc}", file=sys.stderr)
        return 1


def _do(fleet: Fleet, chosen: argparse.Namespace) -> int:
    verb: str = chosen.verb
    if verb == "up":
        print(
            f"{chosen.count} hosts answer after"
            f" {fleet.up(chosen.count, chosen.bare, chosen.size):.1f} s; inventory:"
            f" {fleet.inventory()}"
        )
    elif verb == "up-vm":
        print(f"v01 answers after {fleet.up_vm():.1f} s; inventory: {fleet.inventory()}")
    elif verb in ("reboot", "reset", "poweroff", "crash", "start"):
        getattr(fleet, verb)(*chosen.names)
    elif verb in ("partition", "heal", "fill", "empty"):
        getattr(fleet, verb)(chosen.name)
    elif verb == "console":
        print(fleet.host(chosen.name).console())
    elif verb == "ssh":
        return subprocess.run(fleet.ssh_argv(chosen.name, *chosen.words), check=False).returncode
    elif verb == "run":
        return subprocess.run(fleet.argv(*chosen.words), check=False).returncode
    elif verb == "leaks":
        found = fleet.leaks()
        print("\n".join(found) or "nothing is left")
        return 1 if found else 0
    else:
        told: t.Any = getattr(fleet, verb)()
        if told:
            print("\n".join(told) if isinstance(told, list) else told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
