# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach the active generation's programs to interfaces through pinned bpf_links: observe -> plan
-> apply.

Ours is what stands under ``link/`` (a bpf_link each), and a program of one of our generations that
somebody attached by its pin (``ip link set dev ns1-lan xdp pinned .../prog/xdp_0``): such a one is
taken over into a bpf_link, or detached, without asking. Every other program on an interface is
foreign.

A run that is killed leaves either the old state or the new one, or nothing attached: a bpf_link
that has no pin yet dies with its process. The next run sees which, and goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import typing as t

from ..chain import forwarding
from ..chain import spec as chain
from ..chain.spec import HOOKS, SLOTS, TRACKING_HOOKS
from ..core import lock, plan, safe_path
from ..core.errors import ConntrackError, bad_value
from ..generation import health
from ..generation import manifest as statedir
from ..generation import probe as generation_probe
from ..kernel import bpf, bpffs, ethtool, link_fitness, netfilter, netns, rtnetlink
from . import redirect, refusals, select

MODES = ("auto", "native", "generic")
#: Bytes of the longest packet without BIG TCP, as the kernel has it (include/linux/netdevice.h,
#: GSO_LEGACY_MAX_SIZE).
IP_MOST = 65536
#: The modes in which a program runs on the host's CPUs; an interface has at most one such program.
HOST_MODES = ("native", "generic")
#: What veth's native XDP needs of a page beside the frame: headroom, the Ethernet header, struct
#: skb_shared_info (drivers/net/veth.c).
VETH_PAGE_OVERHEAD = 590
VETH_MAX_MTU = os.sysconf("SC_PAGE_SIZE") - VETH_PAGE_OVERHEAD
#: When native fails for one of these, the driver has no XDP or cannot run it as the interface is
#: set up: MTU, queues, features. All others would stop generic as well, or pass: rights (EPERM),
#: who holds the interface (EBUSY, EEXIST), memory (ENOMEM), a link that went (ENODEV).
_DRIVER_CANNOT = (
    errno.EOPNOTSUPP,
    524,
    errno.EINVAL,
    errno.ERANGE,
    errno.ENOSPC,
)  # 524 is ENOTSUPP, which the kernel keeps to itself
_MEND_NATIVE = {
    errno.ERANGE: (
        f"Lower the MTU of the veth's other end to at most {VETH_MAX_MTU}, or give mode: generic or"
        " auto."
    ),
    errno.ENOSPC: (
        "Give this end of the veth at least as many rx queues as the other has tx queues (ethtool"
        " -L), or give mode: generic or auto."
    ),
}
_MEND_NATIVE_ELSE = "Give mode: generic or auto."


# ---------------------------------------------------------------- what is wanted
@dataclasses.dataclass(frozen=True)
class Want:
    """One interface as the user asked for it.

    :ivar field: where it stands in the input, for errors.
    :ivar hook: ``ingress`` or ``egress``; "" when the interface shall be free.
    :ivar mode: one of MODES.
    :ivar chosen_by: what it was chosen by, see interface_select.label(); "" where it was named.
    """

    field: str
    name: str
    netns: str | None
    hook: str
    mode: str
    chosen_by: str = ""

    @property
    def label(self) -> str:
        """What an operator calls the interface."""
        return self.name if self.netns is None else f"{self.name}@{self.netns}"


def parse(
    state: str,
    interfaces: t.Sequence[t.Mapping[str, t.Any]],
    mode: str,
    longest: int = bpf.IFNAMSIZ - 1,
) -> list[Want]:
    """Check the module's ``interfaces`` and return those that are named.

    :param interfaces: as the module has them, or as interface_select.resolve() returns them.
    :param longest: the bytes that a name may have; alternative names, of which only looked() knows,
        have up to bpf.ALTIFNAMSIZ - 1.
    :raises ConntrackError: for the first bad value.
    """
    wants: list[Want] = []
    for number, item in enumerate(interfaces):
        field = item.get("field") or f"interfaces[{number}]"
        name, namespace = item.get("name"), item.get("netns")
        select.check(field, item)
        if name is not None:
            _check_name(f"{field}.name", name, longest, "an interface's name")
        if namespace is not None:
            _check_name(f"{field}.netns", namespace, 255, "a namespace's name")
        if (
            name is not None
            and len(os.fsencode(bpffs.interface_key(namespace, name))) > safe_path.NAME_BYTES
        ):
            raise bad_value(
                f"{field}.netns",
                namespace,
                f"it is too long: the name of the pin is made of it and of {name}",
            )
        hook = item.get("program") or ""
        if state == "present" and not hook:
            raise ConntrackError(f"{field}.program: is missing: give {' or '.join(HOOKS)}.")
        if name is None:  # chosen when it is known what there is
            continue
        want = Want(
            field,
            name,
            namespace,
            hook if state == "present" else "",
            item.get("mode") or mode,
            item.get("chosen_by") or "",
        )
        for other in wants:
            if (other.netns, other.name) == (namespace, name):
                which = f"it is {want.label}, which" if "given" in item else "the interface"
                raise bad_value(
                    f"{field}.name",
                    item.get("given", name),
                    f"{which} is already in {other.field}; name each once",
                )
        wants.append(want)
    return wants


def check(state: str, interfaces: t.Sequence[t.Mapping[str, t.Any]], mode: str) -> None:
    """Check the module's ``interfaces`` before anything is looked at, so a name may still be an
    alternative one.

    :raises ConntrackError: for the first bad value.
    """
    parse(state, interfaces, mode, bpf.ALTIFNAMSIZ - 1)


def _check_name(field: str, value: str, limit: int, what: str) -> None:
    """Refuse a name that the kernel refuses (net/core/dev.c, dev_valid_name; a namespace's name is
    a file's).
    """
    signs = (
        value
        and value not in (".", "..")
        and value.isprintable()
        and not any(c == "/" or c.isspace() for c in value)
    )
    if not signs or len(value.encode()) > limit:
        raise bad_value(
            field,
            value,
            f"{what} has 1 to {limit} bytes, no '/', no white space and nothing that cannot be"
            " printed",
        )
    if limit < 255 and ":" in value:
        raise bad_value(field, value, f"{what} has no ':'")


def looked(interfaces: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Return entries in which every interface and namespace that exists has the one name that the
    kernel lists it by.

    An interface may have alternative names, and a namespace several names: all that comes after
    compares names, so this comes first. An entry whose name was another one has it in ``given``.
    """
    found = []
    namespaces = netns.canonical(item.get("netns") for item in interfaces)
    for item in interfaces:
        namespace, name = namespaces[item.get("netns")], item.get("name")
        real = _real_name(namespace, name) if name is not None else None
        found.append({**item, "netns": namespace})
        if (real, namespace) != (name, item.get("netns")):
            found[-1].update(
                name=real, given=name if item.get("netns") is None else f"{name}@{item['netns']}"
            )
        if real != name:
            found[-1]["chosen_by"] = f"alternative name {name}"
    return found


def _real_name(namespace: str | None, name: str) -> str:
    """Return the name that the kernel lists an interface by; ``name`` itself where there is none."""
    try:
        with netns.entered(namespace):
            return bpf.link_facts(name).name
    except ConntrackError as exc:
        if isinstance(exc, bpf.BpfError) and exc.errno != errno.ENODEV:
            raise
        return name  # which observe() says, and what there is


# ---------------------------------------------------------------- what is there
@dataclasses.dataclass(frozen=True)
class Program:
    """One loaded XDP program; ``hook`` tells what it is for us, None when it is foreign."""

    id: int
    name: str
    tag: str
    hook: str | None = None


@dataclasses.dataclass(frozen=True)
class Attached:
    """The program that an interface has.

    :ivar mode: ``native`` or ``generic``.
    :ivar link_ids: the bpf_links that may hold it (several only when ids coincide between
        namespaces); empty when it came through netlink.
    :ivar by_link: whether a bpf_link holds it.
    :ivar pin: the pin of ours that holds it, None when it is none of ours.
    """

    program: Program
    mode: str
    by_link: bool
    link_ids: tuple[int, ...] = ()
    pin: str | None = None

    def shown(self) -> dict[str, t.Any]:
        """Return the form for plans and diffs."""
        link_id = self.link_ids[0] if len(self.link_ids) == 1 else None
        name = self.program.hook or self.program.name
        return {
            "program": name,
            "program_id": self.program.id,
            "tag": self.program.tag,
            "mode": self.mode,
            "link_id": link_id,
        }


@dataclasses.dataclass(frozen=True)
class Have:
    """One interface as it is.

    :ivar pin: path of the pin that our bpf_link has or would have.
    :ivar pinned: what the pin holds, None when there is none.
    :ivar ifindex: 0 when there is no such interface.
    :ivar missing: why there is no such interface, "" when there is one.
    :ivar too_long: the MTU that keeps this veth from native XDP, None when nothing does.
    :ivar port: what the chain has to know to forward through it; None where its frames are not
        Ethernet.
    :ivar unfit: why nothing could be tracked on it, see link_fitness.unfit().
    :ivar counted: why packets would be counted twice if the chain tracked on it.
    :ivar longest: bytes of the longest packet that generic mode shows here; 0 where it is not
        known.
    :ivar forwards: what the chain would pass by here; None where it forwards nothing, or is not to
        be attached here.
    """

    pin: str
    pinned: bpf.LinkInfo | None = None
    ifindex: int = 0
    missing: str = ""
    attached: Attached | None = None
    too_long: int | None = None
    port: redirect.Port | None = None
    unfit: str = ""
    counted: str = ""
    longest: int = 0
    forwards: forwarding.Seen | None = None

    @property
    def big(self) -> bool:
        """Whether generic mode shows packets here that no IPv4 header can tell the length of (BIG
        TCP).
        """
        return self.longest > IP_MOST


def _pinned_link(path: str) -> bpf.LinkInfo | None:
    """Return what the pin holds.

    :raises ConntrackError: when it is no XDP link.
    """
    if not os.path.lexists(path):
        return None
    info: bpf.LinkInfo | None = None
    try:
        with bpf.closing(bpf.obj_get(path)) as fd:
            if bpf.kind_of(fd) == "link":
                info = bpf.link_info(fd)
    except bpf.BpfError as exc:
        if (
            exc.errno != errno.EACCES
        ):  # the kernel's answers to a directory and to a file of another kind
            raise
    if info is None or info.type != bpf.LINK_TYPE_XDP:
        raise ConntrackError(
            f"{path} is not a pinned XDP link, so it is not ours. Remove it, or give another"
            " pin_root."
        )
    return info


def held(paths: bpffs.Paths) -> dict[str, bpf.LinkInfo]:
    """Return the bpf_links that we have pinned, by path."""
    try:
        names = sorted(os.listdir(paths.link_dir))
    except FileNotFoundError:
        return {}
    found = {
        os.path.join(paths.link_dir, name): _pinned_link(os.path.join(paths.link_dir, name))
        for name in names
    }
    return {path: info for path, info in found.items() if info is not None}


def _generation_programs(paths: bpffs.Paths) -> dict[int, str]:
    """Return the programs of all our generations: their ids and the names of their slots."""
    slots = {f"xdp_{slot}": name for name, slot in SLOTS.items()}
    found: dict[int, str] = {}
    for generation in _listdir(paths.gen):
        directory = os.path.join(paths.gen, generation, "prog")
        for name in _listdir(directory):
            with bpf.closing(bpf.obj_get(os.path.join(directory, name))) as fd:
                found[bpf.prog_info(fd).id] = slots.get(name, name)
    return found


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_hooks(paths: bpffs.Paths, wants: t.Sequence[Want], check_mode: bool) -> dict[str, Program]:
    """Return the active generation's program of each hook that is wanted; in check mode those that
    exist.

    :raises ConntrackError: when a pin is missing or holds something else.
    """
    found: dict[str, Program] = {}
    for hook in HOOKS:
        path = paths.prog(SLOTS[hook])
        users = [want for want in wants if want.hook == hook]
        if not users:
            continue
        if not os.path.exists(path):
            if check_mode:
                continue
            raise ConntrackError(
                f"{users[0].field}.program: {hook!r} is not loaded: {path} does not exist. Run"
                " ebpf.conntrack.xdp_program first."
            )
        with bpf.closing(bpf.obj_get(path)) as fd:
            if bpf.kind_of(fd) != "prog" or bpf.prog_info(fd).type != bpf.PROG_TYPE_XDP:
                raise ConntrackError(
                    f"{path} is no XDP program. Run ebpf.conntrack.xdp_program again."
                )
            info = bpf.prog_info(fd)
        found[hook] = Program(info.id, info.name, info.tag, hook)
    return found


def observe(paths: bpffs.Paths, wants: t.Sequence[Want], forward: str | None = None) -> list[Have]:
    """Return what is there for each wanted interface; nothing is changed.

    :param forward: what the chain is to forward, one of chain.FORWARDS; None for what the active
        one does.
    :raises ConntrackError: when something foreign stands at a pin's path.
    """
    pins, programs = held(paths), _generation_programs(paths)
    forward = health.forwards(paths) if forward is None else forward
    rules: dict[str | None, netfilter.Seen] = {}
    haves = [
        _observe_one(paths.link(want.netns, want.name), want, pins, programs, forward, rules)
        for want in wants
    ]
    for namespace in {want.netns for want in wants if want.hook in TRACKING_HOOKS}:
        _observe_stacks(namespace, wants, haves, pins, programs)
    return haves


def _observe_stacks(
    namespace: str | None,
    wants: t.Sequence[Want],
    haves: list[Have],
    pins: t.Mapping[str, bpf.LinkInfo],
    programs: t.Mapping[int, str],
) -> None:
    """Say in ``haves`` which interfaces of a namespace get frames that were counted below them, on
    wanted interfaces or on others that we hold.
    """
    wanted = {
        have.ifindex: at
        for at, (want, have) in enumerate(zip(wants, haves))
        if want.netns == namespace and want.hook in TRACKING_HOOKS and have.ifindex
    }
    spoken_of = {have.ifindex for want, have in zip(wants, haves) if want.netns == namespace}
    links = {
        (info.ifindex, info.prog_id)
        for where, info in _tracking(pins, programs)
        if where == namespace
    }
    if len(wanted) + len(links) < 2:
        return
    with netns.entered(namespace):
        there = {facts.ifindex: facts for facts in bpf.links()}
    kept = {
        index
        for index, prog_id in links
        if index in there and index not in spoken_of and prog_id in there[index].xdp.values()
    }
    below = link_fitness.below(there.values())
    for index, at in wanted.items():
        lower = sorted(below.get(index, set()) & (wanted.keys() | kept))
        upper = sorted(one for one in kept if index in below[one])
        if lower:
            name = there[lower[0]].name
            haves[at] = dataclasses.replace(
                haves[at],
                counted=(
                    f"all its frames that come by {name} are counted there, where the chain is"
                    " wanted or attached"
                ),
            )
        elif upper:
            name = there[upper[0]].name
            haves[at] = dataclasses.replace(
                haves[at],
                counted=(
                    f"its frames that {name} gets are counted there, where the chain is attached"
                ),
            )


def _tracking(
    pins: t.Mapping[str, bpf.LinkInfo], programs: t.Mapping[int, str]
) -> list[tuple[str | None, bpf.LinkInfo]]:
    """Return the links of ours that track on an interface, each with the namespace that its pin
    names.
    """
    found = {
        pin: info
        for pin, info in pins.items()
        if info.ifindex and programs.get(info.prog_id) in TRACKING_HOOKS
    }
    named = {pin: bpffs.interface_of(os.path.basename(pin))[0] for pin in found}
    namespaces = netns.canonical(named.values())
    return [(namespaces[named[pin]], info) for pin, info in found.items()]


def _observe_one(
    pin: str,
    want: Want,
    pins: t.Mapping[str, bpf.LinkInfo],
    programs: t.Mapping[int, str],
    forward: str,
    rules: dict[str | None, netfilter.Seen],
) -> Have:
    have = Have(pin=pin, pinned=pins.get(pin))
    if want.netns is not None and not netns.exists(want.netns):
        there = ", ".join(netns.names()[0]) or "none"
        return dataclasses.replace(
            have,
            missing=(
                f"{want.field}.netns: there is no namespace {want.netns!r}; there are: {there}."
            ),
        )
    with netns.entered(want.netns):
        try:
            facts = bpf.link_facts(want.name)
        except bpf.BpfError as exc:
            if exc.errno != errno.ENODEV:
                raise
            there = ", ".join(sorted(name for dummy, name in socket.if_nameindex()))
            where = "the host's namespace" if want.netns is None else f"namespace {want.netns}"
            return dataclasses.replace(
                have,
                missing=(
                    f"{want.field}.name: there is no interface {want.name!r} in {where}; there are:"
                    f" {there}."
                ),
            )
        attached = _attached(facts, pin, pins, programs)
        mode = attached.mode if attached else None
        here, past = None, ""
        if forward != chain.FORWARDS[0] and want.hook in TRACKING_HOOKS:
            here = forwarding.look(forward, want.netns, facts, rules)
            past = "" if here.rules.rulesets == () else here.rules.shown
        port = (
            redirect.Port(
                want.label, facts.ifindex, facts.mac, redirect.transmits(facts, mode), past
            )
            if redirect.is_ethernet(facts)
            else None
        )
        peer = _peer(facts)
        return dataclasses.replace(
            have,
            ifindex=facts.ifindex,
            attached=attached,
            too_long=peer.mtu if peer and peer.mtu > VETH_MAX_MTU else None,
            port=port,
            forwards=here,
            unfit=link_fitness.unfit(facts),
            longest=max(facts.merges, peer.leaves if peer else 0),
        )


def _peer(facts: bpf.LinkFacts) -> bpf.LinkFacts | None:
    """Return the other end of a veth: its MTU may keep this end from native XDP, and what its
    senders leave uncut comes here whole.
    """
    if facts.kind != "veth":
        return None
    try:
        return bpf.link_facts(facts.peer_ifindex, facts.peer_nsid)
    except bpf.BpfError:  # the peer is being moved or its namespace dies: the kernel will say
        return None


def _attached(
    facts: bpf.LinkFacts,
    pin: str,
    pins: t.Mapping[str, bpf.LinkInfo],
    programs: t.Mapping[int, str],
) -> Attached | None:
    """Return the program that sees the interface's frames, and who holds it; call it inside the
    interface's namespace.

    :param pins: see held().
    :param programs: see _generation_programs().
    """
    mode = next((mode for mode in HOST_MODES if mode in facts.xdp), None)
    if mode is None:
        return None
    try:
        with bpf.closing(bpf.prog_get_fd_by_id(facts.xdp[mode])) as fd:
            info = bpf.prog_info(fd)
    except bpf.BpfError as exc:
        if exc.errno == errno.ENOENT:  # detached since
            return None
        raise
    program = Program(info.id, info.name, info.tag, programs.get(info.id))
    ours = sorted(
        (
            path
            for path, link in pins.items()
            if (link.ifindex, link.prog_id) == (facts.ifindex, info.id)
        ),
        key=lambda path: path != pin,
    )
    if ours and ours[0] == pin:
        return Attached(program, mode, True, (pins[pin].id,), pin)
    with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "probe")) as other:
        by_link = bpf.xdp_link_holds(facts.ifindex, mode, other)
    if not by_link:
        return Attached(program, mode, False)
    links = tuple(_links_of(facts.ifindex, info.id))
    ours = [
        path for path in ours if (pins[path].id,) == links
    ]  # the interface was renamed or moved since we attached
    return Attached(program, mode, True, links, ours[0] if ours else None)


def _links_of(ifindex: int, prog_id: int) -> t.Iterator[int]:
    for number in list(bpf.link_ids()):
        try:
            with bpf.closing(bpf.link_get_fd_by_id(number)) as fd:
                info = bpf.link_info(fd)
        except bpf.BpfError as exc:
            if exc.errno == errno.ENOENT:  # gone since
                continue
            raise
        if (info.ifindex, info.prog_id) == (ifindex, prog_id):
            yield number


# ---------------------------------------------------------------- plan
@dataclasses.dataclass(frozen=True)
class Change:
    """What one step does to one interface: take away, then attach or replace.

    :ivar drop_pins: detach and unpin these links of ours first.
    :ivar moved_from: the pin of our link that holds this interface under another name: it gets this
        interface's, and the link goes on without a gap.
    :ivar drop: detach this program first, which no pin of ours holds.
    :ivar update: this program is in our pinned link: put the other into the same link.
    :ivar modes: the modes to try, in order; empty when nothing is attached.
    :ivar why_generic: why auto does not even try native.
    """

    want: Want
    have: Have
    drop_pins: tuple[str, ...] = ()
    moved_from: str = ""
    drop: Attached | None = None
    update: Attached | None = None
    modes: tuple[str, ...] = ()
    why_generic: str = ""


def make_plan(
    wants: t.Sequence[Want],
    haves: t.Sequence[Have],
    hooks: t.Mapping[str, Program],
    takeover: bool,
    check_mode: bool,
) -> plan.Plan:
    """Return the steps from what is there to what is wanted. Pure.

    :raises ConntrackError: when the wish can not be fulfilled; nothing has been touched then.
    """
    steps = [
        (
            _plan_free(want, have)
            if not want.hook
            else _plan_one(want, have, hooks, takeover, check_mode)
        )
        for want, have in zip(wants, haves)
    ]
    return [step for step in steps if step is not None]


def _pins(have: Have) -> tuple[str, ...]:
    """Return the pins of ours that speak of this interface: its own, and that under which it was
    attached before it was renamed or moved.
    """
    pins = [have.pin] if have.pinned is not None else []
    if have.attached is not None and have.attached.pin not in (None, have.pin):
        pins.append(have.attached.pin)
    return tuple(pins)


def _elsewhere(have: Have) -> str:
    """Return where the link that is pinned for an interface is, when it does not hold that
    interface; "" when there is none, or nothing is known of it.
    """
    pinned = have.pinned
    if (
        pinned is None
        or not pinned.ifindex
        or (have.attached is not None and have.attached.pin == have.pin)
    ):
        return ""
    return (
        f"its link {pinned.id} went with the interface of number {pinned.ifindex}, which now has"
        " another name or is in another namespace"
    )


def _by_pin(attached: Attached | None) -> bool:
    """Tell whether a program of ours was attached without a link, by its pin."""
    return attached is not None and not attached.by_link and attached.program.hook is not None


def _plan_free(want: Want, have: Have) -> plan.Step | None:
    attached = have.attached
    by_pin = _by_pin(attached)
    change = Change(want, have, drop_pins=_pins(have), drop=attached if by_pin else None)
    if attached is not None and (by_pin or attached.pin is not None):
        reason = "it shall have no program of the chain" + (
            ", and this one was attached by its pin, without a link" if by_pin else ""
        )
        return plan.Step("detach", "xdp", want.label, reason, attached.shown(), None, change)
    if have.pinned is not None:
        reason = _elsewhere(have) or "the link that is pinned for it holds no interface any more"
        return plan.Step(
            "detach", "xdp", want.label, reason, {"link_id": have.pinned.id}, None, change
        )
    return None


def _plan_one(
    want: Want, have: Have, hooks: t.Mapping[str, Program], takeover: bool, check_mode: bool
) -> plan.Step | None:
    if have.missing and not check_mode:
        where = _elsewhere(have)
        raise ConntrackError(
            have.missing
            + (
                f" But {where}: name it as it is now, or detach it (state: absent)."
                if where
                else ""
            )
        )
    _refuse_interface(want, have)
    if have.forwards is not None:
        forwarding.refuse(want.field, want.label, have.forwards)
    program, attached = hooks.get(want.hook), have.attached
    modes, why_generic = _modes(want, have)
    after = {
        "program": want.hook,
        "program_id": program.id if program else None,
        "tag": program.tag if program else None,
        "mode": modes[0] if len(modes) == 1 else "auto",
    }

    def step(action: str, reason: str, **change: t.Any) -> plan.Step:
        before = attached.shown() if attached is not None else None
        whole: dict[str, t.Any] = {
            "drop_pins": _pins(have),
            "modes": modes,
            "why_generic": why_generic,
            **change,
        }
        return plan.Step(
            action, "xdp", want.label, reason, before, after, Change(want, have, **whole)
        )

    if have.missing:
        return step("attach", "the interface does not exist yet")
    if attached is None:
        stale = (
            _elsewhere(have)
            or "its link is stale: the interface was made anew, or the link was detached"
        )
        reason = stale if have.pinned else "nothing is attached"
        return step("attach", reason if program else f"{reason}, and the program is not loaded yet")
    if attached.pin is None and not _by_pin(attached):
        _refuse_foreign(want, attached, takeover)
        return step(
            "replace",
            f"takeover of {attached.program.name}, id {attached.program.id}",
            drop=attached,
        )
    if attached.pin is None:
        return step(
            "replace", "the chain's program was attached by its pin, without a link", drop=attached
        )
    if attached.pin != have.pin:
        reason = f"the interface was renamed or moved: its link is pinned at {attached.pin}"
        if want.mode not in ("auto", attached.mode):
            return step("replace", reason)
        after["mode"] = attached.mode
        update = attached if program is not None and attached.program.id != program.id else None
        drop_pins = (have.pin,) if have.pinned is not None else ()
        return step(
            "replace", reason, moved_from=attached.pin, drop_pins=drop_pins, update=update, modes=()
        )
    if want.mode not in ("auto", attached.mode):
        return step("replace", f"mode {want.mode} is wanted")
    if program is not None and attached.program.id != program.id:
        after["mode"] = attached.mode
        reason = (
            "it shall run another hook"
            if attached.program.hook != want.hook
            else "another generation is active"
        )
        return step("replace", reason, update=attached, drop_pins=(), modes=())
    return None


def _refuse_interface(want: Want, have: Have) -> None:
    """:raises ConntrackError: when the chain would track nothing on the interface, or count packets
    twice.
    """
    if want.hook not in TRACKING_HOOKS:
        return
    if have.unfit:
        raise ConntrackError(
            f"{want.field}.name: {want.label}: the chain cannot track on this interface:"
            f" {have.unfit}. Name the Ethernet interfaces by which the same traffic comes in"
            " instead."
        )
    if have.counted:
        raise ConntrackError(
            f"{want.field}.name: {want.label}: each packet would be counted twice: {have.counted}."
            " Name one of the two, and detach the other (state: absent)."
        )


def _modes(want: Want, have: Have) -> tuple[tuple[str, ...], str]:
    """Return the modes to try, and why native is not among them when auto leaves it out.

    :raises ConntrackError: when native is wanted and the MTU is in the way.
    """
    if want.mode == "generic" or have.too_long is None:
        return (HOST_MODES if want.mode == "auto" else (want.mode,)), ""
    already = (
        have.attached is not None
        and have.attached.pin == have.pin
        and have.attached.mode == "native"
    )
    why = (
        f"native XDP on a veth takes an MTU of at most {VETH_MAX_MTU}, and the MTU of its other end"
        f" is {have.too_long}"
    )
    if want.mode == "native" and not already:
        raise ConntrackError(f"{want.field}.mode: {want.name}: {why}. {_MEND_NATIVE[errno.ERANGE]}")
    return ("native",) if want.mode == "native" else ("generic",), why


def _refuse_foreign(want: Want, attached: Attached, takeover: bool) -> None:
    """:raises ConntrackError: when the foreign program may not be, or can not be, taken away."""
    program = attached.program
    if not attached.by_link:
        how = "attached through netlink (as by ip link)"
    elif attached.link_ids:
        how = f"held by bpf_link {' or '.join(map(str, attached.link_ids))}"
        how += "".join(
            f" of process {pid} ({name})"
            for number in attached.link_ids
            for pid, name in _holders(number)
        )
    else:
        how = "held by a bpf_link that is already gone"
    what = (
        f"an XDP program that is not ours: id {program.id}, name {program.name}, tag {program.tag},"
        f" mode {attached.mode}, {how}"
    )
    if program.name == "xdp_dispatcher":
        what += "; it is libxdp's dispatcher, xdp-loader unload frees the interface"
    if not takeover:
        raise ConntrackError(
            f"{want.field}: {want.label} has {what}. Detach it, or give takeover: true to have it"
            " replaced."
        )
    if attached.by_link and len(attached.link_ids) != 1:
        raise ConntrackError(
            f"{want.field}: {want.label} has {what}. Which link it is can not be told, so detach it"
            " yourself (bpftool link detach)."
        )


def _holders(link_id: int) -> list[tuple[int, str]]:
    """Return (pid, name) of the processes that hold an open file descriptor of a bpf_link."""
    found: list[tuple[int, str]] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # ended since
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") not in (
                    "anon_inode:bpf_link",
                    "anon_inode:bpf-link",
                ):
                    continue
                with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as lines:
                    if f"link_id:\t{link_id}\n" not in lines:
                        continue
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as name:
                    found.append((int(pid), name.read().strip()))
                break
    return found


# ---------------------------------------------------------------- apply
class Applier:
    """Applies the plan's steps; keeps the programs it may have to put back open until it is closed.

    :ivar warnings: what the user should know of steps that went otherwise than at first tried.
    """

    def __init__(self, paths: bpffs.Paths) -> None:
        self.paths = paths
        self.warnings: list[str] = []
        self._fds = contextlib.ExitStack()

    def __enter__(self) -> Applier:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._fds.close()

    def _keep(self, fd: int) -> int:
        self._fds.callback(bpf.close, fd)
        return fd

    def do(self, step: plan.Step) -> plan.Undo:
        """Apply one step. :return: what undoes it."""
        change: Change = step.args
        with self._where(change):
            return (
                self._update(change, change.update)
                if change.update is not None and not change.moved_from
                else self._exchange(change)
            )

    @staticmethod
    def _where(change: Change) -> t.ContextManager[None]:
        """Enter the interface's namespace; where there is no interface there may be no namespace,
        and only a pin is to be removed.
        """
        return netns.entered(change.want.netns if change.have.ifindex else None)

    def _hook(self, change: Change) -> int:
        return self._keep(bpf.obj_get(self.paths.prog(SLOTS[change.want.hook])))

    @staticmethod
    def _move_pin(before: str, after: str) -> t.Callable[[], None]:
        os.rename(before, after)
        return lambda: os.rename(after, before)

    def _update(self, change: Change, attached: Attached) -> t.Callable[[], None]:
        link, new = self._keep(bpf.obj_get(change.have.pin)), self._hook(change)
        old = self._keep(bpf.prog_get_fd_by_id(attached.program.id))
        bpf.link_update(link, new, old)
        return lambda: bpf.link_update(link, old, new)

    def _exchange(self, change: Change) -> plan.Undo:
        """Take away what is in the way and attach; between the two the interface has no program, so
        all that can fail early does so before.
        """
        new = self._hook(change) if change.modes else None
        put_back: list[t.Callable[[], None]] = []

        def undo_all() -> None:
            with self._where(change):
                for undo in reversed(put_back):
                    undo()

        try:
            for path in change.drop_pins:
                put_back.append(self._drop_pin(change, path))
            if change.drop is not None:
                put_back.append(self._drop_foreign(change, change.drop))
            if change.moved_from:
                put_back.append(self._move_pin(change.moved_from, change.have.pin))
            if change.update is not None:
                put_back.append(self._update(change, change.update))
            if new is not None:
                put_back.append(self._attach(change, new))
        except BaseException as exc:  # an interrupt, too, must not leave the interface bare
            try:
                undo_all()
            except bpf.BpfError as undo_exc:
                raise ConntrackError(
                    f"{exc} What was attached before could not be put back: {undo_exc}."
                ) from exc
            raise
        return undo_all

    def _drop_pin(self, change: Change, path: str) -> t.Callable[[], None]:
        link = self._keep(bpf.obj_get(path))
        attached, ifindex = change.have.attached, change.have.ifindex
        live = attached if attached is not None and attached.pin == path else None
        old = self._keep(bpf.prog_get_fd_by_id(live.program.id)) if live is not None else -1
        os.unlink(path)  # first, for it can be put back as it was
        try:
            bpf.link_detach(
                link
            )  # not the last fd perhaps: somebody may hold the link besides our pin
        except BaseException:
            bpf.obj_pin(link, path)
            raise

        def put_back() -> None:
            if live is not None:
                self._pin(
                    self._keep(bpf.link_create(old, ifindex, flags=bpf.XDP_FLAGS[live.mode])), path
                )

        return put_back

    def _drop_foreign(self, change: Change, foreign: Attached) -> t.Callable[[], None]:
        ifindex = change.have.ifindex
        old, flags = (
            self._keep(bpf.prog_get_fd_by_id(foreign.program.id)),
            bpf.XDP_FLAGS[foreign.mode],
        )
        if foreign.by_link:
            bpf.link_detach(self._keep(bpf.link_get_fd_by_id(foreign.link_ids[0])))
        else:
            bpf.xdp_set(ifindex, -1, flags | bpf.XDP_FLAGS_REPLACE, expected_fd=old)

        def put_back() -> None:
            bpf.xdp_set(ifindex, old, flags | bpf.XDP_FLAGS_UPDATE_IF_NOEXIST)
            if foreign.by_link:
                self.warnings.append(
                    f"{change.want.label}: program {foreign.program.id} is back, but through"
                    " netlink: a detached bpf_link can not be revived."
                )

        return put_back

    def _attach(self, change: Change, prog_fd: int) -> t.Callable[[], None]:
        want, ifindex = change.want, change.have.ifindex
        why = change.why_generic
        for number, mode in enumerate(change.modes):
            try:
                link = self._keep(bpf.link_create(prog_fd, ifindex, flags=bpf.XDP_FLAGS[mode]))
                break
            except bpf.BpfError as exc:
                why = exc.words or exc.message
                if exc.errno not in _DRIVER_CANNOT or number + 1 == len(change.modes):
                    mend = (
                        f" {_MEND_NATIVE.get(exc.errno, _MEND_NATIVE_ELSE)}"
                        if mode == "native" and exc.errno in _DRIVER_CANNOT
                        else ""
                    )
                    raise ConntrackError(
                        f"{want.field}: {want.label}: the kernel refuses {mode} XDP:"
                        f" {exc.message}.{mend}"
                    ) from exc
        if mode == "generic" and want.mode == "auto":
            self.warnings.append(
                f"{want.label}: attached in generic mode, which is slower, because native was not"
                f" possible: {why}."
            )
        if mode == "generic" and change.have.big:
            self.warnings.append(
                f"{want.label}: packets of up to {change.have.longest} bytes come here (BIG TCP),"
                " and in generic mode the kernel copies each into one piece of memory first: it"
                " drops those for which it finds none. Set gro_max_size and gro_ipv4_max_size (on"
                f" the other end of a veth gso_max_size and gso_ipv4_max_size) to {IP_MOST}, or"
                " give mode: native."
            )
        path = change.have.pin
        self._pin(link, path)

        def take_away() -> None:
            bpf.link_detach(link)
            os.unlink(path)

        return take_away

    def _pin(self, link: int, path: str) -> None:
        try:
            safe_path.make_dirs(self.paths.link_dir, 0o700)
            bpf.obj_pin(link, path)
        except Exception:
            bpf.link_detach(link)
            raise


# ---------------------------------------------------------------- forwarding
def converge_ports(
    paths: bpffs.Paths, wants: t.Sequence[Want], haves: t.Sequence[Have], check_mode: bool
) -> plan.Plan:
    """Let the chain know the interfaces between which it forwards, where it does: the plan that was
    needed.

    Whether an interface takes redirected frames depends on what is attached, so this is planned
    when all is.
    """
    if not os.path.exists(paths.map("ports")) or health.forwards(paths) == chain.FORWARDS[0]:
        return []
    with bpf.closing(bpf.obj_get(paths.map("ports"))) as fd:
        wanted = [
            have.port
            for want, have in zip(wants, haves)
            if want.hook in TRACKING_HOOKS and have.port is not None
        ]
        steps = redirect.make_plan(redirect.read(fd), wanted, _other_ports(paths, wants))
        if not check_mode:
            plan.apply(steps, lambda step: redirect.do(fd, step))
        return steps


def _other_ports(paths: bpffs.Paths, wants: t.Sequence[Want]) -> t.Iterator[bytes]:
    """Return the keys of the ports that are attached, and that this run is not about."""
    spoken_of = {paths.link(want.netns, want.name) for want in wants}
    for pin in held(paths).keys() - spoken_of:
        namespace, name = bpffs.interface_of(os.path.basename(pin))
        with (
            contextlib.suppress(ConntrackError),
            netns.entered(namespace),
        ):  # gone, or renamed: no port until it is attached again
            facts = bpf.link_facts(name)
            yield redirect.Port(name, facts.ifindex, facts.mac, False).key


# ---------------------------------------------------------------- what is written down
def _plan_record(paths: bpffs.Paths, wants: t.Sequence[Want], whole: bool) -> plan.Plan:
    """Return the step that lets the state directory say what is to be attached after a reboot; none
    where it does not say what is to be loaded then.

    :param whole: whether ``wants`` are all that there is.
    """
    if statedir.active(paths) is None:
        return []
    before = statedir.interfaces(paths)
    kept = {bpffs.interface_key(item["netns"], item["name"]): item for item in recorded(paths)}
    for want in wants:
        kept.pop(bpffs.interface_key(want.netns, want.name), None)
        if want.hook:
            kept[bpffs.interface_key(want.netns, want.name)] = {
                "name": want.name,
                "netns": want.netns,
                "program": want.hook,
                "mode": want.mode,
            }
    after = [] if whole else [item for dummy, item in sorted(kept.items())]
    if before == after:
        return []

    def shown(items: t.Sequence[t.Mapping[str, t.Any]]) -> str | None:
        return (
            ", ".join(
                f"{item['program']} on"
                f" {health.interface(bpffs.interface_key(item['netns'], item['name']))}"
                for item in items
            )
            or None
        )

    return [
        plan.Step(
            "change",
            "manifest",
            "interfaces",
            "a reboot is to bring back what is attached",
            shown(before),
            shown(after),
            (before, after),
        )
    ]


def recorded(paths: bpffs.Paths) -> list[dict[str, t.Any]]:
    """Return the interfaces that are written down, each once and by its one name; an earlier
    release wrote down what it was given.
    """
    found = {(item["netns"], item["name"]): item for item in looked(statedir.interfaces(paths))}
    return [
        {name: item[name] for name in ("name", "netns", "program", "mode")}
        for item in found.values()
    ]


def _do_record(paths: bpffs.Paths, step: plan.Step) -> plan.Undo:
    before, after = step.args
    with contextlib.ExitStack() as undo:
        undo.callback(
            statedir.write_interfaces, paths, before
        )  # also where it fails itself, for then it can be there without being safe on the disk
        statedir.write_interfaces(paths, after)
        return undo.pop_all().close


# ---------------------------------------------------------------- the whole
def _record(want: Want, have: Have, step: plan.Step | None) -> dict[str, t.Any]:
    """Return one item of the result; ``step`` is a step that check mode did not do."""
    shown: dict[str, t.Any] = dict.fromkeys(("mode", "program", "program_id", "tag", "link_id"))
    if step is not None:
        shown.update(step.after or {})
    elif have.attached is not None:
        shown.update(have.attached.shown())
    return {
        "name": want.name,
        "netns": want.netns,
        "ifindex": have.ifindex or None,
        **shown,
        "chosen_by": want.chosen_by or None,
    }


class Chosen(t.NamedTuple):
    """What is wanted of which interfaces.

    :ivar steps: in check mode, for the entries that nothing fits yet.
    :ivar missing: why there is nothing for those.
    :ivar left_out: why interfaces that fit were left out.
    """

    wants: list[Want]
    steps: plan.Plan
    missing: list[str]
    left_out: list[str]


def choose(
    state: str, interfaces: t.Sequence[t.Mapping[str, t.Any]], mode: str, check_mode: bool
) -> Chosen:
    """Find out which interfaces are meant, where some are chosen by what they are or called by
    another name.

    :raises ConntrackError: nothing fits, and it is no check run.
    """
    there = looked(interfaces)
    if state == "absent":  # an interface is detached whatever it is
        there = [{**item, "program": None} for item in there]
    items, missing, left_out = select.resolve(there, candidates)
    steps: plan.Plan = []
    if state == "present":
        if missing and not check_mode:
            raise ConntrackError(missing[0].message)
        for one in missing:
            after = {
                "program": one.item.get("program"),
                "program_id": None,
                "tag": None,
                "mode": one.item.get("mode") or mode,
            }
            steps.append(
                plan.Step(
                    "attach", "xdp", one.label, "no interface that fits exists yet", None, after
                )
            )
    return Chosen(
        parse(state, items, mode),
        steps,
        [one.message for one in missing] if state == "present" else [],
        left_out,
    )


def candidates(namespace: str | None) -> list[select.Candidate]:
    """Return the interfaces of a namespace that can be chosen by what they are; lo is never one.

    :raises ConntrackError: there is no such namespace.
    """
    if namespace is not None and not netns.exists(namespace):
        there = ", ".join(netns.names()[0]) or "none"
        raise ConntrackError(f"netns: there is no namespace {namespace!r}; there are: {there}.")
    routed = rtnetlink.default_route_indexes(namespace)
    with netns.entered(namespace):
        links = {facts.ifindex: facts for facts in bpf.links()}
        drivers = {index: ethtool.driver(facts.name) for index, facts in links.items()}
    below = link_fitness.below(links.values())
    return [
        select.Candidate(
            facts.name,
            drivers[index] or facts.kind,
            index in routed,
            facts.altnames,
            link_fitness.unfit(facts),
            frozenset(links[one].name for one in below[index]),
        )
        for index, facts in links.items()
        if index != 1
    ]


def _sharing(paths: bpffs.Paths, wants: t.Sequence[Want], haves: t.Sequence[Have]) -> list[str]:
    """Return a warning where the chain tracks in several namespaces at once: a packet is counted
    once in each that it goes through.
    """
    wanted = [(want, have) for want, have in zip(wants, haves) if want.hook in TRACKING_HOOKS]
    if not wanted:
        return []
    spoken_of = {pin for want, have in zip(wants, haves) for pin in (have.pin, *_pins(have))}
    others = _tracking(
        {pin: info for pin, info in held(paths).items() if pin not in spoken_of},
        _generation_programs(paths),
    )
    namespaces = {want.netns for want, dummy in wanted} | {namespace for namespace, dummy in others}
    if len(namespaces) < 2 or (
        len(wanted) == 2 and not others and _one_link(*wanted[0], *wanted[1])
    ):
        return []
    where = [name or "the host's" for name in sorted(namespaces, key=lambda name: name or "")]
    return [
        f"The chain of pin_root {paths.pin_root} tracks in several namespaces ({', '.join(where)}),"
        " which share its tables: a packet that goes through more than one of them is counted in"
        " each, as of one flow. Give each namespace a pin_root of its own, as"
        f" {bpffs.own_root(where[-1])} to {where[-1]}."
    ]


def _one_link(want: Want, have: Have, other: Want, other_have: Have) -> bool:
    """Tell whether two interfaces are the two ends of a link: each sees one direction, so nothing
    is counted twice.
    """
    try:
        with netns.entered(other.netns):
            far = bpf.link_facts(other.name)
        with netns.entered(want.netns):
            near = bpf.link_facts(want.name)
            peer = bpf.link_facts(near.peer_ifindex, near.peer_nsid)
    except ConntrackError:  # one is not there, or has no other end
        return False
    # numbers repeat between namespaces, and so may names: the address makes it certain
    return near.kind == "veth" and (peer.ifindex, peer.name, peer.mac) == (
        far.ifindex,
        far.name,
        far.mac,
    )


def check_typed(
    paths: bpffs.Paths, state: str, interfaces: t.Sequence[t.Mapping[str, t.Any]], mode: str
) -> None:
    """Refuse interfaces that are not there, where no earlier task could have made them: somebody
    typed their names.

    One that is gone, and of which there is still a link or a note, can be detached.

    :raises ConntrackError: naming the first that is missing, and what there is; and a program that
        is not loaded.
    """
    wants = choose(state, interfaces, mode, False)[0]
    open_hooks(paths, wants, False)
    noted = {bpffs.interface_key(one["netns"], one["name"]) for one in statedir.interfaces(paths)}
    for want, have in zip(wants, observe(paths, wants)):
        traces = have.pinned is not None or bpffs.interface_key(want.netns, want.name) in noted
        if have.missing and (want.hook or not traces):
            raise ConntrackError(have.missing)


def _rmdir(directory: str) -> None:
    """Remove a directory that is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def converge(
    state: str,
    interfaces: t.Sequence[t.Mapping[str, t.Any]] | None,
    mode: str,
    takeover: bool,
    pin_root: str,
    check_mode: bool,
    lock_timeout: float = lock.SECONDS,
    state_dir: str = bpffs.STATE_DIR,
) -> tuple[dict[str, t.Any], list[str]]:
    """Do what the module ``xdp_attach`` does.

    :param interfaces: the module's option; None, with ``absent``, stands for every interface that
        we hold.
    :param lock_timeout: how long to wait for another run, in seconds.
    :param state_dir: where it is written down what is attached.
    :return: (the module's result, warnings).
    :raises ConntrackError: for everything a user can mend.
    """
    paths = bpffs.Paths(pin_root, state_dir)
    check(state, interfaces or (), mode)  # before anything is looked at
    if os.geteuid() != 0:
        raise ConntrackError(
            "Reading and changing what is attached needs root: run the task with become: true."
        )
    bpffs.check_text(paths)
    bpffs.check(pin_root)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # nothing is loaded, which is said below
            stack.enter_context(lock.held(paths.base, lock_timeout))
            if not check_mode:
                statedir.end_write_interfaces(paths)
                stack.callback(
                    _rmdir, paths.link_dir
                )  # when the last link is gone: by this run, or by one that was killed then
        wants, to_come, missing, left_out = choose(state, interfaces or (), mode, check_mode)
        warnings = missing + left_out
        if state == "absent" and interfaces is None:
            names = [bpffs.interface_of(os.path.basename(path)) for path in held(paths)]
            wants = parse(
                state, [{"name": name, "netns": namespace} for namespace, name in names], mode
            )
        hooks = open_hooks(paths, wants, check_mode)
        heard = health.listen(paths, generation_probe.prove) if state == "present" else ()
        found = faults = health.examine(paths) + heard
        haves = observe(paths, wants)
        steps = make_plan(wants, haves, hooks, takeover, check_mode)
        for step in steps if check_mode else ():
            refusals.check(step)
        warnings += _sharing(paths, wants, haves)
        record = _plan_record(paths, wants, state == "absent" and interfaces is None)
        applier = stack.enter_context(Applier(paths))
        if not check_mode and (steps or record):
            plan.apply(
                record + steps,
                lambda step: _do_record(paths, step) if step in record else applier.do(step),
            )
            with plan.applied(record + steps):
                haves, faults = observe(paths, wants), health.examine(paths)
        todo = {step.args.want: step for step in steps} if check_mode else {}
        # what changes on an interface is written down without a word; that it had not been is told
        steps = (steps or record) + to_come + converge_ports(paths, wants, haves, check_mode)
        result = {
            "changed": bool(steps),
            "plan": plan.as_dicts(steps),
            "diff": plan.as_diff(steps),
            "interfaces": [_record(want, have, todo.get(want)) for want, have in zip(wants, haves)],
            "faults": [fault.as_dict() for fault in faults],
            "mended": health.mended(found, faults),
        }
        return result, warnings + applier.warnings
