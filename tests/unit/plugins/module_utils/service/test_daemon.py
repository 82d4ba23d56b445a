# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's unit and its plan, what it tells systemd, and what it hears; tests/host has the
whole.
"""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import subprocess

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import cli
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import put_back
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs, link_events
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import sd_notify
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import unit as ct_unit

PATHS = bpffs.Paths("/sys/fs/bpf")
WANT = ct_unit.Want("/usr/local", service_options.Options(PATHS))
FILE, RESTORE_FILE = f"{ct_unit.DIRECTORY}/ct.service", f"{ct_unit.DIRECTORY}/ct-restore.service"
GOOD = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}


def lines(plan: list[ct_unit.Step]) -> list[str]:
    return [f"{step.action} {step.kind} {step.name}" for step in plan]


def have(
    shown: dict[str, str],
    text: str | None = WANT.text,
    older: bool = False,
    restore: str | None = WANT.restore_text,
) -> ct_unit.Have:
    """Both units as they are wanted, unless something else is said."""
    return ct_unit.Have(text, shown, older, restore)


@pytest.mark.parametrize(
    ("there", "steps"),
    [
        (have(GOOD), []),
        (
            ct_unit.Have(None, {"ActiveState": "inactive", "UnitFileState": ""}),
            [
                f"create file {FILE}",
                f"create file {RESTORE_FILE}",
                "reload systemd units",
                "enable service ct.service",
                "start service ct.service",
            ],
        ),
        (
            have(GOOD, f"{WANT.text}#"),
            [f"change file {FILE}", "reload systemd units", "restart service ct.service"],
        ),
        (
            have({**GOOD, "NeedDaemonReload": "yes"}),
            ["reload systemd units", "restart service ct.service"],
        ),
        (
            have(GOOD, restore=None),
            [f"create file {RESTORE_FILE}", "reload systemd units", "restart service ct.service"],
        ),
        (
            have(GOOD, restore="#"),
            [f"change file {RESTORE_FILE}", "reload systemd units", "restart service ct.service"],
        ),
        (have(GOOD, older=True), ["restart service ct.service"]),
        (have({**GOOD, "ActiveState": "activating"}), ["start service ct.service"]),
        (
            have({**GOOD, "UnitFileState": "disabled"}),
            ["enable service ct.service", "restart service ct.service"],
        ),
    ],
)
def test_what_leads_to_a_service_that_runs(there: ct_unit.Have, steps: list[str]) -> None:
    assert lines(ct_unit.plan_present(there, WANT)) == steps


def test_what_leads_to_none() -> None:
    assert lines(ct_unit.plan_absent(ct_unit.Have(None, GOOD))) == []
    assert lines(
        ct_unit.plan_absent(
            ct_unit.Have(WANT.text, {"ActiveState": "inactive", "UnitFileState": "disabled"})
        )
    ) == [
        f"delete file {FILE}",
        "reload systemd units",
    ]
    assert lines(ct_unit.plan_absent(ct_unit.Have(None, {}, restore="x"))) == [
        f"delete file {RESTORE_FILE}",
        "reload systemd units",
    ], "half of it is left"
    assert lines(ct_unit.plan_absent(have(GOOD)))[2:4] == [
        f"delete file {FILE}",
        f"delete file {RESTORE_FILE}",
    ]
    assert lines(ct_unit.plan_absent(ct_unit.Have(WANT.text, GOOD)))[:2] == [
        "stop service ct.service",
        "disable service ct.service",
    ]


def test_the_unit_has_the_settings() -> None:
    text = ct_unit.Want(
        "/opt/ct",
        service_options.Options(bpffs.Paths("/sys/fs/bpf/a", "/srv/state"), 5, "remove", None),
    ).text
    assert (
        "ExecStart=/opt/ct/bin/ct run --sweep-interval 5 --on-stop remove --no-http\n" in text
        and "ReadWritePaths=/sys/fs/bpf/a -/srv/state\n" in text
    )
    assert "{" not in text


@pytest.mark.parametrize(
    ("address", "words", "line"),
    [
        (service_options.Address(), "keep", "RestrictAddressFamilies=AF_UNIX AF_NETLINK"),
        (service_options.Address(group="adm"), "keep --group adm", "SupplementaryGroups=adm"),
        (service_options.Address("/run/x.sock"), "keep --socket /run/x.sock", "IPAddressDeny=any"),
        (
            service_options.Address("", host="127.0.0.1", port=80),
            "keep --listen 127.0.0.1:80",
            "IPAddressAllow=localhost",
        ),
        (
            service_options.Address("", host="::1", port=80),
            "keep --listen [::1]:80",
            "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6",
        ),
    ],
)
def test_the_unit_lets_it_listen(address: service_options.Address, words: str, line: str) -> None:
    lines_of_unit = ct_unit.Want(
        "/usr/local", service_options.Options(PATHS, address=address)
    ).text.splitlines()
    (start,) = (one for one in lines_of_unit if one.startswith("ExecStart="))
    assert (
        start.endswith(f"--on-stop {words}")
        and line in lines_of_unit
        and ("IPAddressAllow=localhost" in lines_of_unit) == bool(address.host)
    )
    told = cli.parser().parse_args(start.split()[1:])
    assert (
        None
        if told.no_http
        else service_options.parse_address(told.socket, told.listen, told.group)
    ) == address


@pytest.mark.parametrize(
    ("want", "words"),
    [
        (
            ct_unit.Want("/usr/local", service_options.Options(PATHS, 0)),
            "sweep_interval: 0 is not valid: give 1 to 86400 seconds.",
        ),
        (
            ct_unit.Want("/usr/local", service_options.Options(PATHS, 1, "burn")),
            "on_stop: 'burn' is not valid: give one of keep, remove.",
        ),
        (
            ct_unit.Want("/usr/my local", service_options.Options(PATHS)),
            "prefix: '/usr/my local' is not valid: give an absolute path without",
        ),
        (
            ct_unit.Want("/usr", service_options.Options(bpffs.Paths("/sys/%n"))),
            "pin_root: '/sys/%n' is not valid",
        ),
    ],
)
def test_what_is_refused(want: ct_unit.Want, words: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConntrackError) as raised:
        ct_unit.converge("present", want, directory=str(tmp_path))
    assert raised.value.message.startswith(words) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["[Service]\nExecStart=/usr/bin/ct\n", ""])
@pytest.mark.parametrize("wanted", ["present", "absent"])
@pytest.mark.parametrize("check_mode", [True, False])
def test_a_foreign_unit_is_left_alone(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    wanted: str,
    check_mode: bool,
) -> None:
    """An empty one is what systemd takes for masked."""
    unit = tmp_path / "ct.service"
    unit.write_text(text, "utf-8")
    before = unit.stat()
    monkeypatch.setattr(
        subprocess, "run", lambda *words, **more: pytest.fail(f"systemd is not asked: {words}")
    )
    with pytest.raises(ConntrackError, match=r"ct\.service is not the collection's\. Move it"):
        ct_unit.converge(wanted, WANT, check_mode, directory=str(tmp_path))
    assert (unit.read_text("utf-8"), unit.stat()) == (text, before) and os.listdir(tmp_path) == [
        "ct.service"
    ]


def test_a_foreign_unit_is_not_put_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A roll-out that goes wrong takes the service away where there was none before, and never one
    that is not the collection's.
    """
    unit = tmp_path / "ct.service"
    monkeypatch.setattr(ct_unit, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(ct_unit, "booted", lambda: True)
    asked: list[str] = []

    def converge(wanted: str, *dummy: object) -> list[ct_unit.Step]:
        asked.append(wanted)
        return []

    monkeypatch.setattr(ct_unit, "converge", converge)
    for text, taken in (("[Service]\n", []), (WANT.text, ["absent"])):
        unit.write_text(text, "utf-8")
        assert put_back._without_service(PATHS, "/usr/local", False, 0) == [] and asked == taken


# ---------------------------------------------------------------- systemd
@pytest.mark.parametrize("abstract", [False, True])
def test_notify(abstract: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"@ct-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        manager.bind(name.replace("@", "\0") if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        sd_notify.notify(READY=1, STATUS="2 of 2")
        assert manager.recv(100) == b"READY=1\nSTATUS=2 of 2\n"
    sd_notify.notify(READY=1)  # nobody listens any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    sd_notify.notify(READY=1)


def test_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for usec, pid, seconds in (
        ("", "", None),
        ("5000000", "", 5.0),
        ("5000000", str(os.getpid()), 5.0),
        ("5000000", "1", None),
    ):
        monkeypatch.setenv("WATCHDOG_USEC", usec)
        monkeypatch.setenv("WATCHDOG_PID", pid)
        assert sd_notify.watchdog_seconds() == seconds


def test_log(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    sd_notify.log(sd_notify.ERROR, "two\nlines")
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    sd_notify.log(sd_notify.ERROR, "two\nlines")
    assert capfd.readouterr().err == "two lines\n<3>two lines\n"


# ---------------------------------------------------------------- netlink
def message(*attributes: tuple[int, bytes]) -> bytes:
    body = bytes(16) + b"".join(
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in attributes
    )
    return struct.pack("=IHHII", 16 + len(body), 16, 0, 0, 0) + body


def test_names_of_interfaces() -> None:
    data = (
        message((1, b"\2" * 6), (3, b"eth0\0")) + message((3, b"wan1\0"), (4, bytes(4))) + message()
    )
    assert link_events.names_in(data) == {"eth0", "wan1"}
    for end in range(len(data)):  # whatever is cut off
        assert link_events.names_in(data[:end]) <= {
            "eth0",
            "wan1",
            "eth",
            "et",
            "e",
            "wan",
            "wa",
            "w",
            "",
        }
    altnames = b"".join(
        struct.pack("=HH", 4 + len(name), 53) + name + bytes(-len(name) % 4)
        for name in (b"alt0\0", b"a-long-alternative-name\0")
    )
    assert link_events.names_in(message((3, b"eth0\0"), (52 | 1 << 15, altnames))) == {
        "eth0",
        "alt0",
        "a-long-alternative-name",
    }
    assert (
        link_events.names_in(bytes(64)) == set()
        and link_events.names_in(struct.pack("=IHHII", 64, 16, 0, 0, 0) + bytes(48)) == set()
    )
