#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delete flows."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_flush
short_description: Delete flows from the XDP chain's flow table
version_added: "0.1.0"
description:
  - Deletes the flows that match the filters, or all, or those whose time is over. What was deleted
    is counted by reason.
  - Each flow is read again just before it goes. One that a packet changed meanwhile, so that it
    does not match any more, stays.
  - An empty value of a filter is an error, an empty list as well. What it was to be made of is
    missing, and without it more would go.
  - A deleted flow can not be brought back. Its next packet begins a new one.
  - In check mode a chain that is not there yet counts as an empty table, with a warning.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
requirements:
  - libbpf 0.8 or later (package C(libbpf1) on Debian and Ubuntu, C(libbpf) on Fedora and RHEL)
  - the privilege to open BPF maps (root)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.lock
  - ebpf.conntrack.pin_root
  - ebpf.conntrack.flow_filters
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root, ebpf.conntrack.lock_timeout]
  idempotent:
    details:
      - As long as no traffic makes new flows that match.
options:
  all:
    description:
      - Delete every flow. It excludes filters and O(expired).
    type: bool
    default: false
  expired:
    description:
      - Delete the entries whose time is over. Readers never show them, but they take room. It
        excludes filters and O(all).
    type: bool
    default: false
  limit:
    description:
      - At most so many flows in RV(plan) and RV(diff). It does not limit what is deleted.
    type: int
    default: 100
seealso:
  - module: ebpf.conntrack.ct_flows
"""

EXAMPLES = r"""
- name: Cut off one client
  ebpf.conntrack.ct_flush:
    src: 172.20.56.105

- name: Delete connections that nobody answered, once they are a minute old
  ebpf.conntrack.ct_flush:
    proto: tcp
    state: [SYN_SENT, SYN_SENT2]
    older_than: 60

- name: Free the room of the flows whose time is over
  ebpf.conntrack.ct_flush:
    expired: true

- name: Begin with an empty table
  ebpf.conntrack.ct_flush:
    all: true
"""

RETURN = r"""
count:
  description: How many entries were found to go.
  returned: success
  type: int
  sample: 1
deleted:
  description: How many of them were deleted; in check mode none.
  returned: success
  type: int
  sample: 1
live:
  description: How many of those that were deleted, or in check mode would be, were live flows.
  returned: success
  type: int
  sample: 1
expired:
  description: How many of them had only expired. Readers never show those. Filters find live flows
    only.
  returned: success
  type: int
  sample: 0
truncated:
  description: Whether there are more flows than the plan lists.
  returned: success
  type: bool
  sample: false
msg:
  description: How many flows the plan lists.
  returned: when truncated
  type: str
plan:
  description: The flows that go, each with the reason and its last record as C(before); at most
    O(limit).
  returned: success
  type: list
  elements: dict
  sample:
    - action: delete
      kind: flow
      name: udp 172.20.56.105:40000 -> 172.30.56.105:53
      reason: the flow matches the filters
      before: {family: ipv4, proto: udp, state: NEW}
      after:
diff:
  description: The plan as a difference.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import report as flow_report


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=flow_report.FLUSH_OPTIONS, supports_check_mode=True)
    with told_by(module):
        result = flow_report.flush(module.params, module.check_mode)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
