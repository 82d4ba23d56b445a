# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run tasks in a network namespace of this machine."""

from __future__ import annotations

DOCUMENTATION = r"""
name: netns
short_description: Run tasks in a network namespace of this machine
version_added: "0.1.0"
description:
  - Makes a named network namespace of the controller's own machine a host. Commands run in it,
    files are those of the machine.
  - The inventory plugin P(ebpf.conntrack.netns_lab#inventory) makes such hosts of a lab.
  - C(/sys) shows the namespace's own interfaces, so that gathered facts are the namespace's, while
    C(/sys/fs), with the BPF file system and control groups, stays the machine's. C(ip netns exec)
    hides both.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
options:
  netns:
    description:
      - The name of the namespace, as C(ip netns list) shows it. When not given, it is the host's
        name in the inventory.
    type: str
    vars:
      - name: inventory_hostname
      - name: ansible_netns
  own_sysfs:
    description:
      - Whether C(/sys) is the namespace's. Tasks then run in a mount namespace of their own. What
        they mount elsewhere stays where the machine shares its mounts, as systemd has it, and else
        goes with them.
      - Where no BPF file system is mounted on C(/sys/fs/bpf), C(/sys) stays the machine's, so that
        M(ebpf.conntrack.xdp_program) can mount one there.
    type: bool
    default: true
    vars:
      - name: ansible_netns_own_sysfs
  sudo:
    description:
      - The command with which somebody else than root enters the namespace. It must not ask for a
        password. Tasks run as that user nevertheless, unless C(become) says otherwise.
    type: str
    default: sudo -n
    vars:
      - name: ansible_netns_sudo
  become_success_timeout:
    description:
      - How many seconds C(become) may take.
    type: int
    default: 10
    vars:
      - name: ansible_netns_become_success_timeout
  become_strip_preamble:
    description:
      - Whether to leave out what C(become) prints before the command.
    type: bool
    default: true
    vars:
      - name: ansible_netns_become_strip_preamble
extends_documentation_fragment:
  - connection_pipelining
notes:
  - It needs C(nsenter), C(unshare) and C(mount) of util-linux, and, for somebody else than root,
    C(setpriv).
  - Namespaces of one machine share its files, pins, packages and services. Give each host that gets
    a chain a C(xdp_ct_pin_root) and a C(xdp_ct_prefix) of its own, as
    P(ebpf.conntrack.netns_lab#inventory) does.
"""

EXAMPLES = r"""
# An inventory of two namespaces
# all:
#   hosts:
#     ns1:
#     web:
#       ansible_netns: ns2
#   vars:
#     ansible_connection: ebpf.conntrack.netns
#     ansible_python_interpreter: /usr/bin/python3

- name: What a namespace's default route is
  hosts: ns1
  gather_facts: true
  tasks:
    - name: Show it
      ansible.builtin.debug:
        var: ansible_facts.default_ipv4
"""

import os
import pwd
import shlex

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as LocalConnection
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import netns

_BPFFS = "/sys/fs/bpf"
#: Lays a sysfs of the namespace over the machine's, and the machine's /sys/fs over that, seen by
#: this process and its children only; then runs "$@".
_OWN_SYSFS = (
    "here=$PWD; mount --make-rprivate /sys; cd /sys/fs; mount -t sysfs sysfs /sys; mount"
    ' --no-canonicalize --rbind . /sys/fs; cd "$here" 2> /dev/null || cd /; exec "$@"'
)


def wrapped(
    command: str, namespace: str, own_sysfs: bool, sudo: str, user: pwd.struct_passwd | None
) -> str:
    """Return the command line that runs a command in a namespace.

    :param user: who is to run it, where that is not root.
    """
    argv = ["nsenter", f"--net={netns.path(namespace)}", "--"]
    if own_sysfs:
        argv += [
            "unshare",
            "--mount",
            "--propagation",
            "unchanged",
            "--",
            "/bin/sh",
            "-euc",
            _OWN_SYSFS,
            "netns",
        ]
    if user is not None:
        argv = [
            *shlex.split(sudo),
            *argv,
            "setpriv",
            f"--reuid={user.pw_uid}",
            f"--regid={user.pw_gid}",
            "--init-groups",
        ]
        argv += ["env", f"HOME={user.pw_dir}", f"USER={user.pw_name}", f"LOGNAME={user.pw_name}"]
    return shlex.join([*argv, "/bin/sh", "-c", command])


class Connection(LocalConnection):
    """A network namespace of this machine."""

    transport = "ebpf.conntrack.netns"

    def _connect(self) -> Connection:
        super()._connect()
        self._namespace()
        return self

    def _namespace(self) -> str:
        """Return the namespace's name.

        :raises AnsibleConnectionFailure: there is none.
        """
        name = str(self.get_option("netns"))
        try:
            os.close(netns.fd(name))
        except (ConntrackError, OSError) as exc:
            there = ", ".join(netns.names()[0]) or "none"
            why = exc.message if isinstance(exc, ConntrackError) else f"netns: {exc}."
            raise AnsibleConnectionFailure(
                f"{why} There are: {there}. A lab's namespaces come back with the role"
                " ebpf.conntrack.netns_lab; ansible_netns names another one."
            ) from None
        return name

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        """Run a command in the namespace."""
        user = pwd.getpwuid(os.geteuid()) if os.geteuid() != 0 else None
        own_sysfs = bool(self.get_option("own_sysfs")) and os.path.ismount(_BPFFS)
        line = wrapped(cmd, self._namespace(), own_sysfs, str(self.get_option("sudo")), user)
        code, out, err = super().exec_command(line, in_data=in_data, sudoable=sudoable)
        if code and user is not None and err.startswith(b"sudo:"):
            raise AnsibleConnectionFailure(
                f"{user.pw_name} may not enter network namespace {self._namespace()!r}:"
                f" {err.decode(errors='replace').strip()}. Run Ansible as root, or let sudo run"
                " nsenter without a password."
            )
        return code, out, err
