#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look whether a host can take the chain."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_preflight
short_description: Look whether a host can take the connection tracker
version_added: "0.1.0"
description:
  - Looks whether a host can take the chain as it is wanted, and how it is before. Nothing is
    changed, nothing is attached for it.
  - What the kernel can do is tried, with small programs and maps that are thrown away, and not
    concluded from its release.
  - Whatever is wrong is in RV(problems), each with how to mend it, and RV(ok) is V(false); the task
    does not fail for it.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.pin_root
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root, ebpf.conntrack.state_dir,
      ebpf.conntrack.prefix]
  diff_mode:
    support: none
    details:
      - Nothing is ever changed.
options:
  interfaces:
    description:
      - The interfaces that the chain is to be attached to, as M(ebpf.conntrack.xdp_attach) takes
        them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the interface.
        type: str
      pattern:
        description: Choose the interfaces whose names fit, see
          O(ebpf.conntrack.xdp_attach#module:interfaces).
        type: str
      driver:
        description: Choose the interfaces of this driver.
        type: str
      default_route:
        description: Choose the interface out of which the default route goes.
        type: bool
        default: false
      netns:
        description: Name of the network namespace that it is in. When not given, the host's.
        type: str
      program:
        description: The hook.
        type: str
        choices: [ingress, egress, pass]
      mode:
        description: The mode for this interface. When not given, O(mode) holds.
        type: str
        choices: [auto, native, generic]
  mode:
    description:
      - Where the programs are to run. With V(native) a driver that runs none is a problem.
    type: str
    choices: [auto, native, generic]
    default: auto
  takeover:
    description: Whether an XDP program of somebody else may be replaced. Without it, one is a
      problem.
    type: bool
    default: false
  table_size:
    description: Entries of the table of assured IPv4 flows, see
      O(ebpf.conntrack.xdp_program#module:table_size).
    type: int
    default: 65536
  table_size6:
    description: Entries of the table of assured IPv6 flows.
    type: int
    default: 65536
  half_open_size:
    description: Entries of the table of all other IPv4 flows.
    type: int
    default: 65536
  half_open_size6:
    description: Entries of the table of all other IPv6 flows.
    type: int
    default: 65536
  events:
    description: Whether the chain tells what becomes of flows.
    type: bool
    default: false
  forward:
    description:
      - What the chain is to forward past the stack, see
        O(ebpf.conntrack.xdp_program#module:forward). Then RV(forwarding) says what that passes by,
        and it is a problem where VLAN tags travel beside the frames of an interface, or
        nf_conntrack would call what it sees of a connection invalid.
    type: str
    choices: ["off", established, all]
    default: "off"
  forward_unfiltered:
    description: Whether what is forwarded may pass the firewall by. Without it, O(forward) is a
      problem.
    type: bool
    default: false
  build:
    description:
      - How the chain is built. Only V(bcc) needs a compiler on the host.
    type: str
    choices: [bcc, clang, object]
    default: bcc
  install:
    description:
      - Whether what is missing will be installed, so that it is no problem where the host has
        C(dpkg) or C(rpm).
    type: bool
    default: true
  prefix:
    description: The directory that M(ebpf.conntrack.ct_command) is given.
    type: path
    default: /usr/local
  state_dir:
    description: The directory that M(ebpf.conntrack.xdp_program) is given.
    type: path
    default: /var/lib/ebpf_conntrack
requirements:
  - root
seealso:
  - module: ebpf.conntrack.ct_soak
  - module: ebpf.conntrack.ct_put_back
  - module: ebpf.conntrack.xdp_program
"""

EXAMPLES = r"""
- name: Can this host take it?
  ebpf.conntrack.ct_preflight:
    interfaces:
      - name: eth0
        program: ingress
    mode: native
    table_size: 1048576
  register: preflight

- name: Go no further where it can not
  ansible.builtin.assert:
    that: preflight.ok
    fail_msg: "{{ preflight.problems | map(attribute='problem') | join(' ') }}"
"""

RETURN = r"""
ok:
  description: Whether nothing is wrong.
  returned: success
  type: bool
problems:
  description: What keeps the chain off this host.
  returned: success
  type: list
  elements: dict
  contains:
    field:
      description: The option that it is about, or what of the host.
      type: str
    value:
      description: What is there.
      type: str
    problem:
      description: What is wrong with it.
      type: str
    mend:
      description: What to do about it.
      type: str
  sample:
    - field: table_size
      value: 512 MiB
      problem: the new tables and what loads them take 1201 MiB of memory, available are 512 MiB.
      mend: Give smaller tables (table_size, table_size6, half_open_size, half_open_size6), or free
        memory.
kernel:
  description: C(release), C(machine) and C(missing_features), which is V(null) where libbpf is
    missing, so that nothing could be tried.
  returned: success
  type: dict
  sample: {release: 6.12.41, machine: x86_64, missing_features: []}
libraries:
  description: Each with its C(name), the version C(found), V(null) where it is missing, the one
    C(wanted), whether it is C(needed) and C(good).
  returned: success
  type: list
  elements: dict
would_install:
  description: The packages that are missing and would be installed.
  returned: success
  type: list
  elements: str
python:
  description: The version of the Python that the module ran on.
  returned: success
  type: str
interfaces:
  description:
    - The wanted interfaces. C(native) tells whether the driver runs XDP programs itself, by the
      kernel's own answer (since Linux 6.3), V(null) where it does not tell, and C(modes) which
      modes can be had. C(big_tcp) tells whether generic mode shows packets of more than 64 KiB
      there, each of which the kernel copies into one piece of memory, and drops where it finds
      none. C(program) and C(mode) are what is attached now, C(foreign) whether that is somebody
      else's.
    - With O(forward), C(vlan_offloads) says what keeps VLAN tags out of the interface's frames.
  returned: success
  type: list
  elements: dict
  sample:
    - name: eth0
      netns: null
      ifindex: 2
      driver: virtio_net
      native: true
      why_not_native: ""
      big_tcp: false
      modes: [native, generic]
      program: null
      mode: null
      foreign: false
      vlan_offloads: null
forwarding:
  description:
    - What is forwarded past the stack meets no ruleset of the forward hook. C(namespaces) has, for
      each namespace of O(interfaces), those that there are as C(bypassed), V(null) where the kernel
      does not tell; whether nf_conntrack tracks there (C(nf_conntrack)); and whether it is told to
      be liberal (C(tcp_be_liberal)). C(past) is the rulesets for people.
    - V(null) where O(forward) is V(off).
  returned: success
  type: dict
  sample:
    forward: established
    namespaces:
      - netns: null
        bypassed: [{family: inet, table: filter, chain: forward, policy: drop}]
        nf_conntrack: true
        tcp_be_liberal: true
    past: inet filter forward (policy drop) in the host's namespace
memory:
  description:
    - Bytes. C(needed) is what the tables take that are not handed on, and the compiler; C(held)
      what the tables of now take; C(available) what the machine or the control group has left;
      C(memlock) the limit that kernels before 5.11 hold BPF to.
  returned: when libbpf is there
  type: dict
  sample: {needed: 221249536, held: 0, available: 8321499136, memlock: null}
disk:
  description: The state directory's C(path), how many bytes are free there (C(free_bytes)), and
    what is written down in it.
  returned: success
  type: dict
chain:
  description: The chain of now, as M(ebpf.conntrack.xdp_program) has it, without its programs and
    maps.
  returned: when libbpf is there
  type: dict
flows:
  description: How many flows there are, V(null) where no chain is loaded.
  returned: success
  type: int
figures:
  description: What the chain has counted so far, as M(ebpf.conntrack.ct_soak) takes it for its
    O(ebpf.conntrack.ct_soak#module:before).
  returned: success
  type: dict
before:
  description: What M(ebpf.conntrack.ct_put_back) needs to put the host back to how it is now.
  returned: when libbpf is there
  type: dict
found:
  description: All that there is of this collection on the host, pins, files, directories and
    programs on the interfaces of the host's namespace.
  returned: when libbpf is there
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import model as attach_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import (
    libraries as preflight_libraries,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import run as preflight
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "interfaces": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str"},
                    "pattern": {"type": "str"},
                    "driver": {"type": "str"},
                    "default_route": {"type": "bool", "default": False},
                    "netns": {"type": "str"},
                    "program": {"type": "str", "choices": list(chain_programs.HOOKS)},
                    "mode": {"type": "str", "choices": list(attach_model.MODES)},
                },
            },
            "mode": {"type": "str", "choices": list(attach_model.MODES), "default": "auto"},
            "takeover": {"type": "bool", "default": False},
            **{name: {"type": "int", "default": chain_maps.TABLE_SIZE} for name in render.SIZES},
            "events": {"type": "bool", "default": False},
            **{name: render.OPTIONS[name] for name in ("forward", render.UNFILTERED)},
            "build": {"type": "str", "choices": list(preflight_libraries.BUILDS), "default": "bcc"},
            "install": {"type": "bool", "default": True},
            "prefix": {"type": "path", "default": ct_archive.PREFIX},
            "pin_root": {"type": "path", "default": bpffs.STANDARD},
            "state_dir": {"type": "path", "default": bpffs.STATE_DIR},
        },
        supports_check_mode=True,
    )
    params = module.params
    names = (
        "interfaces",
        "mode",
        "takeover",
        "events",
        "build",
        "install",
        "prefix",
        "forward",
        render.UNFILTERED,
    )
    need = preflight.Need(
        sizes={name: params[name] for name in render.SIZES},
        **{name: params[name] for name in names},
    )
    with told_by(module):
        result = preflight.check_host(bpffs.Paths(params["pin_root"], params["state_dir"]), need)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
