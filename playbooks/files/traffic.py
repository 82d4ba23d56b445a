# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send known traffic between two network namespaces, and print the flows that a tracker between
them must show, as JSON.

    python3 traffic.py ns1 ns2 172.30.56.105

A TCP connection with a request and a response, a UDP exchange and ICMP echoes, all begun in the
first namespace. Each flow is printed as the part of its record (as M(ebpf.conntrack.ct_flows)
returns it) that is known for sure.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import sys
import typing as t

SECONDS = 5  # to wait for any answer
TCP_PORT, UDP_PORT = 8080, 5353
REQUEST, RESPONSE = 300, 1200  # bytes; each fits one segment
ROUNDS = 3  # of UDP and echo
IP_UDP_HEADERS = IP_ICMP_HEADERS = 28
IP_TCP_HEADERS = 20 + 32  # with the timestamps option
SYN_EXTRA = 8  # a SYN has 20 bytes of options, the other segments 12

_TCPI_OPTIONS = 5  # offsets in struct tcp_info (include/uapi/linux/tcp.h)
_TCPI_SEGS = 136  # tcpi_segs_out, tcpi_segs_in
_TCPI_OPT_TIMESTAMPS = 1
_ECHO_REQUEST, _ECHO_REPLY = 8, 0

Flow = dict[str, t.Any]


@contextlib.contextmanager
def inside(netns: str) -> t.Iterator[None]:
    """Be in a named namespace; sockets made there stay there. (os.setns: Python 3.12 on.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{netns}", "rb") as there:
        if libc.setns(there.fileno(), 0) != 0:
            raise OSError(
                ctypes.get_errno(), f"entering {netns}: {os.strerror(ctypes.get_errno())}"
            )
        try:
            yield
        finally:
            libc.setns(home.fileno(), 0)


def make(netns: str, kind: int, proto: int = 0) -> socket.socket:
    """Return an IPv4 socket that belongs to the namespace and waits no longer than SECONDS."""
    with inside(netns):
        made = socket.socket(socket.AF_INET, kind, proto)
    made.settimeout(SECONDS)
    return made


def serve(netns: str, kind: int, address: str, port: int) -> socket.socket:
    """Return a socket bound to the port, or to any other when that one is taken."""
    made = make(netns, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((address, port))
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        made.bind((address, 0))
    return made


def read(connection: socket.socket, size: int) -> None:
    """Read so many bytes, or with 0 the end."""
    while True:
        got = connection.recv(size or 1)
        if not got or len(got) == size:
            break
        size -= len(got)
    if bool(got) != bool(size):
        raise OSError(
            errno.ECONNABORTED,
            "the connection ended too early" if size else "there is more data than was sent",
        )


def tcp(client_netns: str, server_netns: str, address: str) -> Flow:
    """Open, ask, answer, close from the client's side."""
    with (
        serve(server_netns, socket.SOCK_STREAM, address, TCP_PORT) as listener,
        make(client_netns, socket.SOCK_STREAM) as client,
    ):
        listener.listen(1)
        client.connect(listener.getsockname())
        ends = {"sport": client.getsockname()[1], "dport": listener.getsockname()[1]}
        server, dummy = listener.accept()
        with server:
            server.settimeout(SECONDS)
            client.sendall(bytes(REQUEST))
            read(server, REQUEST)
            server.sendall(bytes(RESPONSE))
            read(client, RESPONSE)
            client.shutdown(socket.SHUT_WR)
            read(server, 0)
            server.shutdown(socket.SHUT_WR)
            read(client, 0)
            info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    out, back = struct.unpack_from("=II", info, _TCPI_SEGS)
    orig, reply = {**ends, "packets": out}, {"packets": back}
    if info[_TCPI_OPTIONS] & _TCPI_OPT_TIMESTAMPS:
        orig["bytes"] = REQUEST + SYN_EXTRA + IP_TCP_HEADERS * out
        reply["bytes"] = RESPONSE + SYN_EXTRA + IP_TCP_HEADERS * back
    return {"proto": "tcp", "state": "TIME_WAIT", "assured": True, "orig": orig, "reply": reply}


def udp(client_netns: str, server_netns: str, address: str) -> Flow:
    """Ask and answer ROUNDS times."""
    with (
        serve(server_netns, socket.SOCK_DGRAM, address, UDP_PORT) as server,
        make(client_netns, socket.SOCK_DGRAM) as client,
    ):
        client.connect(server.getsockname())
        for dummy in range(ROUNDS):
            client.send(bytes(REQUEST))
            dummy_data, peer = server.recvfrom(REQUEST)
            server.sendto(bytes(RESPONSE), peer)
            client.recv(RESPONSE)
        ends = {"sport": client.getsockname()[1], "dport": server.getsockname()[1]}
    return {
        "proto": "udp",
        "state": "REPLIED",
        "orig": {**ends, "packets": ROUNDS, "bytes": ROUNDS * (REQUEST + IP_UDP_HEADERS)},
        "reply": {"packets": ROUNDS, "bytes": ROUNDS * (RESPONSE + IP_UDP_HEADERS)},
    }


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmp(client_netns: str, dummy_server_netns: str, address: str) -> Flow:
    """Send ROUNDS echo requests, each after the answer to the one before."""
    ident = os.getpid() & 0xFFFF
    with make(client_netns, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        client.connect((address, 0))
        for sequence in range(ROUNDS):
            body = struct.pack("!HH", ident, sequence) + bytes(REQUEST)
            client.send(
                struct.pack(
                    "!BBH",
                    _ECHO_REQUEST,
                    0,
                    checksum(struct.pack("!BBH", _ECHO_REQUEST, 0, 0) + body),
                )
                + body
            )
            while True:
                packet = client.recv(65536)
                answer = packet[(packet[0] & 0xF) * 4 :]
                if answer[0] == _ECHO_REPLY and answer[4:] == body:
                    break
    side = {"packets": ROUNDS, "bytes": ROUNDS * (REQUEST + IP_ICMP_HEADERS)}
    return {
        "proto": "icmp",
        "state": "REPLIED",
        "icmp": {"type": _ECHO_REQUEST, "code": 0, "id": ident},
        "orig": side,
        "reply": side,
    }


def main() -> None:
    """Send everything and say what was sent."""
    parser = argparse.ArgumentParser(
        description="Send known traffic between two network namespaces."
    )
    parser.add_argument("client", help="namespace that begins the flows")
    parser.add_argument("server", help="namespace that answers")
    parser.add_argument("address", help="IPv4 address of the server")
    args = parser.parse_args()
    flows = []
    for send in (icmp, udp, tcp):
        try:
            flows.append(send(args.client, args.server, args.address))
        except socket.timeout:
            sys.exit(
                f"{send.__name__}: no answer from {args.address} in {args.server} within {SECONDS}"
                " s. Is the lab up, and does no firewall stand between?"
            )
        except OSError as exc:
            sys.exit(
                f"{send.__name__}, from {args.client} to {args.address} in {args.server}: {exc}. Is"
                " the lab up, and is this root?"
            )
    print(json.dumps({"flows": flows}))


if __name__ == "__main__":
    main()
