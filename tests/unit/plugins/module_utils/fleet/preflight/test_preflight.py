# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a host from taking the chain, by what was seen of it; no kernel is asked."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import put_back
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import (
    disk as preflight_disk,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import (
    libraries as preflight_libraries,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import (
    memory as preflight_memory,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import (
    problem as preflight_problem,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    ethtool,
    netlink,
)

MIB = 1 << 20


def there(name: str, entries: int) -> bpf.MapInfo:
    return bpf.MapInfo(
        1,
        bpf_constants.MAP_TYPES["lru_hash"],
        name,
        chain_layout.KEY4.size,
        chain_layout.ENTRY.size,
        entries,
        0,
    )


def test_an_entry_takes_what_the_documentation_says() -> None:
    assert (
        preflight_memory.table_bytes(
            "lru_hash", chain_layout.KEY4.size, chain_layout.ENTRY.size, 1, 2
        )
        == 192
    )
    assert (
        preflight_memory.table_bytes(
            "lru_hash", chain_layout.KEY6.size, chain_layout.ENTRY.size, 1, 2
        )
        == 216
    )
    assert preflight_memory.table_bytes("percpu_array", 4, 12, 3, 4) == 3 * 16 * 4
    assert preflight_memory.table_bytes("ringbuf", 0, 0, 4 * MIB, 2) == 4 * MIB


def test_tables_that_are_handed_on_need_no_memory() -> None:
    wanted = chain_maps.maps(1 << 20, 16, 16, 16)
    everything = preflight_memory.needed_bytes(wanted, {}, 2)
    assert (
        everything - preflight_memory.needed_bytes(wanted, {"ctt": there("ctt", 1 << 20)}, 2)
        == 192 << 20
    )
    assert preflight_memory.needed_bytes(wanted, {"ctt": there("ctt", 1 << 19)}, 2) == everything, (
        "of another size it is made anew"
    )


def test_memory() -> None:
    assert list(preflight_memory.judge_memory(preflight_memory.Memory(10 * MIB, 0, 20 * MIB))) == []
    (problem,) = preflight_memory.judge_memory(preflight_memory.Memory(30 * MIB, 0, 20 * MIB))
    assert (problem.field, problem.value) == (
        "table_size",
        "20 MiB",
    ) and "take 30 MiB of memory, available are 20 MiB" in problem.problem
    (problem,) = preflight_memory.judge_memory(
        preflight_memory.Memory(10 * MIB, 0, 20 * MIB, 8 * MIB)
    )
    assert problem.field == "memlock" and "Raise the limit" in problem.mend


def test_a_control_group_and_those_above_it_set_limits(tmp_path: pathlib.Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    for where, most, now in (("a", "1000", "300"), ("a/b", "max", "50")):
        (tmp_path / where).mkdir()
        (tmp_path / where / "memory.max").write_text(most)
        (tmp_path / where / "memory.current").write_text(now)
    assert preflight_memory.group_room(str(tmp_path), str(own)) == 700
    assert preflight_memory.group_room(str(tmp_path), str(tmp_path / "nothing")) is None


def library(found: str | None, needed: bool = True) -> preflight_libraries.Library:
    return preflight_libraries.Library(
        "bcc", found, "0.26", needed, {"dpkg": "python3-bpfcc", "rpm": "python3-bcc"}
    )


@pytest.mark.parametrize(
    ("one", "manager", "install", "problem", "packages"),
    [
        (library("0.26.0+ds-1"), "dpkg", True, "", []),
        (library("unknown"), "dpkg", True, "", []),
        (library(None), "dpkg", True, "", ["python3-bpfcc"]),
        (library(None), "rpm", False, "bcc is missing. Install the package python3-bcc.", []),
        (
            library(None),
            None,
            True,
            "bcc is missing. Install the package python3-bcc or python3-bpfcc.",
            [],
        ),
        (
            library("0.18"),
            "dpkg",
            True,
            "bcc has version 0.18, and 0.26 or later is needed. Upgrade the package python3-bpfcc.",
            [],
        ),
        (library(None, needed=False), "dpkg", False, "", []),
    ],
)
def test_libraries(
    one: preflight_libraries.Library,
    manager: str | None,
    install: bool,
    problem: str,
    packages: list[str],
) -> None:
    assert (
        " ".join(
            f"{found.problem} {found.mend}"
            for found in preflight_libraries.judge_libraries([one], manager, install)
        )
        == problem
    )
    assert preflight_libraries.would_install([one], manager, install) == packages


def test_room_on_the_disk() -> None:
    assert list(preflight_disk.judge_disk("/var", 8 * MIB, True)) == []
    assert [one.problem for one in preflight_disk.judge_disk("/var", 4096, True)] == [
        "/var: 4 KiB are free, 4096 KiB are needed."
    ]
    assert [one.problem for one in preflight_disk.judge_disk("/var", 8 * MIB, False)] == [
        "/var: its file system can hold no more files."
    ]
    assert preflight_disk.disk_room("/nowhere/at/all")[0] > 0, (
        "that of the nearest directory that is there"
    )


def test_an_error_of_the_library_is_parted_into_what_is_wrong_and_how_to_mend_it() -> None:
    found = preflight_problem.problem_of(
        "pin_root",
        "/x",
        ConntrackError("/x is a pin of somebody else. Move it away, or give another pin_root."),
    )
    assert found.as_dict() == {
        "field": "pin_root",
        "value": "/x",
        "problem": "/x is a pin of somebody else.",
        "mend": "Move it away, or give another pin_root.",
    }


def test_cards_count_late_and_virtual_interfaces_do_not() -> None:
    late = {
        driver: ethtool.Driver(*driver).counts_late
        for driver in (
            ("ixgbe", "0000:01:00.0"),
            ("virtio_net", "0000:00:03.0"),
            ("veth", ""),
            ("", ""),
        )
    }
    assert list(late.values()) == [True, False, False, False]


def test_netlink_attributes_are_parted() -> None:
    assert netlink.attributes(bytes.fromhex("0500 0100 41000000 0800 0200 01000000 0000")) == {
        1: b"A",
        2: bytes((1, 0, 0, 0)),
    }


# ---------------------------------------------------------------- putting back
def interface(name: str, program: str = "ingress", mode: str = "native") -> dict[str, t.Any]:
    return {"name": name, "netns": None, "program": program, "mode": mode}


def test_new_interfaces_go_and_others_get_back_what_they_had() -> None:
    new, other = put_back.surplus(
        [interface("a"), interface("b"), interface("c")],
        [interface("a"), interface("b", "egress"), interface("d")],
    )
    assert [one["name"] for one in new] == ["d"] and other == [interface("b"), interface("c")]
    assert put_back.surplus([interface("a")], [interface("a")]) == ([], [])


def test_what_is_put_back_has_to_be_what_preflight_saw() -> None:
    with pytest.raises(
        ConntrackError,
        match=(
            r"before: \['generation'\] is not valid: give what ct_preflight returned as before,"
            r" which has timeouts and "
        ),
    ):
        put_back.check({"generation": 1})
