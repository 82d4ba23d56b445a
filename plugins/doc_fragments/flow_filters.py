# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: the words by which flows are chosen."""

from __future__ import annotations


class ModuleDocFragment:
    """The filters; different ones must all hold, of several values of one filter any."""

    DOCUMENTATION = r"""
options:
  family:
    description:
      - Address families, V(ipv4) or V(ipv6).
    type: list
    elements: str
  proto:
    description:
      - Protocols, by name (V(tcp), V(udp), V(icmp), V(icmpv6), V(sctp), V(gre), V(udplite)) or by
        number.
    type: list
    elements: str
  state:
    description:
      - States, in whatever case.
      - For TCP those of the kernel, from V(SYN_SENT) to V(CLOSE).
      - For the others V(NEW) while one direction was seen, V(REPLIED) once both were,
        V(ESTABLISHED) for a stream.
    type: list
    elements: str
  src:
    description:
      - Addresses or networks of the initiator.
    type: list
    elements: str
  dst:
    description:
      - Addresses or networks that the initiator speaks to.
    type: list
    elements: str
  sport:
    description:
      - Ports of the initiator. Flows without ports do not match.
    type: list
    elements: str
  dport:
    description:
      - Ports that the initiator speaks to. Flows without ports do not match.
    type: list
    elements: str
  addr:
    description:
      - Addresses or networks of either side.
    type: list
    elements: str
  port:
    description:
      - Ports of either side. Flows without ports do not match.
    type: list
    elements: str
  assured:
    description:
      - Whether the flow is assured, that is, seen to be real by an answer and more.
    type: bool
  min_bytes:
    description:
      - At least so many bytes in both directions together. They are counted from the IP header on.
    type: int
  min_packets:
    description:
      - At least so many packets in both directions together.
    type: int
  older_than:
    description:
      - Flows whose age in seconds is above this.
    type: int
  idle_for:
    description:
      - Flows that saw no packet for at least so many seconds.
    type: int
  dir:
    description:
      - The hook on which the initiator's first packet came in, V(ingress) or V(egress).
    type: list
    elements: str
"""
