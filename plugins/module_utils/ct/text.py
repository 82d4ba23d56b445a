# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command ``ct`` prints for people."""

from __future__ import annotations

import typing as t

from ..chain import counters as chain_counters
from ..chain import settings as chain_settings
from ..core.printable import printable
from ..flows import codec as flow
from ..flows.delete import title

#: The programs that decide what becomes of a frame, in their order, and what they count it as.
STAGES: dict[str, tuple[str, ...]] = {
    "ingress, egress": ("untracked_no_meta", "untracked_no_slot"),
    "prs_eth": (
        "untracked_not_ip",
        "untracked_eth_short",
        "untracked_vlan_depth",
        "untracked_pppoe",
    ),
    "prs_ipv4, prs_ipv6": ("invalid_ip_header", "invalid_ext_headers", "untracked_limit"),
    "prs_tcp ... prs_gre": (
        *(
            "invalid_l4_short",
            "invalid_checksum",
            "invalid_tcp_header",
            "invalid_tcp_flags",
            "invalid_gre",
        ),
        *("invalid_sctp_chunks", "untracked_nd"),
    ),
    "frag": ("fragment", "untracked_fragment"),
    "ct, ct6": (
        *(
            "tracked",
            "related",
            "invalid_tcp_state",
            "invalid_tcp_new",
            "invalid_tcp_window",
            "invalid_tcp_rst",
        ),
        *(
            "invalid_icmp_type",
            "invalid_icmp_error",
            "invalid_sctp_new",
            "invalid_sctp_tag",
            "invalid_sctp_state",
        ),
        *("ignored_tcp_syn", "ignored_tcp_state", "ignored_tcp_window", "ignored_sctp"),
        *("untracked_no_entry", "untracked_rate", "untracked_contended"),
    ),
}
_MEANINGS = dict(chain_counters.OUTCOMES + chain_counters.EVENTS)
#: Why a flow is in its state: what was seen of it last that mattered.
_TCP_WHY = {
    "NONE": "nothing that opens a connection was seen",
    "SYN_SENT": "the initiator sent a SYN, and nobody answered yet",
    "SYN_SENT2": "both sides sent a SYN, and neither answered yet",
    "SYN_RECV": (
        "the SYN was answered with a SYN and ACK, and the initiator did not acknowledge that yet"
    ),
    "ESTABLISHED": "the handshake is complete, or the connection was picked up in the middle",
    "FIN_WAIT": "one side sent a FIN, and the other did not acknowledge it yet",
    "CLOSE_WAIT": "one side sent a FIN and the other acknowledged it, but did not send its own yet",
    "LAST_ACK": "both sides sent a FIN, and the last one is not acknowledged yet",
    "TIME_WAIT": "both sides closed and all is acknowledged",
    "CLOSE": "one side sent a reset",
}
_SCTP_WHY = {
    "CLOSED": "an INIT was seen, or the association is over",
    "COOKIE_WAIT": "the INIT was answered with a cookie",
    "COOKIE_ECHOED": "the initiator sent the cookie back",
    "ESTABLISHED": "the cookie was acknowledged: the association is open",
    "SHUTDOWN_SENT": "the initiator began to close",
    "SHUTDOWN_RECD": "the other side began to close",
    "SHUTDOWN_ACK_SENT": "the closing was acknowledged",
    "HEARTBEAT_SENT": "a heartbeat came over another path and is not acknowledged yet",
}
_PLAIN_WHY = {
    "NEW": "packets were seen in one direction only",
    "REPLIED": "packets were seen in both directions",
    "ESTABLISHED": "packets were seen in both directions for long enough to be a stream",
}
STATES_WHY = {"tcp": _TCP_WHY, "sctp": {**_PLAIN_WHY, **_SCTP_WHY}}


def columns(rows: t.Sequence[t.Sequence[str]], numbers: t.Collection[int] = ()) -> str:
    """Return rows as lines with aligned columns; those with these positions are numbers.

    Cells may come from elsewhere: names of interfaces and namespaces, and what hosts answer. None
    of them makes a line of its own.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    lines = (
        "  ".join(
            cell.rjust(width) if at in numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _listed(numbers: t.Mapping[str, object]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"


def _fullness(pressure: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    return ", ".join(
        f"{name} {one['entries']} of {one['capacity']} ({one['percent']} %)"
        for name, one in pressure.items()
    )


def groups(found: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """Return groups as a table."""
    if not found:
        return "no flows\n"
    names = list(found[0])
    cells = [["" if group[name] is None else str(group[name]) for name in names] for group in found]
    return columns([[name.upper() for name in names], *cells], range(len(names) - 3, len(names)))


def summary(found: t.Mapping[str, t.Any]) -> str:
    """Return the summary of a reading."""
    counters = found["counters"]
    rows = [
        ["flows", str(found["flows"])],
        ["by family", _listed(found["by_family"])],
        ["by protocol", _listed(found["by_proto"])],
        ["by state", _listed(found["by_state"])],
        ["assured", str(found["assured"])],
        ["entries", _fullness(found["pressure"])],
        ["tables", _fullness(found["tables"])],
        ["evicted", f"{counters['evicted']}, of them assured {counters['evicted_assured']}"],
        ["read at", found["clock"]["time"]],
    ]
    return columns(rows)


def stats_record(
    counters: t.Mapping[str, int], evicted: int, guests: t.Mapping[str, t.Mapping[str, int]]
) -> dict[str, t.Any]:
    """Return the counters by stage and reason."""
    return {
        "frames": {
            stage: {name: counters[name] for name in names} for stage, names in STAGES.items()
        },
        "guests": guests,
        "entries": {
            **{name: counters[name] for name, dummy in chain_counters.EVENTS},
            "evicted": evicted,
        },
    }


def stats(
    counters: t.Mapping[str, int],
    evicted: int,
    guests: t.Mapping[str, t.Mapping[str, int]],
    everything: bool,
) -> str:
    """Return the counters as a table.

    :param everything: those that are 0, too.
    """
    found = stats_record(counters, evicted, guests)
    meanings = {**_MEANINGS, "evicted": "entries that made room for others"}
    rows = [["STAGE", "COUNTER", "COUNT", "MEANING"]]
    sections = {
        **found["frames"],
        **{f"guest {name}": counts for name, counts in guests.items()},
        "(events)": found["entries"],
    }
    for stage, numbers in sections.items():
        rows += [
            [stage, name, str(number), meanings.get(name, "")]
            for name, number in numbers.items()
            if number or everything
        ]
    rows.append(
        [
            "(all frames)",
            "",
            str(sum(sum(numbers.values()) for numbers in found["frames"].values())),
            "each is counted once",
        ]
    )
    return columns(rows, (2,))


def why(record: flow.Record, timeouts: t.Mapping[str, int]) -> list[str]:
    """Return why a flow is in its state, is assured or not, and lives as long as it does."""
    state, proto = record["state"], record["proto"]
    said = [f"{state}: {STATES_WHY.get(proto, _PLAIN_WHY).get(state, 'a state without a name')}"]
    if record["assured"]:
        said.append(
            "assured: it was answered as a real one is, so flows that nobody answered do not push"
            " it out"
        )
    elif record["seen_reply"]:
        said.append("not assured: it was answered, but that proves too little")
    else:
        said.append("not assured: nobody answered")
    set_to = record["timeout"] + record["idle"]
    # both are cut to whole seconds
    names = [name for name in _timeouts_of(proto) if set_to <= timeouts.get(name, -1) <= set_to + 1]
    named = (
        f"tcp_{state.lower()}"
        if proto == "tcp"
        else f"sctp_{state.lower()}"
        if proto == "sctp"
        else ""
    )
    name = named if named in names else next(iter(names), "")
    said.append(
        f"over in {record['timeout']} s without a packet"
        + (
            f": the timeout {name} is {timeouts[name]} s, the last packet came {record['idle']}"
            " s ago"
            if name
            else ""
        )
    )
    return said


def _timeouts_of(proto: str) -> list[str]:
    """Return the names of the timeouts that a protocol's flows have."""
    first = {"udplite": "udp"}.get(proto, proto)
    return [
        name for name in chain_settings.TIMEOUTS if name == first or name.startswith(f"{first}_")
    ] or ["generic"]


def flow_in_full(record: flow.Record, timeouts: t.Mapping[str, int]) -> str:
    """Return all that is known of a flow.

    :param record: with its windows.
    :param timeouts: those in force.
    """
    related = record["related"]
    rows = [
        [
            "state",
            record["state"]
            + (", assured" if record["assured"] else "")
            + ("" if record["seen_reply"] else ", unreplied"),
        ],
        *[
            [side, f"{record[side]['packets']} packets, {record[side]['bytes']} bytes"]
            for side in ("orig", "reply")
        ],
        ["related", f"{related['packets']} ICMP errors, {related['bytes']} bytes"],
        ["age", f"{record['age']} s, idle {record['idle']} s, {record['timeout']} s left"],
        [
            "began at",
            record["dir"]
            + (f", VLAN {' '.join(map(str, record['vlan']))}" if record.get("vlan") else ""),
        ],
        *[[f"window {side}", _listed(window)] for side, window in record.get("window", {}).items()],
        *[["why" if not at else "", line] for at, line in enumerate(why(record, timeouts))],
    ]
    return f"{title(record)}\n{columns([['', *row] for row in rows])}"


def _forwarding(found: t.Mapping[str, t.Any] | None) -> list[list[str]]:
    """Return the lines about what is forwarded past the stack; none where nothing is."""
    if found is None:
        return []
    offloads = [
        f"{interface}: {what or 'VLAN offloads not known'}"
        for interface, some in found["vlan_offloads"].items()
        for what in some
    ]
    return [
        ["forwards", found["forward"]],
        ["past", found["past"] or "no ruleset of the forward hook"],
        *[["VLAN tags", line] for line in offloads],
    ]


def _fault_lines(fault: t.Mapping[str, str]) -> list[str]:
    """Return what is wrong, and what repairs it."""
    repair = fault.get("repair")
    return [
        f"{fault['fault']} {fault['object']}: {fault['detail']}",
        *([f"repair: {repair}"] if repair else []),
    ]


def _absence(one: t.Mapping[str, t.Any]) -> str:
    """Return how an interface is that does not run the chain, with the command for the case that
    this is to stay so.
    """
    why = "waits for the interface" if one.get("missing") else "not attached"
    return (
        f"{why} (ct attach {one['interface']} --program PROGRAM, or ct detach {one['interface']})"
        if not one.get("missing")
        else (f"{why} (to forget it: ct detach {one['interface']})")
    )


def status(found: t.Mapping[str, t.Any]) -> str:
    """Return the chain as it is."""
    rows = [
        ["generation", f"{found['generation']}, digest {found['digest']}"],
        ["health", "good" if found["healthy"] else "NOT GOOD"],
        *[["", line] for fault in found["faults"] for line in _fault_lines(fault)],
        [
            "kept",
            ", ".join(
                f"{one['generation']}{' (rolled back from)' if one['rejected'] else ''}"
                for one in found["kept"]
            )
            or "none",
        ],
        [
            "entries",
            _fullness(found["pressure"]) if found["pressure"] else "the tables can not be read",
        ],
        ["pinned at", found["pin_root"]],
        *_forwarding(found.get("forwarding")),
    ]
    interfaces = [
        [one["interface"], one["program"] or "", one["mode"] or _absence(one)]
        for one in found["interfaces"]
    ]
    return columns(rows) + (
        columns([["INTERFACE", "PROGRAM", "MODE"], *interfaces])
        if interfaces
        else "attached to no interface\n"
    )
