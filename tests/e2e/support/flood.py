# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An interface with the chain, and floods that reach it over a veth: frames of as many flows, made
in the kernel and sent for real.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import collect as flow_collect
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import delete as flow_delete
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import read as flow_read
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    private_netns,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import chain_rig, frames

SOURCE = pathlib.Path(__file__).with_name("flood.c")
INSIDE, OUTSIDE = "inside", "outside"
#: Addresses of which the low 32 bits are counted up, for IPv4 the low 24.
SOURCES = {4: frames.address("10.0.0.0"), 6: frames.address("2001:db8:f100:d::")}
#: What is added to a checksum at first: 0, in one's complement.
_NOTHING = 0xFFFF


def _frame(version: int, proto: int, segment: t.Callable[..., bytes], *what: t.Any) -> bytes:
    src, dst = SOURCES[version], (frames.V4 if version == 4 else frames.V6).b
    more = {"ident": _NOTHING} if version == 4 else {}
    return frames.frame(
        frames.ip(
            src,
            dst,
            proto,
            segment(src, dst, 40000, 80, *what, _NOTHING.to_bytes(2, "big")),
            **more,
        )
    )


#: A frame of each flood's first flow, by the name of its program.
FLOODS = {
    "syn4": _frame(4, frames.TCP, frames.tcp, 1000, 0, frames.tcp_flags("S"), 8192),
    "udp4": _frame(4, frames.UDP, frames.udp),
    "syn6": _frame(6, frames.TCP, frames.tcp, 1000, 0, frames.tcp_flags("S"), 8192),
}


class Lab:
    """The chain at an interface's ingress, in a namespace of its own, and who floods it. Use as a
    context manager.

    :ivar rig: the chain.
    """

    def __init__(self, **chain_options: t.Any) -> None:
        """
        :param chain_options: those of ChainRig.
        """
        self._options = chain_options
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as undo:
            undo.enter_context(private_netns.anonymous())
            subprocess.run(
                ["ip", "link", "add", INSIDE, "type", "veth", "peer", "name", OUTSIDE], check=True
            )
            for name in (INSIDE, OUTSIDE):
                subprocess.run(["ip", "link", "set", name, "addrgenmode", "none", "up"], check=True)
            # so that the other end takes redirected frames without a program, too
            subprocess.run(
                ["ethtool", "-K", OUTSIDE, "gro", "on"], check=True, stdout=subprocess.DEVNULL
            )
            self.rig = undo.enter_context(chain_rig.ChainRig(**self._options))
            self._attach("present")
            undo.callback(self._attach, "absent")
            self._load(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *dummy: object) -> None:
        self._undo.close()

    def _attach(self, state: str) -> None:
        attach.converge(
            state,
            [{"name": INSIDE, "program": "ingress"}],
            "native",
            False,
            self.rig.paths.pin_root,
            False,
        )

    def _load(self, undo: contextlib.ExitStack) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(chain_rig.SOURCES / "stub")
        import bcc

        module = bcc.BPF(
            src_file=str(SOURCE).encode(),
            cflags=[*build_bcc.flags(), f"-DIFINDEX={socket.if_nametoindex(OUTSIDE)}"],
        )
        undo.callback(module.cleanup)
        self._programs = {
            name: module.load_func(
                name.encode(), bcc.BPF.XDP, attach_type=bpf_constants.ATTACH_XDP
            ).fd
            for name in FLOODS
        }

    def flood(self, name: str, number: int) -> None:
        """Send the first packets of so many flows that nobody heard of before; each of them
        arrives.

        :param name: a key of FLOODS.
        """
        before = self._received()
        bpf.prog_test_run(
            self._programs[name],
            FLOODS[name],
            repeat=number,
            flags=bpf_constants.BPF_F_TEST_XDP_LIVE_FRAMES,
        )
        assert self._received() == (before[0] + number, before[1])

    @staticmethod
    def _received() -> tuple[int, int]:
        """Return how many frames the interface received, and how many it had no room for."""
        (link,) = json.loads(
            subprocess.run(
                ["ip", "-j", "-s", "link", "show", INSIDE], check=True, capture_output=True
            ).stdout
        )
        return link["stats64"]["rx"]["packets"], link["stats64"]["rx"]["dropped"]

    def send(self, steps: t.Iterable[frames.Step]) -> None:
        """Send steps of conversations one after the other, past the interface."""
        for step in steps:
            run = bpf.prog_test_run(self.rig.entries[step.side], step.frame)
            assert (run.retval, run.data_out) == (chain_rig.XDP_PASS, step.frame)

    def read(self, limit: int | None = 1 << 20, **words: t.Any) -> flow_collect.Reading:
        """Return what ct_flows returns for these filters."""
        return flow_read.read(self.rig.tables, flow_filter.parse_query({**words, "limit": limit}))

    def flush(self) -> int:
        """Delete all flows as ct_flush does; return how many there were."""
        with flow_table.writing(self.rig.paths.pin_root) as tables:
            return flow_delete.delete(tables, flow_delete.EVERYTHING).deleted

    def counters(self) -> dict[str, t.Any]:
        """Return ``summary.counters`` of ct_flows."""
        summary = self.read(0).summary
        assert summary
        return t.cast("dict[str, t.Any]", summary["counters"])
