# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures of objects, made and checked by ssh-keygen: of the manifest, whose sha256 stands for
the object.

ssh-keygen -Y sign -f KEY -n ebpf-conntrack DIGEST.json        makes DIGEST.json.sig
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import typing as t

from ..core import safe_path
from ..core.errors import ConntrackError, bad_value

NAMESPACE = "ebpf-conntrack"
SUFFIX = ".sig"
_SECONDS = 60


def _ssh_keygen(*arguments: str, data: bytes = b"") -> tuple[bool, str]:
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", *arguments],
            input=data,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ConntrackError(
            f"ssh-keygen can not be run: {getattr(exc, 'strerror', None) or exc}. Install the"
            " package openssh-client."
        ) from exc
    return (
        done.returncode == 0,
        (done.stdout if not done.returncode else done.stderr + done.stdout)
        .decode(errors="replace")
        .strip(),
    )


def check(manifest: str, data: bytes, signers: str) -> str:
    """Check the signature of a manifest; return who signed it.

    Neither the manifest nor its signature is opened by anybody else: what lies there may be another
    one by then.

    :param manifest: its path; the signature lies beside it.
    :param data: what was read there, the very bytes that are acted on.
    :param signers: a file of allowed signers, as ssh-keygen(1) describes it.
    :raises ConntrackError: where it is not signed, or not by one of them.
    """
    signature = manifest + SUFFIX
    how = f"Sign it with: ssh-keygen -Y sign -f KEY -n {NAMESPACE} {manifest}"
    if not os.access(signers, os.R_OK) or not os.path.isfile(signers):
        raise bad_value(
            "signers", signers, "give a readable file of allowed signers, see ssh-keygen(1)"
        )
    try:
        signed = safe_path.read(signature)
    except FileNotFoundError:
        raise ConntrackError(
            f"{manifest}: it is not signed, {signature} is missing, and signers asks for a"
            f" signature. {how}"
        ) from None
    except OSError as exc:
        raise ConntrackError(f"{signature}: it cannot be read: {exc.strerror}.") from exc
    with tempfile.TemporaryDirectory(prefix="ebpf_conntrack.") as directory:
        own = os.path.join(directory, "signature")
        with safe_path.create(own) as file:
            file.write(signed)
        known, words = _ssh_keygen("find-principals", "-f", signers, "-s", own)
        said = words
        for who in t.cast("list[str]", words.splitlines() if known else []):
            fine, said = _ssh_keygen(
                "verify", "-f", signers, "-I", who, "-n", NAMESPACE, "-s", own, data=data
            )
            if fine:
                return who
    raise ConntrackError(
        f"{manifest}: its signature is not good, or not of one of {signers}:"
        f" {said or 'nobody of them signed it'}. {how}"
    )
