# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain is made of: the seed's numbers, and that nothing stands on another's place."""

from __future__ import annotations

from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import spec as chain


def test_the_seeds_slots() -> None:
    seed = {
        "ingress": 0,
        "egress": 1,
        "prs_end": 2,
        "ct": 3,
        "prs_eth": 10,
        "prs_ipv4": 11,
        "prs_icmp": 12,
        "prs_tcp": 13,
        "prs_udp": 14,
    }
    assert seed.items() <= chain.SLOTS.items()
    assert {"acl": 4, "nat": 5}.items() <= chain.GUEST_SLOTS.items()


def test_every_slot_is_one_programs() -> None:
    slots = [*chain.SLOTS.values(), *chain.GUEST_SLOTS.values()]
    assert len(slots) == len(set(slots)) and max(slots) < chain.JT_ENTRIES == 30
    assert set(chain.HOOKS) <= set(chain.SLOTS)
    assert all(len(name) <= 15 for name in chain.SLOTS), "the kernel cuts longer names of programs"


def test_the_seeds_maps() -> None:
    specs = {spec.name: spec for spec in chain.maps(4096)}
    assert (specs["meta"].kind, specs["meta"].value_size, chain.META["ktime"]) == ("array", 8, 0)
    assert (specs["jt"].kind, specs["jt"].entries) == ("prog_array", 30)
    assert (specs["ctt"].kind, specs["ctt"].entries, specs["ctt"].inherited) == (
        "lru_hash",
        4096,
        True,
    )
    assert len(specs) == len(chain.maps(4096)) and {spec.kind for spec in specs.values()} <= set(
        chain.MAP_TYPES
    )


def test_what_packets_taught_goes_on_to_the_next_generation() -> None:
    inherited = {spec.name for spec in chain.maps() if spec.inherited}
    assert inherited >= {"ctt", "stats", "deletions"} and not inherited & {"meta", "jt", "settings"}


def test_positions_are_used_once() -> None:
    assert sorted(chain.META.values()) == list(
        range(next(spec.entries for spec in chain.maps() if spec.name == "meta") or 0)
    )
    assert (
        len(set(chain.COUNTERS))
        == len(chain.COUNTERS)
        == next(spec.entries for spec in chain.maps() if spec.name == "stats")
    )
    assert set(chain.DELETIONS) <= set(chain.COUNTERS)


def test_a_tcp_timeout_stands_at_its_states_number() -> None:
    positions = {name: number for number, name in enumerate(chain.TIMEOUTS)}
    for number, state in enumerate(chain.TCP_STATES):
        if state != "NONE":
            assert positions[f"tcp_{state.lower()}"] == number


def test_settings_are_the_defaults_but_for_what_is_given() -> None:
    raw = chain.settings_value(250, {"udp": 7}, {"tcp_loose": 0})
    assert len(raw) == chain.SETTINGS_BYTES and len(raw) % 8 == 0
    hz, timeouts, knobs = chain.settings_of(raw)
    assert (hz, timeouts, knobs) == (
        250,
        {**chain.TIMEOUTS, "udp": 7},
        {**chain.KNOBS, "tcp_loose": 0},
    )


def test_layout_sizes() -> None:
    assert (chain.KEY4.size, chain.HALF.size, chain.ENTRY.size) == (16, 32, 112)
