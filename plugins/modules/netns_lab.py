#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a lab of network namespaces."""

from __future__ import annotations

DOCUMENTATION = r"""
module: netns_lab
short_description: Build a lab of network namespaces and veth links
version_added: "0.1.0"
description:
  - Converges a whole topology in one call - network namespaces, veth links with both ends,
    addresses, routes and sysctls.
  - Without O(namespaces) and O(links) the lab is two namespaces, C(ns1) and C(ns2), each linked to
    the router - C(ns1-wan) with 172.20.56.105/24 to C(ns1-lan) with 172.20.56.1/24, C(ns2-wan) with
    172.30.56.105/24 to C(ns2-lan) with 172.30.56.1/24, with default routes through the router.
  - Only what differs is changed. What has drifted (MTU, MAC, addresses, routes, sysctls, links that
    are down or have ARP or multicast switched off) is repaired; other links keep their index.
  - What the lab makes carries its mark, C(ebpf.conntrack:NAME) as the alias of links and of each
    namespace's C(lo). Objects of the same name without the mark are refused, and O(state=absent)
    removes only what has it.
  - A run that was killed is completed by the next one.
  - One run is enough, whatever a sysctl changes elsewhere (other sysctls, addresses, routes) -
    where one was set it looks again, and repairs that too. Check mode can not foresee this.
    Settings that change each other without end are refused by their names.
  - The lines of O(expect) are only held against the topology, and returned;
    M(ebpf.conntrack.ct_expect) checks them once the chain is attached. Those of the default lab are
    a ping, a flow of TCP and one of UDP from C(ns1) to C(ns2), and nothing untracked.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
requirements:
  - pyroute2 0.7.2 or later (package C(python3-pyroute2))
  - the privilege to manage network namespaces (root)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.expect
  - ebpf.conntrack.lock
  - ebpf.conntrack.pin_root
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root, ebpf.conntrack.lock_timeout,
      ebpf.conntrack.state_dir]
options:
  state_dir:
    description:
      - The directory in which M(ebpf.conntrack.xdp_program) writes down what the chain is made of,
        as it was given there.
      - An interface that is removed is detached first, as with M(ebpf.conntrack.xdp_attach), below
        O(pin_root) and wherever else this directory knows of a chain. One that is made again runs
        the chain again.
    type: path
    default: /var/lib/ebpf_conntrack
  name:
    description:
      - The lab's name. Labs of different names do not touch each other's objects.
      - At most 32 letters, digits, C(_), C(.) and C(-).
    type: str
    default: lab
  state:
    description:
      - V(present) builds the lab or repairs it.
      - V(absent) removes all that carries the lab's mark, and puts back the sysctls that it
        changed. Only O(name) counts then.
    type: str
    choices:
      - present
      - absent
    default: present
  router:
    description:
      - The namespace that forwards between the others. It is made without being listed in
        O(namespaces). The host's own network is then left alone.
      - Without it the host is the router, as soon as a link ends there.
      - The router gets C(net.ipv4.conf.all.forwarding=1) and C(net.ipv6.conf.all.forwarding=1),
        unless O(sysctls) sets them.
    type: str
  namespaces:
    description:
      - The namespaces. Those of the lab that are not in the list are removed.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - The name, as C(ip netns) shows it; at most 64 characters.
        type: str
        required: true
      sysctls:
        description:
          - Sysctls to set in the namespace, for example C(net.ipv4.conf.all.rp_filter).
          - Only those below C(net) can be set, and only those that a namespace has of its own.
          - C(/) and C(.) change places in names of interfaces that hold a dot, as for C(sysctl)
            itself.
          - A value is the same in any form that the kernel reads, V(0x1) and V(1) for instance.
            C(net.ipv4.ip_forward) and C(net.ipv4.conf.all.forwarding) are one sysctl.
        type: dict
      routes:
        description:
          - Routes of the namespace, in its main table.
        type: list
        elements: dict
        suboptions:
          dst:
            description:
              - The network, one address, or V(default).
            type: str
            required: true
          via:
            description:
              - The next router. One of the namespace's links must reach it.
            type: str
          dev:
            description:
              - The link to use. It is needed where O(namespaces[].routes[].via) is missing or
                link-local, and found out otherwise.
            type: str
          metric:
            description:
              - The metric; 0 for IPv4 and 1024 for IPv6 if it is not given, as the kernel has it.
            type: int
  links:
    description:
      - The veth links. Those of the lab that are not in the list are removed.
    type: list
    elements: dict
    suboptions:
      ends:
        description:
          - The two ends.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description:
              - The name of the interface; at most 15 characters.
            type: str
            required: true
          netns:
            description:
              - The namespace in which the end lies. Without it, the router's, which is the host's
                without O(router).
            type: str
          addresses:
            description:
              - IPv4 and IPv6 addresses with their prefix lengths. Other addresses on the link are
                removed, but for those that the kernel, DHCP or router advertisements made.
              - IPv6 addresses are usable at once, without duplicate address detection.
            type: list
            elements: str
          mtu:
            description:
              - The MTU, 68 to 65535, with IPv6 addresses at least 1280. Native XDP works up to
                3506.
            type: int
            default: 1500
          mac:
            description:
              - The MAC address. Without it, one is derived from the names of lab, namespace and
                interface, the same in every run.
            type: str
  sysctls:
    description:
      - Sysctls to set where the router is, on the host or in the namespace O(router).
      - What they were on the host is kept in C(/run/ebpf_conntrack) and comes back when the lab is
        removed, or no longer sets them. When another lab needs the same value, it comes back with
        the last of them.
    type: dict
  replace:
    description:
      - Whether namespaces that a lab of this name has, and this topology does not have, are taken
        away with all that runs in them.
      - With V(false) that is an error that names them, and nothing is changed. So a topology does
        not take the place of another by its name alone.
    type: bool
    default: true
  routes:
    description:
      - Routes of the router.
    type: list
    elements: dict
    suboptions:
      dst:
        description:
          - The network, one address, or V(default).
        type: str
        required: true
      via:
        description:
          - The next router. One of the lab's links there must reach it.
        type: str
      dev:
        description:
          - The link to use. It is needed where O(routes[].via) is missing or link-local, and found
            out otherwise.
        type: str
      metric:
        description:
          - The metric; 0 for IPv4 and 1024 for IPv6 if it is not given, as the kernel has it.
        type: int
notes:
  - Switching IPv6 forwarding on makes the kernel drop default routes that it learned from router
    advertisements, unless C(accept_ra) is 2. Give a namespace as O(router) on a host that lives on
    one.
  - Routes that routing daemons or the kernel made are left alone.
  - The VLAN offloads of a lab's links are off on both ends (C(rxvlan), C(txvlan) and the like for
    IEEE 802.1ad), so that VLAN tags are in the frames, where XDP programs see them.
  - Not looked at, so neither named as drift nor repaired, are policy rules (C(ip rule)) and routes
    outside the main table, nftables and iptables, queueing disciplines, neighbour entries, other
    offloads (C(ethtool -K)), and all interfaces but veth links of the lab and C(lo).
seealso:
  - module: ebpf.conntrack.xdp_attach
  - module: ebpf.conntrack.ct_expect
"""

EXAMPLES = r"""
- name: The lab of two namespaces, with the host as router
  ebpf.conntrack.netns_lab:

- name: The same, off the host's network
  ebpf.conntrack.netns_lab:
    router: rt

- name: A lab of one's own
  ebpf.conntrack.netns_lab:
    name: office
    router: gw
    namespaces:
      - name: client
        routes:
          - dst: default
            via: 10.0.1.1
          - dst: default
            via: 2001:db8:1::1
      - name: server
        sysctls:
          net.ipv4.tcp_syncookies: 0
        routes:
          - dst: 10.0.0.0/8
            via: 10.0.2.1
    links:
      - ends:
          - name: eth0
            netns: client
            addresses: [10.0.1.2/24, "2001:db8:1::2/64"]
          - name: to-client
            addresses: [10.0.1.1/24, "2001:db8:1::1/64"]
      - ends:
          - name: eth0
            netns: server
            addresses: [10.0.2.2/24]
            mac: 02:00:00:00:02:02
            mtu: 3000
          - name: to-server
            addresses: [10.0.2.1/24]
            mtu: 3000

- name: A lab, and what must work in it once the chain is attached
  ebpf.conntrack.netns_lab:
    router: rt
    expect:
      - ping: {from: ns1, to: ns2}
      - flow: {from: ns1, to: ns2, proto: tcp, port: 80, state: ESTABLISHED, within: 5}
      - untracked: 0

- name: What has drifted from it
  ebpf.conntrack.netns_lab:
    name: lab
  check_mode: true
  register: drift

- name: Remove it
  ebpf.conntrack.netns_lab:
    name: office
    state: absent
"""

RETURN = r"""
plan:
  description: The steps that were taken, or would be taken in check mode, in their order.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(create), V(change) or V(delete); V(detach) and V(attach) for the chain on an
        interface that goes or is made again.
      type: str
    kind:
      description: V(netns), V(link), V(address), V(route), V(sysctl), V(xdp), or V(record) for the
        file with the sysctls' values from before.
      type: str
    name:
      description: The object. An interface in a namespace is written V(eth0@client).
      type: str
    reason:
      description: Why the step is needed.
      type: str
    before:
      description: What was there.
      type: raw
    after:
      description: What is there afterwards.
      type: raw
  sample:
    - action: change
      kind: link
      name: ns1-lan
      reason: mtu is 1400, wanted 1500
      before:
        mtu: 1400
      after:
        mtu: 1500
lab:
  description: The lab as it is after the run; in check mode, as it was found.
  returned: success
  type: dict
  contains:
    name:
      description: The lab's name.
      type: str
    router:
      description: The namespace that forwards; null for the host.
      type: str
    namespaces:
      description: The namespaces that carry the lab's mark.
      type: list
      elements: dict
      contains:
        name:
          description: The name.
          type: str
        inode:
          description: The number that identifies the namespace until it is removed.
          type: int
    links:
      description: The interfaces that carry the lab's mark.
      type: list
      elements: dict
      contains:
        name:
          description: The name of the interface.
          type: str
        netns:
          description: Its namespace; null for the host's.
          type: str
        peer:
          description: The other end, with its namespace where it has one.
          type: str
          sample: ns1-wan@ns1
        ifindex:
          description: The index of the interface, unique within its namespace.
          type: int
        mac:
          description: The MAC address.
          type: str
        mtu:
          description: The MTU.
          type: int
        state:
          description: V(up) or V(down).
          type: str
  sample:
    name: lab
    router: null
    namespaces:
      - name: ns1
        inode: 4026532319
    links:
      - name: ns1-lan
        netns: null
        peer: ns1-wan@ns1
        ifindex: 5
        mac: 02:9a:e9:22:ad:3d
        mtu: 1500
        state: up
expect:
  description: The lines of O(expect), or those of the default topology, with all that was left out,
    as M(ebpf.conntrack.ct_expect) takes them.
  returned: success
  type: list
  elements: dict
  sample:
    - ping:
        from: ns1
        to: ns2
        family: ipv4
        address: 172.30.56.105
        within: 5.0
foreign:
  description: What carries no mark of the lab but has a name that the lab needs. Nothing was
    changed then.
  returned: when there are such objects
  type: list
  elements: str
  sample:
    - network namespace ns1
applied:
  description: The steps that had been taken when one failed.
  returned: when a step fails
  type: list
  elements: dict
rolled_back:
  description: Those of them that were undone.
  returned: when a step fails
  type: list
  elements: dict
not_rolled_back:
  description: Those of them that could not be undone (what was deleted stays so), each with
    RV(not_rolled_back[].error).
  returned: when a step fails
  type: list
  elements: dict
  contains:
    error:
      description: Why.
      type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import libraries, lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.plan import as_dicts, as_diff
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import converge as lab_converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import expectation, topology
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import lab_attachments


def argument_spec() -> dict[str, t.Any]:
    """Return the module's options."""
    routes = {
        "type": "list",
        "elements": "dict",
        "options": {
            "dst": {"type": "str", "required": True},
            "via": {"type": "str"},
            "dev": {"type": "str"},
            "metric": {"type": "int"},
        },
    }
    ends = {
        "name": {"type": "str", "required": True},
        "netns": {"type": "str"},
        "addresses": {"type": "list", "elements": "str"},
        "mtu": {"type": "int", "default": topology.DEFAULT_MTU},
        "mac": {"type": "str"},
    }
    namespaces = {
        "name": {"type": "str", "required": True},
        "sysctls": {"type": "dict"},
        "routes": routes,
    }
    return {
        "name": {"type": "str", "default": "lab"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "router": {"type": "str"},
        "namespaces": {"type": "list", "elements": "dict", "options": namespaces},
        "links": {
            "type": "list",
            "elements": "dict",
            "options": {
                "ends": {"type": "list", "elements": "dict", "required": True, "options": ends}
            },
        },
        "sysctls": {"type": "dict"},
        "replace": {"type": "bool", "default": True},
        "routes": routes,
        "state_dir": {"type": "path", "default": bpffs.STATE_DIR},
        "pin_root": {"type": "path", "default": bpffs.STANDARD},
        **expectation.OPTION,
        **lock.OPTION,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    params = dict(module.params)
    patience, pin_root, state_dir = (
        params.pop(name) for name in ("lock_timeout", "pin_root", "state_dir")
    )
    try:
        with told_by(module):
            want = (
                topology.absent(params["name"])
                if params.pop("state") == "absent"
                else topology.parse(params)
            )
            result = lab_converge.converge(
                want,
                module.check_mode,
                patience,
                lab_attachments.Attachments(pin_root, state_dir, patience),
            )
    except ImportError as exc:  # raised before anything is changed
        libraries.require(module, "pyroute2")
        module.fail_json(msg=f"pyroute2 cannot be used: {exc}")
    module.exit_json(
        changed=bool(result.plan),
        plan=as_dicts(result.plan),
        lab=result.facts,
        expect=[line.as_dict() for line in want.expect],
        **({"diff": as_diff(result.plan)} if module._diff else {}),
    )


if __name__ == "__main__":
    main()
