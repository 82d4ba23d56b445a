# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch a chain for a while: whether it sees what its interfaces receive, keeps its flows, and
finds packets valid.

What is counted is read now and then; whether the counts are good is decided by a pure function.
"""

from __future__ import annotations

import dataclasses
import subprocess
import time
import typing as t

from ..chain import counters as chain_counters
from ..core.errors import ConntrackError
from ..flows import filter as flow_filter
from ..flows import read as flow_read
from ..flows import table as flow_table
from ..generation import diagnosis, health, traffic
from ..kernel import bpffs

#: How long a card's counts may lag behind, in seconds; see xdp_modes.Driver.counts_late.
SETTLE = 1.0
#: The longest that may be watched, in seconds.
LONGEST = 86400
#: How often, and a pause of how many seconds apart, frames that seem unseen are looked for again:
#: some are on their way from the card to the chain.
_LOOKS, _PAUSE = 5, 0.05
#: How long a frame that a driver has counted may take to be counted by the chain, in seconds.
_ON_THE_WAY = 0.002
_TICK = 1.0
#: Fewer frames than this tell nothing about the share of invalid ones.
ENOUGH_FRAMES = 100
#: So many characters of what a probe said are reported, from its end.
_SAID = 500


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is put up with; None: anything.

    :ivar unseen: frames that interfaces received and the chain did not count.
    :ivar evicted: entries that made room for others, beyond those that the rate before makes one
        expect.
    :ivar evicted_assured: likewise, of them those of assured flows.
    :ivar insert_failed: entries that could not be made, likewise.
    :ivar invalid_ratio: how much larger than before the share of invalid frames may be, from 0 to
        1.
    """

    unseen: int | None = 0
    evicted: int | None = None
    evicted_assured: int | None = 0
    insert_failed: int | None = 0
    invalid_ratio: float | None = 0.05


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A figure that is beyond its limit.

    :ivar figure: its name.
    :ivar value: what it is, in words where it is no number.
    :ivar limit: what it may be.
    :ivar detail: the whole, for people.
    """

    figure: str
    value: t.Any
    limit: t.Any
    detail: str

    def as_dict(self) -> dict[str, t.Any]:
        """Return the form in which the module reports it."""
        return dataclasses.asdict(self)


# ---------------------------------------------------------------- judging
def excess(
    before: t.Mapping[str, t.Any] | None,
    start: t.Mapping[str, t.Any],
    end: t.Mapping[str, t.Any],
    name: str,
) -> float:
    """Return how much a counter grew from start to end beyond what the rate between ``before`` and
    start makes one expect; never below 0.

    :param before: a reading from before the new chain took over; None, or one of other counters,
        sets no rate.
    """
    grown = end[name] - start[name]
    if before:
        seconds, earlier = start["at"] - before["at"], start[name] - before[name]
        if seconds > 0 and earlier > 0 and start["frames"] >= before["frames"]:
            grown -= earlier / seconds * (end["at"] - start["at"])
    return max(grown, 0)


def ratio(invalid: int, frames: int) -> float | None:
    """Return the share of invalid frames; None where there were too few to tell."""
    return round(invalid / frames, 6) if frames >= ENOUGH_FRAMES else None


def figures_of(
    before: t.Mapping[str, t.Any] | None,
    start: t.Mapping[str, t.Any],
    end: t.Mapping[str, t.Any],
    received: int | None,
    unseen: int | None,
) -> dict[str, t.Any]:
    """Return the figures of a watch.

    :param before: see excess(). Its share of invalid frames is that of its whole life.
    :param received: frames that the interfaces received; None where none is attached.
    :param unseen: those of them that were not counted.
    """
    frames, invalid = end["frames"] - start["frames"], end["invalid"] - start["invalid"]
    return {
        "seconds": round(end["at"] - start["at"], 1),
        "received": received,
        "counted": frames,
        "unseen": unseen,
        "invalid": invalid,
        "invalid_ratio": ratio(invalid, frames),
        "invalid_ratio_before": ratio(before["invalid"], before["frames"]) if before else None,
        **{
            name: end[name] - start[name]
            for name in ("evicted", "evicted_assured", "insert_failed")
        },
        **{
            f"{name}_excess": round(excess(before, start, end, name), 1)
            for name in ("evicted", "evicted_assured", "insert_failed")
        },
        "flows": end["flows"],
    }


def judge(figures: t.Mapping[str, t.Any], limits: Limits) -> list[Trouble]:
    """Return the figures that are beyond their limits."""
    found = []
    unseen = figures["unseen"]
    if limits.unseen is not None and unseen is not None and unseen > limits.unseen:
        found.append(
            Trouble(
                "unseen",
                unseen,
                limits.unseen,
                f"{unseen} of {figures['received']} received frames were not counted,"
                f" {limits.unseen} may be",
            )
        )
    words = {
        "evicted": "entries made room for others",
        "evicted_assured": "assured flows were pushed out",
        "insert_failed": "entries could not be made",
    }
    for name, what in words.items():
        limit, value = getattr(limits, name), figures[f"{name}_excess"]
        if limit is not None and value > limit:
            found.append(
                Trouble(name, value, limit, f"{value:g} {what} beyond the rate before, {limit} may")
            )
    share, earlier = figures["invalid_ratio"], figures["invalid_ratio_before"] or 0.0
    if (
        limits.invalid_ratio is not None
        and share is not None
        and share - earlier > limits.invalid_ratio
    ):
        detail = (
            f"{share:.2%} of {figures['counted']} frames were invalid, before {earlier:.2%};"
            f" {limits.invalid_ratio:.2%} more may be"
        )
        found.append(
            Trouble("invalid_ratio", share, round(earlier + limits.invalid_ratio, 6), detail)
        )
    return found


def judge_faults(
    faults: t.Iterable[diagnosis.Fault], before: t.Iterable[t.Mapping[str, str]]
) -> list[Trouble]:
    """Return the faults that were not there before."""
    known = {(one.get("fault"), one.get("object")) for one in before}
    return [
        Trouble("faults", one.fault, "none", f"{one.fault} {one.object}: {one.detail}")
        for one in faults
        if (one.fault, one.object) not in known
    ]


# ---------------------------------------------------------------- reading
def read_tables(pin_root: str) -> dict[str, t.Any]:
    """Return what the chain has counted so far, and how many flows there are.

    :raises ConntrackError: where no chain is pinned there.
    """
    with flow_table.FlowTables(pin_root) as tables:
        reading = flow_read.read(tables, flow_filter.parse_query({"limit": 0}))
        counters = tables.counters()
    summary = t.cast("dict[str, t.Any]", reading.summary)
    return {
        "at": round(time.monotonic(), 3),
        "generation": tables.meta["generation"],
        "frames": sum(counters[name] for name, dummy in chain_counters.OUTCOMES),
        "invalid": sum(summary["counters"]["invalid"].values()),
        "evicted": summary["counters"]["evicted"],
        "evicted_assured": summary["counters"]["evicted_assured"],
        "insert_failed": summary["counters"]["insert_failed"],
        "flows": summary["flows"],
    }


class Frames:
    """Holds the frames that the chain's interfaces receive against those that it counts.

    The count of the chain is read first at the start, and last afterwards, so that what is on its
    way is never taken for unseen; where a card's counts are late, they are waited for at the start.

    :param received: the sum of the interfaces' received frames.
    :param counted: the sum of the chain's outcomes.
    :param settle: how late the interfaces' counts may be, in seconds.
    """

    def __init__(
        self,
        received: t.Callable[[], int],
        counted: t.Callable[[], int],
        settle: float,
        wait: t.Callable[[float], object] = time.sleep,
    ) -> None:
        self._received, self._counted, self._wait = received, counted, wait
        self._counted_first = counted()
        if settle:
            wait(settle)
        self._received_first = received()

    def unseen(self) -> tuple[int, int]:
        """Return (frames received since the start, those of them that were not counted, at the
        least).
        """
        most, lost = 0, 0
        for turn in range(_LOOKS):
            received = self._received() - self._received_first
            self._wait(_ON_THE_WAY)
            missing = received - (self._counted() - self._counted_first)
            most, lost = max(received, 0), missing if turn == 0 else min(lost, missing)
            if lost <= 0:
                break
            self._wait(_PAUSE)
        return most, max(lost, 0)


def run_probe(
    argv: t.Sequence[str], seconds: float
) -> tuple[dict[str, t.Any] | None, list[Trouble]]:
    """Run the user's own command; return how it ended, and what is wrong with that."""
    if not argv:
        return None, []
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        code, said = done.returncode, done.stdout.strip()[-_SAID:]
    except subprocess.TimeoutExpired:
        code, said = -1, f"it did not end within {seconds:g} s"
    except OSError as exc:
        code, said = -1, f"it can not be run: {exc.strerror}"
    troubles = (
        [
            Trouble(
                "probe",
                code,
                0,
                f"the probe {' '.join(argv)} ended with {code}: {said or 'it said nothing'}",
            )
        ]
        if code
        else []
    )
    return {"rc": code, "output": said}, troubles


# ---------------------------------------------------------------- the whole
@dataclasses.dataclass(frozen=True)
class Watch:
    """What is watched for how long.

    :ivar seconds: how long.
    :ivar probe: the user's own command, run at the start and at the end.
    :ivar probe_timeout: seconds that it may take.
    :ivar settle: see Frames; None lets the interfaces' drivers tell.
    :ivar before: a reading of read_tables() from before the new chain took over.
    :ivar faults: those that were there before.
    """

    seconds: float
    limits: Limits = Limits()
    probe: tuple[str, ...] = ()
    probe_timeout: float = 10.0
    settle: float | None = None
    before: t.Mapping[str, t.Any] | None = None
    faults: tuple[t.Mapping[str, str], ...] = ()


def soak(paths: bpffs.Paths, watch: Watch) -> tuple[dict[str, t.Any], list[Trouble]]:
    """Watch the chain; return the figures, and what is wrong, as soon as it is known.

    :raises ConntrackError: where no chain is loaded.
    """
    begun = time.monotonic()
    start = read_tables(paths.pin_root)
    number = health.active(paths)
    said, troubles = run_probe(watch.probe, watch.probe_timeout)
    keys = traffic.tracking(paths)
    settle = traffic.lateness(keys, SETTLE) if watch.settle is None else watch.settle
    with flow_table.FlowTables(paths.pin_root) as tables:

        def counted() -> int:
            counters = tables.counters()
            return sum(counters[name] for name, dummy in chain_counters.OUTCOMES)

        frames = Frames(lambda: traffic.received(keys), counted, settle)
        received = unseen = None
        while True:
            left = watch.seconds - (time.monotonic() - begun)
            if left > 0 and not troubles:
                time.sleep(min(left, _TICK))
            if keys:
                received, unseen = frames.unseen()
            troubles = troubles + judge_faults(health.examine(paths), watch.faults)
            now = health.active(paths)
            if now != number:
                troubles.append(
                    Trouble(
                        "generation",
                        now,
                        number,
                        f"another run has put generation {now} in the place of {number} meanwhile",
                    )
                )
            beyond = (
                unseen is not None
                and watch.limits.unseen is not None
                and unseen > watch.limits.unseen
            )
            if troubles or beyond or left <= _TICK:
                break
    if not troubles:
        said, troubles = run_probe(watch.probe, watch.probe_timeout)
    try:
        end = read_tables(paths.pin_root)
    except ConntrackError as exc:
        return {
            "seconds": round(time.monotonic() - begun, 1),
            "generation": number,
            "probe": said,
        }, [
            *troubles,
            Trouble("faults", "no chain", "none", exc.message),
        ]
    figures = {
        **figures_of(watch.before, start, end, received, unseen),
        "generation": number,
        "probe": said,
    }
    return figures, troubles + judge(figures, watch.limits)
