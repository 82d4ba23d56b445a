# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``ct watch``: what becomes of flows, as it happens or as it was saved, through the filters of
``ct list``.

The chain numbers its events, those that found no room in the ring buffer as well, and counts the
latter. So what is told as lost is what was lost. The buffer has one reader, and the next generation
goes on with it; where it has another one instead, the reader changes over.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import typing as t

from ..chain import events as chain_events
from ..chain import jiffies as chain_jiffies
from ..chain import maps as chain_maps
from ..core import lock, stop
from ..core.errors import ConntrackError, bad_value
from ..flows import events, progress
from ..flows import filter as flow_filter
from ..flows import read as flow_read
from ..flows import table as flow_table
from ..kernel import bpf, bpffs
from ..kernel.ring_buffer import RingBuffer

_INDEX, _U64 = struct.Struct("=I"), struct.Struct("=Q")
#: How long to wait for an event before it is looked whether there is another generation.
_WAIT_SECONDS = 0.2
#: How long a packet may still be in the generation before.
_GRACE_SECONDS = 0.02
_LOST = [word for word in chain_events.EVENT_WORDS if word.startswith("lost_")]
_EVERYTHING = flow_filter.Query(flow_filter.Filters({}), limit=0)
Say = t.Callable[[str], None]


class Sink:
    """Where the events that match go: as text to ``put``, and to a file as records.

    :param form: a key of events.FORMS.
    :param limit: at most so many; None for all.
    :param save: where records go besides; None for nowhere.
    """

    def __init__(
        self,
        matcher: events.Matcher,
        form: str,
        put: t.Callable[[bytes], None],
        limit: int | None,
        save: t.BinaryIO | None = None,
    ) -> None:
        self._matcher, self._form, self._put, self._left, self._save = (
            matcher,
            events.FORMS[form],
            put,
            limit,
            save,
        )

    @property
    def full(self) -> bool:
        """Whether no more are wanted."""
        return self._left == 0

    def take(self, some: t.Iterable[events.Event]) -> None:
        """Print those that match, at once."""
        found = list(self._matcher.matching(some))
        if self._left is not None:
            found = found[: self._left]
            self._left -= len(found)
        if self._save is not None and found:
            self._save.write("".join(f"{events.FORMS['jsonl'](item)}\n" for item in found).encode())
            self._save.flush()
        self._put("".join(f"{self._form(item)}\n" for item in found).encode())


# ---------------------------------------------------------------- as it was saved
def replay(some: t.Iterable[events.Event], sink: Sink) -> int:
    """Print events of a file. :return: how many numbers between them are missing; what the filters
    of that time left out is missing, too.
    """
    missing, last = 0, None
    batch: list[events.Event] = []
    for event in some:
        if last is not None and event.seq > last + 1:
            missing += event.seq - last - 1
        last = event.seq
        batch.append(event)
        if len(batch) == flow_table.BATCH:
            sink.take(batch)
            batch = []
        if sink.full:
            return missing
    sink.take(batch)
    return missing


# ---------------------------------------------------------------- as it happens
class _Stream:
    """The events of one ring buffer, from now on. A context manager.

    :ivar id: of the ring buffer.
    :ivar read_events: how many were read.
    """

    def __init__(self, directory: str) -> None:
        """Open it, and let the chain tell.

        :param directory: of the maps' pins.
        """
        with contextlib.ExitStack() as made:
            pins = (
                os.path.join(directory, name)
                for name in (chain_maps.EVENTS_MAP, chain_maps.EVENTS_WORDS_MAP)
            )
            fd, self._words = (made.enter_context(bpf.closing(bpf.obj_get(pin))) for pin in pins)
            self.id = bpf.map_info(fd).id
            self._ring = made.enter_context(RingBuffer(fd))
            self.read_events = 0
            self._hz = chain_jiffies.hz()
            self._watch(False)
            while self._ring.read(0):
                continue  # what one that was killed left there
            self._first, self._lost = self._word("seq"), {word: self._word(word) for word in _LOST}
            made.callback(self._watch, False)
            self._watch(True)
            self._made = made.pop_all()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._made.close()

    def _word(self, name: str) -> int:
        raw = bpf.map_lookup(
            self._words, _INDEX.pack(chain_events.EVENT_WORDS.index(name)), _U64.size
        )
        return int(_U64.unpack(raw or bytes(_U64.size))[0])

    def _watch(self, on: bool) -> None:
        bpf.map_update(
            self._words, _INDEX.pack(chain_events.EVENT_WORDS.index("watched")), _U64.pack(on)
        )

    def read(self, seconds: float) -> list[events.Event]:
        """Return the next events; CPUs that tell at the same time can do so in another order than
        they took their numbers in.
        """
        raw = self._ring.read(seconds)
        offset = time.time_ns() - time.monotonic_ns()
        found = [
            event
            for event in (events.parse(one, self._hz, offset) for one in raw)
            if event.seq >= self._first
        ]
        self.read_events += len(found)
        return sorted(found, key=lambda event: event.seq)

    def rest(self) -> t.Iterator[list[events.Event]]:
        """Return what is left, and let nothing more be told."""
        self._watch(False)
        time.sleep(_GRACE_SECONDS)
        while found := self.read(0):
            yield found

    def lost(self) -> dict[str, int]:
        """Return how many events of each kind were lost so far."""
        return {word[len("lost_") :]: self._word(word) - self._lost[word] for word in _LOST}


class _Watch:
    """The events of a chain, whatever generation it is in."""

    def __init__(self, paths: bpffs.Paths, sink: Sink, say: Say, ending: stop.Stop) -> None:
        self._paths, self._sink, self._say, self._ending = paths, sink, say, ending
        self._stream: _Stream | None = None
        self._generation = ""
        self._read, self._lost, self._lost_told = 0, dict.fromkeys(chain_events.EVENT_KINDS, 0), 0

    def run(self) -> None:
        """Print events until it is told to end, or none is wanted any more.

        :raises ConntrackError: where there is no chain, or it is taken away.
        :raises Stopped: where it was told to end and nobody takes what is still to be printed.
        """
        evicted = self._evicted(check=self._ending.check)
        try:
            while not self._ending and not self._sink.full:
                self._follow()
                if self._stream is None:
                    self._ending.wait(_WAIT_SECONDS)
                else:
                    self._sink.take(self._stream.read(_WAIT_SECONDS))
                    self._tell_lost()
        finally:
            self._leave(self._sink.full)
            pushed = max(self._evicted(evicted) - evicted, 0)
            self._say(
                f"{self._read} events were read, {self._lost_in_words(self._lost)}. {pushed}"
                " entries made room for others meanwhile, which the kernel does without an event"
            )

    def _evicted(self, otherwise: int = 0, check: t.Callable[[], None] = lambda: None) -> int:
        """Return how many entries made room for others so far.

        :param check: is called after each part of the tables.
        """
        try:
            with flow_table.FlowTables(self._paths.pin_root) as tables:
                source = t.cast(
                    "flow_table.Source", progress.Watched(tables, lambda dummy: check())
                )
                return int(
                    t.cast("dict[str, t.Any]", flow_read.read(source, _EVERYTHING).summary)[
                        "counters"
                    ]["evicted"]
                )
        except flow_table.NoChain:
            return otherwise

    def _follow(self) -> None:
        """Change over to the buffer of the active generation."""
        try:
            generation = os.path.basename(os.readlink(self._paths.active))
        except OSError:
            raise flow_table.NoChain(
                f"{self._paths.active}: no chain is loaded there any more."
                if self._generation
                else "no chain is loaded."
            ) from None
        if generation == self._generation:
            return
        before, self._generation = self._generation, generation
        directory = os.path.join(self._paths.gen_dir(int(generation)), "map")
        taken = (
            f"generation {generation} took over from generation {before}"
            if before
            else f"generation {generation} runs"
        )
        if not os.path.lexists(os.path.join(directory, chain_maps.EVENTS_MAP)):
            self._leave(False)
            self._say(
                f"{taken}, without events: nothing comes until one with events runs. Give"
                " xdp_program the option events: true (role: xdp_ct_events)"
            )
            return
        with bpf.closing(bpf.obj_get(os.path.join(directory, chain_maps.EVENTS_MAP))) as fd:
            same = self._stream is not None and self._stream.id == bpf.map_info(fd).id
        if same:
            self._say(f"{taken}, and goes on with the same buffer: nothing was missed")
            return
        late = self._stream is not None or bool(before)
        self._leave(False)
        self._stream = _Stream(directory)
        if late:
            self._say(
                f"{taken}, with a buffer of its own: its numbers begin anew, and what it did until"
                " now was not told"
            )

    def _leave(self, enough: bool) -> None:
        """Read what is left of the buffer, and close it.

        :param enough: print none of it.
        """
        if self._stream is None:
            return
        with self._stream:
            if not enough:
                with contextlib.suppress(stop.Stopped):  # nobody takes them
                    for some in self._stream.rest():
                        self._sink.take(some)
            self._tell_lost()
            for kind, number in self._stream.lost().items():
                self._lost[kind] += number
            self._read += self._stream.read_events
        self._stream, self._lost_told = None, 0

    def _tell_lost(self) -> None:
        lost = sum(self._stream.lost().values()) if self._stream is not None else 0
        if lost > self._lost_told:
            self._say(f"{lost - self._lost_told} events were lost: the buffer had no room for them")
            self._lost_told = lost

    @staticmethod
    def _lost_in_words(lost: t.Mapping[str, int]) -> str:
        total = sum(lost.values())
        return (
            f"{total} were lost for want of room"
            f" ({', '.join(f'{kind} {number}' for kind, number in lost.items())})"
            if total
            else "none was lost"
        )


@contextlib.contextmanager
def _alone(pin_root: str) -> t.Iterator[None]:
    """Keep other readers out.

    :raises ConntrackError: where there is one; it says which.
    """
    directory = os.path.join(bpffs.RUN_DIR, f"watch-{bpffs.encode(os.path.realpath(pin_root))}")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(directory, 0, make=0o700))
        except ConntrackError as exc:
            raise ConntrackError(
                "the events of a chain have one reader at a time."
                f" {exc.message.partition('; lock_timeout')[0]}."
            ) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(directory)
            lock.tidy()


def watch(paths: bpffs.Paths, sink: Sink, say: Say, ending: stop.Stop) -> None:
    """Print the events of the chain until the process is told to end, or enough came.

    :param say: tells what is no event.
    :raises ConntrackError: where there is no chain, it is taken away, or another process reads its
        events.
    """
    # it says so where there is none, or one of another layout
    with flow_table.FlowTables(paths.pin_root):
        pass
    with _alone(paths.pin_root), contextlib.suppress(stop.Stopped):
        _Watch(paths, sink, say, ending).run()


def saving(path: str | None) -> t.ContextManager[t.BinaryIO | None]:
    """Open the file that events are saved in, anew.

    :raises ConntrackError: where it can not be written.
    """
    try:
        return (
            contextlib.nullcontext(None)
            if path is None
            else os.fdopen(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
            )
        )
    except OSError as exc:
        raise bad_value(
            "save", path, f"{exc.strerror}; give the path of a file that can be written"
        ) from exc


def parse_kinds(given: t.Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of events that are asked for.

    :raises ConntrackError: for a word that is none.
    """
    for kind in given:
        if kind.lower() not in chain_events.EVENT_KINDS:
            mend = f"give some of {', '.join(chain_events.EVENT_KINDS)}"
            raise bad_value("event", kind, mend, chain_events.EVENT_KINDS)
    return tuple(kind.lower() for kind in given)
