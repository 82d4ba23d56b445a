# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chain is made of: the seed's numbers, and that nothing stands on another's place."""

from __future__ import annotations

from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf_constants


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
    assert seed.items() <= chain_programs.SLOTS.items()
    assert {"acl": 4, "nat": 5}.items() <= chain_programs.GUEST_SLOTS.items()


def test_every_slot_is_one_programs() -> None:
    slots = [*chain_programs.SLOTS.values(), *chain_programs.GUEST_SLOTS.values()]
    assert len(slots) == len(set(slots)) and max(slots) < chain_programs.JT_ENTRIES == 30
    assert set(chain_programs.HOOKS) <= set(chain_programs.SLOTS)
    assert all(len(name) <= 15 for name in chain_programs.SLOTS), (
        "the kernel cuts longer names of programs"
    )


def test_the_seeds_maps() -> None:
    specs = {spec.name: spec for spec in chain_maps.maps(4096)}
    assert (specs["meta"].kind, specs["meta"].value_size, chain_maps.META["ktime"]) == (
        "array",
        8,
        0,
    )
    assert (specs["jt"].kind, specs["jt"].entries) == ("prog_array", 30)
    assert (specs["ctt"].kind, specs["ctt"].entries, specs["ctt"].inherited) == (
        "lru_hash",
        4096,
        True,
    )
    assert len(specs) == len(chain_maps.maps(4096)) and {
        spec.kind for spec in specs.values()
    } <= set(bpf_constants.MAP_TYPES)


def test_what_packets_taught_goes_on_to_the_next_generation() -> None:
    inherited = {spec.name for spec in chain_maps.maps() if spec.inherited}
    assert inherited >= {"ctt", "stats", "deletions"} and not inherited & {"meta", "jt", "settings"}


def test_positions_are_used_once() -> None:
    assert sorted(chain_maps.META.values()) == list(
        range(next(spec.entries for spec in chain_maps.maps() if spec.name == "meta") or 0)
    )
    assert (
        len(set(chain_counters.COUNTERS))
        == len(chain_counters.COUNTERS)
        == next(spec.entries for spec in chain_maps.maps() if spec.name == "stats")
    )
    assert set(chain_counters.DELETIONS) <= set(chain_counters.COUNTERS)


def test_a_tcp_timeout_stands_at_its_states_number() -> None:
    positions = {name: number for number, name in enumerate(chain_settings.TIMEOUTS)}
    for number, state in enumerate(chain_states.TCP_STATES):
        if state != "NONE":
            assert positions[f"tcp_{state.lower()}"] == number


def test_settings_are_the_defaults_but_for_what_is_given() -> None:
    raw = chain_settings.settings_value(250, {"udp": 7}, {"tcp_loose": 0})
    assert len(raw) == chain_settings.SETTINGS_BYTES and len(raw) % 8 == 0
    hz, timeouts, knobs = chain_settings.settings_of(raw)
    assert (hz, timeouts, knobs) == (
        250,
        {**chain_settings.TIMEOUTS, "udp": 7},
        {**chain_settings.KNOBS, "tcp_loose": 0},
    )


def test_layout_sizes() -> None:
    assert (chain_layout.KEY4.size, chain_layout.HALF.size, chain_layout.ENTRY.size) == (
        16,
        32,
        112,
    )
