# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of the fleet as a virtual machine: the same files over 9p, another kernel, network cards
of virtio, a reboot that is one.

Its processor is emulated, so that it can be booted anywhere, and is slow.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import subprocess
import typing as t

from ansible_collections.ebpf.conntrack.tests.host.container import Spec

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: The distribution's kernel package, unpacked: tests/tools/setup.sh lays it there.
KERNEL = ROOT / ".ansible/fleet/kernel"
#: For the root file system and the network cards; systemd-udevd loads the rest.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_net")
INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for m in /m/*.ko; do $b insmod $m; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,rw root /root || exec $b sh
$b umount /proc
exec $b switch_root /root /sbin/init
"""
TAPS = """
mkdir -p @root@/usr/lib/modules
mountpoint -q @root@/usr/lib/modules || mount --bind @modules@ @root@/usr/lib/modules
for number in 0 1 2; do
  port="$1_$number" bridge="data$number"
  [ $number != 0 ] || bridge=mgmt
  nsenter --net=/proc/@switch@/ns/net sh -euc "
    ip link del $port 2>/dev/null || :
    ip tuntap add $port mode tap
    ip link set $port master $bridge up
  "
done
"""
#: The machine whose files these are may have no udev, which systemd-networkd waits for where it is
#: in no container.
NETWORK = """\
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
"""
#: XDP takes no card that merges segments or leaves checksums to its peer.
PLAIN = "guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_ecn=off,mrg_rxbuf=off"


def version() -> str:
    """Return the kernel's version.

    :raises FileNotFoundError: there is none.
    """
    for path in KERNEL.glob("boot/vmlinuz-*"):
        return path.name.partition("-")[2]
    raise FileNotFoundError(f"there is no kernel in {KERNEL}: run tests/tools/setup.sh vm")


def initrd(directory: pathlib.Path) -> pathlib.Path:
    """Make the file system with which the kernel starts; return its path."""
    work, target = directory / "initrd.d", directory / "initrd"
    shutil.rmtree(work, ignore_errors=True)
    for name in ("bin", "m", "root", "proc", "dev"):
        (work / name).mkdir(parents=True)
    shutil.copy2(
        "/usr/bin/busybox" if pathlib.Path("/usr/bin/busybox").exists() else "/bin/busybox",
        work / "bin/busybox",
    )
    (work / "init").write_text(INIT, "ascii")
    (work / "init").chmod(0o755)
    files: list[str] = []
    for name in MODULES:
        argv = ["modprobe", "-d", str(KERNEL), "-S", version(), "--show-depends", name]
        for line in subprocess.run(
            argv, check=True, capture_output=True, text=True
        ).stdout.splitlines():
            kind, path = line.split()[:2]
            if kind == "insmod" and path not in files:
                files.append(path)
    for number, path in enumerate(files):
        shutil.copy2(path, work / f"m/{number:02}.ko")
    with target.open("wb") as out:
        subprocess.run(
            f"find . | {work}/bin/busybox cpio -o -H newc",
            shell=True,
            cwd=work,
            check=True,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
    return target


def spec(host: Spec, directory: pathlib.Path, holder: int, addresses: t.Sequence[str]) -> Spec:
    """Return how a host is booted as a virtual machine.

    :param host: the same as a container.
    :param directory: the fleet's.
    :param holder: the process that has the fleet's network.
    :param addresses: that of each card.
    """
    argv = [
        "nsenter",
        f"--net=/proc/{holder}/ns/net",
        "qemu-system-x86_64",
        "-M",
        "q35",
        "-accel",
        "tcg,thread=multi,tb-size=256",
        "-cpu",
        "max,la57=off",
    ]
    argv += [
        "-smp",
        "1",
        "-m",
        "1536",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-monitor",
        "none",
    ]
    argv += ["-kernel", f"{KERNEL}/boot/vmlinuz-{version()}", "-initrd", str(initrd(directory))]
    argv += [
        "-append",
        (
            "console=ttyS0 net.ifnames=0 systemd.show_status=1 mitigations=off random.trust_cpu=on"
            " panic=-1"
        ),
    ]
    argv += [
        "-fsdev",
        "local,id=root,path=@root@,security_model=passthrough,multidevs=remap",
        "-device",
        "virtio-9p-pci,fsdev=root,mount_tag=root",
    ]
    for number in range(3):
        argv += [
            "-netdev",
            f"tap,id=n{number},ifname={host.hostname}_{number},script=no,downscript=no",
        ]
        argv += [
            "-device",
            f"virtio-net-pci,netdev=n{number},romfile=,mac=02:fe:0{number}:01:00:{host.hostname[1:]},{PLAIN}",
        ]
    up = [
        f"ExecStart=ip addr add {address}/24 dev eth{number}\nExecStart=ip link set eth{number}"
        " up\n"
        for number, address in enumerate(addresses)
    ]
    wants = "etc/systemd/system/multi-user.target.wants"
    return dataclasses.replace(
        host,
        files={**host.files, "etc/systemd/system/fleet-network.service": NETWORK + "".join(up)},
        links={
            f"{wants}/ssh.service": "/lib/systemd/system/ssh.service",
            f"{wants}/fleet-network.service": "../fleet-network.service",
        },
        hidden=[*host.hidden, ".dockerenv"],
        command=argv,
        boot=TAPS.replace("@switch@", str(holder)).replace(
            "@modules@", str(KERNEL / "lib/modules")
        ),
        emptied=[*host.emptied, "tmp", "run"],
        bpffs=False,
    )
