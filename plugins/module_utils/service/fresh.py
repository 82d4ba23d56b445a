# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One reading for all who ask at the same time."""

from __future__ import annotations

import threading
import time
import typing as t

T = t.TypeVar("T")


class Fresh(t.Generic[T]):
    """Does something that takes a while once for all who ask meanwhile: each gets what was begun
    after it asked.
    """

    def __init__(self, make: t.Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._done: tuple[float, T] | None = None

    def get(self) -> T:
        """Return what was made."""
        asked = time.monotonic()
        with self._lock:
            if self._done is None or self._done[0] < asked:
                began = time.monotonic()
                self._done = began, self._make()
            return self._done[1]
