"""API keys from a directory of files (a mounted Secret): one key per line, any file name.

Only SHA-256 digests are kept and compared. The directory is read again when it changed, so keys
are added and revoked without a restart. A directory without keys refuses everyone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pdserve.http.errors import ApiError


class KeyRing:
    """Accepted keys; `refresh` is called now and then by the process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._digests: frozenset[bytes] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Read the keys again if a file changed; the last ones stay when it cannot be read."""
        try:
            # Kubelet swaps a Secret volume by moving a link whose name starts with `..`.
            files = sorted(p for p in self._directory.iterdir() if not p.name.startswith("."))
            stats = [(p, p.stat()) for p in files if p.is_file()]
            seen = tuple((str(p.resolve()), s.st_mtime_ns, s.st_size) for p, s in stats)
            if seen == self._seen:
                return
            lines = [line for p, _ in stats for line in p.read_bytes().splitlines()]
        except FileNotFoundError:
            if self._directory.is_dir():
                return
            seen, lines = (), []
        self._digests = frozenset(_digest(k) for line in lines if (k := line.strip()))
        self._seen = seen

    def check(self, authorization: bytes | None, api_key: bytes | None = None) -> None:
        """Raise 401 unless a header carries an accepted key; `Authorization` counts first.

        Args:
            authorization: `Authorization: Bearer <key>`, as OpenAI clients send it.
            api_key: `x-api-key: <key>`, for paths on which a proxy keeps `Authorization`.
        """
        if authorization is None:
            scheme, key = b"bearer", api_key
        else:
            scheme, _, key = authorization.strip().partition(b" ")
        if key is None:
            raise _refusal(
                "no API key given: send the header `Authorization: Bearer <key>` "
                "(or `x-api-key: <key>`)"
            )
        if scheme.lower() != b"bearer" or _digest(key.strip()) not in self._digests:
            raise _refusal("incorrect API key provided")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal(message: str) -> ApiError:
    return ApiError(
        401, message, code="invalid_api_key", headers=((b"www-authenticate", b"Bearer"),)
    )
