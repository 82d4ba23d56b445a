#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_attach
short_description: Attach the connection tracker to interfaces
version_added: 0.1.0
description:
  - Attaches the programs that M(ebpf.conntrack.xdp_program) has loaded to network interfaces, in
    the host's or in named network namespaces, each through a BPF link that is pinned below
    O(pin_root).
  - A program is replaced from one packet to the next, without a gap.
  - An XDP program of somebody else is refused by its id, name and tag, unless O(takeover=true).
  - A program of this collection that was attached by its pin, as C(ip link set dev ns1-lan xdp
    pinned /sys/fs/bpf/prog/xdp_0) does, counts as the collection's own. With O(state=present) it is
    taken over into a pinned link, with O(state=absent) it is detached.
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.lock
  - ebpf.conntrack.pin_root
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root, ebpf.conntrack.lock_timeout,
      ebpf.conntrack.state_dir]
options:
  state:
    description:
      - With V(present) each interface runs the program named for it. Interfaces that are not listed
        are left as they are.
      - With V(absent) the listed interfaces run no program of this collection. Programs of others
        are left alone, and an interface or a namespace that does not exist is no error.
    type: str
    choices: [present, absent]
    default: present
  interfaces:
    description:
      - The interfaces, each once. An entry names one, or chooses those that are all of
        O(interfaces[].pattern), O(interfaces[].driver) and O(interfaces[].default_route) that it
        gives.
      - An interface belongs to one entry, to that which names it, else to the first that fits. So
        an entry with O(interfaces[].default_route=true) and after it one with
        O(interfaces[].pattern=*) are the uplink and everything else.
      - When nothing fits an entry, that is an error with O(state=present), which says what there
        is.
      - With O(state=present), an interface whose frames have no Ethernet header (tun, WireGuard,
        PPP, tunnels of layer 3) cannot run V(ingress) or V(egress), nor can one that gets the
        frames of another one that runs them (a bridge and its port, a bond and its member, a VLAN
        or macvlan and what it is made on). One that is named is refused, one that was chosen is
        left out, and a warning says so. Named interfaces and earlier entries come first, in one
        entry the lower interface.
      - Required with O(state=present). When it is not given with O(state=absent), it stands for
        every interface that this collection holds.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Name of the interface, or an alternative name of it. All results have the name that C(ip
            link) lists.
        type: str
      pattern:
        description:
          - Choose the interfaces of which a name fits the pattern, alternative names included.
            C(*), C(?) and C([...]) mean what they mean in a shell. C(lo) is never chosen.
        type: str
      driver:
        description:
          - Choose the interfaces of this driver, as C(ethtool -i) has it, V(virtio_net) or V(veth)
            for instance.
        type: str
      default_route:
        description:
          - Choose the interface out of which the default route goes. It is that with the lowest
            metric in the main table. Where IPv4 and IPv6 have theirs on different interfaces, or
            one has several next hops, it is each of them.
        type: bool
        default: false
      netns:
        description:
          - Name of the network namespace that the interface is in, as C(ip netns list) shows it.
          - When not given, the interface is in the namespace that the module runs in, which is the
            host's as a rule.
          - Tables belong to O(pin_root). Where V(ingress) and V(egress) run in several namespaces
            under one, a packet that goes through more than one of them is counted in each, and a
            warning says so. Give each namespace a O(pin_root) of its own.
        type: str
      program:
        description:
          - The hook to attach, V(ingress) on the side of the initiators, V(egress) on the other.
          - V(pass) tracks nothing. A veth takes frames that are redirected to it only when its
            other end has a program, so the far end of a link to which the chain forwards wants this
            one. It has to be native there.
          - Required with O(state=present), and not looked at with O(state=absent).
        type: str
        choices: [ingress, egress, pass]
      mode:
        description: The mode for this interface. When not given, O(mode) holds.
        type: str
        choices: [auto, native, generic]
  mode:
    description:
      - Where the program runs. V(native) is in the driver, V(generic) is in the network stack,
        slower, for every interface.
      - With V(auto) native is tried first, and generic when the driver can not do native, or not
        with this MTU or these queues; then a warning says why. What has nothing to do with the
        driver is an error, such as too little memory. An interface that has the program already
        keeps its mode.
      - On a veth, V(native) needs the MTU of the other end to be at most 3506 (a page of 4096 bytes
        less what the kernel needs).
    type: str
    choices: [auto, native, generic]
    default: auto
  takeover:
    description:
      - Whether a foreign XDP program is replaced.
      - It is detached right before the new one is attached, so a few milliseconds of packets can go
        unseen.
      - When attaching fails, the old program is put back. One that a BPF link held comes back
        through netlink, for a detached link can not be revived.
    type: bool
    default: false
  state_dir:
    description:
      - The directory in which M(ebpf.conntrack.xdp_program) writes down what the chain is made of,
        as it was given there.
      - What is attached is written down there as well, with its O(mode), so that it can be attached
        again after a reboot. Where nothing is written down of a chain, nothing is of interfaces.
        Interfaces that were chosen are written down by their names.
    type: path
    default: /var/lib/ebpf_conntrack
notes:
  - In check mode an interface, a namespace or a program that an earlier task would have made counts
    as there to come, and not as an error.
  - What the kernel will refuse is an error in check mode as well. That is native XDP where the
    driver does not have it, where the MTU is too large or a veth has too few queues, and any
    program where an interface on top (a bridge, a VLAN) has one. Linux before 6.3 does not say what
    a driver can; there only what never can is known, and queues show in the run.
  - A chain that forwards, see O(ebpf.conntrack.xdp_program#module:forward), is not attached where
    VLAN tags travel beside the frames of an interface, nor where nf_conntrack tracks in its
    namespace and C(net.netfilter.nf_conntrack_tcp_be_liberal) is not 1. The steps that make an
    interface a port name the rulesets of the forward hook that are passed by.
requirements:
  - libbpf 0.8 or later (package libbpf1 on Debian and Ubuntu, libbpf on Fedora and RHEL)
  - Linux 5.9 or later
  - root
seealso:
  - module: ebpf.conntrack.xdp_program
  - module: ebpf.conntrack.netns_lab
  - module: ebpf.conntrack.ct_flows
"""

EXAMPLES = r"""
- name: Track what goes through the lab's router
  ebpf.conntrack.xdp_attach:
    interfaces:
      - name: ns1-lan
        program: ingress
      - name: ns2-lan
        program: egress

- name: Track on a network card, in the driver or not at all
  ebpf.conntrack.xdp_attach:
    interfaces:
      - name: eth0
        program: ingress
    mode: native

- name: Track on whatever the default route goes out of, and on all other cards
  ebpf.conntrack.xdp_attach:
    interfaces:
      - default_route: true
        program: egress
      - pattern: "en*"
        driver: virtio_net
        program: ingress

- name: Replace whatever XDP program an interface in a namespace has
  ebpf.conntrack.xdp_attach:
    interfaces:
      - name: wan0
        netns: router
        program: egress
        mode: generic
    takeover: true

- name: Detach from one interface
  ebpf.conntrack.xdp_attach:
    state: absent
    interfaces:
      - name: eth0

- name: Detach from every interface
  ebpf.conntrack.xdp_attach:
    state: absent
"""

RETURN = r"""
plan:
  description: The steps that were done, or in check mode would be done.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(attach), V(replace), V(detach), or V(change) where only what is written down in
        O(state_dir) differs.
      type: str
    kind:
      description: V(xdp), or V(manifest) for what is written down.
      type: str
    name:
      description: The interface, C(name) or C(name@netns).
      type: str
    reason:
      description: Why the step is needed.
      type: str
    before:
      description: The program that is attached, V(null) when none is.
      type: dict
    after:
      description: The program that will be attached, V(null) when none will be.
      type: dict
  sample:
    - action: attach
      kind: xdp
      name: ns1-lan
      reason: nothing is attached
      before: null
      after: {program: ingress, program_id: 137, tag: 614b434cd8324ecc, mode: auto}
interfaces:
  description: The listed interfaces as they are now, or in check mode as they would be.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the interface.
      type: str
    netns:
      description: Its namespace, V(null) for the host's.
      type: str
    ifindex:
      description: Its number, V(null) when it does not exist.
      type: int
    mode:
      description:
        - The mode it got, V(native) or V(generic), V(null) when no program is attached.
        - In check mode V(auto) when that shows only with the attempt.
      type: str
    program:
      description: The attached hook, or the name of a foreign program, V(null) when no program is
        attached.
      type: str
    program_id:
      description: The kernel's id of the program.
      type: int
    tag:
      description: The kernel's tag of the program, a hash of its instructions.
      type: str
    link_id:
      description: The kernel's id of the BPF link that holds it, V(null) when none does.
      type: int
    chosen_by:
      description: What it was chosen by, or the alternative name that it was called by; V(null)
        where it was named as it is.
      type: str
  sample:
    - {name: ns1-lan, netns: null, ifindex: 7, mode: native, program: ingress, program_id: 137, tag:
      614b434cd8324ecc, link_id: 90, chosen_by: null}
faults:
  description:
    - What keeps the chain from working on any interface, as M(ebpf.conntrack.xdp_program) has it in
      C(chain.faults).
    - Those about links are repaired here, for the listed interfaces; most others by
      M(ebpf.conntrack.xdp_program), and so are links that hold no interface any more.
  returned: success
  type: list
  elements: dict
  contains:
    fault:
      description: Its name, which stays the same.
      type: str
    object:
      description: What it is about.
      type: str
    detail:
      description: The whole, for people.
      type: str
    repair:
      description: What repairs it at once, a command of C(ct) where there is one.
      type: str
  sample: []
mended:
  description: The faults that this run found and took away, likewise. In check mode there are none.
  returned: success
  type: list
  elements: dict
  sample:
    - fault: link_stale
      object: ns1-lan
      detail: "ns1-lan: its link 90 holds no interface any more: the interface was made again, or
        the link was detached"
      repair: ct attach ns1-lan --program ingress
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import model as attach_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.programs import HOOKS
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "interfaces": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str"},
                    "pattern": {"type": "str"},
                    "driver": {"type": "str"},
                    "default_route": {"type": "bool", "default": False},
                    "netns": {"type": "str"},
                    "program": {"type": "str", "choices": list(HOOKS)},
                    "mode": {"type": "str", "choices": list(attach_model.MODES)},
                },
            },
            "mode": {"type": "str", "choices": list(attach_model.MODES), "default": "auto"},
            "takeover": {"type": "bool", "default": False},
            "state_dir": {"type": "path", "default": bpffs.STATE_DIR},
            "pin_root": {"type": "path", "default": bpffs.STANDARD},
            **lock.OPTION,
        },
        required_if=[("state", "present", ["interfaces"])],
        supports_check_mode=True,
    )
    with told_by(module):
        result, warnings = attach.converge(check_mode=module.check_mode, **module.params)
    for warning in warnings:
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
