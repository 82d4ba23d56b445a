# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit ct.service: its text, and systemd brought to where it runs, or does not: observe -> plan
-> apply.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
import typing as t

from ..core import files, lock, safe_path
from ..core.errors import ConntrackError, bad_value
from ..core.plan import Plan, Step
from ..kernel import bpffs
from . import archive as ct_archive
from . import options as service_options

NAME, RESTORE_NAME = service_options.UNIT, service_options.RESTORE_UNIT
DIRECTORY = "/etc/systemd/system"
#: What is there where systemd runs the machine: sd_booted(3).
_BOOTED = "/run/systemd/system"
_SHOWN = ("ActiveState", "UnitFileState", "NeedDaemonReload", "ExecMainStartTimestampMonotonic")
_LINES = 5
#: Megabytes that the service may take, without what the kernel keeps for the chain. What it answers
#: over HTTP is bounded to less: docs/reference/http.md.
MEMORY = 512
#: Exit status of ``ct run --restore`` where nothing is written down that could be brought back.
_NOTHING = 3
# What mounts enters the machine's mount namespace, for a mount in that of the unit is seen by
# nobody else: hence the "+". The boot order is that of a firewall: before the network is
# configured, and so early that the default dependencies would close a circle with what sets up the
# network before sysinit.target. ProtectKernelTunables= makes the BPF file system read-only,
# whatever ReadWritePaths= says; the read-only paths are what else it protects.
_TEXT = """\
# {mark}: made by the module ct_service.
[Unit]
Description=Connection tracking in XDP
Documentation=man:ct(8)
DefaultDependencies=no
After=local-fs.target
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
RequiresMountsFor={state_dir} {needed}
StartLimitIntervalSec=0

[Service]
Type=notify
Environment={variable}={restore_unit}
ExecStartPre=+{command} run --mount
ExecStart={command} run {words}
Restart=on-failure
RestartSec=1
WatchdogSec=60
TimeoutStartSec=120
TimeoutStopSec=30
MemoryMax={memory}M
RuntimeDirectory={runtime}
RuntimeDirectoryPreserve=yes
{group}{confined}RestrictAddressFamilies=AF_UNIX AF_NETLINK{families}
IPAddressDeny=any
{allowed}
[Install]
WantedBy=multi-user.target
"""
# The service starts it, each time that it starts itself, and waits for it: so there is no order
# between them. It has no bound of memory. What the compiler takes is gone with it; the maps are
# charged to this unit's control group, which is gone with it, too, so that from then on its
# parent's has them.
_RESTORE_TEXT = """\
# {mark}: made by the module ct_service.
[Unit]
Description=Connection tracking in XDP: bring the chain back
Documentation=man:ct(8)
DefaultDependencies=no
PartOf={unit}
After=local-fs.target
Before=shutdown.target
Conflicts=shutdown.target
RequiresMountsFor={state_dir} {needed}
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart={command} run --restore
SuccessExitStatus={nothing}
TimeoutStartSec=120
RuntimeDirectory={runtime}
RuntimeDirectoryPreserve=yes
{confined}RestrictAddressFamilies=AF_UNIX AF_NETLINK
IPAddressDeny=any
"""
_CONFINED = """\
UMask=0077
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_NET_ADMIN
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={pin_root} {optional_state_dir}
ReadOnlyPaths=/sys /proc/sys -/proc/sysrq-trigger -/proc/irq -/proc/bus -/proc/fs
ProtectHome=yes
PrivateTmp=yes
PrivateMounts=yes
ProtectProc=invisible
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RestrictNamespaces=net
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service bpf setns
SystemCallErrorNumber=EPERM
"""


@dataclasses.dataclass(frozen=True)
class Want:
    """The service as it is wanted.

    :ivar prefix: where the command is installed, as the module ct_command was told.
    :ivar options: what it is to do.
    """

    prefix: str
    options: service_options.Options

    @property
    def command(self) -> str:
        """The path of the command."""
        return os.path.join(self.prefix, ct_archive.COMMAND)

    @property
    def text(self) -> str:
        """The unit."""
        address = self.options.address
        tcp = address is not None and bool(address.host)
        return _TEXT.format(
            **self._common,
            variable=service_options.RESTORE_VARIABLE,
            restore_unit=RESTORE_NAME,
            memory=MEMORY,
            words=" ".join(quoted(word, True) for word in self.words),
            group=(
                f"SupplementaryGroups={quoted(address.group)}\n"
                if address is not None and address.group
                else ""
            ),
            families=" AF_INET AF_INET6" if tcp else "",
            allowed="IPAddressAllow=localhost\n" if tcp else "",
        )

    @property
    def restore_text(self) -> str:
        """The unit that brings the chain back."""
        return _RESTORE_TEXT.format(**self._common, unit=NAME, nothing=_NOTHING)

    @property
    def _common(self) -> dict[str, str]:
        """What both units have."""
        paths = self.options.paths
        return {
            "mark": ct_archive.MARK,
            "command": quoted(self.command, True),
            "needed": quoted(self.command),
            "state_dir": quoted(paths.state_dir),
            "runtime": os.path.basename(bpffs.RUN_DIR),
            "confined": _CONFINED.format(
                pin_root=quoted(paths.pin_root), optional_state_dir=quoted(f"-{paths.state_dir}")
            ),
        }

    @property
    def words(self) -> list[str]:
        """What the command is told."""
        options, address = self.options, self.options.address
        words = ["--sweep-interval", str(options.sweep_interval), "--on-stop", options.on_stop]
        if address is None:
            return [*words, "--no-http"]
        if address.host:
            return [
                *words,
                "--listen",
                (
                    f"[{address.host}]:{address.port}"
                    if ":" in address.host
                    else f"{address.host}:{address.port}"
                ),
            ]
        socket = ["--socket", address.socket] if address.socket != service_options.SOCKET else []
        return [*words, *socket, *(["--group", address.group] if address.group else [])]


@dataclasses.dataclass(frozen=True)
class Have:
    """The service as it is.

    :ivar text: of its file, None where there is none.
    :ivar shown: what systemctl shows of it, by property.
    :ivar older: whether it was started before its file or the command was last changed.
    :ivar restore: text of the file of the unit that brings the chain back, None where there is
        none.
    """

    text: str | None
    shown: t.Mapping[str, str]
    older: bool = False
    restore: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self.shown.get("ActiveState") in ("active", "reloading")


def quoted(word: str, command: bool = False) -> str:
    """Return a word as a unit has it: systemd.syntax(7), quoting; specifiers of systemd.unit(5);
    and ``$`` in commands, systemd.service(5).

    What gets here was checked where it entered. This is for what was not thought of there: a word
    never becomes two, a line or an expansion.

    >>> quoted("/opt/ct"), quoted("a b%")
    ('/opt/ct', '"a b%%"')
    """
    word = word.replace("%", "%%").replace("$", "$$") if command else word.replace("%", "%%")
    if word and all(sign.isalnum() or sign in f"{safe_path.SIGNS}[]%$" for sign in word):
        return word
    escaped = "".join(
        (
            f"\\x{ord(sign):02x}"
            if ord(sign) < 0x20 or ord(sign) == 0x7F
            else f"\\{sign}"
            if sign in '\\"'
            else sign
        )
        for sign in word
    )
    return f'"{escaped}"'


def booted() -> bool:
    """Tell whether systemd runs this machine."""
    return os.path.isdir(_BOOTED)


def _systemctl(*words: str) -> str:
    done = subprocess.run(
        ["systemctl", "--no-pager", "--no-ask-password", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConntrackError(
            f"systemctl {' '.join(words)}:"
            f" {' '.join(done.stderr.split()) or f'status {done.returncode}'}{_journal(words)}"
        )
    return done.stdout


def _journal(words: t.Sequence[str]) -> str:
    """Return the last that the service said, where it was to be started."""
    if words[0] not in ("start", "restart"):
        return ""
    asked = [
        "journalctl",
        "--no-pager",
        "-q",
        "-u",
        NAME,
        "-u",
        RESTORE_NAME,
        "-n",
        str(_LINES),
        "-o",
        "cat",
    ]
    said = subprocess.run(
        asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stdout.strip()
    return f" It said: {said}" if said else ""


def observe(want: Want, directory: str = DIRECTORY) -> Have:
    """Return what is there.

    :raises ConntrackError: for a unit of somebody else.
    """
    path = os.path.join(directory, NAME)
    text, restore = _read(path), _read(os.path.join(directory, RESTORE_NAME))
    shown = dict(
        line.split("=", 1)
        for line in _systemctl("show", NAME, f"--property={','.join(_SHOWN)}").splitlines()
        if "=" in line
    )
    started = (
        int(shown.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
        + time.time()
        - time.monotonic()
    )
    return Have(
        text,
        shown,
        any(
            os.path.exists(one) and os.stat(one).st_mtime > started for one in (path, want.command)
        ),
        restore,
    )


def _read(path: str) -> str | None:
    """Return a unit's text; None where there is none.

    :raises ConntrackError: for one that is not the collection's.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    if ct_archive.MARK not in text:
        raise ConntrackError(
            f"{path} is not the collection's. Move it, or give the role xdp_ct_service: false."
        )
    return text


def plan_present(have: Have, want: Want, directory: str = DIRECTORY) -> Plan:
    """Return the steps to a service that runs and will after a reboot. Pure."""
    steps = []
    for name, before, after in (
        (NAME, have.text, want.text),
        (RESTORE_NAME, have.restore, want.restore_text),
    ):
        if before != after:
            reason = (
                "there is none"
                if before is None
                else "it has other settings, or is of another version"
            )
            action = "create" if before is None else "change"
            steps.append(
                Step(
                    action,
                    "file",
                    os.path.join(directory, name),
                    reason,
                    _digest(before),
                    _digest(after),
                    after,
                )
            )
    if steps or have.shown.get("NeedDaemonReload") == "yes":
        steps.append(Step("reload", "systemd", "units", "the unit changed"))
    if have.shown.get("UnitFileState") != "enabled":
        steps.append(
            Step(
                "enable",
                "service",
                NAME,
                "it is to start when the machine does",
                have.shown.get("UnitFileState") or None,
                "enabled",
            )
        )
    if not have.runs:
        steps.append(
            Step(
                "start", "service", NAME, "it does not run", have.shown.get("ActiveState"), "active"
            )
        )
    elif steps or have.older:
        steps.append(
            Step("restart", "service", NAME, "the unit or the command changed", "active", "active")
        )
    return steps


def plan_absent(have: Have, directory: str = DIRECTORY) -> Plan:
    """Return the steps to no service. Pure."""
    there = [
        (name, text)
        for name, text in ((NAME, have.text), (RESTORE_NAME, have.restore))
        if text is not None
    ]
    if not there:
        return []
    steps = []
    if have.text is not None and have.shown.get("ActiveState") not in ("inactive", None):
        steps.append(
            Step("stop", "service", NAME, "it is to be absent", have.shown["ActiveState"], None)
        )
    if have.text is not None and have.shown.get("UnitFileState") == "enabled":
        steps.append(Step("disable", "service", NAME, "it is to be absent", "enabled", None))
    steps += [
        Step(
            "delete",
            "file",
            os.path.join(directory, name),
            "the service is to be absent",
            _digest(text),
            None,
        )
        for name, text in there
    ]
    return [*steps, Step("reload", "systemd", "units", "a unit is gone")]


def _digest(text: str | None) -> str | None:
    return None if text is None else ct_archive.describe(text.encode(), 0o644)


def _apply(step: Step) -> None:
    if step.kind == "file":
        if step.args is None:
            os.unlink(step.name)
            return
        with files.replacing(step.name, 0o644, dry=False) as file:
            file.write(step.args.encode())
    elif step.kind == "systemd":
        _systemctl("daemon-reload")
    else:
        _systemctl(step.action, step.name)


def converge(
    state: str,
    want: Want,
    check_mode: bool = False,
    patience: float = lock.SECONDS,
    directory: str = DIRECTORY,
) -> Plan:
    """Install and start the service, or stop it and take it away: the plan that was needed.

    :param state: ``present`` or ``absent``.
    :param patience: how long to wait for another run, in seconds.
    :raises ConntrackError: for a bad option, a unit of somebody else, and what systemd refuses.
    """
    service_options.check(want.options)
    ct_archive.check_prefix(want.prefix)
    with lock.held(directory, patience):
        have = observe(want, directory)
        plan = (
            plan_present(have, want, directory)
            if state == "present"
            else plan_absent(have, directory)
        )
        if not check_mode:
            if state == "present" and not os.path.exists(want.command):
                raise bad_value(
                    "prefix",
                    want.prefix,
                    f"there is no {want.command}; install it with the module ct_command first",
                )
            for step in plan:
                _apply(step)
    return plan
