# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of xdp_program: what it sends to a target, and what it refuses before
anything is sent.
"""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.action import xdp_program
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.build.object import Target
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import capture

pytest.importorskip("jinja2")

SOURCES = pathlib.Path(xdp_program.SOURCES)
#: What a pipe holds, less what else a module that starts itself again writes into it.
PIPE_BYTES = 64 * 1024 - 12 * 1024


def sent(args: dict[str, t.Any]) -> dict[str, t.Any]:
    return xdp_program.rendered(args, lambda path: str(pathlib.Path("/playbook") / path))


def refusal(args: dict[str, t.Any]) -> str:
    with pytest.raises(ConntrackError) as raised:
        sent(args)
    return raised.value.message


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"state": "present"},
        {"state": None},
        {"table_size": "4096"},
        {"table_size": None, "src": ""},
    ],
)
def test_the_rendered_chain_goes_along(args: dict[str, t.Any]) -> None:
    found = sent(args)
    text, headers = render.unpack(found.pop("rendered"))
    assert found == args
    assert text == render.render(
        str(SOURCES), render.Settings(table_size=int(args.get("table_size") or 65536))
    )
    assert headers == render.read_headers(str(SOURCES))


def test_it_fits_the_pipe_of_a_module_that_starts_itself_again() -> None:
    for args in (
        {},
        {"fused": True, "checksum": "strict"},
        {"fused": True, "forward": "all", "forward_unfiltered": True, "events": True},
    ):
        assert len(sent(args)["rendered"]) < PIPE_BYTES


@pytest.mark.parametrize("name", ["fused", "events"])
def test_switches_are_compiled_in(name: str) -> None:
    for given, meant in ((True, True), ("yes", True), ("no", False), (None, False)):
        compiled: dict[str, t.Any] = {name: meant}
        assert render.unpack(sent({name: given})["rendered"])[0] == render.render(
            str(SOURCES), render.Settings(**compiled)
        )
    with pytest.raises(ConntrackError, match=f"{name}: 'some' is not valid: give true or false"):
        xdp_program.settings_of({name: "some"})


def test_absent_renders_nothing() -> None:
    args = {"state": "absent", "src": "/nowhere", "table_size": "many"}
    assert sent(args) == args


def test_the_task_is_left_alone() -> None:
    args: dict[str, t.Any] = {"table_size": 4096}
    sent(args)
    assert args == {"table_size": 4096}


def test_other_sources_are_found_from_the_playbook(tmp_path: pathlib.Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "bpf", ignore=shutil.ignore_patterns("stub"))
    with (tmp_path / "bpf/stages/ct.c").open("a", encoding="utf-8") as file:
        file.write("/* mine */\n")
    found = xdp_program.rendered({"src": "bpf"}, lambda path: str(tmp_path / path))
    text, headers = render.unpack(found["rendered"])
    assert "/* mine */" in text
    assert headers == render.read_headers(str(SOURCES)), (
        "without headers of their own they take the collection's"
    )


def test_guests_are_found_from_the_playbook_and_then_in_the_collection(
    tmp_path: pathlib.Path,
) -> None:
    args = {"guests": [{"slot": "acl", "src": "acl.c"}]}
    text, dummy = render.unpack(sent(args)["rendered"])
    assert (SOURCES / "guests/acl.c").read_text(encoding="utf-8") in text
    (tmp_path / "acl.c").write_text(
        "GUEST(mine)\n{\n\treturn guest_next(ctx);\n}\n", encoding="utf-8"
    )
    found = xdp_program.rendered(args, lambda path: str(tmp_path / path))
    assert found["guests"] == args["guests"]
    text, dummy = render.unpack(found["rendered"])
    assert "GUEST(mine)" in text and "GUEST(acl)" not in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"guests": "acl"}, "guests: 'acl' is not valid: give a list."),
        (
            {"guests": [{"slot": "acl", "src": "none.c"}]},
            "guests[0].src: /playbook/none.c can not be read: No such file or directory.",
        ),
        ({"rendered": "x"}, "rendered: it is filled in from src and can not be given."),
        (
            {"state": "absent", "rendered": None},
            "rendered: it is filled in from src and can not be given.",
        ),
        (
            {"replay_frames": "/x"},
            "replay_frames: it is filled in from replay.frames and can not be given.",
        ),
        ({"table_size": "many"}, "table_size: 'many' is not valid: give a whole number."),
        ({"table_size": True}, "table_size: True is not valid: give a whole number."),
        ({"table_size": 1.5}, "table_size: 1.5 is not valid: give a whole number."),
        ({"table_size6": 3}, "table_size6: 3 is not valid: give 16 to 67108864 entries."),
        (
            {"src": "none"},
            (
                "src: '/playbook/none' is not valid: give a readable directory that holds the"
                " chain's sources."
            ),
        ),
    ],
)
def test_bad_input(args: dict[str, t.Any], message: str) -> None:
    assert refusal(args) == message


# ---------------------------------------------------------------- the frames that are to be replaye
def replayed(args: dict[str, t.Any]) -> list[capture.Packet] | None:
    data = xdp_program.frames(args, lambda path: str(pathlib.Path("/playbook") / path))
    return None if data is None else capture.read(io.BytesIO(data), "sent", 100000)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"verify": "probe"},
        {"verify": None, "replay": {"frames": "/nowhere"}},
        {"verify": "replay", "state": "absent"},
    ],
)
def test_no_frames_go_along(args: dict[str, t.Any]) -> None:
    assert replayed(args) is None


def test_the_collections_own_frames_go_along() -> None:
    with open(xdp_program.CAPTURE, "rb") as source:
        whole = capture.read(source, "", 100000)
    assert (
        replayed({"verify": "replay"})
        == replayed({"verify": "replay", "replay": {"frames": None, "limit": None}})
        == whole
    )
    assert replayed({"verify": "replay", "replay": {"limit": "7"}}) == whole[:7]


def test_a_capture_goes_along_as_far_as_it_is_wanted(tmp_path: pathlib.Path) -> None:
    packets = [capture.Packet(bytes([number]) * 60, number) for number in range(5)]
    (tmp_path / "x.pcap").write_bytes(capture.write(packets))
    assert (
        replayed({"verify": "replay", "replay": {"frames": str(tmp_path / "x.pcap"), "limit": 3}})
        == packets[:3]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x.pcap", "replay: 'x.pcap' is not valid: give a dictionary."),
        ({"limit": "all"}, "replay.limit: 'all' is not valid: give a whole number."),
        ({"limit": 0}, "replay.limit: 0 is not valid: give 1 to 100000 frames."),
        (
            {"frames": "none.pcap"},
            (
                "replay.frames: '/playbook/none.pcap' is not valid: give a readable capture: No"
                " such file or directory."
            ),
        ),
        (
            {"frames": "/etc"},
            "replay.frames: '/etc' is not valid: give a readable capture: Is a directory.",
        ),
        (
            {"frames": xdp_program.SOURCES + "/stages/ct.c"},
            (
                f"replay.frames: {xdp_program.SOURCES}/stages/ct.c: at byte 0: 2f2f2053 is not the"
                " start of a pcap or pcapng file."
            ),
        ),
    ],
)
def test_bad_captures(options: t.Any, message: str) -> None:
    with pytest.raises(ConntrackError) as raised:
        replayed({"verify": "replay", "replay": options})
    assert raised.value.message == message


# ---------------------------------------------------------------- the action itself
class Loader:
    """Finds paths as the playbook's loader does."""

    def path_dwim(self, path: str) -> str:
        return f"/playbook/{path}"


class Task:
    """A task with these arguments."""

    def __init__(self, args: dict[str, t.Any]) -> None:
        self.args = args


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[dict[str, t.Any]], dict[str, t.Any]]:
    """Run the action with a module that returns what it was called with."""

    def execute(
        dummy: t.Any, module_name: str, module_args: dict[str, t.Any], task_vars: t.Any
    ) -> dict[str, t.Any]:
        return {
            "changed": True,
            "called": module_name,
            "got": dict(module_args),
            "invocation": {"module_args": module_args},
        }

    def act(args: dict[str, t.Any]) -> dict[str, t.Any]:
        action = object.__new__(xdp_program.ActionModule)
        action._task, action._loader = Task(args), Loader()
        return action.run(None, {})

    monkeypatch.setattr(xdp_program.ActionBase, "run", lambda *dummy: {})
    monkeypatch.setattr(xdp_program.ActionModule, "_execute_module", execute)
    return act


def test_the_module_is_run_by_its_full_name(
    run: t.Callable[[dict[str, t.Any]], dict[str, t.Any]],
) -> None:
    result = run({"table_size": 4096})
    assert (result["changed"], result["called"], result["got"]["table_size"]) == (
        True,
        "ebpf.conntrack.xdp_program",
        4096,
    )
    assert result["got"]["rendered"]
    assert result["invocation"]["module_args"] == {"table_size": 4096}, (
        "what nobody wants to read is not shown"
    )


def test_what_is_wrong_fails_before_the_module_is_run(
    run: t.Callable[[dict[str, t.Any]], dict[str, t.Any]],
) -> None:
    assert run({"table_size": 3}) == {
        "failed": True,
        "msg": "table_size: 3 is not valid: give 16 to 67108864 entries.",
    }


# ---------------------------------------------------------------- objects
TARGET = Target("x86_64", "little")
DATA = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\xf7\x00" + bytes(40)


def put(directory: pathlib.Path, args: dict[str, t.Any], **changes: t.Any) -> str:
    """Put an object for a task's chain into a directory; return what it is called."""
    text, headers = render.unpack(sent(args)["rendered"])
    settings = xdp_program.settings_of(args)
    digest = build_clang.wanted(text, headers, xdp_program.prelude_of(str(SOURCES)), TARGET)
    made_of = {
        "digest": digest,
        "sources": object_file.sources_digest(text, headers),
        "settings": object_file.settings_of(settings, text),
        "compiler": {"name": "clang", "version": "14.0.6"},
        "target": TARGET._asdict(),
        "layout": chain_layout.LAYOUT_VERSION,
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "bytes": len(DATA),
        "kernel": [],
        **changes,
    }
    object_file.write(str(directory), object_file.Built(object_file.Manifest(**made_of), DATA))
    return digest


def taken(args: dict[str, t.Any], target: Target = TARGET) -> object_file.Built:
    return xdp_program.object_for(args, sent(args)["rendered"], target, str)


def test_the_object_that_fits_is_taken(tmp_path: pathlib.Path) -> None:
    plain: dict[str, t.Any] = {"build": "object", "objects": str(tmp_path)}
    other = {**plain, "fused": True, "guests": [{"slot": "acl", "src": "acl.c"}]}
    digests = [put(tmp_path, plain), put(tmp_path, other)]
    assert [
        taken(args).manifest.digest for args in (plain, {**plain, "table_size": 1024}, other)
    ] == [digests[0], *digests]
    with pytest.raises(ConntrackError) as raised:
        taken({**plain, "checksum": "strict"})
    message = raised.value.message
    assert message.startswith(f"objects: {tmp_path} has not the object that is wanted, ")
    assert (
        "(checksum strict, fused false, forward off, events false, guests none; x86_64, little"
        " endian)" in message
    )
    assert (
        f"{digests[1]} (checksum offload, fused true, forward off, events false, guests acl in slot"
        " 4; x86_64, little endian)" in message
    )
    assert (
        "Make it with ebpf.conntrack.xdp_object and the same options, or the playbook build.yml,"
        f" with dest: {tmp_path}." in message
    )
    with pytest.raises(ConntrackError, match="aarch64, little endian.. It has "):
        taken(plain, Target("aarch64", "little"))


def test_an_empty_directory_says_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConntrackError, match="It has no object at all. Make it with"):
        taken({"build": "object", "objects": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "its sha256 is "),
        ({"sources": "0" * 32}, "it was made of other sources, "),
        ({"layout": chain_layout.LAYOUT_VERSION + 1}, "its maps have layout "),
        (
            {"target": {"machine": "s390x", "byteorder": "big"}},
            "it was made for s390x, big endian; the target is x86_64, little endian",
        ),
    ],
)
def test_what_does_not_fit_is_not_sent(
    changes: dict[str, t.Any], words: str, tmp_path: pathlib.Path
) -> None:
    args = {"build": "object", "objects": str(tmp_path)}
    put(tmp_path, args, **changes)
    with pytest.raises(ConntrackError, match=words):
        taken(args)


def test_what_is_not_signed_is_not_sent(tmp_path: pathlib.Path) -> None:
    (tmp_path / "signers").write_text("ops ssh-ed25519 AAAA\n", encoding="utf-8")
    args = {"build": "object", "objects": str(tmp_path), "signers": str(tmp_path / "signers")}
    put(tmp_path, args)
    with pytest.raises(ConntrackError, match="it is not signed, "):
        taken(args)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_what_is_verified_is_what_is_sent(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the directory has the signed manifest, an unsigned one with another
    object, and the time in between.
    """
    objects = tmp_path / "objects"
    args = {"build": "object", "objects": str(objects), "signers": str(tmp_path / "signers")}
    digest = put(objects, args)
    manifest = objects / f"{digest}.json"
    for words in (
        ("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"),
        ("-Y", "sign", "-f", tmp_path / "key", "-n", "ebpf-conntrack", manifest),
    ):
        subprocess.run(["ssh-keygen", *map(str, words)], check=True, capture_output=True)
    (tmp_path / "signers").write_text(
        f"ops {(tmp_path / 'key.pub').read_text(encoding='utf-8')}", encoding="utf-8"
    )
    signed = manifest.read_text(encoding="utf-8")
    assert taken(args).manifest.as_text() == signed
    evil = taken({name: value for name, value in args.items() if name != "signers"}).data + b"evil"
    (objects / f"{digest}.o").write_bytes(evil)
    found = {**json.loads(signed), "sha256": hashlib.sha256(evil).hexdigest(), "bytes": len(evil)}
    manifest.write_text(json.dumps(found), encoding="utf-8")
    parse = object_file.parse

    def swapped(text: str, where: str) -> object_file.Manifest:
        """Put the signed manifest back once the other one is read."""
        made = parse(text, where)
        if where == str(manifest):
            manifest.write_text(signed, encoding="utf-8")
        return made

    monkeypatch.setattr(object_file, "parse", swapped)
    with pytest.raises(ConntrackError, match="its signature is not good"):
        taken(args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"build": "gcc"}, "build: 'gcc' is not valid: give one of bcc, clang, object."),
        (
            {"build": "object"},
            (
                "objects: it is missing: build: object takes the object from that directory on the"
                " controller."
            ),
        ),
        (
            {"build": "clang", "objects": "x"},
            "objects: 'x' is not valid: it belongs to build: object, and this is build: clang.",
        ),
        (
            {"compiler": "clang-16"},
            (
                "compiler: 'clang-16' is not valid: it belongs to build: clang, and this is build:"
                " bcc."
            ),
        ),
        ({"object_file": "/x"}, "object_file: it is filled in from build and can not be given."),
    ],
)
def test_builds_that_make_no_sense(
    run: t.Callable[[dict[str, t.Any]], dict[str, t.Any]], args: dict[str, t.Any], message: str
) -> None:
    assert run(args) == {"failed": True, "msg": message}


def test_an_object_goes_along_when_the_module_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """And not before: a run that changes nothing takes one call, and sends nothing."""
    calls: list[dict[str, t.Any]] = []
    files: dict[str, bytes] = {}

    def execute(
        dummy: t.Any, module_name: str, module_args: dict[str, t.Any], task_vars: t.Any
    ) -> dict[str, t.Any]:
        calls.append(dict(module_args))
        if len(calls) == 1 and asks:
            return {
                "changed": False,
                "object_wanted": TARGET._asdict(),
                **({"plan": ["load"]} if foretells else {}),
            }
        return {"changed": bool(asks), "invocation": {"module_args": module_args}}

    def send(dummy: t.Any, name: str, data: bytes) -> str:
        files[name] = data
        return f"/tmp/{name}"

    monkeypatch.setattr(xdp_program.ActionBase, "run", lambda *dummy: {})
    monkeypatch.setattr(xdp_program.ActionModule, "_execute_module", execute)
    monkeypatch.setattr(xdp_program.transfer, "send", send)
    monkeypatch.setattr(Loader, "path_dwim", lambda dummy, path: path)
    args: dict[str, t.Any] = {"build": "object", "objects": str(tmp_path)}
    action = object.__new__(xdp_program.ActionModule)
    action._task, action._loader = Task(args), Loader()
    asks = foretells = False
    assert action.run(None, {})["changed"] is False and len(calls) == 1 and files == {}
    asks = True
    calls.clear()
    assert (
        "has not the object that is wanted" in action.run(None, {})["msg"]
        and len(calls) == 1
        and files == {}
    )
    put(tmp_path, args)
    calls.clear()
    result = action.run(None, {})
    assert result["changed"] and "object_wanted" not in result and files == {"object_file": DATA}
    assert (calls[1]["object_file"], object_file.parse(calls[1]["object_manifest"], "").layout) == (
        "/tmp/object_file",
        chain_layout.LAYOUT_VERSION,
    )
    calls.clear()
    files.clear()
    foretells = True
    assert action.run(None, {})["plan"] == ["load"] and len(calls) == 1 and files == {}, (
        "it is there, and a plan needs no more"
    )
    assert result["invocation"]["module_args"] == args, "what nobody wants to read is not shown"
