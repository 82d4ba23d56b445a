#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the command ct."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_command
short_description: Install the command ct on a host
version_added: "0.1.0"
description:
  - Installs the command C(ct), which reads the flow table and looks after the chain without
    Ansible, its manual page and its completion for bash.
  - The command is one file, made of the collection's own library, so it does what the modules do.
    It needs Python 3.9 and libbpf on the host, and neither Ansible nor bcc.
  - A file of somebody else in its place is refused and left alone.
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
  async:
    support: none
    details:
      - Part of it runs on the controller, so a task with C(async) is refused before anything is
        done.
options:
  state:
    description:
      - Whether the command is there.
    type: str
    choices: [present, absent]
    default: present
  prefix:
    description:
      - The directory below which the files are, C(bin/ct), C(share/man/man8/ct.8) and
        C(share/bash-completion/completions/ct).
      - Directories that are missing are made. One that is another user's than root, or that others
        may write to, is refused, since root runs the command.
    type: path
    default: /usr/local
  state_dir:
    description:
      - The directory that M(ebpf.conntrack.xdp_program) was given. The command takes this one and
        O(pin_root) where it is not told otherwise.
    type: path
    default: /var/lib/ebpf_conntrack
  digest:
    description:
      - The digest of what the files are made of. It is filled in and can not be given.
    type: str
  content:
    description:
      - What the files are made of, on the target. It is filled in and can not be given.
    type: path
seealso:
  - module: ebpf.conntrack.xdp_program
  - module: ebpf.conntrack.ct_flows
"""

EXAMPLES = r"""
- name: Install the command
  ebpf.conntrack.ct_command:

- name: Install it where only root looks
  ebpf.conntrack.ct_command:
    prefix: /opt/ct

- name: Take it away
  ebpf.conntrack.ct_command:
    state: absent
"""

RETURN = r"""
plan:
  description: The steps that were done, or in check mode would be done, each with its reason.
  returned: success
  type: list
  elements: dict
  sample:
    - action: create
      kind: file
      name: /usr/local/bin/ct
      reason: it is missing
      before: null
      after: mode 0755, sha256 3b6c1f3e9f0a2d41
diff:
  description: The plan as a difference.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock, safe_path
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan as plans
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    told_by,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "prefix": {"type": "path", "default": ct_archive.PREFIX},
            "pin_root": {"type": "path", "default": bpffs.STANDARD},
            "state_dir": {"type": "path", "default": bpffs.STATE_DIR},
            "digest": {"type": "str"},
            "content": {"type": "path"},
            **lock.OPTION,
        },
        supports_check_mode=True,
    )
    params = module.params

    def content() -> ct_archive.Content:
        if not params["content"]:
            module.exit_json(
                changed=False,
                content_wanted={name: params[name] for name in ("pin_root", "state_dir")},
            )  # the action part comes again with it
        found = ct_archive.unpack(safe_path.read(params["content"]))
        if found.digest != params["digest"]:  # the file lies in a directory of the user who logs in
            raise ConntrackError("content: it is another than the one that was sent. Run it again.")
        return found

    with told_by(module):
        if params["state"] == "present" and not params["digest"]:
            raise ConntrackError(
                "digest: it is empty: the module has to be run as ebpf.conntrack.ct_command, whose"
                " action part fills it in."
            )
        # they get into the command, its manual page and its completion
        bpffs.check_text(bpffs.Paths(params["pin_root"], params["state_dir"]))
        want = ct_archive.Want(params["digest"], content) if params["state"] == "present" else None
        plan = ct_archive.converge(
            params["prefix"], want, module.check_mode, params["lock_timeout"]
        )
    module.exit_json(changed=bool(plan), plan=plans.as_dicts(plan), diff=plans.as_diff(plan))


if __name__ == "__main__":
    main()
