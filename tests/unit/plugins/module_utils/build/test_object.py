# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What objects are called, what they have to fit, and who signed them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import (
    signature as object_signature,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.build.object import (
    Built,
    Manifest,
    Target,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError

HERE = Target("x86_64", "little")
TEXT = (
    'BPF_TABLE_PINNED("lru_hash", struct ct_key, struct ct_entry, ctt, 65536,'
    ' "@MAP_DIR@/ctt");\nint x;\n'
)
HEADERS = {"include/a.h": "int y;"}
SOURCES = object_file.sources_digest(TEXT, HEADERS)
#: The first bytes of an object file: ELF, 64 bits, little endian, relocatable, for BPF.
DATA = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\xf7\x00" + bytes(40)
DIGEST = "0123456789abcdef" * 2


def manifest(**changes: t.Any) -> Manifest:
    whole = Manifest(
        digest=DIGEST,
        sources=SOURCES,
        settings={
            "checksum": "offload",
            "fused": False,
            "forward": "off",
            "events": False,
            "guests": [],
        },
        compiler={"name": "clang", "version": "14.0.6"},
        target=HERE._asdict(),
        layout=chain_layout.LAYOUT_VERSION,
        sha256=hashlib.sha256(DATA).hexdigest(),
        bytes=len(DATA),
        kernel=[{"feature": "XDP programs", "since": "4.8"}],
    )
    return dataclasses.replace(whole, **changes)


def refused(built: Built) -> str:
    with pytest.raises(ConntrackError) as raised:
        object_file.check(built, HERE, SOURCES, "x.o")
    return raised.value.message


# ---------------------------------------------------------------- what they are called
def test_sizes_make_no_other_object() -> None:
    assert object_file.sources_digest(TEXT.replace("65536", "1024"), HEADERS) == SOURCES
    for text, headers in (
        (TEXT.replace("int x", "int z"), HEADERS),
        (TEXT, {}),
        (TEXT, {"include/a.h": "int z;"}),
        (TEXT, {"include/b.h": "int y;"}),
    ):
        assert object_file.sources_digest(text, headers) != SOURCES


def test_all_that_goes_in_makes_another_object() -> None:
    one = build_clang.wanted(TEXT, HEADERS, "prelude", HERE)
    assert len(one) == 32 and build_clang.wanted(TEXT, HEADERS, "prelude", HERE) == one
    others = [
        build_clang.wanted(TEXT + "/* */", HEADERS, "prelude", HERE),
        build_clang.wanted(TEXT, HEADERS, "another", HERE),
        build_clang.wanted(TEXT, HEADERS, "prelude", Target("aarch64", "little")),
        build_clang.wanted(TEXT, HEADERS, "prelude", Target("x86_64", "big")),
    ]
    assert len({one, *others}) == 5


# ---------------------------------------------------------------- what they have to fit
def test_an_object_that_fits() -> None:
    object_file.check(Built(manifest(), DATA), HERE, SOURCES, "x.o")


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({}, DATA + b"x", "x.o: its sha256 is "),
        (
            {"sha256": hashlib.sha256(b"text").hexdigest()},
            b"text",
            "x.o: this is no object file for BPF. Make it again with xdp_object, or copy it again.",
        ),
        (
            {"target": {"machine": "aarch64", "byteorder": "little"}},
            DATA,
            "x.o: it was made for aarch64, little endian; the target is x86_64, little endian.",
        ),
        (
            {"target": {"machine": "x86_64", "byteorder": "big"}},
            DATA,
            "x.o: it was made for x86_64, big endian; the target is x86_64, little endian.",
        ),
        (
            {"layout": 1},
            DATA,
            f"x.o: its maps have layout 1, this release has layout {chain_layout.LAYOUT_VERSION}. ",
        ),
        (
            {"sources": "f" * 32},
            DATA,
            f"x.o: it was made of other sources, {'f' * 32} in place of {SOURCES}. ",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, t.Any], data: bytes, message: str) -> None:
    assert refused(Built(manifest(**changes), data)).startswith(message)


def test_a_big_endian_file_is_none_for_this_machine() -> None:
    data = DATA[:5] + b"\x02" + DATA[6:18] + b"\x00\xf7" + DATA[20:]
    assert "it was made for x86_64, little endian; the target is" in refused(
        Built(manifest(sha256=hashlib.sha256(data).hexdigest()), data)
    )


# ---------------------------------------------------------------- manifests and directories
def test_what_is_written_is_read_again(tmp_path: pathlib.Path) -> None:
    built = Built(manifest(), DATA)
    where = str(tmp_path / "deep/objects")
    assert object_file.read(where, DIGEST) is None and object_file.listed(where) == []
    object_file.write(where, built)
    assert object_file.read(where, DIGEST) == built and object_file.listed(where) == [
        built.manifest
    ]
    assert sorted(path.name for path in pathlib.Path(where).iterdir()) == [
        f"{DIGEST}.json",
        f"{DIGEST}.o",
    ]


def test_what_is_not_whole(tmp_path: pathlib.Path) -> None:
    where = str(tmp_path)
    object_file.write(where, Built(manifest(), DATA))
    path, said = map(pathlib.Path, object_file.paths(where, DIGEST))
    path.rename(tmp_path / "kept")
    with pytest.raises(ConntrackError, match=f"{path}: it can not be read: No such file"):
        object_file.read(where, DIGEST)
    (tmp_path / "kept").rename(path)
    said.rename(tmp_path / f"{'a' * 32}.json")
    with pytest.raises(ConntrackError, match=f"{said}: it can not be read"):
        object_file.read(where, DIGEST)
    shutil.copy(path, tmp_path / f"{'a' * 32}.o")
    with pytest.raises(
        ConntrackError,
        match=f"it is the manifest of {DIGEST}. Files of objects must not be renamed",
    ):
        object_file.read(where, "a" * 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 1}',
        json.dumps({**manifest().as_dict(), "format": 2}),
        json.dumps({**manifest().as_dict(), "more": 1}),
    ],
)
def test_what_is_no_manifest(text: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConntrackError, match="x.json: this is no manifest of format 1"):
        object_file.parse(text, "x.json")
    (tmp_path / f"{DIGEST}.json").write_text(text, encoding="utf-8")
    assert object_file.listed(str(tmp_path)) == []


def test_where_it_can_not_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConntrackError, match=f"{tmp_path}/file/{DIGEST}.o: it can not be written: "
    ):
        object_file.write(str(tmp_path / "file"), Built(manifest(), DATA))


# ---------------------------------------------------------------- the cache
def test_nothing_is_compiled_twice(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_clang, "version", lambda dummy: "14.0.6")
    made: list[int] = []

    def make() -> Built:
        made.append(1)
        return Built(manifest(), DATA)

    where = str(tmp_path / "cache")
    assert build_clang.cached(where, DIGEST, "clang", make) == (Built(manifest(), DATA), True)
    assert (
        build_clang.cached(where, DIGEST, "clang", make) == (Built(manifest(), DATA), False)
        and len(made) == 1
    )
    pathlib.Path(object_file.paths(where, DIGEST)[0]).write_bytes(DATA + b"x")
    build_clang.cached(where, DIGEST, "clang", make)
    assert len(made) == 2, "what is damaged is made again"
    monkeypatch.setattr(build_clang, "version", lambda dummy: "15.0.1")
    build_clang.cached(where, DIGEST, "clang", make)
    assert len(made) == 3, "so is what another compiler made"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "clang version 11.1.0",
            (
                "compiler: '{}' is not valid: its version is 11.1.0, 12 or later is needed; install"
                " the package clang"
            ),
        ),
        (
            "gcc (Debian 12.2.0) 12.2.0",
            (
                "compiler: '{}' is not valid: it says 'gcc (Debian 12.2.0) 12.2.0', so it is no"
                " clang; "
            ),
        ),
    ],
)
def test_compilers_that_will_not_do(said: str, message: str, tmp_path: pathlib.Path) -> None:
    compiler = tmp_path / "clang"
    compiler.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    compiler.chmod(0o755)
    with pytest.raises(ConntrackError) as raised:
        build_clang.version(str(compiler))
    assert raised.value.message.startswith(message.format(compiler))


def test_no_compiler(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        ConntrackError,
        match="it can not be run .No such file or directory.; install the package clang",
    ):
        build_clang.version(str(tmp_path / "none"))


def test_headers_of_the_other_byte_order_will_not_do() -> None:
    other = Target(
        "s390x" if sys.byteorder == "little" else "x86_64",
        "big" if sys.byteorder == "little" else "little",
    )
    with pytest.raises(
        ConntrackError,
        match=(
            f"the target is {other.byteorder} endian, and this host is not: prepare the object with"
            " xdp_object"
        ),
    ):
        build_clang.compile_text(TEXT, HEADERS, "", other)


# ---------------------------------------------------------------- signatures
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_signatures(tmp_path: pathlib.Path) -> None:
    def keygen(*words: object) -> None:
        subprocess.run(["ssh-keygen", *map(str, words)], check=True, capture_output=True)

    def sign(key: str, namespace: str = object_signature.NAMESPACE) -> None:
        (tmp_path / "m.json.sig").unlink(missing_ok=True)
        keygen("-Y", "sign", "-f", tmp_path / key, "-n", namespace, said)

    def why() -> str:
        with pytest.raises(ConntrackError) as raised:
            object_signature.check(str(said), said.read_bytes(), str(signers))
        return raised.value.message

    said, signers = tmp_path / "m.json", tmp_path / "signers"
    said.write_text(manifest().as_text(), encoding="utf-8")
    for name in ("ours", "others"):
        keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
    assert (
        why() == f"signers: '{signers}' is not valid: give a readable file of allowed signers, see"
        " ssh-keygen(1)."
    )
    signers.write_text(
        f"ops@site {(tmp_path / 'ours.pub').read_text(encoding='utf-8')}", encoding="utf-8"
    )
    assert why().startswith(
        f"{said}: it is not signed, {said}.sig is missing, and signers asks for a signature. Sign"
        " it with: ssh-keygen -Y sign"
    )
    sign("ours")
    assert object_signature.check(str(said), said.read_bytes(), str(signers)) == "ops@site"
    said.write_text(manifest(layout=7).as_text(), encoding="utf-8")
    assert "its signature is not good, or not of one of" in why(), "what was changed afterwards"
    sign("others")
    assert "its signature is not good, or not of one of" in why()
    sign("ours", "file")
    assert "its signature is not good, or not of one of" in why(), "a signature for something else"
    (tmp_path / "m.json.sig").write_text("nonsense", encoding="utf-8")
    assert "its signature is not good, or not of one of" in why()
    sign("ours")
    with pytest.raises(ConntrackError, match="its signature is not good, or not of one of"):
        # what lies at the path is signed, what was read is not
        object_signature.check(str(said), said.read_bytes() + b" ", str(signers))
    (tmp_path / "m.json.sig").unlink()
    os.mkfifo(tmp_path / "m.json.sig")
    assert (
        why()
        == f"{said}.sig: it is a named pipe, and a regular file is needed. Put the file itself"
        " there."
    )


@pytest.mark.parametrize("which", ["json", "o"])
@pytest.mark.parametrize("kind", ["a named pipe", "a character device", "a directory"])
def test_only_regular_files_are_read(tmp_path: pathlib.Path, which: str, kind: str) -> None:
    """What is no file could yield something else each time; a run must not wait for it either."""
    object_file.write(str(tmp_path), Built(manifest(), DATA))
    path = tmp_path / f"{DIGEST}.{which}"
    path.unlink()
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConntrackError) as raised:
        object_file.read(str(tmp_path), DIGEST)
    assert (
        raised.value.message
        == f"{path}: it is {kind}, and a regular file is needed. Put the file itself there."
    )
    assert [one.digest for one in object_file.listed(str(tmp_path))] == (
        [DIGEST] if which == "o" else []
    )


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_of_objects_have_their_permissions_whatever_the_umask_is(
    tmp_path: pathlib.Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        object_file.write(str(tmp_path / "deep/er"), Built(manifest(), DATA))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "deep", tmp_path / "deep/er")] == [
        0o755,
        0o755,
    ]
    assert {
        path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "deep/er").iterdir()
    } == {f"{DIGEST}.o": 0o644, f"{DIGEST}.json": 0o644}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("x.o", "objects are called by their digests; give the directory that they lie in, as "),
        ("objects/chain.o", "objects are called by their digests"),
        ("objects/manifest.json/", "objects are called by their digests"),
        ("objcts/amd64", "the directory .*/objcts does not exist; make it first"),
        ("file", "it is no directory; give the directory that the objects lie in"),
        ("broken", "it is no directory"),
    ],
)
def test_what_is_no_directory_of_objects(tmp_path: pathlib.Path, path: str, said: str) -> None:
    """Nothing is made of it: a misspelt path would be found by nobody."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConntrackError, match=f"^dest: '{tmp_path}/{path}' is not valid: {said}"):
        object_file.check_directory("dest", f"{tmp_path}/{path}")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_may_be_a_directory_of_objects(tmp_path: pathlib.Path) -> None:
    (tmp_path / "made.o").mkdir()
    for path in ("made.o", "new", "new/", ".", "v1.2"):
        object_file.check_directory("dest", str(tmp_path / path))
    object_file.check_directory("dest", "objects")
