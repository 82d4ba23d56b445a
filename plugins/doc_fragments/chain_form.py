# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: what is compiled into a chain."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of render.OPTIONS."""

    DOCUMENTATION = r"""
options:
  checksum:
    description:
      - Which packets of TCP, UDP, SCTP and ICMP have a right checksum; others are invalid and do
        not count in a flow.
      - With V(strict) only those whose checksum is right. With V(offload) also those that hold the
        sum of the pseudo header alone, or for SCTP a 0, which is how packets of a local sender come
        over a veth before a card has completed them. With V(off) all.
      - XDP cannot see what a card has verified, so except with V(off) each byte of a packet is read
        once more.
    type: str
    choices: ["off", offload, strict]
    default: offload
  fused:
    description:
      - Whether the entry programs track TCP and UDP packets that are not fragmented themselves,
        without tail calls and without metadata.
      - It is faster by about a fifth. All other packets go through the chain, which is the same.
    type: bool
    default: false
  forward:
    description:
      - What is forwarded past the stack, once it is tracked. With V(established) these are the
        packets of established TCP connections, as long as neither side closes, of assured UDP
        flows, and of ICMP flows that were answered more than two seconds ago. With V(all) those of
        TCP connections that begin or close besides. One packet of each flow and direction every
        five seconds goes through the stack all the same, the first one among them.
      - Packets are routed by the kernel's own tables, and only between interfaces to which
        M(ebpf.conntrack.xdp_attach) attached the chain. All that is unusual goes to the stack, as
        before, and so do ICMP errors, packets whose TTL is used up, that are too long, or whose
        next hop is not known yet.
      - What is forwarded here meets no netfilter rule, no NAT, no traffic control and no packet
        socket. See C(docs/guide/forwarding.md). So anything but V(off) takes
        O(forward_unfiltered=true).
      - It is refused where VLAN tags travel beside the frames of an attached interface, and where
        nf_conntrack tracks in its namespace and C(net.netfilter.nf_conntrack_tcp_be_liberal) is not
        1.
    type: str
    choices: ["off", established, all]
    default: "off"
  forward_unfiltered:
    description:
      - Whether what is forwarded past the stack may pass the host's firewall by. Without it
        O(forward) has to be V(off).
    type: bool
    default: false
  events:
    description:
      - Whether the chain tells what becomes of flows (they begin, change their state, end) through
        a ring buffer of 4 MiB, for C(ct watch).
      - Without it the chain has no instruction more for it. With it a packet that changes nothing
        of a flow costs the same as well, and as long as nobody watches, the others little more.
    type: bool
    default: false
  guests:
    description:
      - Programs of your own that run in the chain, behind what tracks a packet, whatever it made of
        it, and in front of what takes its metadata away. They run in the order of their slots. The
        file C(docs/guide/guests.md) says what they are made of.
      - When a guest changes, or is taken off the list, a new generation is loaded.
    type: list
    elements: dict
    default: []
    suboptions:
      slot:
        description: Its slot in the jump table, V(acl), V(nat), or the number of a free one from
          V(21) to V(29).
        type: str
        required: true
      src:
        description:
          - A C file on the controller with one C(GUEST(name\)). It is compiled together with the
            chain.
          - Where a relative path is not there, a guest of that name that comes with the collection
            is taken; there is V(acl.c).
        type: path
      pinned:
        description:
          - The path of an XDP program that is pinned on the target. It is taken as it is, and held
            by the generation.
        type: path
"""
