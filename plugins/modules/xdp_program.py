#!/usr/bin/python
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xdp_program
short_description: Compile, load and pin the connection tracker
version_added: 0.1.0
description:
  - Renders the chain's sources into one text on the controller, compiles and loads it with BCC on
    the target, fills the jump table, and pins programs and maps as a generation below O(pin_root).
    With O(build) targets need no compiler.
  - A new generation is built beside the running one, takes over its flow table, has to pass a frame
    unchanged, and then takes over every interface that M(ebpf.conntrack.xdp_attach) holds, without
    a gap. When a step fails, everything goes back to the old generation.
  - When neither the sources nor the settings changed and the running generation is whole, nothing
    is compiled and nothing is written.
  - Kernel headers are not needed.
extends_documentation_fragment:
  - ebpf.conntrack.chain_form
  - ebpf.conntrack.attributes
  - ebpf.conntrack.lock
  - ebpf.conntrack.pin_root
author:
  - The ebpf.conntrack authors (@ebpf-conntrack)
attributes:
  action_group:
    membership: [ebpf.conntrack.all, ebpf.conntrack.pin_root, ebpf.conntrack.lock_timeout,
      ebpf.conntrack.state_dir, ebpf.conntrack.chain_form]
  async:
    support: none
    details:
      - Part of it runs on the controller, so a task with C(async) is refused before anything is
        done.
options:
  state:
    description:
      - With V(present) the chain is loaded and pinned.
      - With V(rolled_back) the last good generation before the active one takes over again, with
        its own sources and settings and with the flows and counters that came meanwhile. The one
        that is rolled back from stays pinned until the next run with V(present); as long as it is
        there, another run with V(rolled_back) changes nothing.
      - With V(absent) its programs and maps are gone, the flow table with them. It is refused while
        interfaces are attached.
    type: str
    choices: [present, absent, rolled_back]
    default: present
  generation:
    description:
      - With O(state=rolled_back), the number of the generation to go to, one of those in
        RV(chain.kept).
      - When not given, it is the last good one before the active one.
    type: int
  src:
    description:
      - A directory on the controller with the chain's sources.
      - When not given, those of the collection.
    type: path
  build:
    description:
      - Where the chain is compiled, and by what. What comes of it does the same.
      - With V(bcc) the target compiles it, by BCC.
      - With V(clang) the controller compiles it, by O(compiler), and the target loads the object
        file with libbpf. It needs no compiler and no headers. Objects are kept in O(object_cache),
        so what was compiled once is not compiled again, for no host.
      - With V(object) nobody compiles anything. The object that M(ebpf.conntrack.xdp_object) has
        prepared is taken from O(objects).
      - When only this changes, no new generation is loaded, since what runs stays the same; but
        what is written down in O(state_dir) changes, for the next time it is loaded, as after a
        reboot. So a host that was set up with V(bcc) can do without it from then on.
      - The file C(docs/building.md) tells more.
    type: str
    choices: [bcc, clang, object]
    default: bcc
  compiler:
    description:
      - With O(build=clang), the name or path of clang on the controller, 12 or later.
      - When not given, V(clang).
    type: str
  object_cache:
    description:
      - With O(build=clang), a directory on the controller for what was compiled.
      - When not given, C(~/.cache/ebpf_conntrack/objects).
      - It is refused where others than its user and root may write to it, since root loads what is
        found there.
    type: path
  objects:
    description:
      - With O(build=object), a directory on the controller with objects and their manifests, of as
        many settings and machines as you like. The one that fits the sources, the settings and the
        target's machine is taken. The sizes of tables make no difference.
      - An object that is not what its manifest says, or was made of other sources or for another
        machine, is refused before anything is sent.
    type: path
  signers:
    description:
      - With O(build=object), a file of allowed signers on the controller, as C(ssh-keygen)
        describes it.
      - When given, the object's manifest has to have the signature of one of them, for the
        namespace C(ebpf-conntrack), in a file beside it whose name ends in C(.sig).
      - Without it, whoever may write to O(objects) decides what root loads.
    type: path
  table_size:
    description:
      - Entries of the table of assured IPv4 flows, from V(16) to V(67108864). An entry takes 192
        bytes of memory, which the kernel sets aside at once.
      - A flow becomes assured as in the kernel, a TCP connection once its handshake is complete,
        UDP once there was traffic both ways for two seconds. Flows that are not assured have a
        table of their own, see O(half_open_size), so a flood of new flows never pushes out an
        assured one.
      - When it changes, the flows go over into a table of the new size, while packets go on. Where
        there is not room for all of them, see RV(dropped).
    type: int
    default: 65536
  table_size6:
    description:
      - Entries of the table of assured IPv6 flows, likewise. An entry takes 216 bytes.
    type: int
    default: 65536
  half_open_size:
    description:
      - Entries of the table of all other IPv4 flows, with the range and the memory of
        O(table_size). When it is full, a new flow pushes out one of them that was not used for
        long.
      - When it changes, the flows go over into a table of the new size, while packets go on. Where
        there is not room for all of them, see RV(dropped).
    type: int
    default: 65536
  half_open_size6:
    description:
      - Entries of the table of all other IPv6 flows, likewise. An entry takes 216 bytes.
    type: int
    default: 65536
  timeouts:
    description:
      - Seconds after which an idle flow is over, by kind. They can change while the chain runs.
      - What is not given has the kernel's default.
    type: dict
    default: {}
    suboptions:
      generic:
        description: Protocols without a tracker of their own.
        type: int
        default: 600
      tcp_syn_sent:
        description: A SYN was seen.
        type: int
        default: 120
      tcp_syn_recv:
        description: The SYN was answered.
        type: int
        default: 60
      tcp_established:
        description: Established.
        type: int
        default: 432000
      tcp_fin_wait:
        description: One side has closed.
        type: int
        default: 120
      tcp_close_wait:
        description: And the other has acknowledged that.
        type: int
        default: 60
      tcp_last_ack:
        description: Both sides have closed.
        type: int
        default: 30
      tcp_time_wait:
        description: The last acknowledgement was seen.
        type: int
        default: 120
      tcp_close:
        description: Reset.
        type: int
        default: 10
      tcp_syn_sent2:
        description: Both sides sent a SYN.
        type: int
        default: 120
      tcp_max_retrans:
        description: The same segment came again and again, or the window is shut.
        type: int
        default: 300
      tcp_unacknowledged:
        description: Data is not acknowledged, or the start was not seen and nobody answered.
        type: int
        default: 300
      udp:
        description: UDP, until it is a stream.
        type: int
        default: 30
      udp_stream:
        description: UDP with traffic both ways for more than two seconds.
        type: int
        default: 120
      icmp:
        description: ICMP queries.
        type: int
        default: 30
      icmpv6:
        description: ICMPv6 queries.
        type: int
        default: 30
      gre:
        description: GRE, until it is answered.
        type: int
        default: 30
      gre_stream:
        description: GRE with traffic both ways.
        type: int
        default: 180
      sctp_closed:
        description: An SCTP INIT was seen, or the association is over.
        type: int
        default: 10
      sctp_cookie_wait:
        description: The INIT was answered.
        type: int
        default: 3
      sctp_cookie_echoed:
        description: The cookie came back.
        type: int
        default: 3
      sctp_established:
        description: The association is open, which its heartbeats keep so.
        type: int
        default: 210
      sctp_shutdown_sent:
        description: The initiator has closed.
        type: int
        default: 3
      sctp_shutdown_recd:
        description: The other side has closed.
        type: int
        default: 3
      sctp_shutdown_ack_sent:
        description: That was acknowledged.
        type: int
        default: 3
      sctp_heartbeat_sent:
        description: A heartbeat over another path, until it is acknowledged.
        type: int
        default: 30
  settings:
    description:
      - Switches of the tracker, those of TCP with the kernel's names and defaults. They can change
        while the chain runs.
    type: dict
    default: {}
    suboptions:
      tcp_loose:
        description: Whether a connection whose start was not seen is picked up in the middle.
        type: bool
        default: true
      tcp_be_liberal:
        description: Whether segments out of the window are taken as good, except resets.
        type: bool
        default: false
      tcp_ignore_invalid_rst:
        description: Whether a reset below the window is taken as good.
        type: bool
        default: false
      tcp_max_retrans:
        description: So many equal acknowledgements in a row lower the timeout to
          O(timeouts.tcp_max_retrans).
        type: int
        default: 3
      new_flows_per_second:
        description:
          - At most so many flows begin in a second, on all CPUs together; after a quiet second as
            many at once. V(0) sets no bound, V(10000000) is the highest.
          - A packet beyond it passes, makes no entry, and is counted as C(untracked.rate). Flows
            that are there are never concerned.
        type: int
        default: 0
  on_schema_change:
    description:
      - What to do with the tables of the running generation when what they hold is described
        otherwise than in this release. It is looked at before anything is compiled or changed.
      - With V(fail) the run fails, and says what differs.
      - With V(migrate) the flows go over field by field, by name. New fields are 0, fields that are
        gone are left out, numbers change their width. It is refused where keys, states, or parts of
        the control word have no place in the new tables. An older release can so take over from a
        newer one.
      - With V(drop) the tables and counters start empty, and RV(dropped) says how many flows are
        forgotten.
      - Flows in the tables of version 0.1.0 go over with V(fail) and V(migrate) alike.
    type: str
    choices: [fail, migrate, drop]
    default: fail
  keep:
    description:
      - So many of the last good generations stay pinned when a new one takes over, from V(0) to
        V(16), to go back to.
      - A kept generation shares its flow tables with the active one, unless they have another size;
        then it keeps its own, with their memory.
    type: int
    default: 1
  state_dir:
    description:
      - A directory on the target in which it is written down what each pinned generation is made
        of. It is made when it is missing.
      - Give the same one in every run.
    type: path
    default: /var/lib/ebpf_conntrack
  verify:
    description:
      - How a new generation is proved before it takes over. It always has to pass frames of ten
        kinds, on both hooks, unchanged; with V(probe) that is all.
      - With V(replay) a set of frames is sent through it and through the running generation, and
        what they make of each is compared, before anything is changed, in check mode too. Both are
        compiled once more for that, with maps of their own, so that nothing that runs is touched.
      - Nothing is replayed where the sources and what is compiled into them stay the same.
    type: str
    choices: [probe, replay]
    default: probe
  replay:
    description:
      - What is replayed, with O(verify=replay).
    type: dict
    default: {}
    suboptions:
      frames:
        description:
          - A capture on the controller, as C(tcpdump -w) and Wireshark write it. pcap or pcapng,
            Ethernet only.
          - Its timestamps are the clock that timeouts are measured by.
          - When not given, the set that comes with the collection, C(files/replay.pcap). It has
            some frames of each stage and of each outcome.
        type: path
      hook:
        description:
          - Where the frames come in.
          - With V(both) each host has a side. Who is first seen to send comes in at C(ingress),
            with whom it talks at C(egress). That is for a capture of both directions.
        type: str
        choices: [both, ingress, egress]
        default: both
      on_difference:
        description:
          - What a difference does. With V(warn) it is shown in RV(plan), in RV(replay) and as a
            warning, and the new generation takes over.
          - With V(fail) the task fails, and the running generation stays. It does so, too, where
            there is a running generation, but nothing to compare with, since its sources are not
            known.
        type: str
        choices: [warn, fail]
        default: warn
      limit:
        description:
          - How many frames of the capture are replayed, the first ones. Up to V(100000). Each takes
            up to 2 KiB of memory while it lasts.
        type: int
        default: 10000
  replay_frames:
    description:
      - The frames on the target. It is filled in from O(replay.frames) and can not be given.
    type: path
  rendered:
    description:
      - The rendered chain, packed. It is filled in from O(src) and can not be given.
    type: str
  object_file:
    description:
      - The object file on the target. It is filled in with O(build) and can not be given.
    type: path
  object_manifest:
    description:
      - Its manifest. It is filled in with O(build) and can not be given.
    type: str
requirements:
  - bcc 0.26 or later for Python (package python3-bpfcc on Debian and Ubuntu, python3-bcc on Fedora
    and RHEL), when something is compiled on the target
  - the kernel's user-space headers (package linux-libc-dev or kernel-headers) where something is
    compiled
  - libbpf 0.8 or later (package libbpf1 on Debian and Ubuntu, libbpf on Fedora and RHEL)
  - jinja2 on the controller
  - Linux 5.12 or later
  - root
seealso:
  - module: ebpf.conntrack.xdp_attach
  - module: ebpf.conntrack.ct_flows
  - module: ebpf.conntrack.xdp_object
"""

EXAMPLES = r"""
- name: Load the connection tracker
  ebpf.conntrack.xdp_program:

- name: Load it with a table for a million flows, and forget idle connections within a day
  ebpf.conntrack.xdp_program:
    table_size: 1048576
    table_size6: 262144
    timeouts:
      tcp_established: 86400

- name: Bear floods, with room for a million flows that are not assured, of which at most 50000
    begin in a second
  ebpf.conntrack.xdp_program:
    half_open_size: 1048576
    settings:
      new_flows_per_second: 50000

- name: Track only connections whose start was seen
  ebpf.conntrack.xdp_program:
    settings:
      tcp_loose: false

- name: Let a new version take over only if it makes the same as the old one of yesterday's packets
  ebpf.conntrack.xdp_program:
    verify: replay
    replay:
      frames: captures/yesterday.pcap
      on_difference: fail

- name: Load it on a host that has no compiler, from an object that was prepared and signed
  ebpf.conntrack.xdp_program:
    build: object
    objects: objects
    signers: allowed_signers

- name: Go back to the generation before
  ebpf.conntrack.xdp_program:
    state: rolled_back

- name: Take it away
  ebpf.conntrack.xdp_program:
    state: absent
"""

RETURN = r"""
plan:
  description: The steps that were done, or in check mode would be done, each with its reason.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(verify), V(load), V(prove), V(change), V(activate), V(replace), V(create),
        V(move) for what maps of another generation hold, or V(delete).
      type: str
    kind:
      description: V(generation), V(map), V(link), V(path) for C(prog) and C(map) below O(pin_root),
        or V(manifest) for a file in O(state_dir).
      type: str
    name:
      description: Its name or number.
      type: str
    reason:
      description: Why the step is needed.
      type: str
    before:
      description: What is there, V(null) when nothing is.
      type: str
    after:
      description: What will be there, V(null) when nothing will be.
      type: str
  sample:
    - action: load
      kind: generation
      name: "1"
      reason: no chain is loaded
      before: null
      after: digest db67d5b4fb1df1cd8450f10053d0f9bd, 9 programs
chain:
  description: The chain as it is now; in check mode as it was found.
  returned: success
  type: dict
  contains:
    generation:
      description: Number of the active generation, V(null) when none is.
      type: int
    digest:
      description: 128 bits, in hex, of its sources and what is compiled into them.
      type: str
    healthy:
      description: Whether it works, that is, whether there are no RV(chain.faults).
      type: bool
    faults:
      description:
        - What keeps it from working, each with C(fault), a name that stays the same, C(object),
          C(detail) and C(repair), what repairs it at once.
        - Most of them are mended by the run that finds them, then they are in RV(mended). Those
          that only M(ebpf.conntrack.xdp_attach) or you can mend stay.
      type: list
      elements: dict
    pin_root:
      description: Where it is pinned.
      type: str
    since:
      description: When it became active, in UTC, V(null) when none is.
      type: str
    kept:
      description:
        - The generations that were active before and are still pinned, the newest first, each with
          C(generation), C(digest), C(since), C(rejected), which tells whether it was rolled back
          from, and C(faults).
      type: list
      elements: dict
    programs:
      description: Its programs and its guests, each with C(slot), C(name), C(id), C(tag) and
        C(pin).
      type: list
      elements: dict
    maps:
      description: Its maps and those that its guests have pinned, each with C(name), C(id),
        C(type), C(key_size), C(value_size), C(max_entries) and C(pin).
      type: list
      elements: dict
    settings:
      description: Its switches, its C(timeouts) in seconds, and C(hz), the ticks a second by which
        it measures time.
      type: dict
  sample:
    generation: 1
    digest: db67d5b4fb1df1cd8450f10053d0f9bd
    healthy: true
    faults: []
    pin_root: /sys/fs/bpf
    since: "2026-01-01T12:00:00Z"
    kept: []
    programs:
      - {slot: 0, name: ingress, id: 282, tag: 8828c5ca01cfe760, pin: /sys/fs/bpf/prog/xdp_0}
    maps:
      - {name: ctt, id: 133, type: lru_hash, key_size: 16, value_size: 112, max_entries: 65536, pin:
        /sys/fs/bpf/map/ctt}
    settings: {hz: 250, tcp_loose: 1, timeouts: {udp: 30}}
mended:
  description: The faults that this run found and took away, as in RV(chain.faults). In check mode
    there are none.
  returned: success
  type: list
  elements: dict
  sample:
    - {fault: slot_empty, object: "jt[3]", detail: slot 3 (ct) is empty, repair: ct load}
replay:
  description: What came of the replay.
  returned: with O(verify=replay), also when it is what failed
  type: dict
  contains:
    generation:
      description: Number of the running generation, V(null) when none is.
      type: int
    compared:
      description: Whether there was something to compare with.
      type: bool
    reason:
      description: Why nothing was compared, or not all; empty when all was.
      type: str
    frames:
      description: How many frames were replayed.
      type: int
    skipped:
      description: How many were not, since they are shorter or longer than what BPF_PROG_TEST_RUN
        takes, 14 to 3520 bytes.
      type: int
    cut:
      description: Of how many the capture holds less than was on the wire.
      type: int
    frame_differences:
      description: How many frames had another verdict, came out otherwise, or were counted
        otherwise.
      type: int
    flow_differences:
      description: How many flows were not the same at the end.
      type: int
    differences:
      description: The first 20 frames and the first 20 flows that differ.
      type: list
      elements: dict
      contains:
        what:
          description: V(frame) or V(flow).
          type: str
        number:
          description: The frame's place in the capture, from 1.
          type: int
        hook:
          description: Where the frame came in.
          type: str
        summary:
          description: The frame or flow in short.
          type: str
        old:
          description: What the running generation makes of it.
          type: str
        new:
          description: What the new one makes of it.
          type: str
    flows:
      description: How many flows there were at the end, as C(old) and C(new).
      type: dict
    verdicts:
      description: How many frames had which verdict, as C(old) and C(new).
      type: dict
    counters:
      description: The counters at the end that are not 0, as C(old) and C(new).
      type: dict
  sample:
    generation: 3
    compared: true
    reason: ""
    frames: 520
    skipped: 0
    cut: 0
    frame_differences: 1
    flow_differences: 1
    differences:
      - what: frame
        number: 214
        hook: ingress
        summary: "IP 198.18.0.1.4000 > 198.19.0.1.81: Flags [S], length 0"
        old: pass, tracked, created
        new: drop, invalid_tcp_new
    flows: {old: 73, new: 72}
    verdicts: {old: {pass: 520}, new: {pass: 519, drop: 1}}
dropped:
  description:
    - How many flows are not kept, by the table that they would have gone to, because that table
      gets too small for them or because of O(on_schema_change=drop). The assured ones and the
      latest are kept. In check mode it says what would not be kept.
    - There is a warning as well, and one when the flows will fill more than nine tenths of the room
      in a table. That is a little less than its size, by 128 entries for each possible CPU, since
      the kernel begins to push out old entries while other CPUs still have free ones.
  returned: success
  type: dict
  sample: {ctt: 1500}
compiler_output:
  description: All that the compiler or the verifier said; the message holds the part that tells the
    fault.
  returned: when compiling or loading failed
  type: str
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import features, render
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan as plans
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import (
    ConntrackError,
    bad_value,
    told_by,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.libraries import require
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    diagnosis,
    migrate_plan,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import capture
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import run as replay
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import restore


def argument_spec() -> dict[str, object]:
    return {
        "state": {
            "type": "str",
            "choices": ["present", "absent", "rolled_back"],
            "default": "present",
        },
        "src": {"type": "path"},
        "build": {"type": "str", "choices": ["bcc", "clang", "object"], "default": "bcc"},
        "compiler": {"type": "str"},
        "object_cache": {"type": "path"},
        "objects": {"type": "path"},
        "signers": {"type": "path"},
        **{name: {"type": "int", "default": chain_maps.TABLE_SIZE} for name in render.SIZES},
        **render.OPTIONS,
        "timeouts": {
            "type": "dict",
            "default": {},
            "options": {
                name: {"type": "int", "default": seconds}
                for name, seconds in chain_settings.TIMEOUTS.items()
            },
        },
        "settings": {
            "type": "dict",
            "default": {},
            "options": {
                name: {"type": type(default).__name__, "default": default}
                for name, default in chain_settings.KNOBS.items()
            },
        },
        "generation": {"type": "int"},
        "on_schema_change": {
            "type": "str",
            "choices": list(migrate_plan.POLICIES),
            "default": generation.Policy.on_schema_change,
        },
        "keep": {"type": "int", "default": generation.Policy.keep},
        "state_dir": {"type": "path", "default": bpffs.STATE_DIR},
        "verify": {"type": "str", "choices": ["probe", "replay"], "default": "probe"},
        "replay": {
            "type": "dict",
            "default": {},
            "options": {
                "frames": {"type": "path"},
                "hook": {"type": "str", "choices": list(replay.HOOKS), "default": "both"},
                "on_difference": {
                    "type": "str",
                    "choices": list(replay.ON_DIFFERENCE),
                    "default": "warn",
                },
                "limit": {"type": "int", "default": replay.LIMIT},
            },
        },
        "replay_frames": {"type": "path"},
        "rendered": {"type": "str"},
        "object_file": {"type": "path"},
        "object_manifest": {"type": "str"},
        **lock.OPTION,
        "pin_root": {"type": "path", "default": bpffs.STANDARD},
    }


def proof_of(module: AnsibleModule, paths: bpffs.Paths) -> replay.Proof | None:
    """Return what proves a new generation besides the probe."""
    options = module.params["replay"]
    if module.params["verify"] != "replay":
        return None
    if not module.params["replay_frames"]:
        raise ConntrackError(
            "replay_frames: it is empty: the module has to be run as ebpf.conntrack.xdp_program,"
            " whose action part sends the capture."
        )
    replay.check_limit(options["limit"])
    with open(module.params["replay_frames"], "rb") as source:
        packets = capture.read(source, module.params["replay_frames"], options["limit"])
    return replay.Proof(packets, options["hook"], options["on_difference"], paths)


def object_of(
    module: AnsibleModule, text: str, headers: dict[str, str]
) -> object_file.Built | None:
    """Return the object that was sent, None where there is none yet.

    :raises ConntrackError: where it is not whole, or not one of this chain.
    """
    path, said = module.params["object_file"], module.params["object_manifest"]
    if not path or not said:
        return None
    with open(path, "rb") as file:
        built = object_file.Built(object_file.parse(said, "object_manifest"), file.read())
    object_file.check(
        built,
        build_clang.here(),
        object_file.sources_digest(text, headers),
        "the object that was sent",
    )
    return built


def present(
    module: AnsibleModule, paths: bpffs.Paths, proof: replay.Proof | None
) -> tuple[plans.Plan, generation.Have, dict[str, object]]:
    params = module.params
    render.check_unfiltered(params["forward"], params[render.UNFILTERED])
    if not params["rendered"]:
        raise ConntrackError(
            "rendered: it is empty: the module has to be run as ebpf.conntrack.xdp_program, whose"
            " action part renders the sources."
        )
    text, headers = render.unpack(params["rendered"])
    want = generation.Want(
        text,
        headers,
        timeouts={
            name: seconds for name, seconds in params["timeouts"].items() if seconds is not None
        },
        knobs={name: int(value) for name, value in params["settings"].items() if value is not None},
        **{name: params[name] for name in render.SIZES},
        pinned=guests.pinned_here(guests.parse(params["guests"])),
        build=generation.BCC if params["build"] == "bcc" else generation.OBJECT,
        object=object_of(module, text, headers),
    )
    policy = generation.Policy(keep=params["keep"], on_schema_change=params["on_schema_change"])
    generation.check(want, policy)
    heard = generation.listen(paths)
    plan, before = generation.ensure(paths, want, True, policy, heard, params["lock_timeout"])
    if any(step.action == "load" for step in plan):
        if want.build == generation.BCC:
            require(module, "bcc")
        features.check()
    wanted: dict[str, object] = {}
    if want.object is None and generation.needs_object(plan, before, want):
        wanted["object_wanted"] = build_clang.here()._asdict()  # the action part has it made
        if proof or not module.check_mode:
            # and comes again; a plan alone does not need the object here
            module.exit_json(changed=False, **wanted)
    plan, have = generation.ensure(
        paths,
        want,
        module.check_mode,
        dataclasses.replace(policy, proof=proof),
        heard,
        params["lock_timeout"],
    )
    again, have = attached_again(module, paths, have)
    return plan + again, have, {"mended": diagnosis.mended(before.faults, have.faults), **wanted}


def attached_again(
    module: AnsibleModule, paths: bpffs.Paths, have: generation.Have
) -> tuple[plans.Plan, generation.Have]:
    """Attach what is written down to the interfaces whose links hold nothing any more: the plan
    that was needed, and what is there now.
    """
    stale = [fault.object for fault in have.faults if fault.fault == "link_stale"]
    if have.generation is None or not stale:
        return [], have
    done = restore.attach_again(paths, module.check_mode, module.params["lock_timeout"], stale)
    for warning in (*done.warnings, *done.refused.values()):
        module.warn(warning)
    return done.steps, generation.observe(paths) if done.steps and not module.check_mode else have


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    paths = bpffs.Paths(module.params["pin_root"], module.params["state_dir"])
    more: dict[str, object] = {"mended": []}
    proof = None
    with told_by(module):
        if module.params["generation"] is not None and module.params["state"] != "rolled_back":
            raise bad_value(
                "generation", module.params["generation"], "it belongs to state: rolled_back"
            )
        bpffs.check_text(paths)
        bpffs.check(paths.pin_root)
        if module.params["state"] == "present":
            proof = proof_of(module, paths)
            plan, have, more = present(module, paths, proof)
        elif module.params["state"] == "rolled_back":
            plan, have = generation.roll_back(
                paths, module.params["generation"], module.check_mode, module.params["lock_timeout"]
            )
        else:
            plan = generation.remove(paths, module.check_mode, module.params["lock_timeout"])
            have = generation.observe(paths)
    dropped, warnings = generation.outlook(plan)
    more["dropped"] = dropped
    for warning in warnings:
        module.warn(warning)
    if proof:
        more["replay"] = proof.report.as_dict()
        if proof.warning:
            module.warn(proof.warning)
    module.exit_json(
        changed=bool(plan),
        plan=plans.as_dicts(plan),
        diff=plans.as_diff(plan),
        chain=generation.facts(have, paths),
        **more,
    )


if __name__ == "__main__":
    main()
