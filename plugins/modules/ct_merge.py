#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merge the flows of many hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_merge
short_description: Merge the flows of many hosts into one file
version_added: "0.1.0"
description:
  - Reads files of flows, one from each host, as M(ebpf.conntrack.ct_fetch) brings them, and writes
    one file with all of them, with the host and the path of the connection in each record.
  - A connection that several hosts saw is one connection, known by its protocol, addresses and
    ports.
  - The hosts of a path stand in the order of the initiator's packets where the networks that they
    are attached to leave no other; else they stand by name, and C(ordered) is false.
  - It runs where the files are, mostly on the controller. Memory does not grow with the number of
    flows; what is sorted lies in a file without a name in the directory of O(dest), about two and a
    half times as large as the files.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
attributes:
  action_group:
    support: none
    membership: []
    details:
      - It shares no option with other modules.
  diff_mode:
    support: none
    details:
      - Nothing but the file at O(dest) is ever changed.
  idempotent:
    support: partial
    details:
      - The file at O(dest) changes when what it is to hold does; a page says when it was made. What
        goes to O(collector) is sent each time.
options:
  sources:
    description:
      - The hosts and their files.
      - A file that can not be read, is damaged, or holds a line that is no whole record makes its
        host one of RV(unread), and nothing of it is taken.
    type: list
    elements: dict
    required: true
    suboptions:
      host:
        description: Name of the host.
        type: str
        required: true
      path:
        description: The file, a record on each line, as M(ebpf.conntrack.ct_flows) writes it with
          C(format=jsonl).
        type: path
        required: true
      zone:
        description: Where its addresses hold. The same addresses and ports in another zone are
          another connection.
        type: str
        default: ""
      networks:
        description: The networks that it is attached to, or its addresses with their prefix. The
          order of paths is told by them.
        type: list
        elements: str
        default: []
  unread:
    description:
      - Hosts that have no file, with the reason. They stand in RV(unread) and in the page with
        those whose file can not be read.
    type: dict
    default: {}
  dest:
    description:
      - The file to write. It changes as a whole or not at all.
    type: path
  format:
    description:
      - The form of the file. Without it, the file's name tells.
      - V(html) is a page with a picture, hosts, paths and who sends most; it does not list all
        flows.
    type: str
    choices: [jsonl, csv, html]
  view:
    description:
      - V(flows) has a record for each host that saw a connection, V(paths) one for each connection,
        with what each host has seen of it.
    type: str
    choices: [flows, paths]
    default: flows
  limit:
    description:
      - So many lines have the lists in RV(top), RV(paths) and the page.
    type: int
    default: 10
  collector:
    description:
      - Where to send the records as JSON lines, V(tcp://HOST:PORT) or V(udp://HOST:PORT). In check
        mode nothing is sent.
    type: str
  mode:
    description:
      - Permissions of the file at O(dest), as an octal number in quotes.
    type: str
    default: "0640"
seealso:
  - module: ebpf.conntrack.ct_fetch
  - module: ebpf.conntrack.ct_flows
"""

EXAMPLES = r"""
- name: One table of both routers
  ebpf.conntrack.ct_merge:
    sources:
      - host: r1
        path: /tmp/flows/r1.jsonl
        networks: [10.1.0.1/24, 10.2.0.1/24]
      - host: r2
        path: /tmp/flows/r2.jsonl
        networks: [10.2.0.2/24, 10.3.0.1/24]
    dest: /tmp/fleet.jsonl
  delegate_to: localhost
  run_once: true
  become: false
"""

RETURN = r"""
hosts:
  description: How many flows each host has, by its name.
  returned: success
  type: dict
  sample: {r1: 2, r2: 1}
unread:
  description: Why a host could not be read, by its name.
  returned: success
  type: dict
  sample: {}
flows:
  description: The records of all hosts together.
  returned: success
  type: int
  sample: 3
connections:
  description: The connections that they are about.
  returned: success
  type: int
  sample: 2
joined:
  description: Those of the connections that more than one host saw.
  returned: success
  type: int
  sample: 1
packets:
  description: Packets of all connections in both directions. Each counts once, as the host has it
    that counted most.
  returned: success
  type: int
  sample: 12
bytes:
  description: Bytes likewise.
  returned: success
  type: int
  sample: 1641
top:
  description:
    - The addresses that begin connections (C(src)) and answer (C(dst)), services (C(service)) and
      pairs (C(pair)) with the most bytes.
  returned: success
  type: dict
  sample:
    src: [{src: 10.1.0.9, connections: 2, packets: 12, bytes: 1641}]
paths:
  description: The hosts that connections went through, and how many; those with the most bytes
    first.
  returned: success
  type: list
  elements: dict
  sample: [{path: [r1, r2], ordered: true, connections: 1, packets: 10, bytes: 1500}]
path_count:
  description: How many paths there are.
  returned: success
  type: int
  sample: 2
dest:
  description: The file.
  returned: when O(dest) is given
  type: str
  sample: /tmp/fleet.jsonl
sent:
  description: The lines that were sent. Over UDP nobody knows whether they arrived.
  returned: when O(collector) is given
  type: int
  sample: 3
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import run as fleet_run


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=fleet_run.OPTIONS,
        required_one_of=[("dest", "collector")],
        supports_check_mode=True,
    )
    with told_by(module):
        result = fleet_run.report(module.params, module.check_mode)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
