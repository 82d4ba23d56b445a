# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain's life on the running kernel: load, keep, change, hand over, break at every step, kill
at every step, remove.
"""

from __future__ import annotations

import collections
import collections.abc as c
import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    apply as generation_apply,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    diagnosis,
    manifest,
    probe_whole,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    probe as generation_probe,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpffs,
    bpffs_mount,
    netdev,
    private_netns,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support import syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "files/bpf"
TABLE_SIZE = 1024
#: So that flows outlive the compiler on a busy machine.
LIVING = {"udp": 600}
SIZES: dict[str, t.Any] = dict.fromkeys(render.SIZES, TABLE_SIZE)
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")
#: What frames of proof are counted as, each beside the traffic, when a chain is proved.
PROOF = dict(
    collections.Counter(
        probe.counter for probe in probe_whole.PROBES for hook in chain_programs.TRACKING_HOOKS
    )
)
CTL_AT = 64  # offset of ct_entry.ctl: after two halves of 32 bytes


def udp_frame(sport: int, payload: int = 18) -> bytes:
    """A frame of 172.20.56.105:sport -> 172.30.56.105:53; a UDP checksum of 0 is none."""
    total = 28 + payload
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        total,
        0,
        0,
        64,
        17,
        0,
        bytes((172, 20, 56, 105)),
        bytes((172, 30, 56, 105)),
    )
    check = sum(struct.unpack("!10H", head))
    check = ~((check & 0xFFFF) + (check >> 16)) & 0xFFFF
    ip = head[:10] + struct.pack("!H", check) + head[12:]
    return (
        b"\x02"
        + bytes(11)
        + b"\x08\x00"
        + ip
        + struct.pack("!HHHH", sport, 53, 8 + payload, 0)
        + bytes(payload)
    )


@dataclasses.dataclass
class Chain:
    """A chain below a pin root of its own.

    :ivar text: the sources as they come with the collection, rendered for TABLE_SIZE.
    """

    paths: bpffs.Paths
    text: str
    headers: dict[str, str]

    def want(self, text: str | None = None, **settings: t.Any) -> generation.Want:
        return generation.Want(text or self.text, self.headers, **{**SIZES, **settings})

    def resized(self, **sizes: int) -> generation.Want:
        """Tables of other sizes."""
        return self.want(
            render.render(str(SOURCES), render.Settings(**{**SIZES, **sizes})), **sizes
        )

    def changed(self, mark: str = "changed") -> generation.Want:
        """Other sources: a comment."""
        return self.want(f"{self.text}\n/* {mark} */\n")

    def ensure(
        self, want: generation.Want | None = None, check_mode: bool = False, keep: int = 0
    ) -> tuple[list[dict[str, t.Any]], generation.Have]:
        plan, have = generation.ensure(
            self.paths, want or self.want(), check_mode, generation.Policy(keep)
        )
        return [step.as_dict() for step in plan], have

    def roll_back(
        self, number: int | None = None, check_mode: bool = False
    ) -> tuple[list[dict[str, t.Any]], generation.Have]:
        plan, have = generation.roll_back(self.paths, number, check_mode)
        return [step.as_dict() for step in plan], have

    def observe(self) -> generation.Have:
        return generation.observe(self.paths)

    def written(self) -> dict[str, str]:
        """Everything in the state directory."""
        found: dict[str, str] = {}
        for directory, below, names in os.walk(self.paths.state_dir):
            for name in below + names:
                path = os.path.join(directory, name)
                if os.path.islink(path):
                    found[f"state {name}"] = f"-> {os.readlink(path)}"
                elif os.path.isdir(path):
                    found[f"state {name}"] = "directory"
                else:
                    manifest = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
                    found[f"state {name}"] = json.dumps(
                        {**manifest, "written": "at some time"}, sort_keys=True
                    )
        return found

    def tree(self) -> dict[str, str]:
        """Everything below the pin root, what symlinks lead to and the objects that pins hold, and
        in the state directory.
        """
        found = self.written()
        for directory, below, names in os.walk(self.paths.pin_root):
            for name in below + names:
                path = os.path.join(directory, name)
                shown = path[len(self.paths.pin_root) + 1 :]
                if os.path.islink(path):
                    found[shown] = f"-> {os.readlink(path)}"
                elif os.path.isdir(path):
                    found[shown] = "directory"
                else:
                    with bpf.closing(bpf.obj_get(path)) as fd:
                        kind = bpf.kind_of(fd)
                        read: dict[str, c.Callable[[int], t.Any]] = {
                            "map": bpf.map_info,
                            "prog": bpf.prog_info,
                            "link": bpf.link_info,
                        }
                        info = read[kind](fd)
                        found[shown] = f"{kind} {info.id}" + (
                            f" runs {info.prog_id}" if kind == "link" else ""
                        )
        return found

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """What a write changes of each file below the pin root."""
        tops = (self.paths.pin_root, self.paths.state_dir)
        paths = [
            os.path.join(where, name)
            for top in tops
            for where, below, names in os.walk(top)
            for name in below + names
        ]
        return {
            path: (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
            for path in paths
            for found in [os.lstat(path)]
        }

    def reachable(self) -> int:
        """How many IPv4 flows the active generation has, or takes over from another one with their
        next packet.
        """
        source = self.observe().source
        return len({**self.flows(), **(self.flows(generation_number=source) if source else {})})

    def flows(self, *tables: str, generation_number: int | None = None) -> dict[bytes, bytes]:
        """The IPv4 flows by key, of all tables or of those that are named; of the active
        generation, where no other one is.
        """
        tables = tables or ("ctt_new", "ctt")
        key, value = chain_layout.KEY4.size, chain_layout.ENTRY.size
        found: dict[bytes, bytes] = {}
        for name in tables:
            path = (
                self.paths.map(name)
                if generation_number is None
                else self.paths.map_of(generation_number, name)
            )
            with bpf.closing(bpf.obj_get(path)) as fd:
                for count, keys, values in bpf.map_batches(fd, key, value):
                    found.update(
                        (
                            bytes(keys[n * key : (n + 1) * key]),
                            bytes(values[n * value : (n + 1) * value]),
                        )
                        for n in range(count)
                    )
        return found

    def stats(self) -> dict[str, int]:
        with bpf.closing(bpf.obj_get(self.paths.map("stats"))) as fd:
            return {
                name: sum(U64.unpack(value)[0] for value in bpf.percpu_value(fd, index, 8))
                for index, name in enumerate(chain_counters.COUNTERS)
            }

    def proved(self) -> dict[str, int]:
        """What frames of proof were counted as."""
        with bpf.closing(bpf.obj_get(self.paths.map("proof"))) as fd:
            counts = (
                bpf.map_lookup(fd, U32.pack(chain_maps.PROOF["counts"] + index), 8) or b""
                for index in range(len(chain_counters.OUTCOMES))
            )
            return {
                name: number
                for (name, dummy), (number,) in zip(
                    chain_counters.OUTCOMES, map(U64.unpack, counts)
                )
                if number
            }

    def send(self, *frames: bytes, hook: str = "ingress") -> None:
        """Run frames through the active generation; each has to be passed as it is."""
        with bpf.closing(bpf.obj_get(self.paths.prog(chain_programs.SLOTS[hook]))) as fd:
            for frame in frames:
                run = bpf.prog_test_run(fd, frame)
                assert (run.retval, run.data_out) == (2, frame)

    def interface(self) -> dict[str, t.Any]:
        """Attach ingress to ``left``, and return what is attached."""
        result, dummy = attach.converge(
            "present",
            [{"name": "left", "program": "ingress"}],
            "native",
            False,
            self.paths.pin_root,
            False,
        )
        return t.cast("dict[str, t.Any]", result["interfaces"][0])

    def assert_whole(self, number: int) -> None:
        """The one generation that is there is this one, whole, and both the hooks and the seed's
        paths lead to it.
        """
        have = self.observe()
        assert (have.generation, have.faults, have.leftovers) == (number, (), ())
        assert set(os.listdir(self.paths.gen)) == {
            str(number),
            *(str(one.number) for one in have.kept),
        }
        manifests = {name for name in self.written() if name.endswith(".json")}
        assert manifests == {f"state {name}.json" for name in os.listdir(self.paths.gen)}
        assert (have.state.active, have.state.made_of["digest"] if have.state.made_of else "") == (
            number,
            have.digest,
        )
        for path, target in self.paths.seed_links().items():
            assert os.readlink(path) == target
        assert {info.prog_id for info, dummy in have.links.values()} <= {
            program.id for program in have.programs.values()
        }
        assert not [
            name
            for name in (*os.listdir(self.paths.pin_root), *os.listdir(self.paths.base))
            if "%new" in name
        ]


def gone(program: int) -> bool:
    """Whether the kernel has let go of a program; it does so a grace period after the last
    reference.
    """
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            bpf.close(bpf.prog_get_fd_by_id(program))
        except bpf.BpfError as exc:
            assert exc.errno == errno.ENOENT
            return True
        time.sleep(0.01)
    return False


def bpf_descriptors() -> list[str]:
    """The BPF objects that this process holds, besides pins the only thing that keeps one alive."""
    held = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(name for name in held if "bpf" in name)


@pytest.fixture(scope="module")
def rendered() -> tuple[str, dict[str, str]]:
    return render.render(str(SOURCES), render.Settings(**SIZES)), render.read_headers(str(SOURCES))


@pytest.fixture
def made(rendered: tuple[str, dict[str, str]], tmp_path: pathlib.Path) -> c.Iterator[Chain]:
    """Nothing loaded yet."""
    mounted = bpffs_mount.ensure_mounted(bpffs.STANDARD)
    root = f"{bpffs.STANDARD}/chain{random.randrange(1 << 32):08x}"
    os.mkdir(root)
    yield Chain(bpffs.Paths(root, str(tmp_path / "state")), *rendered)
    generation.remove_tree(root)
    if mounted:
        bpffs_mount.release(bpffs.STANDARD)


@pytest.fixture
def loaded(made: Chain) -> Chain:
    made.ensure()
    return made


@pytest.fixture
def quick(made: Chain, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A chain whose programs only pass frames: what is compiled plays no part in how generations
    follow each other.
    """

    def build(text: str, dummy: t.Mapping[str, str]) -> dict[str, int]:
        (meta,) = set(re.findall(r'"([^"]+/map/meta)"', text))
        with bpf.closing(bpf.obj_get(meta)) as fd:  # what the first frame does
            # before all that the entries of prepare_running() say they were last seen, so that each
            # is brought after
            for name, value in {
                "jiffies": (1 << 33) - (1 << 20),
                "ktime_ns": time.monotonic_ns(),
            }.items():
                bpf.map_update(fd, U32.pack(chain_maps.META[name]), U64.pack(value))
        return {name: bpf.prog_load(bpf.xdp_pass_insns(), name) for name in chain_programs.SLOTS}

    monkeypatch.setattr(build_bcc, "build", build)
    monkeypatch.setattr(generation_probe, "prove", lambda *dummy: None)
    monkeypatch.setattr(generation_apply, "_GRACE_SECONDS", 0)
    os.rmdir(made.paths.pin_root)  # as it is after each removal, so that each run does the same
    return made


@pytest.fixture
def veth() -> c.Iterator[None]:
    """The veth pair left and right, both ends in a namespace without a name, which the test runs
    in.
    """
    with private_netns.anonymous():
        subprocess.run(
            ["ip", "link", "add", "left", "type", "veth", "peer", "name", "right"], check=True
        )
        for name in ("left", "right"):
            subprocess.run(["ip", "link", "set", name, "addrgenmode", "none", "up"], check=True)
        yield


# ---------------------------------------------------------------- the ordinary life
def test_present_in_four_runs(made: Chain) -> None:
    foretold, have = made.ensure(check_mode=True)
    assert made.tree() == {} and have == generation.Have(no_paths=tuple(made.paths.seed_links()))
    done, have = made.ensure()
    assert done == foretold
    assert [(step["action"], step["kind"], step["name"]) for step in done] == [
        ("load", "generation", "1"),
        ("activate", "generation", "1"),
        ("create", "path", f"{made.paths.pin_root}/prog"),
        ("create", "path", f"{made.paths.pin_root}/map"),
    ]
    made.assert_whole(1)
    before = made.tree()
    for check_mode in (False, True):
        assert made.ensure(check_mode=check_mode) == ([], have)
    assert made.tree() == before


def test_what_is_loaded_is_what_is_reported(loaded: Chain) -> None:
    facts = generation.facts(loaded.observe(), loaded.paths)
    assert (facts["generation"], facts["digest"], facts["healthy"], facts["faults"]) == (
        1,
        loaded.want().digest,
        True,
        [],
    )
    assert {program["slot"]: program["name"] for program in facts["programs"]} == {
        slot: name for name, slot in chain_programs.SLOTS.items()
    }
    for program in facts["programs"]:
        shown = subprocess.run(
            ["bpftool", "-j", "prog", "show", "pinned", program["pin"]],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert (
            f'"id":{program["id"]},"type":"xdp","name":"{program["name"]}","tag":"{program["tag"]}"'
            in shown
        )
    specs = {spec.name: spec for spec in loaded.want().maps}
    assert {found["name"] for found in facts["maps"]} == set(specs)
    for found in facts["maps"]:
        spec = specs[found["name"]]
        assert (found["type"], found["key_size"], found["value_size"], found["max_entries"]) == (
            spec.kind,
            spec.key_size,
            spec.value_size,
            spec.entries,
        )
        assert os.path.exists(found["pin"])
    assert facts["settings"]["timeouts"] == chain_settings.TIMEOUTS
    assert {name: facts["settings"][name] for name in chain_settings.KNOBS} == chain_settings.KNOBS


def test_meta_tells_the_generation_and_the_clock(loaded: Chain) -> None:
    with bpf.closing(bpf.obj_get(loaded.paths.map("meta"))) as fd:
        meta = generation.read_meta(fd)
    assert (meta["layout"], meta["generation"]) == (chain_layout.LAYOUT_VERSION, 1)
    assert f"{meta['digest_high']:016x}{meta['digest_low']:016x}" == loaded.want().digest
    assert 0 <= time.monotonic_ns() - meta["ktime_ns"] < 60e9 and meta["jiffies"] > 0
    assert abs(meta["ktime"] - meta["ktime_ns"] // 1_000_000_000) <= 1


def test_an_unchanged_run_neither_imports_bcc_nor_writes(
    loaded: Chain, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "chain.c").write_text(loaded.text, encoding="utf-8")
    code = (
        "import sys; from ansible_collections.ebpf.conntrack.plugins.module_utils.build import"
        " render; from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import"
        " bpffs\nfrom ansible_collections.ebpf.conntrack.plugins.module_utils.generation import"
        " converge as generation\nwant ="
        f" generation.Want(open({str(tmp_path / 'chain.c')!r}).read(),"
        f" render.read_headers({str(SOURCES)!r}), **{SIZES!r})\nplan, have ="
        f" generation.ensure(bpffs.Paths({loaded.paths.pin_root!r}, {loaded.paths.state_dir!r}),"
        " want)\nassert plan == [] and have.generation == 1 and 'bcc' not in sys.modules, (plan,"
        " have)\n"
    )

    before, tree = loaded.stamps(), loaded.tree()
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (loaded.stamps(), loaded.tree()) == (before, tree)


def test_settings_change_without_a_compiler(loaded: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_bcc, "build", lambda *dummy: pytest.fail("nothing is to be built"))
    before = loaded.observe()
    want = loaded.want(timeouts={"udp": 7}, knobs={"tcp_loose": 0})
    foretold, dummy = loaded.ensure(want, check_mode=True)
    assert loaded.observe() == before
    done, have = loaded.ensure(want)
    assert done == foretold and [(step["action"], step["kind"], step["name"]) for step in done] == [
        ("change", "map", "settings")
    ]
    assert (
        "udp=30" in done[0]["before"]
        and "udp=7" in done[0]["after"]
        and "tcp_loose=0" in done[0]["after"]
    )
    assert (have.programs, have.generation) == (before.programs, 1)
    facts = generation.facts(have, loaded.paths)["settings"]
    assert (facts["timeouts"]["udp"], facts["timeouts"]["udp_stream"], facts["tcp_loose"]) == (
        7,
        120,
        0,
    )
    loaded.send(udp_frame(4000))
    (entry,) = loaded.flows().values()
    expires, last_seen = struct.unpack_from("=II", entry, CTL_AT + 8)
    assert expires - last_seen == 7 * facts["hz"]
    assert loaded.ensure(want) == ([], have)
    assert [step["name"] for step in loaded.ensure()[0]] == ["settings"], (
        "what is no longer given has the kernel's default again"
    )


def test_absent_in_four_runs(loaded: Chain) -> None:
    programs = [program.id for program in loaded.observe().programs.values()]
    foretold = generation.remove(loaded.paths, check_mode=True)
    assert [(step.action, step.kind, step.name) for step in foretold] == [
        ("delete", "generation", "1")
    ]
    loaded.assert_whole(1)
    assert generation.remove(loaded.paths) == foretold
    assert loaded.tree() == {}
    assert all(gone(program) for program in programs)
    for check_mode in (False, True):
        assert generation.remove(loaded.paths, check_mode) == []


# ---------------------------------------------------------------- the next generation
def test_changed_sources_inherit_the_flows(loaded: Chain) -> None:
    loaded.send(*(udp_frame(4000 + number) for number in range(50)))
    flows, stats, before = loaded.flows(), loaded.stats(), loaded.observe()
    assert len(flows) == 50
    foretold, dummy = loaded.ensure(loaded.changed(), check_mode=True)
    done, have = loaded.ensure(loaded.changed())
    assert done == foretold
    assert [(step["action"], step["name"]) for step in done] == [
        ("load", "2"),
        ("activate", "2"),
        ("delete", "1"),
    ]
    loaded.assert_whole(2)
    assert have.digest == loaded.changed().digest != before.digest
    kept = {spec.name for spec in chain_maps.maps(1) if spec.inherited}
    assert {name for name in have.maps if have.maps[name].id == before.maps[name].id} == kept
    assert loaded.flows() == flows
    assert loaded.stats() == stats, "the loader's proof is no traffic"
    loaded.send(udp_frame(4000))
    assert len(loaded.flows()) == 50
    assert all(gone(program.id) for program in before.programs.values())


def test_interfaces_are_handed_over_without_an_unseen_frame(loaded: Chain, veth: None) -> None:
    attached = loaded.interface()
    stop, sent = threading.Event(), 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("right", 0))
        frame = udp_frame(4000)

        def send() -> None:
            nonlocal sent
            while not stop.is_set():
                for dummy in range(8):
                    sender.send(frame)
                sent += 8
                time.sleep(0.0005)

        before = loaded.stats()
        thread = threading.Thread(target=send)
        thread.start()
        try:
            for number in range(3):
                done, dummy = loaded.ensure(loaded.changed(f"turn {number}"))
                assert [step["action"] for step in done] == [
                    "load",
                    "replace",
                    "activate",
                    "delete",
                ] and done[1]["name"] == "left"
            done, dummy = loaded.ensure(loaded.resized(half_open_size=2 * TABLE_SIZE))
            assert ("move", "ctt_new") in [(step["action"], step["name"]) for step in done]
        finally:
            stop.set()
            thread.join()
    assert within(lambda: loaded.stats()["tracked"] - before["tracked"] == sent - dropped())
    after = loaded.stats()
    (entry,) = loaded.flows().values()
    packets, octets = struct.unpack_from("=QQ", entry)
    assert sent > 1000
    assert after["tracked"] - before["tracked"] == sent - dropped(), (
        "every frame was tracked, by one generation or the other"
    )
    assert after["created"] - before["created"] == 1 and after["untracked_no_slot"] == 0
    assert packets == sent - dropped(), "and counted in the flow"
    assert octets == packets * (len(frame) - 14)
    loaded.assert_whole(5)
    (link,) = loaded.observe().links.values()
    assert link[0].id == attached["link_id"], "still the same bpf_link"


@pytest.mark.parametrize(
    ("option", "table"), [("table_size", "ctt"), ("half_open_size", "ctt_new")]
)
def test_another_table_size_takes_the_flows_along(loaded: Chain, option: str, table: str) -> None:
    loaded.ensure(loaded.want(timeouts=LIVING))
    loaded.send(*(udp_frame(1000 + number) for number in range(300)))
    flows = loaded.flows()
    if table == "ctt":
        move(loaded, flows)
    victim = next(iter(flows))
    # as if a packet were in it while it is copied
    with bpf.closing(bpf.obj_get(loaded.paths.map(table))) as fd:
        locked = (
            flows[victim][:CTL_AT]
            + U64.pack(U64.unpack_from(flows[victim], CTL_AT)[0] | chain_layout.CTL_LOCK)
            + flows[victim][CTL_AT + 8 :]
        )
        bpf.map_update(fd, victim, locked)
    want = dataclasses.replace(loaded.resized(**{option: 4 * TABLE_SIZE}), timeouts=LIVING)
    foretold, dummy = loaded.ensure(want, check_mode=True)
    done, have = loaded.ensure(want)
    assert done == foretold
    change = next(step for step in done if step["kind"] == "map")
    assert (change["action"], change["name"], change["before"], change["after"]) == (
        "move",
        table,
        f"{table}: 1024 entries",
        f"{table}: 4096 entries",
    )
    assert have.maps[table].max_entries == 4 * TABLE_SIZE
    assert loaded.flows(table) == loaded.flows() == flows, "all of them, and none locked"
    loaded.assert_whole(2)
    assert loaded.ensure(want)[0] == []
    done, have = loaded.ensure(loaded.want(timeouts=LIVING))
    assert have.maps[table].max_entries == TABLE_SIZE and loaded.flows() == flows


def move(made: Chain, flows: t.Mapping[bytes, bytes]) -> None:
    """Move flows to the table of assured ones."""
    with (
        bpf.closing(bpf.obj_get(made.paths.map("ctt_new"))) as half_open,
        bpf.closing(bpf.obj_get(made.paths.map("ctt"))) as assured,
    ):
        for key, value in flows.items():
            bpf.map_update(assured, key, value)
            bpf.map_delete(half_open, key)


def test_a_source_that_is_put_back_after_a_killed_upgrade(loaded: Chain, veth: None) -> None:
    """The interface runs a generation that never became active: the active one takes it back."""
    loaded.interface()
    assert syscalls.killed(
        lambda: loaded.ensure(loaded.changed()),
        lambda event: event.name.startswith("rename") and event.path == loaded.paths.active,
    ), "after the link is handed over"
    have = loaded.observe()
    assert have.generation == 1 and have.leftovers
    (link,) = have.links.values()
    assert link[0].prog_id not in {program.id for program in have.programs.values()}
    done, dummy = loaded.ensure()
    assert [step["action"] for step in done] == ["replace", "delete"]
    loaded.assert_whole(1)
    assert loaded.ensure()[0] == []


# ---------------------------------------------------------------- earlier generations, and back to
def test_earlier_generations_are_kept(loaded: Chain) -> None:
    loaded.send(udp_frame(4000))
    first = loaded.observe()
    done, second = loaded.ensure(loaded.changed("second"), keep=1)
    assert [(step["action"], step["name"]) for step in done] == [("load", "2"), ("activate", "2")]
    (kept,) = second.kept
    assert (kept.number, kept.digest, kept.programs, kept.since, kept.faults) == (
        1,
        first.digest,
        first.programs,
        first.since,
        (),
    )
    assert kept.since <= second.since
    assert {name: info.id for name, info in kept.maps.items() if name in ("ctt", "stats")} == {
        name: second.maps[name].id for name in ("ctt", "stats")
    }
    loaded.assert_whole(2)
    assert loaded.ensure(loaded.changed("second"), keep=1) == ([], second)
    done, third = loaded.ensure(loaded.changed("third"), keep=1)
    assert [(step["action"], step["name"]) for step in done] == [
        ("load", "3"),
        ("activate", "3"),
        ("delete", "1"),
    ]
    assert [one.number for one in third.kept] == [2]
    assert all(gone(program.id) for program in first.programs.values())
    facts = generation.facts(third, loaded.paths)["kept"]
    assert facts == [
        {
            "generation": 2,
            "digest": second.digest,
            "since": second.since,
            "rejected": False,
            "faults": [],
        }
    ]
    assert [step["name"] for step in loaded.ensure(loaded.changed("third"), keep=0)[0]] == ["2"]
    loaded.assert_whole(3)
    generation.remove(loaded.paths)
    assert loaded.tree() == {}


def test_rolled_back_in_four_runs(loaded: Chain, veth: None) -> None:
    attached = loaded.interface()
    loaded.ensure(loaded.want(timeouts={"udp": 7}))
    first = loaded.observe()
    loaded.ensure(loaded.changed(), keep=1)
    loaded.send(*(udp_frame(4000 + number) for number in range(50)))
    flows, stats, before = loaded.flows(), loaded.stats(), loaded.tree()
    foretold, second = loaded.roll_back(check_mode=True)
    assert loaded.tree() == before
    done, have = loaded.roll_back()
    assert done == foretold
    assert [(step["action"], step["kind"], step["name"]) for step in done] == [
        ("prove", "generation", "1"),
        ("replace", "link", "left"),
        ("activate", "generation", "1"),
    ]
    assert (have.generation, have.programs, have.maps, have.settings) == (
        1,
        first.programs,
        first.maps,
        first.settings,
    )
    assert [(one.number, one.programs, one.since) for one in have.rejected] == [
        (2, second.programs, second.since)
    ] and have.earlier == ()
    loaded.assert_whole(1)
    (link,) = have.links.values()
    assert (link[0].id, link[0].prog_id) == (attached["link_id"], attached["program_id"])
    assert loaded.flows() == flows, "they are in the same table"
    assert loaded.stats() == stats, "the proof is no traffic"
    before, stamps = loaded.tree(), loaded.stamps()
    for check_mode in (False, True):
        assert loaded.roll_back(check_mode=check_mode) == ([], have)
        assert loaded.roll_back(1, check_mode) == ([], have)
    assert (loaded.tree(), loaded.stamps()) == (before, stamps)
    loaded.send(udp_frame(9000))
    expires, last_seen = next(
        struct.unpack_from("=II", entry, CTL_AT + 8)
        for key, entry in loaded.flows().items()
        if key not in flows
    )
    assert expires - last_seen == 7 * generation.facts(have, loaded.paths)["settings"]["hz"], (
        "its settings are its own"
    )
    done, have = loaded.ensure(loaded.want(timeouts={"udp": 7}), keep=1)
    assert [(step["action"], step["name"], step["reason"]) for step in done] == [
        ("delete", "2", "it was rolled back from")
    ]
    assert all(gone(program.id) for program in second.programs.values())
    with pytest.raises(
        ConntrackError,
        match=r"^there is no generation before 1 to go back to: none is kept; the option keep",
    ):
        loaded.roll_back()


def test_back_and_forth_by_number(loaded: Chain) -> None:
    for name in ("second", "third", "fourth"):
        loaded.ensure(loaded.changed(name), keep=2)
    fourth = loaded.observe()
    assert [one.number for one in fourth.kept] == [3, 2]
    assert loaded.roll_back(2)[1].generation == 2
    have = loaded.observe()
    assert ([one.number for one in have.rejected], have.earlier) == ([4, 3], ())
    assert loaded.roll_back()[0] == []
    assert loaded.roll_back(4)[1].programs == fourth.programs
    assert [one.number for one in loaded.observe().earlier] == [3, 2]
    for check_mode in (True, False):
        with pytest.raises(ConntrackError) as raised:
            loaded.roll_back(1, check_mode)
        kept = "; ".join(
            f"generation {one.number}, digest {one.digest}, active since {one.since}"
            for one in fourth.kept
        )
        assert raised.value.message == f"generation 1 is not pinned: kept are: {kept}."
    loaded.assert_whole(4)
    loaded.roll_back()
    done, have = loaded.ensure(loaded.changed("fifth"), keep=2)
    assert [(step["action"], step["name"]) for step in done] == [
        ("load", "5"),
        ("activate", "5"),
        ("delete", "4"),
    ]
    assert [one.number for one in have.kept] == [3, 2]


def test_nothing_to_go_back_to(made: Chain) -> None:
    for check_mode in (True, False):
        with pytest.raises(
            ConntrackError, match="no chain is loaded, so there is nothing to go back from"
        ):
            made.roll_back(check_mode=check_mode)
    assert made.tree() == {}


@pytest.mark.parametrize("damage", ["slot", "pin"])
def test_a_damaged_generation_does_not_take_over(loaded: Chain, damage: str) -> None:
    loaded.ensure(loaded.changed("second"), keep=2)
    loaded.ensure(loaded.changed("third"), keep=2)
    if damage == "slot":
        with bpf.closing(bpf.obj_get(loaded.paths.map_of(2, "jt"))) as fd:
            bpf.map_delete(fd, U32.pack(chain_programs.SLOTS["ct"]))
    else:
        os.unlink(loaded.paths.prog_of(2, chain_programs.SLOTS["ct"]))
    before = loaded.tree()
    with pytest.raises(
        ConntrackError,
        match=(
            r"^generation 2 can not take over: .*ct.*\. Kept are: generation 2, .*; generation 1, "
        ),
    ):
        loaded.roll_back(2)
    assert loaded.tree() == before
    assert loaded.roll_back()[1].generation == 1, "the last good one"
    loaded.assert_whole(1)


@pytest.mark.parametrize("fused", [False, True])
def test_the_proof_goes_through_every_stage_and_leaves_nothing(made: Chain, fused: bool) -> None:
    """Each slot is emptied in turn; the fused entry programs have some of the stages in
    themselves.
    """
    made.ensure(made.want(render.render(str(SOURCES), render.Settings(**SIZES, fused=fused))))
    assert made.proved() == PROOF and not any(made.stats().values()), (
        "it is counted beside the traffic"
    )
    for name in ("ctt", "ctt_new", "ctt6", "ctt6_new", "frags"):
        with bpf.closing(bpf.obj_get(made.paths.map(name))) as fd:
            info = bpf.map_info(fd)
            assert (
                sum(
                    count
                    for count, dummy, dummy in bpf.map_batches(fd, info.key_size, info.value_size)
                )
                == 0
            )
    passed_over = {*chain_programs.HOOKS, "prs_end", "forward"} | (
        {"ct", "ct6", "prs_tcp", "prs_udp"} if fused else set()
    )
    with contextlib.ExitStack() as stack:
        jt, stats = (
            stack.enter_context(bpf.closing(bpf.obj_get(made.paths.map(name))))
            for name in ("jt", "stats")
        )
        entries = {
            hook: stack.enter_context(
                bpf.closing(bpf.obj_get(made.paths.prog(chain_programs.SLOTS[hook])))
            )
            for hook in chain_programs.TRACKING_HOOKS
        }
        for name, slot in chain_programs.SLOTS.items():
            with bpf.closing(bpf.obj_get(made.paths.prog(slot))) as fd:
                bpf.map_delete(jt, U32.pack(slot))
                for hook, entry in entries.items():
                    with (
                        contextlib.nullcontext()
                        if name in passed_over
                        else pytest.raises(ConntrackError, match=rf"^{hook}: .* not counted as ")
                    ):
                        probe_whole.prove_whole({hook: entry}, stats)
                bpf.map_update(jt, U32.pack(slot), U32.pack(fd))


@pytest.mark.parametrize("fused", [False, True])
def test_no_figure_moves_for_a_proof_whatever_comes_meanwhile(made: Chain, fused: bool) -> None:
    """The very frames of proof without the mark are traffic, and each of them counts, also while
    others are proved and a prover is killed.
    """
    made.ensure(made.want(render.render(str(SOURCES), render.Settings(**SIZES, fused=fused))))
    sent = 0
    for dummy in range(3):
        ready, told = os.pipe()
        prover = os.fork()
        if not prover:
            with contextlib.ExitStack() as stack:
                stats = stack.enter_context(bpf.closing(bpf.obj_get(made.paths.map("stats"))))
                entries = {
                    hook: stack.enter_context(
                        bpf.closing(bpf.obj_get(made.paths.prog(chain_programs.SLOTS[hook])))
                    )
                    for hook in chain_programs.TRACKING_HOOKS
                }
                while True:
                    probe_whole.prove_whole(entries, stats)
                    os.write(told, b".")
        try:
            for dummy in range(3):
                assert os.read(ready, 1), "the prover is at work"
                for probe in probe_whole.PROBES:
                    made.send(probe.frame)
                sent += 1
        finally:
            os.kill(prover, signal.SIGKILL)
            os.waitpid(prover, 0)
            for fd in (ready, told):
                os.close(fd)
    expected = collections.Counter(probe.counter for probe in probe_whole.PROBES)
    assert {name: number for name, number in made.stats().items() if number} == {
        name: sent * number for name, number in expected.items()
    }
    assert (
        sum(made.proved().values())
        >= len(probe_whole.PROBES) * len(chain_programs.TRACKING_HOOKS) * 9
    )


def test_a_mark_is_of_one_generation_and_no_frame_without_it_is_proof(made: Chain) -> None:
    """Frames of a loopback have addresses of zeros; nobody but root reads the mark."""
    made.ensure()
    with bpf.closing(bpf.obj_get(made.paths.map("proof"))) as fd:
        first = bpf.map_lookup(fd, U32.pack(chain_maps.PROOF["mark"]), 8) or b""
    made.ensure(made.changed())
    with bpf.closing(bpf.obj_get(made.paths.map("proof"))) as fd:
        second = bpf.map_lookup(fd, U32.pack(chain_maps.PROOF["mark"]), 8) or b""
        near = U64.pack(U64.unpack(second)[0] ^ 1 << 63)
        before, proved = made.stats()["untracked_not_ip"], made.proved()
        for mark in (first, near, bytes(8), b"\xff" * 8):
            made.send(mark + generation_probe.NOT_IP.frame[8:])
        # as where another loader wrote none
        bpf.map_update(fd, U32.pack(chain_maps.PROOF["mark"]), bytes(8))
        made.send(generation_probe.NOT_IP.frame)
    assert (
        first != second
        and made.stats()["untracked_not_ip"] == before + 5
        and made.proved() == proved
    )


def test_a_chain_without_the_map_of_the_proof_is_proved_as_before(made: Chain) -> None:
    """As an earlier release loaded it: it is whole, frames of proof count as traffic, and the next
    generation has the map.
    """
    old = made.text.replace("if (!is_proof(ctx))", "if (true)")
    made.ensure(made.want(old))
    os.unlink(made.paths.map_of(1, "proof"))
    assert made.observe().faults == ()
    assert {name: number for name, number in made.stats().items() if number} == PROOF
    made.ensure(keep=1)
    assert made.roll_back()[1].generation == 1, "it can be gone back to"
    assert {name: number for name, number in made.stats().items() if number} == {
        name: 2 * number for name, number in PROOF.items()
    }


def test_a_chain_that_stopped_passing_frames_is_found_before_it_takes_over(
    loaded: Chain, veth: None
) -> None:
    """A foreign program of the right type, and pins and slots agree: only the proof can tell."""
    loaded.interface()
    loaded.ensure(loaded.changed(), keep=1)
    with (
        bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "prs_eth")) as fd,
        bpf.closing(bpf.obj_get(loaded.paths.map_of(1, "jt"))) as jt,
    ):
        bpf.map_update(jt, U32.pack(chain_programs.SLOTS["prs_eth"]), U32.pack(fd))
        os.unlink(loaded.paths.prog_of(1, chain_programs.SLOTS["prs_eth"]))
        bpf.obj_pin(fd, loaded.paths.prog_of(1, chain_programs.SLOTS["prs_eth"]))
    before = loaded.tree()
    with pytest.raises(
        ConntrackError,
        match=(
            r"^prove generation 1: ingress: the chain does not pass a frame as it is: .*not counted"
        ),
    ) as raised:
        loaded.roll_back()
    assert raised.value.facts["applied"] == [] and loaded.tree() == before
    loaded.assert_whole(2)


def dropped() -> int:
    """Frames that the veth did not take from ``right``."""
    return int(
        pathlib.Path("/proc/net/dev").read_text(encoding="utf-8").split("right:")[1].split()[11]
    )


class Traffic:
    """Frames of one flow into the interface ``left`` until the block ends.

    :ivar sent: how many went in.
    """

    def __init__(self, frame: bytes) -> None:
        self.frame, self.sent = frame, 0
        self._stop = threading.Event()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._stop.is_set():
            for dummy in range(8):
                self._socket.send(self.frame)
            self.sent += 8
            time.sleep(0.0005)

    def __enter__(self) -> Traffic:
        self._socket.bind(("right", 0))
        self._before = netdev.link_facts("left").received
        self._thread.start()
        return self

    def __exit__(self, *dummy: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        assert within(
            lambda: netdev.link_facts("left").received - self._before == self.sent - dropped()
        )
        self.sent -= dropped()


def test_rolled_back_to_another_table_size_while_traffic_flows(
    loaded: Chain, veth: None, figure: c.Callable[[str, object], None]
) -> None:
    """What came meanwhile goes along: new flows, their counts; what was deleted meanwhile does not
    come back.
    """
    loaded.ensure(loaded.want(timeouts=LIVING))
    loaded.interface()
    loaded.send(*(udp_frame(1000 + number) for number in range(100)))
    old = set(loaded.flows())
    loaded.ensure(
        dataclasses.replace(
            loaded.resized(half_open_size=4 * TABLE_SIZE, table_size=2 * TABLE_SIZE),
            timeouts=LIVING,
        ),
        keep=1,
    )
    with bpf.closing(bpf.obj_get(loaded.paths.map("ctt_new"))) as fd:
        assert bpf_batch.map_delete_batch(fd, sorted(old)[:40]) == 40
    loaded.send(
        *(udp_frame(2000 + number) for number in range(100)),
        *(udp_frame(2000 + number) for number in range(100)),
    )
    expected, before = loaded.flows(), loaded.stats()
    with Traffic(udp_frame(4000)) as traffic:
        time.sleep(0.1)
        done, have = loaded.roll_back()
        time.sleep(0.1)
    assert [
        (step["action"], step["name"], step["before"], step["after"])
        for step in done
        if step["kind"] == "map"
    ] == [
        (
            "move",
            "ctt_new, ctt",
            "ctt_new: 4096 entries, ctt: 2048 entries",
            "ctt_new: 1024 entries, ctt: 1024 entries",
        ),
    ]
    assert have.maps["ctt"].max_entries == have.maps["ctt_new"].max_entries == TABLE_SIZE
    loaded.assert_whole(1)
    after, flows = loaded.stats(), loaded.flows()
    assert len(expected) == 160 and {key: flows[key] for key in expected} == expected
    (new,) = set(flows) - set(expected)
    packets, octets = struct.unpack_from("=QQ", flows[new])
    assert traffic.sent > 100 and after["tracked"] - before["tracked"] == traffic.sent
    assert packets == traffic.sent and octets == packets * (len(traffic.frame) - 14)
    figure("flows kept by a roll-back to another table size", f"{len(expected)} of 160")
    before = after
    with Traffic(udp_frame(4000)) as traffic:
        assert loaded.roll_back(2)[1].generation == 2
    assert (
        set(loaded.flows()) == set(flows)
        and loaded.stats()["tracked"] - before["tracked"] == traffic.sent
    )


@pytest.mark.parametrize("run", ["present", "rolled_back"])
def test_links_that_were_handed_over_go_back_when_one_can_not_be(
    loaded: Chain, veth: None, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    """Three interfaces; the second one's link refuses the update."""
    for name in ("two", "three"):
        subprocess.run(
            ["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True
        )
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
    interfaces = [
        {"name": name, "program": hook}
        for name, hook in (("left", "ingress"), ("two", "egress"), ("three", "ingress"))
    ]
    attach.converge("present", interfaces, "native", False, loaded.paths.pin_root, False)
    loaded.ensure(loaded.changed(), keep=1)
    before, numbers = loaded.tree(), iter(range(9))
    update = bpf.link_update

    def refuse(link_fd: int, new_prog_fd: int, old_prog_fd: int | None = None) -> None:
        # the kernel finds another program than it was told
        update(link_fd, new_prog_fd, new_prog_fd if next(numbers) == 1 else old_prog_fd)

    monkeypatch.setattr(bpf, "link_update", refuse)
    with pytest.raises(
        ConntrackError, match=r"^replace link three: .*Operation not permitted"
    ) as raised:
        loaded.ensure(loaded.changed("other"), keep=1) if run == "present" else loaded.roll_back()
    assert [
        step["name"] for step in raised.value.facts["rolled_back"] if step["kind"] == "link"
    ] == ["left"]
    assert raised.value.facts["not_rolled_back"] == []
    assert "generation 2 still runs" in raised.value.message
    assert loaded.tree() == before
    loaded.assert_whole(2)


# ---------------------------------------------------------------- damage is found and mended
@pytest.mark.parametrize("slot", ["prs_end", "ct", "ingress"])
def test_an_emptied_slot_is_mended(loaded: Chain, slot: str) -> None:
    loaded.send(udp_frame(4000))
    with bpf.closing(bpf.obj_get(loaded.paths.map("jt"))) as fd:
        bpf.map_delete(fd, U32.pack(chain_programs.SLOTS[slot]))
    have = loaded.observe()
    assert have.faults == (
        diagnosis.Fault(
            "slot_empty",
            f"jt[{chain_programs.SLOTS[slot]}]",
            f"slot {chain_programs.SLOTS[slot]} ({slot}) is empty",
        ),
    )
    assert generation.facts(have, loaded.paths)["healthy"] is False
    done, dummy = loaded.ensure()
    assert done[0]["reason"] == have.faults[0].detail
    loaded.assert_whole(2)
    assert len(loaded.flows()) == 1


def test_a_foreign_program_in_a_slot_of_ours_is_mended(loaded: Chain) -> None:
    with (
        bpf.closing(bpf.obj_get(loaded.paths.map("jt"))) as jt,
        bpf.closing(bpf.obj_get(loaded.paths.prog(chain_programs.SLOTS["egress"]))) as program,
    ):
        bpf.map_update(jt, U32.pack(chain_programs.SLOTS["ct"]), U32.pack(program))
    assert "slot 3 (ct) holds program" in loaded.ensure()[0][0]["reason"]
    loaded.assert_whole(2)


@pytest.mark.parametrize("pin", ["prog/xdp_3", "map/jt", "map/settings", "map/stats"])
def test_a_missing_pin_is_mended(loaded: Chain, pin: str) -> None:
    loaded.send(udp_frame(4000))
    os.unlink(os.path.join(loaded.paths.active, pin))
    assert "the pin of" in loaded.ensure()[0][0]["reason"]
    loaded.assert_whole(2)
    assert len(loaded.flows()) == 1


@pytest.mark.parametrize("which", ["prog", "map"])
def test_the_seeds_paths_are_mended(loaded: Chain, which: str) -> None:
    os.unlink(os.path.join(loaded.paths.pin_root, which))
    foretold, dummy = loaded.ensure(check_mode=True)
    done, have = loaded.ensure()
    assert done == foretold and [(step["action"], step["kind"], step["name"]) for step in done] == [
        ("create", "path", f"{loaded.paths.pin_root}/{which}")
    ]
    assert have.generation == 1
    loaded.assert_whole(1)
    assert loaded.ensure()[0] == []


def test_another_layout_is_refused(loaded: Chain) -> None:
    with bpf.closing(bpf.obj_get(loaded.paths.map("meta"))) as fd:
        bpf.map_update(
            fd, U32.pack(chain_maps.META["layout"]), U64.pack(chain_layout.LAYOUT_VERSION + 1)
        )
    before = loaded.tree()
    with pytest.raises(
        ConntrackError,
        match=(
            rf"generation 1 have layout {chain_layout.LAYOUT_VERSION + 1} .* this release's have"
            r" layout"
            rf" {chain_layout.LAYOUT_VERSION} .*drop"
        ),
    ):
        loaded.ensure(loaded.changed())
    assert loaded.tree() == before


# ---------------------------------------------------------------- refusals: nothing is touched
@pytest.mark.parametrize("name", ["prog", "map"])
@pytest.mark.parametrize("kind", ["directory", "symlink", "pin"])
def test_what_stands_at_the_seeds_paths_and_is_not_ours(made: Chain, name: str, kind: str) -> None:
    path = os.path.join(made.paths.pin_root, name)
    if kind == "directory":
        os.mkdir(path)
    elif kind == "symlink":
        os.symlink("elsewhere", path)
    else:
        with bpf.closing(bpf.prog_load(bpf.xdp_pass_insns(), "foreign")) as fd:
            bpf.obj_pin(fd, path)
    for check_mode in (True, False):
        with pytest.raises(ConntrackError, match=f"^{path} is a "):
            made.ensure(check_mode=check_mode)
    assert os.listdir(made.paths.pin_root) == [name]


@pytest.mark.parametrize("name", ["prog", "map"])
def test_absent_leaves_alone_what_is_not_ours(loaded: Chain, name: str) -> None:
    path = os.path.join(loaded.paths.pin_root, name)
    os.unlink(path)
    os.symlink("elsewhere", path)
    generation.remove(loaded.paths)
    assert loaded.tree() == {name: "-> elsewhere"}
    os.unlink(path)


def test_absent_is_refused_while_attached(loaded: Chain, veth: None) -> None:
    loaded.interface()
    before = loaded.tree()
    for check_mode in (True, False):
        with pytest.raises(ConntrackError, match=r"attached to left: detach it first"):
            generation.remove(loaded.paths, check_mode)
    assert loaded.tree() == before
    subprocess.run(["ip", "link", "del", "left"], check=True)
    assert [(step.action, step.kind) for step in generation.remove(loaded.paths)] == [
        ("delete", "link"),
        ("delete", "generation"),
    ]
    assert loaded.tree() == {}


PRS_ETH = "STAGE(prs_eth)\n{\n"
BROKEN = {
    "C syntax": (
        "return enter(ctx, 0);",
        "return enter(ctx, 0)",
        [
            r"compiling the chain failed",
            r"ingress\.c:9:\d+: error: expected ';'",
            r"return enter\(ctx, 0\)",
        ],
    ),
    "an unchecked access": (
        "\tproto = eth->h_proto;",
        "\tproto = *(volatile __be16 *)((void *)(long)ctx->data + 60);",
        [
            r"loading prs_eth failed",
            r"invalid access to packet",
            r"R\d offset is outside of the packet",
            r"prs_eth\.c:27: proto = \*\(volatile",
        ],
    ),
    "a stage that only some frames meet drops": (
        "STAGE(prs_gre)\n{\n",
        "STAGE(prs_gre)\n{\n\treturn XDP_DROP;\n",
        [
            r"ingress: the chain does not pass a frame as it is: a GRE header .*: verdict 1"
            r" \(XDP_PASS is 2\)"
        ],
    ),
    "a stage that drops": (
        PRS_ETH,
        f"{PRS_ETH}\treturn XDP_DROP;\n",
        [
            r"the chain does not pass a frame as it is: a frame that is not IP: verdict 1"
            r" \(XDP_PASS is 2\)"
        ],
    ),
    "a stage that counts nothing": (
        PRS_ETH,
        f"{PRS_ETH}\treturn XDP_PASS;\n",
        [r"verdict 2 .*not counted as untracked_not_ip"],
    ),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fault", BROKEN)
def test_sources_that_can_not_be_loaded(made: Chain, fault: str, first: bool) -> None:
    if not first:
        made.ensure()
        made.send(udp_frame(4000))
    old, new, patterns = BROKEN[fault]
    assert made.text.count(old) == 1
    tree, held = made.tree(), bpf_descriptors()
    with pytest.raises(ConntrackError) as raised:
        made.ensure(made.want(made.text.replace(old, new)))
    for pattern in patterns:
        assert re.search(pattern, raised.value.message), raised.value.message
    if fault in ("C syntax", "an unchecked access"):
        assert len(raised.value.facts["compiler_output"]) >= len(raised.value.message) // 4
    assert raised.value.facts["applied"] == []
    assert made.tree() == tree, "nothing half-loaded stays, not even a directory"
    assert bpf_descriptors() == held
    assert made.ensure()[0] == [] if not first else made.ensure()[1].generation == 1


# ---------------------------------------------------------------- broken at every step
_STATE = "/tmp/pytest-"


def is_change(event: syscalls.Event) -> bool:
    """Tell whether a call changes what is loaded, attached, pinned or written down."""
    return event.changes and (
        not event.path.startswith("/") or event.path.startswith((bpffs.STANDARD, _STATE))
    )


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A run to be broken, and what comes before it."""

    prepare: c.Callable[[Chain], object]
    run: c.Callable[[Chain], object]

    def changes(self, made: Chain) -> list[str]:
        """The names of all calls by which a whole run changes something."""
        self.prepare(made)
        done = syscalls.watch(lambda: self.run(made))
        assert not done.output, done.output
        take_away(made)
        return [event.name for event in filter(is_change, done.events)]


ENTRIES = 20


def prepare_running(made: Chain, want: generation.Want | None = None) -> None:
    made.ensure(want, keep=1)
    made.interface()
    with bpf.closing(bpf.obj_get(made.paths.map("ctt"))) as fd:
        for number in range(ENTRIES):
            bpf.map_update(
                fd,
                number.to_bytes(chain_layout.KEY4.size, "big"),
                number.to_bytes(chain_layout.ENTRY.size, "little"),
            )


def prepare_resized(made: Chain) -> None:
    made.ensure()
    prepare_running(made, made.want(f"{made.text}\n", table_size=2 * TABLE_SIZE))


def take_away(made: Chain) -> None:
    attach.converge("absent", None, "auto", False, made.paths.pin_root, False)
    generation.remove(made.paths)
    assert made.tree() == {}


#: Those in which flows move. test_faults.py breaks all kinds of runs at each of their system calls.
SCENARIOS = {
    "resize": Scenario(
        prepare_running,
        lambda made: made.ensure(made.want(f"{made.text}\n", table_size=2 * TABLE_SIZE)),
    ),
    "rolled_back_resized": Scenario(prepare_resized, lambda made: made.roll_back()),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_step_the_next_run_converges(quick: Chain, veth: None, name: str) -> None:
    """Of equal changes in a row, as pins of one generation, the first and the last stand for those
    between; test_faults.py has all.
    """
    scenario = SCENARIOS[name]
    changes = scenario.changes(quick)
    for site, event in enumerate(changes):
        if [event] * 3 == changes[max(site - 1, 0) : site + 2]:
            continue
        scenario.prepare(quick)
        run = functools.partial(scenario.run, quick)
        assert syscalls.killed(run, is_change, site + 1), event
        have = quick.observe()
        assert {fault.fault for fault in have.faults} <= {"path_missing", "link_program"}, event
        assert not have.links or quick.reachable() == ENTRIES, event
        scenario.run(quick)
        quick.assert_whole(t.cast("int", quick.observe().generation))
        before = quick.stamps()
        scenario.run(quick)
        assert quick.stamps() == before, "nothing is left to do"
        assert len(quick.flows()) == ENTRIES
        take_away(quick)


def test_two_runs_at_once(made: Chain) -> None:
    children = []
    for _turn in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                made.ensure()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    made.assert_whole(1)


def test_runs_and_removals_at_once(made: Chain) -> None:
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                made.ensure() if number % 2 else generation.remove(made.paths)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]
    made.ensure()
    made.assert_whole(t.cast("int", made.observe().generation))


def test_a_run_that_begins_keeps_its_directory(made: Chain) -> None:
    """A run that ends beside it takes away the directories that nobody uses; the one that has the
    lock does.
    """
    with lock.held(made.paths.base, make=0o700):
        bpffs_mount.release(made.paths.pin_root)
        assert os.path.isdir(made.paths.base)
    bpffs_mount.release(made.paths.pin_root)
    assert not os.path.exists(made.paths.pin_root)
    os.mkdir(made.paths.pin_root)


def test_what_was_written_down_before_a_reboot_is_removed_alone(made: Chain) -> None:
    """Nothing is pinned any more, and there is no directory to lock: the removal makes it, or
    another run would write there meanwhile.
    """
    made.ensure()
    generation.remove_tree(made.paths.base)
    generation.remove_symlinks(made.paths)
    assert made.written()
    seen: list[bool] = []
    forget = manifest.forget

    def watched(paths: bpffs.Paths, name: str) -> None:
        try:
            with lock.held(paths.base, 0):
                seen.append(False)
        except lock.Busy:
            seen.append(True)
        forget(paths, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "forget", watched)
        generation.remove(made.paths)
    assert seen and all(seen)
    assert made.tree() == {} and not os.path.exists(made.paths.base)
    os.makedirs(made.paths.pin_root, exist_ok=True)


def test_another_run_that_does_not_end_is_named(loaded: Chain, veth: None) -> None:
    """Whatever plans or changes waits for the lock; what only looks does not."""

    def attach_it(check_mode: bool) -> None:
        attach.converge(
            "present",
            [{"name": "left", "program": "ingress"}],
            "native",
            False,
            loaded.paths.pin_root,
            check_mode,
            lock_timeout=0,
        )

    before = loaded.tree()
    with lock.held(loaded.paths.base, 0):
        runs: dict[str, c.Callable[[], object]] = {
            "load": lambda: generation.ensure(loaded.paths, loaded.changed(), patience=0),
            "plan to load": lambda: generation.ensure(
                loaded.paths, loaded.changed(), True, patience=0
            ),
            "remove": lambda: generation.remove(loaded.paths, patience=0),
            "plan to remove": lambda: generation.remove(loaded.paths, True, patience=0),
            "roll back": lambda: generation.roll_back(loaded.paths, patience=0),
            "attach": lambda: attach_it(False),
            "plan to attach": lambda: attach_it(True),
            "flush": (
                lambda: contextlib.ExitStack().enter_context(
                    flow_table.writing(loaded.paths.pin_root, 0)
                )
            ),
        }
        for name, run in runs.items():
            with pytest.raises(
                ConntrackError, match=rf"another run has the lock: process {os.getpid()} \("
            ) as raised:
                run()
            assert raised.value.message.startswith(loaded.paths.base), name
        assert loaded.observe().generation == 1
    assert loaded.tree() == before
