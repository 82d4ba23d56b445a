# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses, query strings and the original's answer; what is served is tested in tests/e2e."""

from __future__ import annotations

import json
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import filter as flow_filter
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.fresh import Fresh
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import query_forward
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    request as http_request,
)
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("127.0.0.1:9477", "127.0.0.1", 9477),
        ("127.8.8.8:0", "127.8.8.8", 0),
        ("[::1]:80", "::1", 80),
        ("localhost:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_loopback_addresses(listen: str, host: str, port: int) -> None:
    assert service_options.parse_address(listen=listen) == service_options.Address(
        "", "", host, port
    )


@pytest.mark.parametrize(
    "listen",
    [
        *(
            "0.0.0.0:80",
            "[::]:80",
            "192.0.2.1:80",
            "example.org:80",
            ":80",
            "80",
            "",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:http",
        ),
        *(
            "127.0.0.1:65536",
            "127.0.0.1:-1",
            "127.0.0.1:١",
            "localhost",
            "[127.0.0.1:80",
            "2130706433:80",
        ),
    ],
)
def test_no_other_addresses(listen: str) -> None:
    with pytest.raises(ConntrackError, match="^listen: .* is not valid: give a"):
        service_options.parse_address(listen=listen)


def test_a_socket_or_an_address() -> None:
    assert service_options.parse_address() == service_options.Address(
        "/run/ebpf_conntrack/ct.sock", "", "", 0
    )
    assert service_options.parse_address("/run/a", group="root") == service_options.Address(
        "/run/a", "root", "", 0
    )
    for words, said in (
        ({"path": "ct.sock"}, "socket: 'ct.sock' is not valid: give the absolute path"),
        ({"path": "/run/../ct.sock"}, "give the absolute path"),
        ({"path": f"/{'x' * 107}"}, "of 107 bytes at most"),
        ({"path": "/run/a", "listen": "127.0.0.1:1"}, "exclude each other"),
        ({"listen": "127.0.0.1:1", "group": "root"}, "only a socket has one"),
        ({"listen": "[::1%\nExecStartPre=/bin/sh]:80"}, "give a loopback address and a port"),
        ({"path": "/run/a\nb"}, "without white space"),
        ({"path": "//run/a"}, "give the absolute path"),
        (
            {"group": "no_such_group"},
            "there is no such group; make it: groupadd --system no_such_group",
        ),
    ):
        with pytest.raises(ConntrackError) as caught:
            service_options.parse_address(**words)
        assert said in caught.value.message


def test_words_of_a_query() -> None:
    known = (*flow_filter.QUERY_WORDS, *http_request.FORM_WORDS)
    assert http_request.parse_words("", known) == {}
    assert http_request.parse_words(
        "proto=tcp&proto=udp,icmp&src=2001%3Adb8%3A%3A%2F32&assured&limit=5&sort=-bytes&fields=src,dst",
        known,
    ) == {
        "proto": ["tcp", "udp", "icmp"],
        "src": ["2001:db8::/32"],
        "assured": ["true"],
        "limit": "5",
        "sort": "-bytes",
        "fields": ["src", "dst"],
    }
    assert http_request.parse_words("proto=", known) == {"proto": [""]}, (
        "an empty filter is not taken for none"
    )
    for text, said in (
        ("Proto=tcp", "Proto is no word"),
        ("output=json&output=csv", "given twice"),
        ("&".join(["port=1"] * 501), "more than 500 words"),
    ):
        with pytest.raises(ConntrackError) as caught:
            http_request.parse_words(text, known)
        assert said in caught.value.message


def written(
    trace: str, *entries: tuple[bytes, bytes], table: flow.Table = fakes.TABLES[0]
) -> dict[str, t.Any]:
    """The original's answer, by way of the templates that a large table goes through."""
    writer = query_forward.ForwardWriter(trace)
    assert writer.as_bytes
    decoder = flow.Decoder(table, fakes.CLOCK, as_bytes=True)
    flows = [one for key, value in entries for one in decoder.flows(decoder.rows(key, value))]
    return t.cast(
        "dict[str, t.Any]",
        json.loads(
            writer.begin() + writer.write(flows[:1]) + writer.write(flows[1:]) + writer.end()
        ),
    )


def test_the_originals_answer() -> None:
    tcp = fakes.entry(related=(2, 120))
    backwards = fakes.entry(
        src="172.30.56.105",
        dst="172.20.56.105",
        sport=5000,
        dport=53,
        proto=fakes.UDP,
        ctl=0,
        orig=(1, 60),
        reply=(0, 0),
        left=30,
    )
    ping = fakes.entry(
        sport=77,
        dport=8 << 8,
        proto=fakes.ICMP,
        ctl=fakes.REAL & 0x10,
        orig=(3, 252),
        reply=(3, 252),
        left=29,
    )
    found = written('a"b', tcp, backwards, ping)
    assert found == {
        "code": 200,
        "traceId": 'a"b',
        "Conn": [
            (
                "tcp est period=431994 src=172.20.56.105 dst=172.30.56.105 sport=41234 dport=8080"
                " rxbytes=431 rxpkts=6 rxrelbytes=120 rxrelpkts=2 est period=431994"
                " src=172.30.56.105 dst=172.20.56.105 sport=8080 dport=41234 txbytes=1210 txpkts=4"
                " txrelbytes=0 txrelpkts=0"
            ),
            (
                "udp new period=30 src=172.30.56.105 dst=172.20.56.105 sport=5000 dport=53"
                " rxbytes=60 rxpkts=1 rxrelbytes=0 rxrelpkts=0 new period=30 src=172.20.56.105"
                " dst=172.30.56.105 sport=53 dport=5000 txbytes=0 txpkts=0 txrelbytes=0 txrelpkts=0"
            ),
            (
                "icmp rpl period=29 src=172.20.56.105 dst=172.30.56.105 sport=77 dport=0"
                " rxbytes=252 rxpkts=3 rxrelbytes=0 rxrelpkts=0 rpl period=29 src=172.30.56.105"
                " dst=172.20.56.105 sport=0 dport=77 txbytes=252 txpkts=3 txrelbytes=0 txrelpkts=0"
            ),
        ],
    }
    assert written("") == {"code": 200, "Conn": []}


def test_who_asks_meanwhile_gets_what_began_after_it_asked() -> None:
    begun: list[float] = []

    def make() -> float:
        begun.append(time.monotonic())
        time.sleep(0.05)
        return begun[-1]

    fresh = Fresh(make)
    got: list[tuple[float, float]] = []

    def ask() -> None:
        asked = time.monotonic()
        got.append((asked, fresh.get()))

    threads = [threading.Thread(target=ask) for dummy in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 10 and all(began >= asked for asked, began in got) and len(begun) < 10
    ask()
    assert got[-1][1] >= got[-1][0], "nothing old is ever told"
