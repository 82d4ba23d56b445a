# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object files of the chain, and the manifests that say what each was made of: what they are
called, what they have to fit, where they lie.

An object is called by a digest of all that goes into it, so whoever knows the sources, the settings
and the machine knows which one he wants: ``<digest>.o``, with its manifest ``<digest>.json`` beside
it. The sizes of tables are no part of it: one object is good for all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import typing as t

from ..chain import guests
from ..chain import layout as chain_layout
from ..core import safe_path
from ..core.errors import ConntrackError, bad_value

#: Of the manifest.
FORMAT = 1
#: include/uapi/linux/elf.h
_ELF, _BPF_MACHINE = b"\x7fELF", 247
_LITTLE = 1
#: How the names of files end that somebody may take ``dest`` for.
_OF_FILES = (".o", ".json", ".c", ".elf", ".bpf")
_SIZE = re.compile(
    r'^(BPF_TABLE_PINNED\("lru_hash", [^,]+, [^,]+, ctt6?(?:_new)?, )\d+(?=, ")', re.MULTILINE
)
_DIGEST = re.compile(r"[0-9a-f]{32}")
_HEX_DIGITS = 32


class Target(t.NamedTuple):
    """What a machine is, as far as objects differ by it: its name as ``uname -m`` has it, and
    ``little`` or ``big``.
    """

    machine: str
    byteorder: str

    def __str__(self) -> str:
        return f"{self.machine}, {self.byteorder} endian"


def sources_digest(text: str, headers: t.Mapping[str, str]) -> str:
    """Return 128 bits, in hex, of a rendered chain without the sizes of its tables, and of its
    headers.
    """
    whole = hashlib.sha256(_SIZE.sub(r"\g<1>0", text).encode())
    for name in sorted(headers):
        whole.update(f"\0{name}\0{headers[name]}".encode())
    return whole.hexdigest()[:_HEX_DIGITS]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an object was made of, and what it takes.

    :ivar digest: what it is called.
    :ivar sources: sources_digest() of what it was made of.
    :ivar settings: what was compiled in, by the names that xdp_program's options have; ``guests``
        are name and slot of those from C files.
    :ivar compiler: ``name`` and ``version``.
    :ivar target: what it was made for: ``machine`` and ``byteorder``.
    :ivar layout: chain.LAYOUT_VERSION of its maps.
    :ivar sha256: of the object file, in hex.
    :ivar bytes: its length.
    :ivar kernel: what it needs of the kernel, each ``feature`` with the release that brought it in
        ``since``.
    :ivar format: of the manifest itself.
    """

    digest: str
    sources: str
    settings: t.Mapping[str, t.Any]
    compiler: t.Mapping[str, str]
    target: t.Mapping[str, str]
    layout: int
    sha256: str
    bytes: int
    kernel: t.Sequence[t.Mapping[str, str]]
    format: int = FORMAT

    def as_dict(self) -> dict[str, t.Any]:
        """Return it in JSON's types."""
        return dataclasses.asdict(self)

    def as_text(self) -> str:
        """Return it as the file has it."""
        return json.dumps(self.as_dict(), indent=1) + "\n"

    @property
    def shown(self) -> str:
        """What tells it from others, for people."""
        return described(self.settings, Target(self.target["machine"], self.target["byteorder"]))


def described(settings: t.Mapping[str, t.Any], target: Target) -> str:
    """Return settings and machine in words.

    >>> settings = {"checksum": "offload", "fused": True, "guests": [{"name": "acl", "slot": 4}]}
    >>> described(settings, Target("x86_64", "little"))
    'checksum offload, fused true, guests acl in slot 4; x86_64, little endian'
    """

    def word(value: t.Any) -> str:
        if isinstance(value, (list, tuple)):
            return (
                " and ".join(f"{guest['name']} in slot {guest['slot']}" for guest in value)
                or "none"
            )
        return str(value).lower()

    return f"{', '.join(f'{name} {word(value)}' for name, value in settings.items())}; {target}"


def parse(text: str, where: str) -> Manifest:
    """Return the manifest that a file holds.

    :param where: the file, as messages name it.
    :raises ConntrackError: where it is none of this format.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError
        manifest = Manifest(**found)
        dummy = manifest.shown  # raises for what has not its type
        if not isinstance(manifest.layout, int) or not _DIGEST.fullmatch(manifest.digest):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ConntrackError(
            f"{where}: this is no manifest of format {FORMAT}. Make the object again with"
            " xdp_object."
        ) from None
    return manifest


class Built(t.NamedTuple):
    """An object file with its manifest."""

    manifest: Manifest
    data: bytes


def check(built: Built, target: Target, sources: str, where: str) -> None:
    """Check that an object is whole, and that it is one of these sources for this machine.

    :param where: the object, as messages name it.
    :raises ConntrackError: naming what does not fit: what is there, and what is wanted.
    """
    manifest, data = built
    again = "Make it again with xdp_object, or copy it again."
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.sha256:
        raise ConntrackError(
            f"{where}: its sha256 is {found}, its manifest says {manifest.sha256}: it was changed,"
            f" or is not whole. {again}"
        )
    if (
        len(data) < 20
        or data[:4] != _ELF
        or int.from_bytes(data[18:20], "little" if data[5] == _LITTLE else "big") != _BPF_MACHINE
    ):
        raise ConntrackError(f"{where}: this is no object file for BPF. {again}")
    made_for = Target(manifest.target["machine"], manifest.target["byteorder"])
    if made_for != target or ("little" if data[5] == _LITTLE else "big") != target.byteorder:
        raise ConntrackError(
            f"{where}: it was made for {made_for}; the target is {target}. Make one for that"
            " machine."
        )
    if manifest.layout != chain_layout.LAYOUT_VERSION:
        raise ConntrackError(
            f"{where}: its maps have layout {manifest.layout}, this release has layout"
            f" {chain_layout.LAYOUT_VERSION}. {again}"
        )
    if manifest.sources != sources:
        raise ConntrackError(
            f"{where}: it was made of other sources, {manifest.sources} in place of {sources}."
            f" {again}"
        )


# ---------------------------------------------------------------- a directory of objects
def paths(directory: str, digest: str) -> tuple[str, str]:
    """Return the paths of an object and of its manifest."""
    return os.path.join(directory, f"{digest}.o"), os.path.join(directory, f"{digest}.json")


def read(directory: str, digest: str) -> Built | None:
    """Return an object; None where there is none of that name. What it is worth says check().

    :raises ConntrackError: see load().
    """
    found = load(directory, digest)
    return None if found is None else found[0]


def load(directory: str, digest: str) -> tuple[Built, bytes] | None:
    """Return an object, and its manifest as the file has it, which is what was signed; None where
    there is none of that name.

    Each file is read once. Who checks what was read must check these bytes, and not the file again.

    :raises ConntrackError: where it cannot be read, is no regular file, or only one of its two
        files is there.
    """
    path, manifest = paths(directory, digest)
    if not os.path.lexists(path) and not os.path.lexists(manifest):
        return None
    try:
        text = safe_path.read(manifest)
        said = parse(text.decode(), manifest)
        data = safe_path.read(path)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConntrackError(
            f"{getattr(exc, 'filename', None) or manifest}: it can not be read:"
            f" {getattr(exc, 'strerror', None) or exc}."
        ) from exc
    if said.digest != digest:
        raise ConntrackError(
            f"{manifest}: it is the manifest of {said.digest}. Files of objects must not be"
            " renamed."
        )
    return Built(said, data), text


def listed(directory: str) -> list[Manifest]:
    """Return the manifests in a directory, in the order of their names; no other files."""
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            stem, dummy, suffix = name.rpartition(".")
            if suffix == "json" and _DIGEST.fullmatch(stem):
                with contextlib.suppress(ConntrackError, OSError, UnicodeDecodeError):
                    found.append(
                        parse(safe_path.read(os.path.join(directory, name)).decode(), name)
                    )
    return found


def check_directory(field: str, directory: str) -> None:
    """Refuse what is not meant for a directory of objects: a file, the name of one, and a path of
    which more than the last part is missing.

    :raises ConntrackError: naming the field, the path and the mend.
    """
    path = os.path.normpath(directory)
    parent, name = os.path.split(path)
    if os.path.isdir(path):
        return
    if os.path.lexists(path):
        raise bad_value(
            field, directory, "it is no directory; give the directory that the objects lie in"
        )
    if name.endswith(_OF_FILES):
        raise bad_value(
            field,
            directory,
            "objects are called by their digests; give the directory that they lie in, as"
            f" {parent or '.'}",
        )
    if not os.path.isdir(parent or "."):
        raise bad_value(field, directory, f"the directory {parent} does not exist; make it first")


def write(directory: str, built: Built) -> None:
    """Write an object and its manifest, each as a whole or not at all; the manifest, which says
    that it is there, comes last.

    :raises ConntrackError: naming the path that can not be written.
    """
    path, manifest = paths(directory, built.manifest.digest)
    for name, data in ((path, built.data), (manifest, built.manifest.as_text().encode())):
        unfinished = f"{name}.{os.getpid()}.new"
        try:
            safe_path.make_dirs(directory, 0o755)
            with safe_path.create(unfinished, 0o644) as file:
                file.write(data)
            os.rename(unfinished, name)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise ConntrackError(f"{name}: it can not be written: {exc.strerror}.") from exc


def settings_of(settings: t.Any, text: str) -> dict[str, t.Any]:
    """Return what a manifest says of what is compiled in.

    :param settings: render.Settings.
    :param text: the rendered chain, for its guests.
    """
    own = {name: getattr(settings, name) for name in ("checksum", "fused", "forward", "events")}
    return {
        **own,
        "guests": [
            {"name": name, "slot": slot} for name, slot in sorted(guests.programs_in(text).items())
        ],
    }
