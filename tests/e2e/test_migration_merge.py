# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How two entries of one flow become one, and how counters go over, each by itself: the program
``adopt`` is asked, with tables written by the test.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import os
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import schema
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import migrate
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_batch
from ansible_collections.ebpf.conntrack.tests.e2e.support import syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.test_migration import (
    SIZE,
    U32,
    Chain,
    Old,
    chain_below,
    fill,
    headers,
    later_layout,
    made,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames

__all__ = ["headers", "made"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FIELDS = [name for name, dummy in chain_layout.ENTRY_FIELDS]
#: States as the control word has them.
ESTABLISHED, FIN_WAIT, TIME_WAIT, SYN_SENT, SYN_SENT2 = 3, 4, 7, 1, 9
#: Jiffies and seconds; an entry that a test does not say otherwise about lives on long.
LATER = 1 << 20


@dataclasses.dataclass
class Tables:
    """A generation's own table of assured flows, and one that stands for that of the generation
    before; ``fields`` are those of ENTRY.
    """

    chain: Chain
    adopt: int
    ctt: int
    old: int
    now: int

    def key(self, proto: int = frames.TCP, number: int = 1) -> bytes:
        return chain_layout.KEY4.pack(
            bytes([10, 0, 0, number]), b"\xac\x10\0\1", 0x409C, 0x5000, proto, 0, 0
        )

    def write(self, fd: int, key: bytes, **fields: int) -> None:
        """Write an entry; a field's dot is written as two underscores."""
        given = {
            "expires": self.now + LATER,
            "last_seen": self.now,
            **{name.replace("__", "."): value for name, value in fields.items()},
        }
        bpf.map_update(
            fd,
            key,
            chain_layout.ENTRY.pack(
                *(given.get(name, 0) & (1 << 8 * size) - 1 for name, size in sizes())
            ),
        )

    def read(self, fd: int, key: bytes) -> dict[str, int] | None:
        raw = bpf.map_lookup(fd, key, chain_layout.ENTRY.size)
        return None if raw is None else dict(zip(FIELDS, chain_layout.ENTRY.unpack(raw)))

    def move(self, *keys: bytes) -> int:
        """Ask for flows to be moved; return how many could not be."""
        return migrate._request(self.adopt, "ipv4", len(keys), b"".join(keys))

    def counters(self) -> dict[str, int]:
        return self.chain.counters()


def sizes() -> list[tuple[str, int]]:
    return [
        (name, {"Q": 8, "I": 4, "H": 2, "B": 1}[code]) for name, code in chain_layout.ENTRY_FIELDS
    ]


@pytest.fixture(scope="module")
def loaded(headers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[Tables]:
    """A chain that knows another table as that of the generation before; one for all tests, each of
    which has keys of its own or writes both entries.
    """
    with contextlib.ExitStack() as stack:
        chain_made = stack.enter_context(chain_below(headers, tmp_path_factory.mktemp("merge")))

        def keep(fd: int) -> int:
            stack.callback(bpf.close, fd)
            return fd

        chain_made.ensure()
        chain_made.send(bytes(60))  # it takes the clock with its first packet
        with flow_table.FlowTables(chain_made.paths.pin_root) as read:
            now = read.clock().jiffies & 0xFFFFFFFF
        ctt, pred = (keep(bpf.obj_get(chain_made.paths.map(name))) for name in ("ctt", "pred"))
        info = bpf.map_info(ctt)
        old = keep(
            bpf.map_create(info.kind, "ctt_old", info.key_size, info.value_size, info.max_entries)
        )
        bpf.map_update(pred, U32.pack(chain_maps.FLOW_CLASSES.index("assured")), U32.pack(old))
        yield Tables(
            chain_made,
            keep(bpf.obj_get(f"{chain_made.paths.gen_dir(1)}/prog/{chain_programs.ADOPT}")),
            ctt,
            old,
            now,
        )


@pytest.fixture
def tables(loaded: Tables) -> c.Iterator[Tables]:
    """The tables, both empty."""
    yield loaded
    for fd in (loaded.ctt, loaded.old):
        for count, keys, dummy in list(
            bpf.map_batches(fd, chain_layout.KEY4.size, chain_layout.ENTRY.size)
        ):
            bpf_batch.map_delete_batch(
                fd,
                [
                    bytes(keys[at * chain_layout.KEY4.size : (at + 1) * chain_layout.KEY4.size])
                    for at in range(count)
                ],
            )


def both(tables: Tables, key: bytes, here: dict[str, int], there: dict[str, int]) -> dict[str, int]:
    """Write the flow into both tables and move it; return what is here then."""
    tables.write(tables.ctt, key, **{"ctl": ESTABLISHED, "created": 100, **here})
    tables.write(tables.old, key, **{"ctl": ESTABLISHED, "created": 100, **there})
    assert tables.move(key) == 0 and tables.read(tables.old, key) is None
    merged = tables.read(tables.ctt, key)
    assert merged is not None and not merged["ctl"] & chain_layout.CTL_LOCK
    return merged


COUNTS = {
    "orig__packets": 5,
    "orig__bytes": 500,
    "reply__packets": 3,
    "reply__bytes": 333,
    "related__packets": 2,
    "related__bytes": 22,
}


def counts(entry: dict[str, int]) -> dict[str, int]:
    return {name.replace(".", "__"): entry[name] for name in migrate._COUNTS}


def test_counts_of_both_are_added(tables: Tables) -> None:
    merged = both(
        tables, tables.key(), {name: 10 * value for name, value in COUNTS.items()}, COUNTS
    )
    assert counts(merged) == {name: 11 * value for name, value in COUNTS.items()}


def test_counts_of_a_flow_that_was_picked_up_turned_go_to_the_side_that_sent_them(
    tables: Tables,
) -> None:
    merged = both(
        tables,
        tables.key(),
        {"orig__packets": 7, "orig__bytes": 70},
        {**COUNTS, "ctl": ESTABLISHED | chain_layout.CTL_ORIG_HI},
    )
    turned = {
        "orig__packets": 7 + 3,
        "orig__bytes": 70 + 333,
        "reply__packets": 5,
        "reply__bytes": 500,
        "related__packets": 2,
        "related__bytes": 22,
    }
    assert (
        counts(merged) == turned
        and merged["ctl"] & chain_layout.CTL_SEEN_REPLY
        and not merged["ctl"] & chain_layout.CTL_ORIG_HI
    )


def test_a_tuple_that_was_used_again_meanwhile_keeps_its_own_counts(tables: Tables) -> None:
    """What the old table has is another connection's, which is over."""
    here = {"orig__packets": 1, "created": 101, "ctl": SYN_SENT, "orig__td_end": 7}
    merged = both(
        tables,
        tables.key(),
        here,
        {
            **COUNTS,
            "orig__td_end": 99,
            "ctl": TIME_WAIT | chain_layout.CTL_ASSURED | chain_layout.CTL_SEEN_REPLY,
        },
    )
    assert {
        name: merged[name]
        for name in (
            "orig.packets",
            "orig.bytes",
            "reply.packets",
            "related.packets",
            "orig.td_end",
        )
    } == {
        "orig.packets": 1,
        "orig.bytes": 0,
        "reply.packets": 0,
        "related.packets": 0,
        "orig.td_end": 7,
    }
    assert merged["ctl"] == SYN_SENT


def test_times_are_compared_around_the_wrap(tables: Tables) -> None:
    """2^32 - 1 is before 1."""
    assert (
        counts(both(tables, tables.key(), {"created": 1}, {**COUNTS, "created": 0xFFFFFFFF}))[
            "orig__packets"
        ]
        == 0
    )
    merged = both(
        tables,
        tables.key(number=2),
        {"created": 0xFFFFFFFF, "orig__td_end": 5},
        {**COUNTS, "created": 1, "orig__td_end": 0xFFFFFFF0},
    )
    assert (merged["orig.packets"], merged["orig.td_end"]) == (5, 5)


@pytest.mark.parametrize("name", ["td_end", "td_maxend", "td_maxack"])
@pytest.mark.parametrize(
    ("here", "there", "merged"), [(5, 6, 6), (6, 5, 6), (0xFFFFFFFE, 3, 3), (3, 0xFFFFFFFE, 3)]
)
def test_windows_are_those_that_are_further_on_and_begin_again(
    tables: Tables, name: str, here: int, there: int, merged: int
) -> None:
    found = both(
        tables,
        tables.key(),
        {f"orig__{name}": here, "orig__td_maxwin": 60000, "reply__td_maxwin": 9},
        {f"orig__{name}": there, "orig__td_maxwin": 1},
    )
    assert (found[f"orig.{name}"], found["orig.td_maxwin"], found["reply.td_maxwin"]) == (
        merged,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("here", "there", "state"),
    [
        (ESTABLISHED, FIN_WAIT, FIN_WAIT),
        (FIN_WAIT, ESTABLISHED, FIN_WAIT),
        (SYN_SENT2, ESTABLISHED, ESTABLISHED),
        (ESTABLISHED, SYN_SENT2, ESTABLISHED),
        (TIME_WAIT, TIME_WAIT, TIME_WAIT),
    ],
)
def test_the_state_is_that_which_is_further_on(
    tables: Tables, here: int, there: int, state: int
) -> None:
    seen = {
        "ctl": there | chain_layout.CTL_ASSURED | chain_layout.CTL_SEEN_REPLY,
        "last_seen": tables.now - 50,
    }
    merged = both(tables, tables.key(), {"ctl": here, "last_seen": tables.now - 100}, seen)
    assert merged["ctl"] == state | chain_layout.CTL_ASSURED | chain_layout.CTL_SEEN_REPLY
    assert merged["last_seen"] == tables.now - 50
    if state != here:
        with bpf.closing(bpf.obj_get(tables.chain.paths.map("settings"))) as fd:
            rate, timeouts, dummy = chain_settings.settings_of(
                bpf.map_lookup(fd, U32.pack(0), chain_settings.SETTINGS_BYTES) or b""
            )
        assert merged["expires"] == tables.now - 50 + rate * list(timeouts.values())[state]


@pytest.mark.parametrize(("there", "expires"), [(-50, 2), (-150, 1)])
def test_of_udp_holds_what_was_seen_last(tables: Tables, there: int, expires: int) -> None:
    key, now = tables.key(frames.UDP), tables.now
    merged = both(
        tables,
        key,
        {"last_seen": now - 100, "expires": now + LATER},
        {"last_seen": now + there, "expires": now + 2 * LATER, "reply__td_end": 77},
    )
    assert (merged["expires"], merged["last_seen"], merged["reply.td_end"]) == (
        now + expires * LATER,
        now + max(there, -100),
        0,
    )


def test_what_expired_is_counted_and_not_merged(tables: Tables) -> None:
    before, key = tables.counters(), tables.key()
    tables.write(tables.ctt, key, ctl=ESTABLISHED, orig__packets=1)
    tables.write(tables.old, key, **{**COUNTS, "expires": tables.now - 1})
    assert tables.move(key) == 0 and tables.read(tables.old, key) is None
    there, after = tables.read(tables.ctt, key), tables.counters()
    assert there is not None and there["orig.packets"] == 1
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "deleted_expired": 1,
        "assured_deleted": 1,
    }


def test_a_flow_in_a_packets_hands_is_left_for_the_next_turn(tables: Tables) -> None:
    """Whichever of the two entries it is; neither stays locked by the one that tried, and nothing
    is added.
    """
    key = tables.key()
    for locked in ("ctt", "old"):
        tables.write(
            tables.ctt,
            key,
            ctl=ESTABLISHED | chain_layout.CTL_LOCK * (locked == "ctt"),
            orig__packets=1,
        )
        tables.write(
            tables.old,
            key,
            ctl=ESTABLISHED | chain_layout.CTL_LOCK * (locked == "old"),
            orig__packets=1,
        )
        assert tables.move(key) == 1
        here, there = tables.read(tables.ctt, key), tables.read(tables.old, key)
        assert (
            here is not None
            and there is not None
            and here["orig.packets"] == there["orig.packets"] == 1
        )
        assert (
            bool(here["ctl"] & chain_layout.CTL_LOCK),
            bool(there["ctl"] & chain_layout.CTL_LOCK),
        ) == (
            locked == "ctt",
            locked == "old",
        )


def test_a_packet_goes_through_a_flow_that_was_moved_while_locked(made: Chain) -> None:
    """Whoever held the lock is gone; the flow that stands in the new table is free, and counts its
    next packet.
    """
    made.ensure()
    made.send(bytes(60))
    fill(made, "ctt", 40)
    key = chain_layout.KEY4.pack(
        bytes([10, 0, 0, 5]), b"\xac\x10\0\1", 0x409C, 0x5000, frames.TCP, 0, 0
    )
    with bpf.closing(bpf.obj_get(made.paths.map("ctt"))) as fd:
        fields = dict(
            zip(
                FIELDS,
                chain_layout.ENTRY.unpack(bpf.map_lookup(fd, key, chain_layout.ENTRY.size) or b""),
            )
        )
        fields["ctl"] |= chain_layout.CTL_LOCK
        bpf.map_update(fd, key, chain_layout.ENTRY.pack(*fields.values()))
    made.ensure({"table_size": 2 * SIZE})
    before = made.counters()
    src, dst = frames.address("10.0.0.5"), frames.address("172.16.0.1")
    made.send(
        frames.frame(
            frames.ip(
                src,
                dst,
                frames.TCP,
                frames.tcp(src, dst, 40000, 80, 1, 1, frames.tcp_flags("PA"), 60000, bytes(9)),
            )
        )
    )
    after = made.counters()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "tracked": 1
    }
    assert made.flows()["tcp", "10.0.0.5", 40000]["orig"]["packets"] == fields["orig.packets"] + 1
    made.assert_settled()


# ---------------------------------------------------------------- another layout: counters, and ful
def old_counts(old: Old, **numbers: int) -> None:
    names = old.there["counters"]["stats"]
    for name, number in numbers.items():
        values = bpf.percpu_value(old.maps["stats"], names.index(name), 8)
        values[0] = number.to_bytes(8, "little")
        bpf.map_update(old.maps["stats"], U32.pack(names.index(name)), b"".join(values))


@pytest.fixture
def old(made: Chain, monkeypatch: pytest.MonkeyPatch) -> c.Iterator[Old]:
    """A generation of another layout, that no interface is attached to."""
    monkeypatch.setattr(Chain, "attach", lambda self, state="present": None)
    there = Old(made, later_layout())
    there.now()
    yield there
    there.close()


def tracked(made: Chain) -> tuple[int, int]:
    counters = made.counters()
    return counters["created"], counters["tracked"]


def test_a_killed_upgrade_adds_the_counters_once(made: Chain, old: Old) -> None:
    """The run is killed right after the old chain's counts were added; the next one does not add
    them again.
    """
    old_counts(old, created=1000, tracked=7000)
    request = bpf.prog_test_run

    def die(fd: int, frame: bytes, *more: t.Any, **named: t.Any) -> t.Any:
        done = request(fd, frame, *more, **named)
        if frame[:4] == U32.pack(chain_programs.ADOPT_REQUESTS.index("counts")):
            os.kill(os.getpid(), 9)
        return done

    def run() -> None:
        pytest.MonkeyPatch().setattr(bpf, "prog_test_run", die)  # in a process that ends
        made.ensure(on_schema_change="migrate")

    pid, output = syscalls.start(run)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    os.close(output)
    made.ensure(on_schema_change="migrate")
    assert tracked(made) == (1000, 7000)
    made.assert_settled()


def test_a_second_take_over_begins_with_what_the_old_chain_has_then(made: Chain, old: Old) -> None:
    """The old generation counted on, and is taken over from once more: its counts of now, not those
    of both times.
    """
    old_counts(old, created=1000, tracked=7000)
    policy = generation.Policy(2, on_schema_change="migrate")
    generation.ensure(made.paths, made.want({}), False, policy)
    assert tracked(made) == (1000, 7000)
    old_counts(old, created=1500, tracked=9000)
    before, after = (migrate.read_maps(number, made.paths.gen_dir(number)) for number in (1, 2))
    migrate.connect(migrate.decide(before, after, "migrate"))
    assert tracked(made) == (0, 0), "until the old chain counts no more"
    migrate.finish(after, before)
    assert tracked(made) == (1500, 9000)


def test_a_full_table_of_another_layout_keeps_the_assured_and_latest(made: Chain, old: Old) -> None:
    now, rate = old.now()
    for number in range(1500):
        key = chain_layout.KEY4.pack(
            (0x0A000000 + number).to_bytes(4, "big"),
            b"\xac\x10\0\1",
            0x409C,
            0x5000,
            frames.TCP,
            0,
            0,
        )
        seen = {
            "last_seen": (now - number // 10 * rate) & 0xFFFFFFFF,
            "expires": (now + 100000 * rate) & 0xFFFFFFFF,
            "created": now // rate,
        }
        old.write(
            "ctt",
            key,
            {"state": 3, "assured": number >= 500, "seen_reply": 1},
            orig__packets=number + 1,
            **seen,
        )
    room = 1024 - bpf.possible_cpus() * min(1024 // bpf.possible_cpus() // 2, 128)
    foretold, lost, warnings = made.ensure(
        {"table_size": 1024}, check_mode=True, on_schema_change="migrate"
    )
    assert (
        lost == {"ctt": 1500 - room}
        and f"ctt: {1500 - room} of 1500 flows can not be kept" in warnings[0]
    )
    assert made.ensure({"table_size": 1024}, on_schema_change="migrate") == (
        foretold,
        lost,
        warnings,
    )
    kept = {record["orig"]["packets"] - 1 for record in made.flows().values()}
    sure = room // 10 * 10
    assert len(kept) == room and set(range(500, 500 + sure)) <= kept <= set(range(500, 510 + sure))
    made.assert_settled()


def test_counts_are_added_when_no_packet_is_in_the_old_chain_any_more(
    made: Chain, old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old chain is let go, then the kernel waits for the packets in it (it does when an array
    of maps changes), and only then counts are read.
    """
    old_counts(old, tracked=5)
    calls: list[str] = []
    update, test_run = bpf.map_update, bpf.prog_test_run
    olds = {bpf.map_info(fd).id for fd in old.maps.values()}

    def map_update(fd: int, *more: t.Any) -> None:
        info = bpf.map_info(fd)
        calls.append(f"{'old' if info.id in olds else 'new'} {info.name}")
        update(fd, *more)

    def prog_test_run(fd: int, frame: bytes, *more: t.Any) -> t.Any:
        if len(frame) > chain_programs.ADOPT_REQUEST.size and frame[:4] == U32.pack(
            chain_programs.ADOPT_REQUESTS.index("counts")
        ):
            calls.append("counts")
        return test_run(fd, frame, *more)

    monkeypatch.setattr(bpf, "map_update", map_update)
    monkeypatch.setattr(bpf, "prog_test_run", prog_test_run)
    made.ensure(on_schema_change="migrate")
    assert calls[: calls.index("counts")][-2:] == ["old meta", "new pred"], calls


def test_a_description_that_is_damaged_is_refused_before_anything_is_changed(
    made: Chain, old: Old
) -> None:
    old.meta(schema=schema.digest(old.there) ^ 1)
    with pytest.raises(
        ConntrackError, match="has layout 7 and no description|have layout 7 and no description"
    ):
        made.ensure(on_schema_change="migrate")
    assert generation.observe(made.paths).generation == 1
