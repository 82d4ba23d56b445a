# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request asks for: its target and the words of its query; and how it is refused."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import typing as t
import urllib.parse

from ...core.errors import ConntrackError, bad_value
from ...flows import output as flow_output
from . import head as http_head

_QUERY_FIELDS = 500
#: What may stand once in a query of /flows, besides the words of flows.filter.
FORM_WORDS = ("output", "extended", "window")
#: A target that is a whole URL: whom it is for, and the rest.
_URL = re.compile(r"[Hh][Tt][Tt][Pp]://([^/?]*)(.*)")


class Refusal(ConntrackError):
    """A request that is answered with an error.

    :param status: of HTTP.
    :param headers: that go with it.
    :param body: what the answer holds besides the sentence.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: t.Mapping[str, str] | None = None,
        body: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers, self.body = status, headers or {}, body or {}


def error_body(message: str, more: t.Mapping[str, t.Any] | None = None) -> bytes:
    """Return the body of an answer that says what is wrong."""
    # half of a surrogate pair, which only a client can have sent, is written as JSON writes it
    return f"{flow_output.dumps({**(more or {}), 'error': message})}\n".encode(
        errors="backslashreplace"
    )


class Target(t.NamedTuple):
    """What a request is for.

    :ivar host: that the target itself names, None where it does not.
    """

    path: str
    query: str
    host: str | None = None


def parse_target(target: str) -> Target:
    """Return what a request target (RFC 9112 section 3.2) names: a path, or a whole URL as a proxy
    gets it.

    >>> parse_target("/flows?proto=tcp")
    Target(path='/flows', query='proto=tcp', host=None)
    >>> parse_target("http://ct/healthz")
    Target(path='/healthz', query='', host='ct')

    :raises ConntrackError: for what is neither.
    """
    if "#" in target:
        raise ConntrackError(
            f"{target[:100]!r} has a fragment (#), which is no part of a request; leave it out, or"
            " write %23."
        )
    host = None
    if not target.startswith("/") and "://" in target:
        found = _URL.fullmatch(target)
        host = found.group(1) if found else ""
        if found is None or not host or not http_head.valid_host(host):
            raise ConntrackError(
                f"{target[:100]!r} is no address of anything here; give a path, as /flows."
            )
        target = found.group(2) if found.group(2).startswith("/") else f"/{found.group(2)}"
    path, dummy, query = target.partition("?")
    return Target(path, query, host)


def parse_words(query: str, known: t.Collection[str]) -> dict[str, t.Any]:
    """Return the words of a query string as flow_filter takes them: lists of what stands between
    commas, or was given again.

    >>> parse_words("proto=tcp,udp&dport=80&dport=443&limit=5", ("proto", "dport", "limit"))
    {'proto': ['tcp', 'udp'], 'dport': ['80', '443'], 'limit': '5'}

    :raises ConntrackError: for a word that is not known, or one that is given twice and may not be.
    """
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
    except ValueError:
        raise ConntrackError(f"the query has more than {_QUERY_FIELDS} words.") from None
    found: dict[str, t.Any] = {}
    for word, value in pairs:
        if word not in known:
            raise ConntrackError(
                f"{word} is no word of this query. "
                + (f"Give some of {', '.join(known)}." if known else "It takes none.")
            )
        if word == "assured" and not value:
            value = "true"
        if word in ("limit", "sort", *FORM_WORDS):
            if word in found:
                raise bad_value(word, value, "it is given twice; give it once")
            found[word] = value
        else:
            found.setdefault(word, []).extend(value.split(","))
    return found


@contextlib.contextmanager
def check_request() -> t.Iterator[None]:
    """Around what only looks at the request: an error there is the client's."""
    try:
        yield
    except Refusal:
        raise
    except ConntrackError as exc:
        raise Refusal(400, exc.message) from exc


def parse_or_refuse(text: str, known: t.Collection[str]) -> dict[str, t.Any]:
    """Return the words of a query; see parse_words().

    :raises Refusal: when they are wrong.
    """
    with check_request():
        return parse_words(text, known)


def is_loopback(host: str) -> bool:
    """Whether a header Host names this host by a loopback address."""
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname
        return name == "localhost" or ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False
