#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch the chain for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ct_soak
short_description: Watch the connection tracker for a while, and fail when it is not well
version_added: "0.1.0"
description:
  - Watches the chain for O(seconds) and fails as soon as a figure is beyond its limit; the message
    names the figure and the limit, RV(figures) has all of them.
  - It watches whether frames are received that the chain does not count, whether flows are pushed
    out or find no room, the share of invalid frames, the chain's health, and a command of yours.
  - Only what is certain counts as unseen. The chain's count is read before the interfaces' at the
    start and after it at the end, and where a driver counts late (cards other than virtio's) a
    second is let pass in between. Frames that interfaces receive for the hook V(pass) are not
    looked at.
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
extends_documentation_fragment:
  - ebpf.conntrack.attributes
  - ebpf.conntrack.pin_root
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root]
  diff_mode:
    support: none
    details:
      - Nothing is ever changed, but by the command in O(probe).
options:
  seconds:
    description: How long to watch.
    type: float
    default: 10
  max_unseen:
    description:
      - So many frames may be received and not counted. V(-1) sets no limit, here and for the other
        limits.
    type: int
    default: 0
  max_evicted:
    description:
      - So many entries may make room for others, beyond those that the rate before makes one expect
        (O(before)).
      - A flood of new flows pushes out its like, which is no fault of the chain, so there is no
        limit when this is not given.
    type: int
    default: -1
  max_evicted_assured:
    description: So many assured flows may make room for others, likewise.
    type: int
    default: 0
  max_insert_failed:
    description: So many entries may find no room, likewise.
    type: int
    default: 0
  max_invalid_ratio:
    description:
      - So much larger than before may the share of invalid frames be, from 0 to 1. Where less than
        100 frames came it is not looked at.
    type: float
    default: 0.05
  probe:
    description:
      - A command and its arguments, which is run at the start and at the end and must end with 0.
        It is run without a shell.
    type: list
    elements: str
    default: []
  probe_timeout:
    description: How many seconds it may take.
    type: float
    default: 10
  settle:
    description:
      - How many seconds late the interfaces' counts may be. When not given, their drivers tell.
    type: float
  before:
    description:
      - What M(ebpf.conntrack.ct_preflight) returned as
        RV(ebpf.conntrack.ct_preflight#module:figures) before the new chain took over. It gives the
        rates that evictions are held against, and the share of invalid frames.
    type: dict
  faults_before:
    description:
      - Faults that were there before, as M(ebpf.conntrack.ct_preflight) has them in
        RV(ebpf.conntrack.ct_preflight#module:chain). They are no trouble.
    type: list
    elements: dict
    default: []
requirements:
  - libbpf 0.8 or later
  - root
seealso:
  - module: ebpf.conntrack.ct_preflight
  - module: ebpf.conntrack.ct_put_back
"""

EXAMPLES = r"""
- name: Watch the new chain for a minute, with a command that must work meanwhile
  ebpf.conntrack.ct_soak:
    seconds: 60
    probe: [curl, --fail, --silent, --output, /dev/null, "http://192.0.2.10/"]
    before: "{{ preflight.figures }}"
"""

RETURN = r"""
figures:
  description:
    - What was seen. C(received), C(counted) and C(unseen) are frames; C(evicted),
      C(evicted_assured) and C(insert_failed) entries, each with what is beyond the rate before as
      C(evicted_excess) and so on; C(invalid) frames, with their share C(invalid_ratio) and the one
      before.
    - C(received) and C(unseen) are V(null) where the chain is attached to nothing.
  returned: always, when a chain is loaded
  type: dict
  sample: {seconds: 10.0, received: 81920, counted: 81925, unseen: 0, invalid: 0, invalid_ratio:
    0.0, invalid_ratio_before: 0.0, evicted: 0, evicted_assured: 0,
     insert_failed: 0, evicted_excess: 0, evicted_assured_excess: 0, insert_failed_excess: 0, flows:
       311, generation: 4, probe: {rc: 0, output: ""}}
troubles:
  description: The figures that are beyond their limit, each with C(figure), C(value), C(limit) and
    C(detail).
  returned: always, when a chain is loaded
  type: list
  elements: dict
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import bad_value, told_by
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import soak
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs

_LIMITS = {
    "unseen": "int",
    "evicted": "int",
    "evicted_assured": "int",
    "insert_failed": "int",
    "invalid_ratio": "float",
}


def main() -> None:
    """Run the module."""
    defaults = soak.Limits()
    module = AnsibleModule(
        argument_spec={
            "seconds": {"type": "float", "default": 10},
            **{
                f"max_{name}": {
                    "type": kind,
                    "default": -1 if getattr(defaults, name) is None else getattr(defaults, name),
                }
                for name, kind in _LIMITS.items()
            },
            "probe": {"type": "list", "elements": "str", "default": []},
            "probe_timeout": {"type": "float", "default": 10},
            "settle": {"type": "float"},
            "before": {"type": "dict"},
            "faults_before": {"type": "list", "elements": "dict", "default": []},
            "pin_root": {"type": "path", "default": bpffs.STANDARD},
        },
        supports_check_mode=True,
    )
    params = module.params
    limits = soak.Limits(
        **{name: None if params[f"max_{name}"] < 0 else params[f"max_{name}"] for name in _LIMITS}
    )
    with told_by(module):
        for name in ("seconds", "probe_timeout", "settle"):
            if params[name] is not None and not 0 <= params[name] <= soak.LONGEST:
                raise bad_value(name, params[name], f"give 0 to {soak.LONGEST} seconds")
        watch = soak.Watch(
            params["seconds"],
            limits,
            tuple(params["probe"]),
            params["probe_timeout"],
            params["settle"],
            params["before"],
            tuple(params["faults_before"]),
        )
        bpffs.check(params["pin_root"])
        figures, troubles = soak.soak(bpffs.Paths(params["pin_root"]), watch)
    result = {
        "changed": False,
        "figures": figures,
        "troubles": [trouble.as_dict() for trouble in troubles],
    }
    if troubles:
        module.fail_json(
            msg="; ".join(f"{trouble.figure}: {trouble.detail}" for trouble in troubles) + ".",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
