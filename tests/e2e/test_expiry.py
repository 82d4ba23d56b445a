# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time passes without traffic too."""

from __future__ import annotations

from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import delete as flow_delete
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import PORT, SERVER, Wire


def test_an_idle_flow_is_over_with_no_packet_to_tell_it(wire: Wire) -> None:
    wire.chain.settings({"udp": 1})
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.sendto(b"x", (SERVER, PORT))
    server.recv(10)
    (record,) = wire.records("udp")
    assert record["timeout"] <= 1 and record["idle"] == 0
    assert within(lambda: wire.records("udp") == [])


def test_an_expired_flow_that_gets_a_packet_is_a_new_one(wire: Wire) -> None:
    wire.chain.settings({"udp": 1})
    client, server = wire.udp("client"), wire.udp("server", PORT)
    before = wire.counters()
    for dummy in range(2):
        assert within(lambda: wire.records("udp") == []), "the flow before has expired"
        client.sendto(b"x", (SERVER, PORT))
        server.recv(10)
    (record,) = wire.records("udp")
    assert record["orig"]["packets"] == 1
    after = wire.counters()
    assert (
        after["created"] - before["created"] == 2
        and after["deleted_expired"] - before["deleted_expired"] == 1
    )


def test_a_sweep_takes_what_is_over_and_leaves_the_rest(wire: Wire) -> None:
    wire.chain.settings({"udp": 1})
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.sendto(b"x", (SERVER, PORT))
    server.recv(10)
    assert within(lambda: wire.records("udp") == [])
    wire.connect().exchange()
    assert flow_delete.sweep(wire.chain.tables) == 1
    wire.only("tcp", state="ESTABLISHED")


def test_activity_keeps_a_flow(wire: Wire) -> None:
    wire.chain.settings({"icmp": 1})
    wire.run("client", "ping", "-c", "6", "-i", "0.4", SERVER)
    (record,) = wire.records("icmp")
    assert record["orig"]["packets"] == 6 and record["age"] >= 1
