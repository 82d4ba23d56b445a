#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a host back to what it had before."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_put_back
short_description: Put a host back to what it had before a roll-out
version_added: "0.1.0"
description:
  - Brings a host back to what M(ebpf.conntrack.ct_preflight) found on it. The generation of then
    takes over again, its timeouts and switches are those of then, interfaces that were not attached
    are detached, and those that were are attached as they were.
  - Where no chain was loaded it is taken away, and so are the command C(ct) and its service where
    they were not there.
  - Flows and counters are those of now. Packages stay.
  - A host that is as it was is left alone.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.lock
  - ebpf.conntrack.pin_root
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root, ebpf.conntrack.lock_timeout,
      ebpf.conntrack.state_dir, ebpf.conntrack.prefix]
options:
  before:
    description:
      - What M(ebpf.conntrack.ct_preflight) returned as
        RV(ebpf.conntrack.ct_preflight#module:before).
    type: dict
    required: true
  prefix:
    description: The directory that M(ebpf.conntrack.ct_command) was given.
    type: path
    default: /usr/local
  state_dir:
    description: The directory that M(ebpf.conntrack.xdp_program) was given.
    type: path
    default: /var/lib/ebpf_conntrack
notes:
  - The generation of then has to be pinned still, which is what
    O(ebpf.conntrack.xdp_program#module:keep) is for.
  - An XDP program of somebody else that was replaced is not brought back.
requirements:
  - libbpf 0.8 or later
  - root
seealso:
  - module: ebpf.conntrack.ct_preflight
  - module: ebpf.conntrack.ct_soak
  - module: ebpf.conntrack.xdp_program
"""

EXAMPLES = r"""
- name: Look how it is before
  ebpf.conntrack.ct_preflight:
  register: preflight

- name: Go on, and put it back when that goes wrong
  block:
    - name: Load another chain
      ebpf.conntrack.xdp_program:
        table_size: 131072

    - name: Watch it
      ebpf.conntrack.ct_soak:
        before: "{{ preflight.figures }}"
  rescue:
    - name: Put back what was there
      ebpf.conntrack.ct_put_back:
        before: "{{ preflight.before }}"
"""

RETURN = r"""
plan:
  description: The steps that were done, or in check mode would be done, each with its reason.
  returned: success
  type: list
  elements: dict
  sample:
    - action: activate
      kind: generation
      name: "3"
      reason: generation 4 is rolled back from
      before: generation 4, digest 0b4f1a0b3b5e5d0e8a56d2a1c6a3f1d2
      after: generation 3, digest 5d7c8e9f0a1b2c3d4e5f60718293a4b5
chain:
  description: The chain of now, as M(ebpf.conntrack.xdp_program) has it.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan as plans
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import put_back
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "before": {"type": "dict", "required": True},
            "prefix": {"type": "path", "default": ct_archive.PREFIX},
            "pin_root": {"type": "path", "default": bpffs.STANDARD},
            "state_dir": {"type": "path", "default": bpffs.STATE_DIR},
            **lock.OPTION,
        },
        supports_check_mode=True,
    )
    params = module.params
    paths = bpffs.Paths(params["pin_root"], params["state_dir"])
    with told_by(module):
        plan, warnings, facts = put_back.put_back(
            paths, params["before"], params["prefix"], module.check_mode, params["lock_timeout"]
        )
    for warning in warnings:
        module.warn(warning)
    module.exit_json(
        changed=bool(plan), plan=plans.as_dicts(plan), diff=plans.as_diff(plan), chain=facts
    )


if __name__ == "__main__":
    main()
