#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_object
short_description: Prepare the connection tracker as an object file
version_added: 0.1.0
description:
  - Renders the chain's sources into one text on the controller, compiles it with clang on the
    target, and keeps the object file with its manifest in a directory there. The target is a build
    host, or the controller itself, as C(localhost).
  - M(ebpf.conntrack.xdp_program) with O(ebpf.conntrack.xdp_program#module:build=object) loads it on
    hosts that have no compiler.
  - An object is called by a digest of its sources, of what is compiled into them and of the machine
    that it is for. So objects of many settings and machines can lie in one directory, and where the
    one that is wanted is there already nothing is compiled and nothing is written.
  - The sizes of tables are no part of it, nor are pinned guests, but their slots are. The options
    from O(checksum) to O(guests) have to be what they are for M(ebpf.conntrack.xdp_program).
extends_documentation_fragment:
  - ebpf.conntrack.chain_form
  - ebpf.conntrack.attributes
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
attributes:
  action_group:
    membership: [ebpf.conntrack.chain_form]
  async:
    support: none
    details:
      - Part of it runs on the controller, so a task with C(async) is refused before anything is
        done.
options:
  dest:
    description:
      - The directory on the target. It is made when it is missing, in a directory that is there.
        The objects in it are called by their digests, so the name of a file is refused.
    type: path
    required: true
  src:
    description:
      - A directory on the controller with the chain's sources.
      - When not given, those of the collection.
    type: path
  machine:
    description:
      - The machine that the object is for, as C(uname -m) prints it, with the byte order of the
        build host.
      - When not given, that of the build host.
    type: str
  compiler:
    description:
      - The name or path of clang on the target, 12 or later.
    type: str
    default: clang
  rendered:
    description:
      - The rendered chain, packed. It is filled in from O(src) and can not be given.
    type: str
requirements:
  - clang 12 or later
  - the kernel's user-space headers (package linux-libc-dev or kernel-headers)
  - jinja2 on the controller
seealso:
  - module: ebpf.conntrack.xdp_program
"""

EXAMPLES = r"""
- name: Prepare the chain for hosts without a compiler
  ebpf.conntrack.xdp_object:
    dest: objects

- name: And the faster form, for machines with ARM processors
  ebpf.conntrack.xdp_object:
    dest: objects
    fused: true
    machine: aarch64
"""

RETURN = r"""
plan:
  description: The steps that were done, or in check mode would be done, each with its reason.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(create), or V(change) where what is there is not good.
      type: str
    kind:
      description: V(object).
      type: str
    name:
      description: The path of the object file.
      type: str
    reason:
      description: Why the step is needed.
      type: str
    before:
      description: What is there, V(null) when nothing is.
      type: str
    after:
      description: What will be there.
      type: str
  sample:
    - action: create
      kind: object
      name: /srv/objects/8a3dd61b63bd46a87dfe9c1e0f0e1bd9.o
      reason: there is none of these sources and settings
      before: null
      after: checksum offload, fused false, forward off, events false, guests none; x86_64, little
        endian
path:
  description: The object file.
  returned: success
  type: str
  sample: /srv/objects/8a3dd61b63bd46a87dfe9c1e0f0e1bd9.o
manifest:
  description:
    - What the manifest says, C(digest), C(sources), C(settings), C(compiler), C(target), C(layout),
      C(sha256), C(bytes) and C(kernel).
    - V(null) in check mode where the object is not there yet.
  returned: success
  type: dict
compiler_output:
  description: All that the compiler said; the message holds the part that tells the fault.
  returned: when compiling failed
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan as plans
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import safe_path
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    told_by,
)


def argument_spec() -> dict[str, object]:
    return {
        "dest": {"type": "path", "required": True},
        "src": {"type": "path"},
        **render.OPTIONS,
        "machine": {"type": "str"},
        "compiler": {"type": "str", "default": build_clang.COMPILER},
        "rendered": {"type": "str"},
    }


def why_not(
    directory: str, name: str, target: object_file.Target, sources: str
) -> tuple[object_file.Built | None, str]:
    """Return the object that is there, or why it has to be made."""
    try:
        built = object_file.read(directory, name)
        if built is None:
            return None, "there is none of these sources and settings"
        object_file.check(built, target, sources, "what is there")
    except ConntrackError as exc:
        return None, exc.message
    return built, ""


def prepare(module: AnsibleModule) -> tuple[plans.Plan, str, object_file.Built | None]:
    """Bring the object into place: the plan that was needed, its path, and what is there now."""
    params = module.params
    object_file.check_directory("dest", params["dest"])
    render.check_unfiltered(params["forward"], params[render.UNFILTERED])
    if not params["rendered"]:
        raise ConntrackError(
            "rendered: it is empty: the module has to be run as ebpf.conntrack.xdp_object, whose"
            " action part renders the sources."
        )
    text, headers = render.unpack(params["rendered"])
    prelude = headers.pop(build_clang.PRELUDE)
    here = build_clang.here()
    target = object_file.Target(params["machine"] or here.machine, here.byteorder)
    settings = render.Settings(
        **{name: params[name] for name in ("checksum", "fused", "forward", "events")}
    )
    name = build_clang.wanted(text, headers, prelude, target)
    path, dummy = object_file.paths(params["dest"], name)
    safe_path.refuse_foreign_way(path)  # what lies there is taken as it is, and is loaded by root
    built, why = why_not(params["dest"], name, target, object_file.sources_digest(text, headers))
    if built is not None:
        return [], path, built
    if not module.check_mode:
        built = build_clang.build(text, headers, prelude, settings, target, params["compiler"])
        object_file.write(params["dest"], built)
    before = path if why.startswith("what is there") else None
    shown = object_file.described(object_file.settings_of(settings, text), target)
    return (
        [plans.Step("change" if before else "create", "object", path, why, before, shown)],
        path,
        built,
    )


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    with told_by(module):
        plan, path, built = prepare(module)
    manifest = built.manifest.as_dict() if built is not None else None
    module.exit_json(
        changed=bool(plan),
        plan=plans.as_dicts(plan),
        diff=plans.as_diff(plan),
        path=path,
        manifest=manifest,
    )


if __name__ == "__main__":
    main()
