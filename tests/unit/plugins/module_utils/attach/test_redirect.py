# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which steps bring the map of ports in line."""

from __future__ import annotations

from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import redirect

LAN = redirect.Port("lan", 2, bytes.fromhex("020000000001"), True)
WAN = redirect.Port("wan", 3, bytes.fromhex("020000000002"), False)


def done(
    have: dict[bytes, int], *wanted: redirect.Port, kept: tuple[bytes, ...] = ()
) -> list[tuple[str, str, object]]:
    return [(step.action, step.name, step.after) for step in redirect.make_plan(have, wanted, kept)]


def test_ports_are_made() -> None:
    assert done({}, LAN, WAN) == [
        ("create", "lan", "ifindex 2, address 02:00:00:00:00:01, sends and receives"),
        ("create", "wan", "ifindex 3, address 02:00:00:00:00:02, receives"),
    ]


def test_nothing_is_done_twice() -> None:
    assert done({LAN.key: redirect.TRANSMITS, WAN.key: 0}, LAN, WAN) == []


def test_a_port_that_takes_frames_no_longer_is_changed() -> None:
    assert done({WAN.key: redirect.TRANSMITS}, WAN) == [
        ("change", "wan", "ifindex 3, address 02:00:00:00:00:02, receives")
    ]


def test_what_nobody_speaks_of_goes_and_what_another_run_attached_stays() -> None:
    assert done({LAN.key: 0, WAN.key: 0}, kept=(WAN.key,)) == [
        ("delete", "2 02:00:00:00:00:01", None)
    ]


def test_one_number_in_two_namespaces_is_two_ports() -> None:
    twin = redirect.Port("lan", 2, bytes.fromhex("020000000009"), True)
    assert done({LAN.key: redirect.TRANSMITS}, twin, kept=(LAN.key,)) == [
        ("create", "lan", "ifindex 2, address 02:00:00:00:00:09, sends and receives")
    ]
