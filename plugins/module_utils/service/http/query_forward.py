# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QueryForward, the one request of the original: its JSON, and a flow as its line of text."""

from __future__ import annotations

import json

from ...flows import codec as flow
from ...flows import output as flow_output
from .request import Refusal

_OK, _FAILED = 200, 500
_BAD_JSON, _BAD_ACTION, NO_ANSWER = 1100, 1101, 1201
#: The states under the names that the original has for them; others are the record's in lower case.
_STATES = {"ESTABLISHED": "est", "REPLIED": "rpl"}


def refusal(status: int, code: int, message: str, trace: str = "") -> Refusal:
    """Return the refusal that a client of the original reads."""
    said = {
        "errors": [{"code": code, "msg": message}],
        "code": _FAILED,
        **({"traceId": trace} if trace else {}),
    }
    return Refusal(status, message, body=said)


def parse(body: bytes) -> str:
    """Return what the client calls its request, "" where it does not.

    :raises Refusal: where it is no request that the original knows.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or not isinstance(asked.get("traceId", ""), str):
        raise refusal(
            400, _BAD_JSON, 'the body is no request in JSON: send {"action": "QueryForward"}.'
        )
    trace, action = asked.get("traceId", ""), asked.get("action", "")
    if any("\ud800" <= sign <= "\udfff" for sign in trace):
        raise refusal(
            400,
            _BAD_JSON,
            f"traceId: {trace[:100]!r} is not valid: half of a surrogate pair is no text; leave"
            " it out.",
        )
    if action != "QueryForward":
        shown = repr(action[:100]) if isinstance(action, str) else "what is given"
        raise refusal(400, _BAD_ACTION, f"action: {shown} is not known: send QueryForward.", trace)
    return str(trace)


def line_of(shape: flow.Shape, v: flow.Values) -> str:
    """Return a flow as the original's answer has it: first what the initiator sends, then what
    comes back.

    ``rx`` is what the initiator sent, ``tx`` what it got. ICMP errors that quote the flow are
    counted for both directions together, and stand with the first.
    """
    state = _STATES.get(shape.state, shape.state.lower())
    # the id of an ICMP query is the port of the side that asks
    ports = (
        (v[flow.SPORT], v[flow.DPORT])
        if shape.ported
        else (v[flow.SPORT], 0)
        if shape.icmp
        else (0, 0)
    )

    def half(
        first: int, ports: tuple[object, object], way: str, packets: object, octets: object
    ) -> str:
        src, dst, dummy, dummy, number, size = v[first : first + 6]
        return (
            f"{state} period={v[flow.TIMEOUT]} src={src} dst={dst} sport={ports[0]}"
            f" dport={ports[1]} {way}bytes={size} {way}pkts={number} {way}relbytes={octets}"
            f" {way}relpkts={packets}"
        )

    there = half(flow.SRC, ports, "rx", v[flow.RELATED_PACKETS], v[flow.RELATED_BYTES])
    return f"{shape.proto} {there} {half(flow.REPLY_SRC, (ports[1], ports[0]), 'tx', 0, 0)}"


class ForwardWriter(flow_output.JsonWriter):
    """The answer to QueryForward: an object whose ``Conn`` has a line for each flow.

    :param trace: what the client calls its request.
    """

    def __init__(self, trace: str) -> None:
        super().__init__()
        self._head = flow_output.dumps(
            {"code": _OK, **({"traceId": trace} if trace else {}), "Conn": []}
        )[:-2]

    def begin(self) -> bytes:
        """Return all that stands before the first line."""
        return self._head.encode()

    def line(self, item: flow.Flow) -> str:
        """Return the line of one flow, with what parts it from the one before."""
        return ",\n" + flow_output.dumps(line_of(item[0], item[1]))

    def end(self) -> bytes:
        """Close the list and the object."""
        return super().end()[:-1] + b"}\n"
