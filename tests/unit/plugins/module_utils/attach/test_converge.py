# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What xdp_attach plans for each state that an interface can be in; pure, the states are written
down.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import apply as attach_apply
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import model as attach_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import plan as attach_plan
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach.model import (
    Attached,
    Change,
    Have,
    Program,
    Want,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpffs, netdev

INGRESS = Program(10, "ingress", "aa", "ingress")
EGRESS = Program(11, "egress", "bb", "egress")
OLD = Program(5, "ingress", "00", "ingress")
FOREIGN = Program(99, "firewall", "ff")
HOOKS = {"ingress": INGRESS, "egress": EGRESS}

PIN = "/sys/fs/bpf/ebpf_conntrack/link/lan"
OTHER_PIN = "/sys/fs/bpf/ebpf_conntrack/link/former"
LINK = bpf.LinkInfo(id=70, prog_id=10, ifindex=7, type=6)
DEAD = LINK._replace(ifindex=0)

WANT = Want("interfaces[0]", "lan", None, "ingress", "auto")
FREE = dataclasses.replace(WANT, hook="")
BARE = Have(PIN, ifindex=7)
HELD = Have(PIN, LINK, 7, attached=Attached(INGRESS, "native", True, (70,), PIN))
MISSING = Have(PIN, missing="interfaces[0].name: there is no interface 'lan' ...")


def running(program: Program, **attached: t.Any) -> Have:
    """Return an interface that runs a program which no pin of ours holds."""
    return dataclasses.replace(
        BARE, attached=Attached(program, "native", **{"by_link": False, **attached})
    )


def steps(
    want: Want,
    have: Have,
    hooks: dict[str, Program] | None = None,
    takeover: bool = False,
    check_mode: bool = False,
) -> plan.Plan:
    return attach_plan.make_plan(
        [want], [have], HOOKS if hooks is None else hooks, takeover, check_mode
    )


def one(*args: t.Any, **kwargs: t.Any) -> tuple[plan.Step, Change]:
    (step,) = steps(*args, **kwargs)
    return step, step.args


# ---------------------------------------------------------------- present
def test_attach_to_a_bare_interface() -> None:
    step, change = one(WANT, BARE)
    assert (step.action, step.kind, step.name, step.reason, step.before) == (
        "attach",
        "xdp",
        "lan",
        "nothing is attached",
        None,
    )
    assert step.after == {"program": "ingress", "program_id": 10, "tag": "aa", "mode": "auto"}
    assert change == Change(WANT, BARE, modes=("native", "generic"))


def test_what_is_right_is_left() -> None:
    for mode in ("auto", "native"):
        assert steps(dataclasses.replace(WANT, mode=mode), HELD) == []


def test_auto_keeps_the_mode_that_it_got() -> None:
    have = dataclasses.replace(HELD, attached=Attached(INGRESS, "generic", True, (70,), PIN))
    assert steps(WANT, have) == []


@pytest.mark.parametrize(
    "program, hook, reason",
    [
        (OLD, "ingress", "another generation is active"),
        (EGRESS, "ingress", "it shall run another hook"),
    ],
)
def test_another_program_is_an_update_in_place(program: Program, hook: str, reason: str) -> None:
    have = dataclasses.replace(HELD, attached=Attached(program, "generic", True, (70,), PIN))
    step, change = one(WANT, have)
    assert (step.action, step.reason) == ("replace", reason)
    assert step.before == {
        "program": program.hook,
        "program_id": program.id,
        "tag": program.tag,
        "mode": "generic",
        "link_id": 70,
    }
    assert step.after == {"program": "ingress", "program_id": 10, "tag": "aa", "mode": "generic"}
    assert change == Change(WANT, have, update=have.attached)


def test_another_mode_needs_another_link() -> None:
    want = dataclasses.replace(WANT, mode="generic")
    step, change = one(want, HELD)
    assert (step.action, step.reason) == ("replace", "mode generic is wanted")
    assert change == Change(want, HELD, drop_pins=(PIN,), modes=("generic",))


def test_a_stale_pin_is_dropped() -> None:
    have = dataclasses.replace(BARE, pinned=DEAD)
    step, change = one(WANT, have)
    assert step.action == "attach" and "stale" in step.reason
    assert change.drop_pins == (PIN,) and change.drop is None


def test_a_stale_pin_and_a_foreign_program() -> None:
    have = dataclasses.replace(running(FOREIGN), pinned=DEAD)
    with pytest.raises(ConntrackError, match="not ours"):
        steps(WANT, have)
    dummy, change = one(WANT, have, takeover=True)
    assert change.drop_pins == (PIN,) and change.drop == have.attached


def test_a_renamed_interface_keeps_its_link_and_no_old_pin() -> None:
    have = Have(PIN, DEAD, 7, attached=Attached(INGRESS, "native", True, (71,), OTHER_PIN))
    step, change = one(WANT, have)
    assert step.action == "replace" and OTHER_PIN in step.reason and step.after["mode"] == "native"
    assert (change.drop_pins, change.moved_from, change.update, change.modes) == (
        (PIN,),
        OTHER_PIN,
        None,
        (),
    )
    dummy, change = one(dataclasses.replace(WANT, mode="generic"), have)
    assert (change.drop_pins, change.moved_from, change.modes) == (
        (PIN, OTHER_PIN),
        "",
        ("generic",),
    ), "another mode needs another link"


def test_a_program_attached_by_its_pin_is_taken_into_a_link() -> None:
    have = running(INGRESS)
    step, change = one(WANT, have)
    assert (step.action, step.reason) == (
        "replace",
        "the chain's program was attached by its pin, without a link",
    )
    assert change.drop == have.attached


# ---------------------------------------------------------------- foreign programs
def test_a_foreign_program_is_refused_by_name() -> None:
    with pytest.raises(ConntrackError) as raised:
        steps(WANT, running(FOREIGN))
    message = raised.value.message
    assert message.startswith(
        "interfaces[0]: lan has an XDP program that is not ours: id 99, name firewall, tag ff, mode"
        " native, attached through netlink"
    )
    assert "takeover: true" in message


def test_a_foreign_link_is_refused_with_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_plan, "_holders", lambda link_id: [(123, "cilium-agent")])
    with pytest.raises(
        ConntrackError, match=r"held by bpf_link 80 of process 123 \(cilium-agent\)"
    ):
        steps(WANT, running(FOREIGN, by_link=True, link_ids=(80,)))


def test_our_program_in_a_foreign_link_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_plan, "_holders", lambda link_id: [])
    with pytest.raises(ConntrackError, match="held by bpf_link 80"):
        steps(WANT, running(INGRESS, by_link=True, link_ids=(80,)))


def test_a_dispatcher_is_called_what_it_is() -> None:
    with pytest.raises(ConntrackError, match="libxdp's dispatcher"):
        steps(WANT, running(dataclasses.replace(FOREIGN, name="xdp_dispatcher")))


@pytest.mark.parametrize("attached", [{}, {"by_link": True, "link_ids": (80,)}])
def test_takeover(attached: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_plan, "_holders", lambda link_id: [])
    have = running(FOREIGN, **attached)
    step, change = one(WANT, have, takeover=True)
    assert (step.action, step.reason) == ("replace", "takeover of firewall, id 99")
    assert step.before["program"] == "firewall"
    assert change.drop == have.attached


@pytest.mark.parametrize("links", [(), (80, 81)])
def test_a_link_that_can_not_be_told_is_not_taken(
    links: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach_plan, "_holders", lambda link_id: [])
    with pytest.raises(ConntrackError, match="can not be told"):
        steps(WANT, running(FOREIGN, by_link=True, link_ids=links), takeover=True)


# ---------------------------------------------------------------- MTU
LONG = dataclasses.replace(BARE, too_long=9000)


def test_native_with_a_long_mtu_is_refused_with_the_limit() -> None:
    with pytest.raises(
        ConntrackError,
        match=rf"interfaces\[0\]\.mode: lan: .* at most {attach_model.VETH_MAX_MTU}, .* 9000",
    ):
        steps(dataclasses.replace(WANT, mode="native"), LONG)


def test_auto_with_a_long_mtu_is_generic_and_says_why() -> None:
    step, change = one(WANT, LONG)
    assert step.after["mode"] == "generic" and change.modes == ("generic",)
    assert "9000" in change.why_generic


def test_generic_takes_any_mtu() -> None:
    dummy, change = one(dataclasses.replace(WANT, mode="generic"), LONG)
    assert change.modes == ("generic",) and change.why_generic == ""


def test_the_limit_for_small_pages() -> None:
    assert 4096 - attach_model.VETH_PAGE_OVERHEAD == 3506


# ---------------------------------------------------------------- interfaces that are refused
NO_HEADER = dataclasses.replace(
    BARE, unfit="its frames have no Ethernet header (hardware type 65534)"
)
STACKED = dataclasses.replace(BARE, counted="all its frames that come by eth0 are counted there")


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("mode", attach_model.MODES)
@pytest.mark.parametrize(
    ("have", "message"),
    [
        (
            NO_HEADER,
            (
                r"interfaces\[0\]\.name: lan: the chain cannot track on this interface: its frames"
                r" have no Ethernet header.* Name the Ethernet"
            ),
        ),
        (
            STACKED,
            (
                r"interfaces\[0\]\.name: lan: each packet would be counted twice: .*eth0.* detach"
                r" the other"
            ),
        ),
    ],
)
def test_an_interface_on_which_it_counts_nothing_or_twice_is_refused(
    have: Have, message: str, mode: str, check_mode: bool
) -> None:
    with pytest.raises(ConntrackError, match=message):
        steps(dataclasses.replace(WANT, mode=mode), have, check_mode=check_mode)
    held = dataclasses.replace(HELD, unfit=have.unfit, counted=have.counted)
    # by an earlier release, or before it became a part of another
    with pytest.raises(ConntrackError, match=message):
        steps(dataclasses.replace(WANT, mode=mode), held, check_mode=check_mode)


@pytest.mark.parametrize("have", [NO_HEADER, STACKED])
def test_what_does_not_track_and_what_goes_is_not_refused(have: Have) -> None:
    assert (
        one(
            dataclasses.replace(WANT, hook="pass"),
            have,
            {"pass": Program(12, "pass", "cc", "pass")},
        )[0].action
        == "attach"
    )
    assert (
        one(FREE, dataclasses.replace(HELD, unfit=have.unfit, counted=have.counted))[0].action
        == "detach"
    )


# ---------------------------------------------------------------- what is not there yet
def test_a_missing_interface_is_an_error_and_in_check_mode_a_step() -> None:
    with pytest.raises(ConntrackError, match="there is no interface 'lan'"):
        steps(WANT, MISSING)
    step, dummy = one(WANT, MISSING, check_mode=True)
    assert (step.action, step.reason) == ("attach", "the interface does not exist yet")


def test_a_missing_program_in_check_mode() -> None:
    step, dummy = one(WANT, BARE, hooks={}, check_mode=True)
    assert step.reason == "nothing is attached, and the program is not loaded yet"
    assert step.after == {"program": "ingress", "program_id": None, "tag": None, "mode": "auto"}


# ---------------------------------------------------------------- native or generic
class Driver:
    """A driver that refuses native XDP with a number, in place of the kernel; the link's fd is 50,
    its pin's path is noted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.number = number
        self.tried: list[str] = []
        self.pinned: list[tuple[int, str]] = []
        monkeypatch.setattr(netdev, "link_create", self.create)
        monkeypatch.setattr(bpf, "obj_pin", lambda fd, path: self.pinned.append((fd, path)))
        monkeypatch.setattr(bpf, "obj_get", lambda path: 40)
        monkeypatch.setattr(bpf, "close", lambda fd: None)
        monkeypatch.setattr(os, "makedirs", lambda *dummy, **dummies: None)

    def create(self, prog_fd: int, ifindex: int, flags: int) -> int:
        self.tried += [mode for mode in attach_model.HOST_MODES if netdev.XDP_FLAGS[mode] == flags]
        if self.tried[-1] == "native":
            raise bpf.BpfError(self.number, "bpf_link_create(ifindex 7)", "so it says")
        return 50

    def attach(self, mode: str) -> list[str]:
        with (
            tempfile.TemporaryDirectory() as root,
            attach_apply.Applier(bpffs.Paths(root)) as applier,
        ):
            plan.apply(steps(dataclasses.replace(WANT, mode=mode), BARE), applier.do)
        return applier.warnings


@pytest.mark.parametrize(
    "number", [errno.EOPNOTSUPP, 524, errno.EINVAL, errno.ERANGE, errno.ENOSPC]
)
def test_auto_is_generic_where_the_driver_cannot(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(monkeypatch, number)
    (warning,) = driver.attach("auto")
    assert (
        driver.tried == ["native", "generic"]
        and driver.pinned == [(50, PIN)]
        and "because native was not possible: so it says" in warning
    )
    with pytest.raises(
        ConntrackError, match="refuses native XDP: .*so it says.* mode: generic or auto"
    ):
        driver.attach("native")


@pytest.mark.parametrize(
    "number",
    [
        errno.EBUSY,
        errno.EPERM,
        errno.EACCES,
        errno.ENOMEM,
        errno.EEXIST,
        errno.ENODEV,
        errno.ENXIO,
        errno.EAGAIN,
        errno.EINTR,
        errno.EIO,
        errno.EBADF,
    ],
)
@pytest.mark.parametrize("mode", ["auto", "native"])
def test_auto_is_not_generic_for_what_has_nothing_to_do_with_the_driver(
    mode: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(monkeypatch, number)
    with pytest.raises(ConntrackError, match="refuses native XDP: .*so it says") as raised:
        driver.attach(mode)
    assert (
        driver.tried == ["native"]
        and driver.pinned == []
        and "mode: generic" not in raised.value.message
    )


# ---------------------------------------------------------------- absent
def test_absent_detaches_what_is_ours() -> None:
    step, change = one(FREE, HELD)
    assert (step.action, step.after) == ("detach", None)
    assert change == Change(FREE, HELD, drop_pins=(PIN,))


def test_absent_detaches_what_was_attached_by_its_pin() -> None:
    have = running(INGRESS)
    step, change = one(FREE, have)
    assert step.action == "detach" and "by its pin" in step.reason
    assert change.drop == have.attached


@pytest.mark.parametrize(
    "have",
    [
        BARE,
        MISSING,
        running(FOREIGN),
        running(FOREIGN, by_link=True, link_ids=(80,)),
        running(INGRESS, by_link=True, link_ids=(80,)),
    ],
)
def test_absent_leaves_the_rest(have: Have) -> None:
    assert steps(FREE, have) == []


@pytest.mark.parametrize("have", [MISSING, running(FOREIGN)])
def test_absent_drops_a_dead_pin_and_nothing_else(have: Have) -> None:
    step, change = one(FREE, dataclasses.replace(have, pinned=DEAD))
    assert step.before == {"link_id": 70}
    assert (change.drop_pins, change.drop) == ((PIN,), None)


# ---------------------------------------------------------------- input
def item(**fields: t.Any) -> dict[str, t.Any]:
    return {"name": "lan", "netns": None, "program": "ingress", "mode": None, **fields}


def test_parse() -> None:
    wants = attach_model.parse(
        "present", [item(), item(netns="ns1", program="egress", mode="generic")], "native"
    )
    assert wants == [
        Want("interfaces[0]", "lan", None, "ingress", "native"),
        Want("interfaces[1]", "lan", "ns1", "egress", "generic"),
    ]
    assert [want.label for want in wants] == ["lan", "lan@ns1"]
    assert attach_model.parse("absent", [item()], "auto")[0].hook == ""


@pytest.mark.parametrize(
    "bad, message",
    [
        (item(name=""), r"interfaces\[1\]\.name: ''"),
        (
            item(name="sixteen-bytes-xx"),
            r"interfaces\[1\]\.name: 'sixteen-bytes-xx' is not valid: .* 1 to 15 bytes",
        ),
        (item(name="üüüüüüüü"), "1 to 15 bytes"),
        (item(name="a/b"), "no '/'"),
        (item(name="a b"), "no white space"),
        (item(name="a\x1b[m"), "nothing that cannot be printed"),
        (item(name="a\ud800"), "nothing that cannot be printed"),
        (item(netns="../ns1"), "no '/'"),
        (item(netns="." * 100), r"interfaces\[1\]\.netns: '\.{100}' is not valid: it is too long"),
        (item(name="eth0:1"), "no ':'"),
        (item(name=".."), "is not valid"),
        (item(netns="../etc"), r"interfaces\[1\]\.netns"),
        (item(netns=""), r"interfaces\[1\]\.netns"),
        (item(program=None), r"interfaces\[1\]\.program: is missing: give ingress or egress"),
        (
            item(name="wan"),
            (
                r"interfaces\[1\]\.name: 'wan' is not valid: the interface is already in"
                r" interfaces\[0\]"
            ),
        ),
    ],
)
def test_bad_input(bad: dict[str, t.Any], message: str) -> None:
    with pytest.raises(ConntrackError, match=message):
        attach_model.parse("present", [item(name="wan"), bad], "auto")


@pytest.mark.parametrize("name", ["sixteen-bytes-xx", "a" * 127])
def test_an_alternative_name_may_be_longer(name: str) -> None:
    attach_model.check("present", [item(name=name)], "auto")
    with pytest.raises(ConntrackError, match="1 to 127 bytes"):
        attach_model.check("present", [item(name="a" * 128)], "auto")


def test_two_names_of_one_interface_are_one_too_many() -> None:
    again = item(netns="r1", given="alt0@alias")
    with pytest.raises(
        ConntrackError,
        match=(
            r"interfaces\[1\]\.name: 'alt0@alias' is not valid: it is lan@r1, which is already in"
            r" interfaces\[0\]; name each"
        ),
    ):
        attach_model.parse("present", [item(netns="r1"), again], "auto")
