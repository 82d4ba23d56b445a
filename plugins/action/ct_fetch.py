# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All of ct_fetch: have the target write its flows to a file, copy that, and take it away."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import struct
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import safe_path
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    bad_value,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import path as flow_path
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows.report import (
    FILTER_OPTIONS,
    PIN_ROOT_OPTION,
)

#: The options that are ct_flows' own.
_HANDED_ON = (*PIN_ROOT_OPTION, *FILTER_OPTIONS)
_OPTIONS = (*_HANDED_ON, "dest", "zone", "networks")
#: Where the kernel tells what the host is attached to.
_ROUTES, _ADDRESSES6 = "/proc/net/route", "/proc/net/if_inet6"
_LOOPBACK = "lo"
_GATEWAY = 0x2  # RTF_GATEWAY


def attached(text: str) -> list[str]:
    """Return the networks that a host is attached to, by what is in _ROUTES and _ADDRESSES6, one
    after the other; loopback and link-local ones left out.

    >>> attached("Iface Destination Gateway Flags RefCnt Use Metric Mask\\n"
    ...          "eth0 000110AC 00000000 0001 0 0 0 00FFFFFF 0 0 0\\n")
    ['172.16.1.0/24']
    """
    found: list[flow_path.Network] = []
    for words in (line.split() for line in text.splitlines()):
        with contextlib.suppress(ValueError, struct.error):  # whatever a host says there
            if (
                len(words) >= 8
                and words[1] != "Destination"
                and not int(words[3], 16) & _GATEWAY
                and words[0] != _LOOPBACK
            ):
                # the kernel prints numbers of network order as the host reads them; which order
                # that is shows in the mask
                destination, mask = (struct.pack("<I", int(words[at], 16)) for at in (1, 7))
                if mask[0] != 0xFF and mask[3] == 0xFF:
                    destination, mask = destination[::-1], mask[::-1]
                found.append(
                    ipaddress.ip_network(
                        f"{socket.inet_ntoa(destination)}/{socket.inet_ntoa(mask)}"
                    )
                )
            elif (
                len(words) == 6 and words[5] != _LOOPBACK and re.fullmatch("[0-9a-f]{32}", words[0])
            ):
                found.append(
                    ipaddress.ip_interface((bytes.fromhex(words[0]), int(words[2], 16))).network
                )
    return sorted(
        {
            str(one)
            for one in found
            if one.prefixlen and not one.is_link_local and not one.is_loopback
        }
    )


class ActionModule(ActionBase):
    """Read on the target, write on the controller."""

    _requires_connection = True
    TRANSFERS_FILES = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Bring the flows here."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        try:
            return {**result, **self._fetch(task_vars or {})}
        except ConntrackError as exc:
            return {**result, "failed": True, "msg": exc.message}
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _fetch(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        args = {name: value for name, value in self._task.args.items() if value is not None}
        for name in args:
            if name not in _OPTIONS:
                raise bad_value("option", name, f"ct_fetch takes {', '.join(_OPTIONS)}")
        if not args.get("dest"):
            raise ConntrackError("dest: it is missing. Give the path of a file on the controller.")
        dest = self._loader.path_dwim(str(args["dest"]))
        if str(args["dest"]).endswith("/") or os.path.isdir(dest):
            raise bad_value(
                "dest",
                str(args["dest"]),
                "it is a directory; give the path of a file on the controller",
            )
        networks = args.get("networks")
        flow_path.parse_networks("networks", networks or ())
        wanted = {name: args[name] for name in _HANDED_ON if name in args}
        if self._task.check_mode:
            return self._told(self._run_flows({**wanted, "limit": 0}, task_vars))
        # the directory is the user's who logs in, and nobody else's: what root writes there can be
        # fetched by the user, and by nobody else
        there = self._connection._shell.join_path(
            self._connection._shell.tmpdir or self._make_tmp_path(), "flows.jsonl"
        )
        told = self._told(
            self._run_flows({**wanted, "dest": there, "format": "jsonl", "mode": "0644"}, task_vars)
        )
        if told.get("failed"):
            return told
        if networks is None:
            networks = attached(
                self._low_level_execute_command(
                    f"cat {_ROUTES} {_ADDRESSES6} 2>/dev/null || true", sudoable=False
                )["stdout"]
            )
        self._copy(there, dest)
        source = {
            "host": task_vars["inventory_hostname"],
            "path": dest,
            "zone": str(args.get("zone") or ""),
            "networks": list(networks),
        }
        return {**told, "changed": True, "dest": dest, "source": source}

    def _run_flows(self, args: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        found: dict[str, t.Any] = self._execute_module(
            module_name="ebpf.conntrack.ct_flows", module_args=args, task_vars=task_vars
        )
        return found

    @staticmethod
    def _told(result: dict[str, t.Any]) -> dict[str, t.Any]:
        """Return what is worth telling: not the flows."""
        if result.get("failed"):
            return result
        kept: dict[str, t.Any] = {
            name: result[name]
            for name in ("count", "summary", "warnings", "deprecations")
            if name in result
        }
        return {**kept, "changed": False}

    def _copy(self, there: str, dest: str) -> None:
        """Fetch the file; ``dest`` changes as a whole.

        :raises ConntrackError: for what this machine refuses.
        """
        beside = f"{dest}.part"
        try:
            safe_path.make_dirs(os.path.dirname(dest), 0o755)
            safe_path.create(beside).close()  # who talked to whom is nobody else's business
            self._connection.fetch_file(there, beside)
            os.chmod(beside, 0o600)
            os.replace(beside, dest)
        except OSError as exc:
            raise bad_value(
                "dest", dest, f"give the path of a file on the controller: {exc.strerror}"
            ) from exc
        finally:
            with contextlib.suppress(OSError):
                os.unlink(beside)
