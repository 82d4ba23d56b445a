# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The namespaces of a lab as hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: netns_lab
short_description: The namespaces of a lab as hosts
version_added: "0.1.0"
description:
  - Makes a host of each network namespace of a lab that M(ebpf.conntrack.netns_lab) builds, reached
    through the connection plugin P(ebpf.conntrack.netns#connection). Playbooks written for real
    hosts then run against the lab as they are.
  - Without O(topology), the lab is read from the machine as it is, which needs root. With it, the
    lab may still have to be built.
  - The hosts are in the group C(netns_lab), those that forward besides in C(routers), the others in
    C(endpoints).
  - Where links of the lab end on the machine itself, it is a host, too, see O(machine).
  - Each host has the variables C(netns_role) (V(router) or V(endpoint)), C(netns_interfaces) (a
    list, each with C(name), C(addresses), C(mac), C(mtu), C(peer) and C(peer_netns)) and
    C(netns_addresses); C(ansible_host) is the first of these.
  - Namespaces of one machine share its pins and files. So each has a C(xdp_ct_pin_root) and a
    C(xdp_ct_prefix) of its own, and C(xdp_ct_service) is V(false).
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
extends_documentation_fragment:
  - constructed
options:
  plugin:
    description: What makes the file one for this plugin.
    type: str
    required: true
    choices: [ebpf.conntrack.netns_lab]
  lab:
    description: The lab's name, where it is read from the machine.
    type: str
    default: lab
  topology:
    description:
      - The lab's description, as the options of M(ebpf.conntrack.netns_lab), or as the variables
        C(netns_lab_*) of the role of that name; or the path of a YAML file of either kind, relative
        to the inventory file. Other variables in it are left alone.
      - An empty dictionary is the default lab.
    type: raw
  machine:
    description:
      - The name of the machine itself as a host, where it is the lab's router. Empty leaves it out.
    type: str
    default: localhost
  python:
    description:
      - The interpreter for modules in the namespaces. The bindings that the collection needs are
        packages of the system's Python.
    type: str
    default: /usr/bin/python3
"""

EXAMPLES = r"""
# lab.netns_lab.yml: the lab that is there
plugin: ebpf.conntrack.netns_lab

---
# what a file of variables for the role netns_lab describes
plugin: ebpf.conntrack.netns_lab
topology: group_vars/office.yml
keyed_groups:
  - key: netns_interfaces | length
    prefix: interfaces

---
# two hosts and a router between them
plugin: ebpf.conntrack.netns_lab
topology:
  name: small
  router: gw
  namespaces:
    - name: client
    - name: server
  links:
    - ends:
        - {name: eth0, netns: client, addresses: [10.0.1.2/24]}
        - {name: in, addresses: [10.0.1.1/24]}
    - ends:
        - {name: eth0, netns: server, addresses: [10.0.2.2/24]}
        - {name: out, addresses: [10.0.2.1/24]}
"""

import os
import typing as t

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    bad_value,
    did_you_mean,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import inventory as lab_inventory
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import kernel as lab_kernel
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import record as lab_record
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology

GROUP = "netns_lab"
ROUTERS = "routers"
ENDPOINTS = "endpoints"
_ROLE = "netns_lab_"
_OPTIONS = ("name", "router", "namespaces", "links", "sysctls", "routes", "expect")
#: Variables of the role that are no part of a lab's description; a file of variables may have them,
#: too.
_NOT_DESCRIBING = ("state", "install", "replace", "state_dir", "pin_root")


def description(found: t.Any) -> dict[str, t.Any]:
    """Return a topology as topology.parse() takes it, from the module's options or the role's
    variables.

    :raises ConntrackError: it is none.
    """
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise bad_value(
            "topology",
            found,
            "give the options of ebpf.conntrack.netns_lab, or a file that holds them",
        )
    if any(str(key).startswith(_ROLE) for key in found):
        _refuse_unknown(
            "topology",
            [key for key in found if str(key).startswith(_ROLE)],
            [_ROLE + name for name in (*_OPTIONS, *_NOT_DESCRIBING)],
        )
        return {
            name: found[_ROLE + name] for name in _OPTIONS if found.get(_ROLE + name) is not None
        }
    _refuse_unknown("topology", found, _OPTIONS, f", or those with {_ROLE} before them")
    return found


def _refuse_unknown(
    field: str, keys: t.Iterable[t.Any], known: t.Collection[str], more: str = ""
) -> None:
    """:raises ConntrackError: for a key that is none of the known ones; it proposes the one that
    was probably meant.
    """
    for key in keys:
        if key not in known:
            error = bad_value(field, str(key), f"the keys are {', '.join(known)}{more}")
            raise ConntrackError(error.message + did_you_mean(str(key), known))


def there(lab: str) -> list[lab_inventory.Node]:
    """Return the hosts of a lab that is on this machine.

    :raises ConntrackError: there is none, or it may not be read.
    """
    if os.geteuid() != 0:
        raise ConntrackError(
            "Reading a lab from the machine needs root: run Ansible as root, or give its"
            " description (topology)."
        )
    want = topology.absent(lab)
    with lab_kernel.Kernel() as kernel:
        have = kernel.observe(want)
    if not have.namespaces:
        labs = ", ".join(lab_record.other_labs(lab)) or "none"
        raise ConntrackError(
            f"lab: there is no lab {lab!r} on this machine; others: {labs}. Build it (role"
            " ebpf.conntrack.netns_lab), or give its description (topology)."
        )
    return lab_inventory.of_lab(lab, have)


class InventoryModule(BaseInventoryPlugin, Constructable):
    """The namespaces of a lab as hosts."""

    NAME = "ebpf.conntrack.netns_lab"

    def verify_file(self, path: str) -> bool:
        """Tell whether the file can be one for this plugin; the line ``plugin:`` in it decides."""
        return bool(super().verify_file(path)) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Fill the inventory.

        :raises AnsibleParserError: the file, or the lab, is no good.
        """
        super().parse(inventory, loader, path, cache)
        given = self._read_config_data(path)
        try:
            _refuse_unknown("file", given or (), sorted(self.get_options()))
            nodes = self._nodes(path)
        except ConntrackError as exc:
            raise AnsibleParserError(f"{path}: {exc.message}") from None
        self.inventory.add_group(GROUP)
        for name, value in (
            ("ansible_connection", "ebpf.conntrack.netns"),
            ("ansible_python_interpreter", self.get_option("python")),
            ("xdp_ct_service", False),
        ):
            self.inventory.set_variable(GROUP, name, value)
        for group in (ROUTERS, ENDPOINTS):
            self.inventory.add_group(group)
            self.inventory.add_child(GROUP, group)
        for node in nodes:
            self._add(node)

    def _nodes(self, path: str) -> list[lab_inventory.Node]:
        given = self.get_option("topology")
        if given is None:
            return there(self.get_option("lab"))
        if isinstance(given, str):
            given = self.loader.load_from_file(
                os.path.join(os.path.dirname(os.path.abspath(path)), given),
                cache="none",
                unsafe=True,
            )
        return lab_inventory.of_topology(topology.parse(description(given)))

    def _add(self, node: lab_inventory.Node) -> None:
        name = node.netns if node.netns is not None else self.get_option("machine")
        if not name:
            return
        self.inventory.add_host(name, group=ROUTERS if node.forwards else ENDPOINTS)
        variables = node.variables()
        if node.netns is None:
            variables.pop("ansible_host", None)
            variables["ansible_connection"] = "local"
        for key, value in variables.items():
            self.inventory.set_variable(name, key, value)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(
            self.get_option("keyed_groups"), variables, name, strict=strict
        )
