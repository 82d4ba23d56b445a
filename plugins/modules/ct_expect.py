#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what a topology promises."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_expect
short_description: Check that flows between network namespaces are tracked as they should be
version_added: "0.1.0"
description:
  - Checks, line by line, that flows between two namespaces reach a state, that pings are answered,
    and that nothing stays untracked.
  - It makes the traffic itself, with sockets in the namespaces, and looks for the flows in the
    chain's tables. The chain has to be attached to what lies between.
  - The module fails when a line does not hold, after all were checked. Nothing is changed but the
    flows in the tables.
  - O(expect) is needed; with an empty list there is nothing to check.
  - M(ebpf.conntrack.netns_lab) takes the same lines, refuses those that do not fit the topology,
    and returns them with all that was left out.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.expect
  - ebpf.conntrack.pin_root
options:
  pin_roots:
    description:
      - The directories of several chains, in place of O(pin_root), where the path leads through
        routers with a chain each. A flow has to be in the tables of one of them. What stays
        untracked is added up.
    type: list
    elements: path
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root]
  check_mode:
    details:
      - Nothing is looked at and no traffic is made; the result says what would be checked.
seealso:
  - module: ebpf.conntrack.netns_lab
  - module: ebpf.conntrack.ct_flows
"""

EXAMPLES = r"""
- name: Check the default lab
  ebpf.conntrack.ct_expect:
    expect:
      - ping: {from: ns1, to: ns2}
      - flow: {from: ns1, to: ns2, proto: tcp, port: 80, state: ESTABLISHED, within: 5}
      - flow: {from: ns1, to: ns2, proto: udp, port: 53}
      - untracked: 0

- name: Wait for a connection that something else makes
  ebpf.conntrack.ct_expect:
    expect:
      - flow: {from: client, to: server, port: 5432, make: false, within: 30}
"""

RETURN = r"""
expectations:
  description: The lines in their order, each with what became of it.
  returned: always
  type: list
  elements: dict
  contains:
    line:
      description: The line in words.
      type: str
    passed:
      description: Whether it holds; null in check mode.
      type: bool
    seen:
      description: What was seen.
      type: str
    expect:
      description: The line as it was given, with all that was left out.
      type: dict
  sample:
    - line: tcp from ns1 to ns2, port 80, is ESTABLISHED within 5 s
      passed: true
      seen: ESTABLISHED with 4 packets there and 3 back, after 0.01 s
      expect:
        flow:
          from: ns1
          to: ns2
          family: ipv4
          address: 172.30.56.105
          proto: tcp
          port: 80
          state: ESTABLISHED
          within: 5.0
          make: true
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    told_by,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows.report import PIN_ROOT_OPTION
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import expectation, expectation_run


def main() -> None:
    """Run the module."""
    several = {"pin_roots": {"type": "list", "elements": "path"}}
    module = AnsibleModule(
        argument_spec={**expectation.OPTION, **PIN_ROOT_OPTION, **several}, supports_check_mode=True
    )
    with told_by(module):
        if module.params["expect"] is None:
            raise ConntrackError("expect: is missing: give a list of lines.")
        lines = expectation.parse(module.params["expect"])
        pin_roots = module.params["pin_roots"] or [module.params["pin_root"]]
        outcomes = (
            expectation_run.foretell(lines)
            if module.check_mode
            else expectation_run.check(lines, *pin_roots)
        )
    result = {"changed": False, "expectations": [outcome.as_dict() for outcome in outcomes]}
    failed = expectation_run.failures(outcomes)
    if failed:
        module.fail_json(msg=failed, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
