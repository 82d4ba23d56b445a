# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that systemd runs, for the time of a test; it has no BPF file system, and no network
but what its units make.
"""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import shutil
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.ebpf.conntrack.tests.host.container import Container, Spec, end_group

_SECONDS = 180
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Machine(Container):
    """The machine; a context manager.

    :param units: the text of more units by name; they start with the machine.
    """

    def __init__(self, units: t.Mapping[str, str]) -> None:
        name = f"ctm{secrets.token_hex(3)}"
        # the overlay has the files of one file system, and the machine has its own /tmp and /run
        elsewhere = ROOT.stat().st_dev != pathlib.Path("/").stat().st_dev or ROOT.parts[1] in (
            "tmp",
            "run",
        )
        spec = Spec(
            group=name,
            files={f"etc/systemd/system/{unit}": text for unit, text in units.items()},
            links={
                f"etc/systemd/system/multi-user.target.wants/{unit}": f"../{unit}" for unit in units
            },
            options=[f"--bind={ROOT}"] if elsewhere else [],
        )
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.ExitStack() as stack:
            directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}_"))
            stack.callback(shutil.rmtree, directory)
            super().__init__(directory, spec)
            self._stack = stack.pop_all()

    def __enter__(self) -> Machine:
        with self._stack as stack:
            stack.callback(self._end)
            self._process = self.launch()
            self.wait_until_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *dummy: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        end_group(self.spec.group)
        if self._process is not None:
            self._process.wait()

    def wait_until_up(self, before: str = "") -> None:
        """Wait until systemd has started all that is to start.

        :param before: boot_id() of the boot before.
        """
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.console()
            with contextlib.suppress(OSError):
                if self.boot_id() not in ("", before) and self.run(
                    "systemctl", "is-system-running", check=False
                ).strip() in ("running", "degraded"):
                    return
            time.sleep(0.1)
        raise AssertionError(f"the machine does not start: {self.console()}")

    def reboot(self) -> None:
        """Let the machine reboot in order, and wait until it is up again."""
        before = self.boot_id()
        self.run("systemctl", "--no-block", "reboot")
        self.wait_until_up(before)
