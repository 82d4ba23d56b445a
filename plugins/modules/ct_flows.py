#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the flow table."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_flows
short_description: Read the flows that the XDP chain tracks
version_added: "0.1.0"
description:
  - Reads the pinned flow tables in batches and returns flows as records, a summary, and facts.
  - A flow whose time is over is never listed and never counted.
  - In check mode a chain that is not there yet counts as an empty table, with a warning.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
requirements:
  - libbpf 0.8 or later (package C(libbpf1) on Debian and Ubuntu, C(libbpf) on Fedora and RHEL)
  - the privilege to open BPF maps (root)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.pin_root
  - ebpf.conntrack.flow_filters
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root]
  diff_mode:
    support: none
    details:
      - Nothing but the file at O(dest) is ever changed.
  idempotent:
    support: partial
    details:
      - Without O(dest) nothing is changed. The file at O(dest) changes when what it is to hold
        does, and most fields of a flow move with time and traffic.
  facts:
    description:
      - Action returns an C(ansible_facts) dictionary that will update existing host facts.
    support: full
options:
  sort:
    description:
      - The field to sort by, any of O(fields) that is a single value; a C(-) before it puts the
        largest first.
      - Addresses are sorted by number. Without it, flows come as the table has them.
    type: str
  limit:
    description:
      - At most so many flows, and at most so many groups.
      - Without it, the result lists 100, and the file at O(dest), or RV(text), holds all.
      - V(0) lists none.
      - Facts stay with the host for the rest of the play. So they hold flows only where it is
        given, and at most so many.
    type: int
  fields:
    description:
      - What to show of each flow. Without it, everything.
      - Fields of the record (V(proto), V(state), V(timeout), V(orig), V(orig.src), V(reply.bytes),
        ...), and for short V(src), V(dst), V(sport), V(dport) as in the filters, V(packets) and
        V(bytes) for the sum of both directions.
    type: list
    elements: str
  group_by:
    description:
      - Fields by whose values flows, packets and bytes are added up in RV(groups).
    type: list
    elements: str
  summary:
    description:
      - Whether to return RV(summary). Without it, reading ends once O(limit) flows are found.
    type: bool
    default: true
  window:
    description:
      - Whether the records of TCP flows show the windows of both directions.
    type: bool
    default: false
  format:
    description:
      - The form of the file at O(dest); there the default is V(json).
      - Without O(dest), have the flows in this form in RV(text), in place of RV(flows).
      - V(jsonl) is a JSON record on each line. V(conntrack) has the lines of C(conntrack -L).
      - V(stats) shows no flows but the counters, as C(conntrack -S) does, a line for each CPU.
        There C(found) are the frames that met an entry, C(insert) the entries made, C(drop) the
        frames that guests dropped, C(early_drop) the entries evicted (all in the first line, since
        nobody knows on which CPU), and C(error) the frames that the chain itself failed on (no
        room, a lock held, no metadata, an empty slot). What has no meaning here is 0.
    type: str
    choices:
      - json
      - jsonl
      - table
      - csv
      - conntrack
      - stats
    aliases:
      - output
  extended:
    description:
      - With O(format=conntrack), begin each line with the network protocol, as C(conntrack -L -o
        extended) does.
    type: bool
    default: false
  dest:
    description:
      - A file on the target to write the flows to. It changes as a whole or not at all, and only
        when its content does.
      - Memory stays small whatever the table's size, unless all flows are to be sorted.
    type: path
  mode:
    description:
      - Permissions of the file at O(dest), as an octal number in quotes.
    type: str
    default: "0640"
seealso:
  - module: ebpf.conntrack.ct_flush
  - module: ebpf.conntrack.xdp_program
"""

EXAMPLES = r"""
- name: What is going on
  ebpf.conntrack.ct_flows:
  register: table

- name: The ten busiest web connections from the lab's network, as a table
  ebpf.conntrack.ct_flows:
    proto: tcp
    dport: [80, 443]
    src: 172.20.56.0/24
    sort: -bytes
    limit: 10
    format: table
  register: busiest

- name: Print it
  ansible.builtin.debug:
    msg: "{{ busiest.text.splitlines() }}"

- name: Who holds the most flows
  ebpf.conntrack.ct_flows:
    group_by: src
    limit: 20

- name: The counters of each CPU
  ebpf.conntrack.ct_flows:
    limit: 0
    format: stats
  register: counters

- name: Everything, into a file that scripts written for conntrack -L can read
  ebpf.conntrack.ct_flows:
    format: conntrack
    dest: /var/tmp/flows.txt
    mode: "0600"
"""

RETURN = r"""
flows:
  description:
    - The flows, each a record, as O(fields) wants it; at most O(limit). Each flow is in the result
      once, here or in RV(text).
    - RV(flows[].timeout), RV(flows[].age) and RV(flows[].idle) are whole seconds, bytes are counted
      from the IP header on.
  returned: success, but not where the flows are in RV(text)
  type: list
  elements: dict
  contains:
    family:
      description: V(ipv4) or V(ipv6).
      type: str
    proto:
      description: Protocol, its number as text where it has no name here.
      type: str
    state:
      description: State of the connection.
      type: str
    assured:
      description: Whether the flow is assured.
      type: bool
    seen_reply:
      description: Whether there was an answer.
      type: bool
    timeout:
      description: Seconds left.
      type: int
    orig:
      description: The initiator's direction, with C(src), C(dst), C(sport) and C(dport) (where the
        protocol has ports), C(packets), C(bytes).
      type: dict
    reply:
      description: The other direction, likewise.
      type: dict
    icmp:
      description: C(type), C(code) and C(id) of an ICMP query.
      type: dict
    gre:
      description: C(srckey) and C(dstkey) of the initiator's direction of a GRE flow; PPTP's hold 0
        and the call id, others zeros.
      type: dict
    dir:
      description: The hook on which the initiator's first packet came in.
      type: str
    vlan:
      description: VLAN ids of the initiator's first packet, the outer one first; absent when it was
        untagged.
      type: list
      elements: int
    aggregated:
      description:
        - Whether some of the packets that are counted were several segments on the wire, which only
          generic mode shows; absent where all were whole.
        - C(packets) are then fewer than the wire had, and C(bytes) leave out the headers between
          the segments.
      type: bool
    age:
      description: Seconds since the flow began.
      type: int
    idle:
      description: Seconds since its last packet.
      type: int
    related:
      description: C(packets) and C(bytes) of the ICMP errors that quote the flow.
      type: dict
    window:
      description: TCP windows by direction, where O(window) asks for them.
      type: dict
  sample:
    - family: ipv4
      proto: tcp
      state: ESTABLISHED
      assured: true
      seen_reply: true
      timeout: 431994
      orig: {src: 172.20.56.105, dst: 172.30.56.105, sport: 41234, dport: 8080, packets: 6, bytes:
        431}
      reply: {src: 172.30.56.105, dst: 172.20.56.105, sport: 8080, dport: 41234, packets: 4, bytes:
        1210}
      dir: ingress
      age: 6
      idle: 0
      related: {packets: 0, bytes: 0}
count:
  description: How many flows match. Where reading ended early (see O(summary)), how many it had met
    until then.
  returned: success
  type: int
  sample: 1
truncated:
  description: Whether there are more flows, or groups, than the result lists.
  returned: success
  type: bool
  sample: false
msg:
  description: What the result leaves out.
  returned: when truncated
  type: str
summary:
  description:
    - Totals of the flows that match, how full the tables are, by table (C(tables)) and for assured
      and all other flows (C(pressure)), C(counters) of the tables as a whole, C(timeouts) and
      C(settings) that are in force, by the names of M(ebpf.conntrack.xdp_program)'s options, and
      the C(clock) at which all was read.
    - Every frame is counted once, as C(tracked), C(related), C(fragment), or by its reason under
      C(invalid), C(ignored) or C(untracked). C(created), C(reopened), C(promoted) (to the table of
      assured flows), C(deleted) (by reason), C(evicted) (to make room), those of them that were
      assured (C(evicted_assured)), C(insert_failed) and C(promote_failed) count entries.
      C(forwarded) are the packets that were forwarded past the stack, C(forward) those that were
      left to it, by reason. C(guests) tells by slot what came to each guest (C(seen)), what it sent
      on (C(passed)) and what it C(dropped).
  returned: when O(summary) is true
  type: dict
  sample:
    flows: 1
    capacity: 262144
    by_family: {ipv4: 1}
    by_proto: {tcp: 1}
    by_state: {ESTABLISHED: 1}
    assured: 1
    pressure: {assured: {entries: 1, capacity: 131072, percent: 0.0}, half_open: {entries: 0,
      capacity: 131072, percent: 0.0}}
    tables: {ctt: {class: assured, entries: 1, capacity: 65536, percent: 0.0}, ctt_new: {class:
      half_open, entries: 0, capacity: 65536, percent: 0.0}}
    counters:
      created: 1
      promoted: 1
      deleted: {reset: 0, expired: 0, flushed: 0, dropped: 0}
      evicted: 0
      evicted_assured: 0
      insert_failed: 0
      tracked: 10
      untracked: {not_ip: 2}
      guests: {acl: {seen: 12, passed: 12, dropped: 0}}
    timeouts: {udp: 30, udp_stream: 120}
    settings: {tcp_loose: true, tcp_max_retrans: 3}
groups:
  description: For each group the values of O(group_by), and its C(flows), C(packets) and C(bytes);
    the one with the most flows comes first.
  returned: when O(group_by) is given
  type: list
  elements: dict
  sample: [{src: 172.20.56.105, flows: 1, packets: 10, bytes: 1641}]
group_count:
  description: How many groups there are.
  returned: when O(group_by) is given
  type: int
  sample: 1
text:
  description: The flows, or the counters, in the form of O(format).
  returned: when O(format) is given without O(dest)
  type: str
dest:
  description: The file.
  returned: when O(dest) is given
  type: str
  sample: /var/tmp/flows.txt
ansible_facts:
  description: Facts about the table.
  returned: success
  type: dict
  contains:
    ct_flows:
      description:
        - RV(count), RV(truncated), RV(summary) and RV(groups) as above.
        - RV(flows) where O(limit) is given.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import report as flow_report


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=flow_report.FLOWS_OPTIONS, supports_check_mode=True)
    with told_by(module):
        result = flow_report.report(module.params, module.check_mode)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
