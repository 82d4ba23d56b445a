# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: what a topology promises."""

from __future__ import annotations


class ModuleDocFragment:
    """The option C(expect); expectation.OPTION is its specification."""

    DOCUMENTATION = r"""
options:
  expect:
    description:
      - What must hold, one thing a line. Each line has one of the keys.
    type: list
    elements: dict
    suboptions:
      flow:
        description:
          - A flow from one namespace to another reaches a state.
        type: dict
        suboptions:
          from:
            description:
              - The namespace that begins it.
            type: str
            required: true
          to:
            description:
              - The namespace that answers.
            type: str
            required: true
          proto:
            description:
              - The protocol. Traffic can be made of V(tcp), V(udp), V(icmp) and V(icmpv6); V(tcp)
                when not given.
            type: str
          port:
            description:
              - The server's port. A flow of TCP or UDP that is made needs it.
            type: int
          state:
            description:
              - The state; V(ESTABLISHED) for TCP and SCTP, V(REPLIED) for others when not given.
              - Traffic of TCP that is made ends in V(ESTABLISHED), V(CLOSE_WAIT), V(TIME_WAIT) or
                V(CLOSE), of UDP in V(NEW), V(REPLIED), or after more than two seconds
                V(ESTABLISHED), of ICMP in V(REPLIED).
            type: str
          within:
            description:
              - How many seconds it may take; 5 when not given.
            type: float
          make:
            description:
              - Whether to make the traffic, with a server and a client in the two namespaces. It is
                made when this is not given.
              - With V(false) a flow that something else makes is waited for.
            type: bool
          family:
            description:
              - V(ipv4) or V(ipv6). When not given, that of the first address of C(to) of which
                C(from) has the family too.
            type: str
          address:
            description:
              - The address of C(to) that is spoken to; the first one of the family when not given.
            type: str
      ping:
        description:
          - An echo request from one namespace to another is answered.
        type: dict
        suboptions:
          from:
            description:
              - The namespace that asks.
            type: str
            required: true
          to:
            description:
              - The namespace that answers.
            type: str
            required: true
          within:
            description:
              - How many seconds it may take; 5 when not given. It is asked again every half second.
            type: float
          family:
            description:
              - V(ipv4) or V(ipv6), as for C(flow).
            type: str
          address:
            description:
              - The address of C(to) that is asked, as for C(flow).
            type: str
      untracked:
        description:
          - At most so many frames stay untracked while the other lines are checked.
          - What belongs to no flow does not count, that is ARP and other frames that are not IP,
            and neighbour discovery.
        type: int
"""
