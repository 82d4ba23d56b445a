#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a host's flows to the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_fetch
short_description: Bring the flows of a host to a file on the controller
version_added: "0.1.0"
description:
  - Has M(ebpf.conntrack.ct_flows) write the flows to a file on the target, fetches it, and takes it
    away again.
  - The flows are never in Ansible's memory, nor in the result, so that a table of any size takes
    little of it. The connection has to be able to copy files by itself, as those of SSH and
    C(local) are.
  - The result has in RV(source) what M(ebpf.conntrack.ct_merge) wants to know of the host.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.pin_root
  - ebpf.conntrack.flow_filters
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root]
  async:
    support: none
    details:
      - Part of it runs on the controller, so a task with C(async) is refused before anything is
        done.
  action:
    description:
      - Has an action plugin of the same name that runs some parts on the controller.
    support: full
  check_mode:
    support: full
    details:
      - In check mode the table is read, and nothing is written.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Most fields of a flow move with time and traffic, so the file is another one each time.
options:
  dest:
    description:
      - The file on the controller, a record on each line. Its directory is made where it is
        missing.
      - It has mode V(0600).
    type: path
    required: true
  zone:
    description:
      - Where the addresses of the host hold, see O(ebpf.conntrack.ct_merge#module:sources[].zone).
    type: str
    default: ""
  networks:
    description:
      - The networks that the host is attached to, see
        O(ebpf.conntrack.ct_merge#module:sources[].networks).
      - Without it, they are those of the host's interfaces in the network namespace that one logs
        in to.
    type: list
    elements: str
requirements:
  - libbpf 0.8 or later on the target
seealso:
  - module: ebpf.conntrack.ct_merge
  - module: ebpf.conntrack.ct_flows
"""

EXAMPLES = r"""
- name: The assured flows of each router
  ebpf.conntrack.ct_fetch:
    dest: "/tmp/flows/{{ inventory_hostname }}.jsonl"
    assured: true
  register: fetched

- name: One table of all
  ebpf.conntrack.ct_merge:
    sources: "{{ ansible_play_hosts | map('extract', hostvars, ['fetched', 'source']) }}"
    dest: /tmp/fleet.csv
  delegate_to: localhost
  run_once: true
  become: false
"""

RETURN = r"""
count:
  description: How many flows there are.
  returned: success
  type: int
  sample: 4711
dest:
  description: The file on the controller.
  returned: success, but not in check mode
  type: str
  sample: /tmp/flows/r1.jsonl
source:
  description: The host as O(ebpf.conntrack.ct_merge#module:sources) wants it.
  returned: success, but not in check mode
  type: dict
  sample: {host: r1, path: /tmp/flows/r1.jsonl, zone: "", networks: [10.1.0.0/24]}
summary:
  description: See RV(ebpf.conntrack.ct_flows#module:summary).
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import report as flow_report


def main() -> None:
    """Say that the action plugin is missing: it does all of this."""
    options = {
        **flow_report.PIN_ROOT_OPTION,
        **flow_report.FILTER_OPTIONS,
        "dest": {"type": "path", "required": True},
        "zone": {"type": "str", "default": ""},
        "networks": {"type": "list", "elements": "str"},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    module.fail_json(
        msg="ct_fetch runs on the controller. Call it by its whole name, ebpf.conntrack.ct_fetch."
    )


if __name__ == "__main__":
    main()
