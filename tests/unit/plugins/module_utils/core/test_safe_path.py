# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What paths may be called, who may change what is there, and how files are made and read; a
temporary directory stands in.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import functools
import grp
import os
import pathlib
import shutil
import subprocess
import types
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import record as attach_record
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import object as object_file
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import safe_path
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import watch as ct_watch
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    apply as generation_apply,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import state_dir
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs, pins
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import model as lab_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import record as lab_record
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import unit as ct_unit
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.options import Address, Options
from ansible_collections.ebpf.conntrack.plugins.modules import xdp_object

#: What would be another word, line, expansion or string where it gets to, and what is no absolute
#: path.
BAD_NAMES = {
    "quote": 'a"b',
    "apostrophe": "a'b",
    "newline": "a\nExecStartPre=/bin/sh",
    "carriage return": "a\rb",
    "space": "a b",
    "tab": "a\tb",
    "no-break space": "a\u00a0b",
    "specifier": "a%n",
    "variable": "a$HOME",
    "braces": "a${HOME}",
    "command": "a`id`",
    "backslash": "a\\x41",
    "semicolon": "a;id",
    "ampersand": "a&b",
    "glob": "a*",
    "escape": "a\x1b[31m",
    "nul": "a\0b",
    "surrogate": "a\udcff",
    "dots": "../a",
    "dot": "./a",
    "two slashes": "/a",
    "slash at its end": "a/",
    "long name": "a" * 256,
    "very long": "/".join(["a" * 200] * 30),
}


def refusal(call: c.Callable[[], object]) -> str:
    with pytest.raises(ConntrackError) as raised:
        call()
    return raised.value.message


# ---------------------------------------------------------------- names
@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    ("field", "take"),
    [
        ("pin_root", bpffs.check),
        ("pin_root", lambda path: service_options.check(Options(bpffs.Paths(path)))),
        ("state_dir", lambda path: state_dir.check(bpffs.Paths(bpffs.STANDARD, path))),
        (
            "state_dir",
            lambda path: service_options.check(Options(bpffs.Paths(bpffs.STANDARD, path))),
        ),
        ("socket", service_options.parse_address),
        (
            "socket",
            lambda path: service_options.check(
                Options(bpffs.Paths(bpffs.STANDARD), address=Address(path))
            ),
        ),
        ("prefix", lambda path: ct_archive.converge(path, None)),
        (
            "prefix",
            lambda path: ct_unit.converge(
                "present",
                ct_unit.Want(path, Options(bpffs.Paths(bpffs.STANDARD))),
                directory="/nowhere",
            ),
        ),
    ],
    ids=[
        "pin_root",
        "pin_root of the service",
        "state_dir",
        "state_dir of the service",
        "socket",
        "socket of the service",
        "prefix",
        "prefix of the unit",
    ],
)
def test_paths_are_checked_where_they_enter(
    field: str, take: c.Callable[[str], object], name: str
) -> None:
    value = f"/sys/fs/bpf/{BAD_NAMES[name]}"
    message = refusal(lambda: take(value))
    assert message.startswith(f"{field}: {value!r} is not valid: ") and "\n" not in message


@pytest.mark.parametrize("value", ["relative", "", ".", "//sys/fs/bpf", "~root"])
def test_what_is_not_absolute(value: str) -> None:
    assert (
        refusal(lambda: bpffs.check(value))
        == f"pin_root: {value!r} is not valid: give the absolute path of a directory on a bpffs, as"
        " /sys/fs/bpf."
    )


@pytest.mark.parametrize(
    "value", ["/", "/sys/fs/bpf", "/srv/Zürich/état_2", "/var/lib/a-b+c,d@e:f=g~h", "/a/..b/c..d"]
)
def test_what_is_fine(value: str) -> None:
    safe_path.check_text("state_dir", value, "")


def test_a_pin_root_is_no_longer_than_the_name_of_its_state_can_be() -> None:
    long = "/sys/fs/bpf" + "/a" * 60
    assert refusal(lambda: bpffs.check(long)).startswith(
        f"pin_root: {long!r} is not valid: it is too long: 223 bytes"
    )
    assert (
        len(os.path.basename(state_dir.directory(bpffs.Paths("/sys/fs/bpf" + "/a" * 50))))
        <= safe_path.NAME_BYTES
    )


@pytest.mark.parametrize(
    "listen",
    [
        "[::1%\nExecStartPre=/bin/sh]:80",
        "[::1%a b]:80",
        "::1%eth0:80",
        "127.0.0.1\n:80",
        "127.0.0.1:80\n",
    ],
)
def test_an_address_is_nothing_but_an_address(listen: str) -> None:
    """Python takes anything for the scope of an IPv6 address (RFC 4007), and it is a loopback
    address still.
    """
    assert refusal(lambda: service_options.parse_address(listen=listen)).startswith(
        f"listen: {listen!r} is not valid: "
    )


@pytest.mark.parametrize("group", ["root\nExecStartPre=/bin/sh", "root adm", "%u", "a;b", 'a"b'])
def test_a_group_is_nothing_but_a_name(group: str) -> None:
    assert (
        refusal(lambda: service_options.parse_address(group=group))
        == f"group: {group!r} is not valid: give the name of a group, of letters, digits and _.-@$."
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_a_quoted_word_as_one(tmp_path: pathlib.Path) -> None:
    """It has something to say about each path that is not absolute, that it cannot unquote, or
    whose specifier it does not know.
    """
    unit = tmp_path / "strange.service"

    def said(word: str) -> str:
        unit.write_text(
            f"[Service]\nExecStart=/bin/true\nReadWritePaths={word}\n", encoding="utf-8"
        )
        argv = ["systemd-analyze", "verify", "--man=no", str(unit)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return "\n".join(line for line in done.stderr.splitlines() if "strange.service:3" in line)

    for strange in ("/a b", "/a\tb", '/a"b', "/a'b", "/a %Q", "/a\\q ;"):
        assert said(strange), f"{strange!r} is no plain word"
        assert said(ct_unit.quoted(strange)) == ""
    assert ct_unit.quoted("a\nb") == '"a\\x0ab"', "and no word is two lines"
    assert ct_unit.quoted("a$b", True) == "a$$b" and ct_unit.quoted("a$b") == "a$b", (
        "only commands have variables"
    )


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
def test_c_reads_an_escaped_text_as_it_was(tmp_path: pathlib.Path) -> None:
    strange = 'a"b\\n%s\n??/ é;$1'
    source = tmp_path / "a.c"
    source.write_text(
        f'char text[] = "{generation_apply.c_string(strange)}/map" "0";\n', encoding="utf-8"
    )
    subprocess.run(["clang", "-std=c11", "-c", "-o", tmp_path / "a.o", source], check=True)
    assert f"{strange}/map0\0".encode() in (tmp_path / "a.o").read_bytes()
    assert generation_apply.c_string("/sys/fs/bpf/a-b_c/1") == "/sys/fs/bpf/a-b_c/1"


# ---------------------------------------------------------------- whose it is
@contextlib.contextmanager
def masked(umask: int) -> c.Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def base(tmp_path: pathlib.Path) -> pathlib.Path:
    """The directory of a chain, with what is pinned there; files stand in for pins."""
    pins = tmp_path / "bpf/ebpf_conntrack/gen/1/prog"
    pins.mkdir(parents=True)
    (pins / "xdp_0").touch()
    (pins.parents[2] / "active").symlink_to("gen/1")
    (tmp_path / "bpf/prog").symlink_to("ebpf_conntrack/active/prog")
    for path in (tmp_path / "bpf").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700)
    return pins.parents[2]


@pytest.mark.parametrize("inside", [".", "gen", "gen/1", "gen/1/prog", "gen/1/prog/xdp_0"])
@pytest.mark.parametrize("mode", [0o777, 0o722, 0o1777])
def test_pins_that_others_may_change_are_refused(
    base: pathlib.Path, inside: str, mode: int
) -> None:
    paths = bpffs.Paths(str(base.parent))
    bpffs.refuse_foreign(paths)
    (base / inside).chmod(mode)
    path = os.path.normpath(base / inside)
    assert (
        refusal(lambda: bpffs.refuse_foreign(paths))
        == f"{path}: every user may write to it, and root trusts what is there. Look at what it"
        f" holds, then take that right away: chmod go-w {path}, or remove it."
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give things to others")
@pytest.mark.parametrize("inside", [".", "gen/1", "gen/1/prog/xdp_0", "active", "../prog", ".."])
def test_pins_of_another_user_are_refused(base: pathlib.Path, inside: str) -> None:
    paths = bpffs.Paths(str(base.parent))
    path = os.path.normpath(base / inside)
    os.chown(path, 65534, 65534, follow_symlinks=False)

    def look() -> None:
        bpffs.refuse_foreign(paths)
        pins.check_places(paths)

    message = refusal(look)
    assert (
        message
        == f"{path}: it belongs to the user nobody, and root trusts what is there. Look at what it"
        " holds, then make it root's, or remove it."
    )


def test_a_way_that_others_may_change_is_refused(tmp_path: pathlib.Path) -> None:
    """A directory above the one that is asked for could be renamed, and a link could lead somewhere
    else.
    """
    (tmp_path / "open/own").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "open/own")
    (tmp_path / "open").chmod(0o777)
    for path in (tmp_path / "open/own", tmp_path / "link", tmp_path / "link/more"):
        assert refusal(functools.partial(safe_path.refuse_foreign_way, str(path))).startswith(
            f"{tmp_path}/open: every user may write to it"
        )
    (tmp_path / "open").chmod(0o1777)  # nobody can rename what is another's there
    safe_path.refuse_foreign_way(str(tmp_path / "link/more"))
    if os.geteuid() == 0:
        os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
        for path in (tmp_path / "link", tmp_path / "link/more"):
            assert refusal(functools.partial(safe_path.refuse_foreign_way, str(path))).startswith(
                f"{tmp_path}/link: it belongs to the user nobody"
            )


@pytest.mark.parametrize("path", ["here", "./here/more", "../here", "//here", "/", ""])
def test_any_way_has_an_end(
    path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    safe_path.refuse_foreign_way(path)
    tmp_path.chmod(0o777)
    if path.startswith(("here", "./")):
        assert refusal(lambda: safe_path.refuse_foreign_way(path)).startswith(
            f"{tmp_path}: every user may write to it"
        )


def test_directories_of_groups(tmp_path: pathlib.Path) -> None:
    """A group of administrators, as that of Debian's /usr/local, is root in all but name."""
    found = os.stat(tmp_path)

    def directory(group: int, user: int = 0) -> str:
        return safe_path.foreign(os.stat_result((0o42775, *found[1:4], user, group, *found[6:])))

    admins = next(group.gr_gid for group in grp.getgrall() if group.gr_name in ("staff", "wheel"))
    assert directory(0) == directory(admins) == ""
    assert directory(12345) == "the group 12345 may write to it" and directory(0, 54321).startswith(
        "it belongs to the user 54321"
    )


@pytest.mark.parametrize("where", ["", "bin", "share/man/man8"])
def test_a_prefix_that_others_may_write_to_is_refused(tmp_path: pathlib.Path, where: str) -> None:
    prefix = tmp_path / "opt"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "share/man/man8").mkdir(parents=True)
    (prefix / where).chmod(0o777)
    for call in (
        lambda: ct_archive.converge(str(prefix), None),
        lambda: ct_unit.converge(
            "present",
            ct_unit.Want(str(prefix), Options(bpffs.Paths(bpffs.STANDARD))),
            directory=str(tmp_path),
        ),
    ):
        assert refusal(call).startswith(
            f"{os.path.normpath(prefix / where)}: every user may write to it"
        )


def test_a_cache_of_objects_that_others_may_write_to_is_refused(tmp_path: pathlib.Path) -> None:
    """Root loads what is found there."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)

    def never() -> object_file.Built:
        raise AssertionError("nothing was to be made")

    assert refusal(
        lambda: build_clang.cached(str(tmp_path / "cache"), "0" * 32, "clang", never)
    ).startswith(f"{tmp_path}/cache: every user may write to it")


def test_objects_are_not_made_where_others_may_write(tmp_path: pathlib.Path) -> None:
    """One that lies there already is taken as it is."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects").chmod(0o777)
    params = {
        "dest": str(tmp_path / "objects"),
        "rendered": render.pack("", {build_clang.PRELUDE: ""}),
        "machine": "x86_64",
        "compiler": "clang",
    }
    settings = {
        "checksum": "offload",
        "fused": False,
        "forward": "off",
        "forward_unfiltered": False,
        "events": False,
    }
    module = t.cast("t.Any", types.SimpleNamespace(params={**params, **settings}, check_mode=True))
    assert refusal(lambda: xdp_object.prepare(module)).startswith(
        f"{tmp_path}/objects: every user may write to it"
    )


# ---------------------------------------------------------------- made and read
@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_what_is_made_has_its_permissions_whatever_the_umask_is(
    tmp_path: pathlib.Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_model, "RECORD_DIR", str(tmp_path))
    paths = bpffs.Paths("/sys/fs/bpf", str(tmp_path / "lib/state"))
    with masked(umask):
        safe_path.make_dirs(str(tmp_path / "wide/er"), 0o755)
        safe_path.create(str(tmp_path / "file"), 0o644).close()
        attach_record.write_interfaces(
            paths, [{"name": "eth0", "netns": None, "program": "ingress", "mode": "auto"}]
        )
        lab_record.write_record(
            "lab", {("", "net/ipv4/ip_forward"): lab_model.Recorded("1", 1, {})}
        )
        saved = ct_watch.saving(str(tmp_path / "events"))
        with saved:
            pass

    def modes(*names: str) -> list[str]:
        return [f"{(tmp_path / name).stat().st_mode & 0o777:o}" for name in names]

    assert modes("wide", "wide/er", "file") == ["755", "755", "644"]
    where = pathlib.Path(state_dir.directory(paths)).relative_to(tmp_path)
    assert modes("lib", "lib/state", str(where), f"{where}/interfaces.json") == [
        "700",
        "700",
        "700",
        "600",
    ]
    assert modes("lab.json", "events") == ["600", "600"]


def test_what_a_killed_run_left_is_not_written_into(tmp_path: pathlib.Path) -> None:
    """It could be a link of somebody else's, or have permissions of its own."""
    (tmp_path / "target").write_text("as it was", "utf-8")
    (tmp_path / "new").symlink_to(tmp_path / "target")
    with safe_path.create(str(tmp_path / "new")) as file:
        file.write(b"x")
    assert (tmp_path / "target").read_text("utf-8") == "as it was"
    assert (
        not (tmp_path / "new").is_symlink() and (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    )


def damages() -> dict[str, t.Callable[[pathlib.Path], object]]:
    def link(path: pathlib.Path) -> None:
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))

    def pipe(path: pathlib.Path) -> None:
        path.unlink()
        os.mkfifo(path)

    found: dict[str, t.Callable[[pathlib.Path], object]] = {
        "every user may write to it": lambda path: path.chmod(0o666),
        "it is a symbolic link": link,
        "it is a named pipe": pipe,
    }
    if os.geteuid() == 0:
        found["it belongs to the user nobody"] = lambda path: os.chown(path, 65534, 65534)
    return found


@pytest.mark.parametrize("words", damages())
def test_what_is_trusted_is_a_file_of_root(tmp_path: pathlib.Path, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(0o600)
    assert safe_path.read(str(path), trusted=True) == b"x"
    damages()[words](path)
    assert refusal(lambda: safe_path.read(str(path), trusted=True)).startswith(f"{path}: {words}")
