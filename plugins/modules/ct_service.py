#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let systemd run the service of the chain."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_service
short_description: Let systemd look after the connection tracker
version_added: "0.1.0"
description:
  - Installs, enables and starts C(ct.service). It brings the chain back when the machine starts,
    attaches it where interfaces come back, and deletes the entries whose time is over.
  - It answers over HTTP what the command C(ct) reads, on a unix socket where nothing else is said.
  - It may take 512 MB of memory. What brings the chain back is C(ct-restore.service), which it
    starts and which has no such bound, since the chain's tables count for whoever makes them.
  - It is restarted when its settings, or the command C(ct) that it runs, changed.
  - A foreign unit of one of these names is refused and left alone.
  - Where systemd does not run the target nothing is done, and a warning says so.
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
  state:
    description:
      - Whether the service runs, now and after a reboot.
      - With V(absent) it is stopped, as O(on_stop) of the run before has it, and its unit deleted.
    type: str
    choices: [present, absent]
    default: present
  sweep_interval:
    description:
      - How many seconds to wait between two sweeps, which delete the entries whose time is over.
        V(1) to V(86400).
    type: int
    default: 30
  on_stop:
    description:
      - What becomes of the chain when the service is stopped. With V(keep) it stays as it is, and
        goes on tracking.
      - With V(remove) it is detached and unloaded, and the flows are forgotten. What it is made of
        is kept, so that the next start brings it back.
      - When the service dies or is restarted, that is no stop.
    type: str
    choices: [keep, remove]
    default: keep
  http:
    description:
      - Whether the service answers over HTTP.
    type: bool
    default: true
  socket:
    description:
      - The unix socket to listen on, C(/run/ebpf_conntrack/ct.sock) when not given.
      - The service can write below C(/run/ebpf_conntrack) only.
    type: path
  group:
    description:
      - A group on the target whose members may read from the socket. When not given, root alone
        may.
    type: str
  listen:
    description:
      - A loopback address and a TCP port to listen on in place of the socket, as V(127.0.0.1:9477).
        Every user of the target can read then.
    type: str
  prefix:
    description:
      - The directory that M(ebpf.conntrack.ct_command) was given.
    type: path
    default: /usr/local
  state_dir:
    description:
      - The directory that M(ebpf.conntrack.xdp_program) was given.
    type: path
    default: /var/lib/ebpf_conntrack
requirements:
  - systemd 247 or later
  - the command C(ct), see M(ebpf.conntrack.ct_command)
  - bcc for Python, as M(ebpf.conntrack.xdp_program) needs it, to bring the chain back after a
    reboot
seealso:
  - module: ebpf.conntrack.ct_command
  - module: ebpf.conntrack.xdp_program
  - module: ebpf.conntrack.xdp_attach
"""

EXAMPLES = r"""
- name: Let the host keep its chain
  ebpf.conntrack.ct_service:

- name: Let systemctl stop ct take the chain away
  ebpf.conntrack.ct_service:
    on_stop: remove

- name: Let members of a group read the flow table over HTTP
  ebpf.conntrack.ct_service:
    group: adm

- name: Stop it, and let it not start again
  ebpf.conntrack.ct_service:
    state: absent
"""

RETURN = r"""
plan:
  description: The steps that were done, or in check mode would be done, each with its reason.
  returned: success
  type: list
  elements: dict
  sample:
    - action: start
      kind: service
      name: ct.service
      reason: it does not run
      before: inactive
      after: active
diff:
  description: The plan as a difference.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan as plans
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import unit as ct_unit


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "sweep_interval": {"type": "int", "default": service_options.Options.sweep_interval},
            "on_stop": {
                "type": "str",
                "choices": list(service_options.ON_STOP),
                "default": service_options.Options.on_stop,
            },
            "http": {"type": "bool", "default": True},
            "socket": {"type": "path"},
            "group": {"type": "str"},
            "listen": {"type": "str"},
            "prefix": {"type": "path", "default": ct_archive.PREFIX},
            "pin_root": {"type": "path", "default": bpffs.STANDARD},
            "state_dir": {"type": "path", "default": bpffs.STATE_DIR},
            **lock.OPTION,
        },
        supports_check_mode=True,
    )
    params = module.params
    plan: plans.Plan = []
    with told_by(module):
        if ct_unit.booted():
            wanted = params["http"] and params["state"] == "present"
            address = (
                service_options.parse_address(params["socket"], params["listen"], params["group"])
                if wanted
                else None
            )
            options = service_options.Options(
                bpffs.Paths(params["pin_root"], params["state_dir"]),
                params["sweep_interval"],
                params["on_stop"],
                address,
            )
            plan = ct_unit.converge(
                params["state"],
                ct_unit.Want(params["prefix"], options),
                module.check_mode,
                params["lock_timeout"],
            )
        elif params["state"] == "present":
            module.warn(
                "systemd does not run this machine, so there is no ct.service: nothing brings the"
                " chain back after a reboot."
            )
    module.exit_json(changed=bool(plan), plan=plans.as_dicts(plan), diff=plans.as_diff(plan))


if __name__ == "__main__":
    main()
