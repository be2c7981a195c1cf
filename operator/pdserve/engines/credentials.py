"""A credential of this process: from the environment, or from a mounted file that may change.

`PDSERVE_<USE>_FILE` names a file, `PDSERVE_<USE>` holds the value itself, and `PDSERVE_TOKEN`
stands for every use that has neither. A file is looked at again at most once a second, so that a
rotated Secret reaches a running process; while it cannot be read, what was read last stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pdserve.wire.credentials import DIGEST_PREFIX, digests, values

SHARED = "PDSERVE_TOKEN"
CONTROL = "PDSERVE_CONTROL_TOKEN"
REQUEST = "PDSERVE_REQUEST_TOKEN"
KV = "PDSERVE_KV_KEY"
LOOK_SECONDS = 1.0
MAX_FILE = 64 << 10
"""Bytes of a credential file that are read."""


def authorization(credential: Credential) -> tuple[bytes, bytes]:
    """The header that carries a credential."""
    return credential.header


class Credential:
    """The values of one use; the first is sent, all are accepted."""

    def __init__(
        self,
        text: str = "",
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`file` wins over `text`; `clock` in seconds."""
        self._file, self._clock = file, clock
        self._stamp: tuple[int, int, int] | None = None
        self._looked = clock()
        self._set(values(text))
        self._look()

    @staticmethod
    def of(env: Mapping[str, str], use: str, *, shared: bool = True) -> Credential:
        """The credential of one use, e.g. `CONTROL`; with `shared`, `PDSERVE_TOKEN` stands in."""
        file = env.get(use + "_FILE")
        text = env.get(use) or (env.get(SHARED, "") if shared else "")
        return Credential(text, Path(file) if file else None)

    @property
    def header(self) -> tuple[bytes, bytes]:
        """`authorization` with the first value."""
        self._refresh()
        return self._header

    @property
    def first(self) -> str:
        """The value to send; empty where there is none."""
        self._refresh()
        return self._values[0] if self._values else ""

    @property
    def sendable(self) -> tuple[str, ...]:
        """All values that are no digests; a report to this process proves one of them."""
        self._refresh()
        return tuple(v for v in self._values if not v.startswith(DIGEST_PREFIX))

    @property
    def digests(self) -> frozenset[str]:
        """Digests of all values; empty where the use is not configured (or its file is empty)."""
        self._refresh()
        return self._digests

    @property
    def configured(self) -> bool:
        """Whether a value or a file was named at all."""
        return self._file is not None or bool(self._values)

    def _refresh(self) -> None:
        if self._file is not None and self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()
            self._look()

    def _look(self) -> None:
        if self._file is None:
            return
        try:
            # A Secret volume swaps a link: another inode, even where time and size are equal.
            found = self._file.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stamp == self._stamp:
                return
            with self._file.open("rb") as source:
                text = source.read(MAX_FILE).decode()
        except (OSError, UnicodeDecodeError):
            return
        self._stamp = stamp
        self._set(values(text))

    def _set(self, found: tuple[str, ...]) -> None:
        self._values = found
        self._header = (b"authorization", f"Bearer {found[0] if found else ''}".encode())
        self._digests = digests(found)
