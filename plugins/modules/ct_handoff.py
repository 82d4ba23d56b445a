#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry flows from host to host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_handoff
short_description: Carry live flows from one host's tables to another's
version_added: "0.1.0"
description:
  - On the one host it writes the live flows to a file, on the other it takes them in, where they go
    on with their states, counts and the time they had left.
  - The file says what it is made of, so that hosts with other clocks, other jiffies a second and
    other releases can read it, or refuse it with the reason.
  - It is read and checked to its end before anything is written. No flow has more time left than
    its state has on the host that takes it in.
  - TCP windows begin anew with the next segment of each side, as in an upgrade.
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
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - Importing the same file again changes nothing, with O(on_conflict=keep) and
        O(on_conflict=newer). An exported file is another one each time.
options:
  export_to:
    description:
      - The file on the target to write. It changes as a whole or not at all.
      - Either this or O(import_from) is needed.
    type: path
  import_from:
    description:
      - The file on the target to read.
    type: path
  on_conflict:
    description:
      - What becomes of a flow that is live on the importing host as well.
      - With V(keep) it stays as it is, with V(newer) the one wins that had the later packet, with
        V(replace) that of the file.
    type: str
    choices: [keep, newer, replace]
    default: keep
  mode:
    description:
      - Permissions of the exported file, as an octal number in quotes.
    type: str
    default: "0600"
seealso:
  - module: ebpf.conntrack.ct_flows
  - module: ebpf.conntrack.ct_flush
"""

EXAMPLES = r"""
- name: Write what r1 has
  ebpf.conntrack.ct_handoff:
    export_to: /var/tmp/flows
    assured: true

- name: Go on with it on r2
  ebpf.conntrack.ct_handoff:
    import_from: /var/tmp/flows
"""

RETURN = r"""
count:
  description: The flows in the file.
  returned: success
  type: int
  sample: 12
export_to:
  description: The file.
  returned: when exporting
  type: str
  sample: /var/tmp/flows
imported:
  description: The flows that are here now and were not before.
  returned: when importing
  type: int
  sample: 10
replaced:
  description: The flows that took the place of others.
  returned: when importing
  type: int
  sample: 0
kept:
  description: The flows that were live here, and stayed as they were.
  returned: when importing
  type: int
  sample: 1
expired:
  description: The flows whose time was over.
  returned: when importing
  type: int
  sample: 1
no_room:
  description: The flows for which the table has no room. No flow that is here makes room.
  returned: when importing
  type: int
  sample: 0
host:
  description: The host that wrote the file.
  returned: when importing
  type: str
  sample: r1
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.handoff import run as handoff_run


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=handoff_run.OPTIONS,
        required_one_of=[("export_to", "import_from")],
        mutually_exclusive=[("export_to", "import_from")],
        supports_check_mode=True,
    )
    with told_by(module):
        result = handoff_run.run(module.params, module.check_mode)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
