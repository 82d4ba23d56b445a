# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain as the collection loads it, under a pin_root of its own, and what the benchmark asks of
it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import typing as t

import harness
import tables
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import redirect
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpffs, netdev

SOURCES = harness.ROOT / "files/bpf"
STUB = SOURCES / "stub"

_ORIG_PACKETS, _CTL = 0, 12  # places in chain.ENTRY


class Chain:
    """A loaded chain, attached to nothing; close() takes it away again.

    :param table_size: entries of each of the IPv4 flow tables.
    :param table_size6: entries of each of the IPv6 flow tables.
    :param compiled: what else is compiled in, fields of render.Settings.
    :ivar hooks: the entry programs by name.
    :ivar table: the table of assured IPv4 flows.
    :ivar table6: the table of assured IPv6 flows.
    :ivar half_open: the table of all other IPv4 flows.
    :ivar half_open6: the table of all other IPv6 flows.
    """

    def __init__(self, table_size: int, table_size6: int = 1 << 10, **compiled: t.Any) -> None:
        headers = {
            str(path.relative_to(STUB)): path.read_text(encoding="utf-8")
            for path in STUB.rglob("*")
            if path.is_file()
        }
        self.pin_root = os.path.join(bpffs.STANDARD, f"bench_{secrets.token_hex(4)}")
        self._paths = bpffs.Paths(self.pin_root)
        self._fds = contextlib.ExitStack()
        self._fds.callback(self._remove)
        try:
            text = render.render(
                str(SOURCES),
                render.Settings(
                    table_size,
                    table_size6,
                    half_open_size=table_size,
                    half_open_size6=table_size6,
                    **compiled,
                ),
            )
            want = generation.Want(
                text,
                headers,
                table_size,
                table_size6=table_size6,
                half_open_size=table_size,
                half_open_size6=table_size6,
            )
            generation.ensure(self._paths, want)
            self.hooks = {
                name: self._open(self._paths.prog(chain_programs.SLOTS[name]))
                for name in chain_programs.HOOKS
            }
            self.table = self._open(self._paths.map("ctt"))
            self.table6 = self._open(self._paths.map("ctt6"))
            self.half_open = self._open(self._paths.map("ctt_new"))
            self.half_open6 = self._open(self._paths.map("ctt6_new"))
            self._stats = self._open(self._paths.map("stats"))
        except BaseException:
            self.close()
            raise

    def _open(self, path: str) -> int:
        return self._fds.enter_context(bpf.closing(bpf.obj_get(path)))

    def _remove(self) -> None:
        generation.remove(self._paths)
        generation.remove_tree(self.pin_root)

    def allow(self, links: t.Iterable[netdev.LinkFacts]) -> None:
        """Let the chain forward between interfaces that are attached by other means."""
        with bpf.closing(bpf.obj_get(self._paths.map("ports"))) as fd:
            for link in links:
                port = redirect.Port(link.name, link.ifindex, link.mac, True)
                bpf.map_update(fd, port.key, redirect.VALUE.pack(port.flags))

    def close(self) -> None:
        self._fds.close()

    @staticmethod
    def bytes_per_flow(table: int) -> int:
        """Return the kernel's memory for one entry of a flow table, as it accounts for it, in whole
        bytes.
        """
        with open(f"/proc/self/fdinfo/{table}", encoding="ascii") as lines:
            facts = dict(line.split(":", 1) for line in lines)
        return int(facts["memlock"]) // int(facts["max_entries"])

    def counters(self) -> dict[str, int]:
        """Return the chain's counters by name."""
        return {
            name: sum(int.from_bytes(one, "little") for one in bpf.percpu_value(self._stats, i, 8))
            for i, name in enumerate(chain_counters.COUNTERS)
        }

    def map_pin(self, name: str) -> str:
        """Return the path of a map's pin."""
        return self._paths.map(name)

    def _flow(self, protocol: int, v6: bool) -> tuple[tuple[t.Any, ...], tuple[t.Any, ...]]:
        both, key = (
            ((self.table6, self.half_open6), chain_layout.KEY6)
            if v6
            else ((self.table, self.half_open), chain_layout.KEY4)
        )
        found = [
            item for table in both for item in tables.entries(table, key) if item[0][4] == protocol
        ]
        harness.expect(f"flows of protocol {protocol}", len(found), 1)
        return found[0]

    def flow(self, protocol: int, v6: bool = False) -> tuple[int, int]:
        """Return (packets of the initiator, control word) of the one flow of a protocol."""
        dummy, entry = self._flow(protocol, v6)
        return entry[_ORIG_PACKETS], entry[_CTL]

    def raw_flow(self, protocol: int) -> tuple[bytes, bytes]:
        """Return the packed key and entry of the one IPv4 flow of a protocol."""
        key, entry = self._flow(protocol, v6=False)
        return chain_layout.KEY4.pack(*key), chain_layout.ENTRY.pack(*entry)
