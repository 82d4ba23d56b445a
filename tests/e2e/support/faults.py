# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a module's run at each of its system calls, and see that the next run ends well.

What the calls are is found out by running the module: a test names the module, what is there
before, and what is right afterwards.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import errno
import functools
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import typing as t

from ansible.module_utils.testing import patch_module_args
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.tests.e2e.support import syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.support.sandbox import sandboxed
from ansible_collections.ebpf.conntrack.tests.tools import leftovers

MODULES = "ansible_collections.ebpf.conntrack.plugins.modules."
#: How each kind of call fails in life; the first fitting prefix tells. None: netlink itself refuses
#: the request.
_ERRNOS: dict[str, tuple[int | None, ...]] = {
    "netlink": (None, errno.ENOBUFS),
    "bpf MAP_CREATE": (errno.ENOMEM, errno.EPERM),
    "bpf PROG_LOAD": (errno.ENOMEM, errno.EPERM),
    "bpf LINK_CREATE": (errno.EBUSY, errno.ENOMEM),
    "bpf LINK_UPDATE": (errno.EPERM, errno.ENOMEM),
    "bpf": (errno.EPERM, errno.ENOMEM),
    "umount2": (errno.EBUSY,),
    "mount": (errno.EPERM, errno.ENOMEM),
    "move_mount": (errno.EPERM, errno.ENOMEM),
    "fs": (errno.ENOMEM, errno.EPERM),
    "flock": (errno.ENOLCK,),
    "socket": (errno.EMFILE, errno.ENOBUFS),
    "setns": (errno.ENOMEM, errno.EPERM),
    "unshare": (errno.ENOSPC, errno.EPERM),
    "unlink": (errno.EBUSY, errno.EROFS),
    "rmdir": (errno.EBUSY, errno.EROFS),
    "": (errno.ENOSPC, errno.EROFS),
}
Result = dict[str, t.Any]
#: Where a module may write a file for its user.
OUTPUT = "/run/output"
_WHEN = re.compile(r'"written": "[^"]*"')  # when a manifest was written
#: How many processes share the sites of one scenario.
PROCESSES = 2
#: Of so many sites one is tried, each ending beginning at another; make test-long tries all.
STRIDE = 1 if os.environ.get("FAULT_SITES") == "all" else 4


@dataclasses.dataclass(frozen=True)
class Call:
    """One run of a module."""

    module: str
    arguments: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.module} {self.arguments.get('state', '')}".strip()

    def __call__(self) -> None:
        """Run it in this process, which it ends."""
        module = importlib.import_module(MODULES + self.module)
        with patch_module_args(
            {**self.arguments, "_ansible_no_log": True, "_ansible_remote_tmp": "/tmp"}
        ):
            module.main()

    def run(self) -> Result:
        """Run it in a process of its own, undisturbed; it has to succeed."""
        return succeeded(self, syscalls.watch(self).output)

    def fails(self) -> Result:
        """Run it likewise; it has to fail, in words."""
        result = result_of(self, syscalls.watch(self).output)
        assert result.get("failed") and result["msg"], f"{self} succeeded: {result.get('plan')}"
        return result

    def but(self, **arguments: t.Any) -> Call:
        """Return the same run with other arguments."""
        return Call(self.module, {**self.arguments, **arguments})


def result_of(call: Call, output: str) -> Result:
    """Return what the module returned.

    :raises AssertionError: it died of an exception.
    """
    try:
        return t.cast("Result", json.loads(output.splitlines()[-1]))
    except (IndexError, ValueError):
        raise AssertionError(f"{call} returned no result:\n{output}") from None


def succeeded(call: Call, output: str) -> Result:
    """Return what the module returned.

    :raises AssertionError: it failed.
    """
    result = result_of(call, output)
    assert not result.get("failed"), f"{call}: {result['msg']}"
    return result


def at_once(*calls: Call) -> list[Result]:
    """Run modules all at the same time; each has to succeed."""
    started = [syscalls.start(call) for call in calls]
    outputs = [syscalls.finish(*one) for one in started]
    return [succeeded(call, output) for call, output in zip(calls, outputs, strict=True)]


@dataclasses.dataclass(frozen=True)
class Ending:
    """One way to go on after a run was broken: the next run, and what is right then."""

    call: Call
    right: c.Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A run to be broken.

    :ivar setup: makes the machine what it stays all the time.
    :ivar prepare: brings it into the state in which the run starts; it is called again and again.
    :ivar broken: the run.
    :ivar endings: what may follow, each on its own; the first is the same run once more.
    :ivar away: takes all away that any of it but ``setup`` made.
    """

    prepare: c.Callable[[], object]
    broken: Call
    endings: tuple[Ending, ...]
    away: tuple[c.Callable[[], object], ...]
    setup: c.Callable[[], object] = lambda: None

    def finish(self, bare: dict[str, t.Any], where: object) -> None:
        """Take all away, and look whether something stays."""
        for take in self.away:
            take()
        left = differences(bare, picture())
        assert not left, f"left behind after {self.broken} was broken at {where}: {left}"


def _pins() -> dict[str, str]:
    """Return what each pin holds, and where each symbolic link leads."""
    found: dict[str, str] = {}
    for directory, below, names in os.walk("/sys/fs/bpf"):
        for name in below + names:
            path = os.path.join(directory, name)
            if os.path.islink(path):
                found[f"pin {path}"] = f"-> {os.readlink(path)}"
            elif os.path.isfile(path) and os.path.dirname(path) != "/sys/fs/bpf":
                # the kernel's own stand at the top
                with bpf.closing(bpf.obj_get(path)) as fd:
                    kind = bpf.kind_of(fd)
                    if kind == "link":
                        link = bpf.link_info(fd)
                        found[f"pin {path}"] = f"link, program {link.prog_id} on {link.ifindex}"
                    else:
                        found[f"pin {path}"] = (
                            f"{kind}"
                            f" {bpf.map_info(fd).id if kind == 'map' else bpf.prog_info(fd).id}"
                        )
    return found


def ip_says(asked: str, *argv: str) -> str:
    return subprocess.run(
        ["ip", *argv], input=asked, check=True, capture_output=True, text=True
    ).stdout


def _network(namespace: str) -> dict[str, str]:
    """Return what ip shows of a namespace ("": the host's), without numbers and what the kernel
    makes by itself.
    """
    found: dict[str, str] = {}
    where = ["-j", *(["-n", namespace] if namespace else [])]
    said = ip_says("addr show\nroute show\n", *where, "-d", "-batch", "-") + ip_says(
        "", *where, "-6", "route", "show"
    )
    links, *routes = map(json.loads, filter(None, said.splitlines()))
    for link in links:
        shown = (
            {key: link.get(key) for key in ("address", "mtu", "ifalias", "group")}
            if link["ifname"] != "lo"
            else {"ifalias": link.get("ifalias")}
        )
        program = link.get("xdp", {}).get("prog", {}).get("id")
        addresses = sorted(
            f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] != "link"
        )
        found[f"link {link['ifname']}@{namespace}"] = (
            f"{shown} {'UP' in link['flags']} {addresses} program {program}"
        )
    for route in itertools.chain(*routes):
        if route.get("protocol") != "kernel":
            found[f"route {route['dst']}@{namespace}"] = (
                f"{route.get('gateway')} {route.get('dev')} {route.get('metric')}"
            )
    return found


def _files(*directories: str) -> dict[str, str]:
    """Return the files and directories below and including some, with their contents."""
    found: dict[str, str] = {}
    for top in map(pathlib.Path, directories):
        for path in [top, *top.rglob("*")] if top.exists() else []:
            found[f"file {path}"] = (
                _WHEN.sub("", path.read_text("utf-8", "replace")) if path.is_file() else "directory"
            )
    return found


def picture() -> dict[str, str]:
    """Return what is there of all that a module can make, without asking the modules: objects by
    name, with what matters of them.
    """
    namespaces = sorted(os.listdir("/run/netns"))
    network = {
        key: value
        for name in ["", *namespaces]
        if not name or _is_namespace(name)
        for key, value in _network(name).items()
    }
    return {
        **leftovers.snapshot(),
        **_files("/run/ebpf_conntrack", "/var/lib/ebpf_conntrack", OUTPUT),
        **_pins(),
        **network,
    }


def _is_namespace(name: str) -> bool:
    return os.stat(f"/run/netns/{name}").st_dev == os.stat("/proc/self/ns/net").st_dev


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return one line for each object that is new, gone or of another value."""
    return leftovers.differences(before, after)


# ---------------------------------------------------------------- killed
def killed_everywhere(scenario: Scenario) -> int:
    """Kill the run at each of its calls that leave something behind, and end in each of the ways;
    return how often it was killed.

    A kill before a call is one after the call before it; what reads, or dies with the process,
    makes no difference.
    """
    __tracebackhide__ = True
    return sum(sandboxed(*(functools.partial(_kill, scenario, turn) for turn in range(PROCESSES))))


def _kill(scenario: Scenario, turn: int) -> int:
    """Kill at the sites of one process."""
    scenario.setup()
    bare, kills = picture(), 0
    for number, ending in enumerate(scenario.endings):
        first = turn + PROCESSES * (number % STRIDE)
        for site in range(first, 1 << 16, PROCESSES * STRIDE):
            scenario.prepare()
            run = _killed(scenario.broken, site)
            if not run.killed:
                result = succeeded(scenario.broken, run.output)
                assert kills and result["changed"], f"{scenario.broken} did nothing"
                scenario.finish(bare, "its end")
                break
            kills += 1
            where = f"call {site}, {run.events[-1]}"
            try:
                ending.call.run()
                ending.right()
                unchanged(ending.call)
            except AssertionError as exc:
                raise AssertionError(
                    f"{ending.call} after {scenario.broken} was killed at {where}: {exc}"
                ) from exc
            scenario.finish(bare, where)
    return kills


def unchanged(call: Call) -> None:
    """A run that finds all as it wants it."""
    again = call.run()
    assert not again["changed"], f"the second run changed {again.get('plan')}"


def _killed(call: Call, site: int) -> syscalls.Run:
    """Run a module and kill it at its ``site``-th call (from 0) that leaves something behind."""
    left = site

    def answer(dummy: int, event: syscalls.Event) -> syscalls.Answer:
        nonlocal left
        left -= event.changes
        return syscalls.Kill() if left < 0 else None

    return syscalls.watch(call, answer)


# ---------------------------------------------------------------- refused
def refused_everywhere(scenario: Scenario) -> int:
    """Let each call of the run fail once; return how often one was refused.

    The module then has failed in words, with all as it was or as the message says; or it has gone
    another way, to the same end. The next run ends well.
    """
    __tracebackhide__ = True
    return sum(
        sandboxed(*(functools.partial(_refuse, scenario, turn) for turn in range(PROCESSES)))
    )


def _refuse(scenario: Scenario, turn: int) -> int:
    """Refuse at the sites of one process. Where a run failed and left all as it was, there is
    nothing to see in what comes after.
    """
    scenario.setup()
    bare, refusals, again = picture(), 0, scenario.endings[0]
    before: dict[str, str] | None = None
    for site in range(turn, 1 << 16, PROCESSES * STRIDE):
        if before is None:
            scenario.prepare()
            before = picture()
        run, refused = _refused(scenario.broken, site)
        if refused is None:
            succeeded(scenario.broken, run.output)
            scenario.finish(bare, "its end")
            break
        refusals += 1
        where = f"call {site}, {refused}"
        result = result_of(scenario.broken, run.output)
        try:
            if result.get("failed"):
                changes = (
                    differences(before, picture())
                    if any(event.changes for event in run.events)
                    else []
                )
                _check_failure(result, changes)
                if not changes:
                    continue
                again.call.run()
            unchanged(again.call)
            again.right()
        except AssertionError as exc:
            raise AssertionError(
                f"{scenario.broken}, refused {where}: {exc}\n{result.get('msg')}"
            ) from exc
        scenario.finish(bare, where)
        before = None
    return refusals


def _refused(call: Call, site: int) -> tuple[syscalls.Run, str | None]:
    """Run a module with its ``site``-th call refused in a way that fits; return the run and what
    was refused, None when it ended before.

    Of the calls between two changes, which change nothing themselves, one of each kind counts.
    """
    number, seen, refused = -1, set[str](), None

    def answer(dummy: int, event: syscalls.Event) -> syscalls.Answer:
        nonlocal number, refused
        if event.changes:
            seen.clear()
        number += event.name not in seen
        if number != site or refused is not None:
            seen.add(event.name)
            return None
        ways = next(ways for prefix, ways in _ERRNOS.items() if event.name.startswith(prefix))
        way = ways[site // PROCESSES % len(ways)]
        refused = f"{event} ({errno.errorcode[way] if way else 'spoilt'})"
        return syscalls.Refuse(way)

    return syscalls.watch(call, answer), refused


def _check_failure(result: Result, changes: list[str]) -> None:
    """A failed run says in words what failed; what it has changed is what it says it has done, or
    could not undo.
    """
    assert result["msg"].strip(), result
    if "applied" in result:
        assert re.match(r"Everything was done|[a-z]+ [a-z]+ \S.*: ", result["msg"]), (
            f"no step is named: {result['msg']}"
        )
    undone = result.get("rolled_back") == result.get("applied", [])[::-1]
    # what is moved goes on with the next run
    if undone and not result["msg"].startswith(("move ", "delete ")):
        # the directory of the lock stays where locking itself fails: somebody else may have locked
        # it
        assert set(changes) <= {"file /run/ebpf_conntrack is left"}, (
            f"it failed, but not all is as it was: {changes}"
        )


@functools.cache
def warm() -> None:
    """Load in this process what each run would load anew: bcc, the modules, Ansible's encoders,
    what libbpf asks the kernel once; nothing is changed.
    """
    importlib.import_module("bcc")
    bpf.close(bpf.prog_load(bpf.xdp_pass_insns(), "warm"))
    bpf.possible_cpus()
    for module in ("netns_lab", "xdp_attach", "xdp_program", "ct_flows", "ct_flush"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            Call(module, {"state": "absent", "_ansible_check_mode": True})()
