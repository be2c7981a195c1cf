"""API keys from a directory of files (a mounted Secret): one key per line, any file name.

A key is 1 to 512 characters of those that RFC 6750 allows in a bearer token (letters, digits and
`-._~+/=`). Limits of a key stand behind it, with blanks between:

    sk-team-a requestsPerMinute=600 tokensPerMinute=200000 concurrentRequests=20

Empty lines and lines that begin with `#` are ignored; any other line is no key, and the log names
its file and number. A key with limits that cannot be read is refused (403), because what it may use
is not known; others are as they were. A key that stands twice has the lower limits of both.

Only SHA-256 digests are kept and compared. The directory is read again when it changed, so keys
are added and revoked without a restart. A directory without keys refuses every request.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pdserve.gateway.guesses import Guesses
from pdserve.http1.errors import ApiError
from pdserve.terms.limits import AMOUNTS, MAX_LIMIT, NO_LIMITS, UsageLimits
from pdserve.wire.calls import HEADER_API_KEY

logger = logging.getLogger(__name__)
AUTHORIZATION = b"authorization"
API_KEY = HEADER_API_KEY.encode()
"""Names of the headers with a key."""
KEY = re.compile(rb"[A-Za-z0-9._~+/=-]{1,512}")


class ApiKey(NamedTuple):
    """A key of a file."""

    key: bytes
    limits: UsageLimits | None
    """None: they cannot be read."""


class KeyRing:
    """Accepted keys; `refresh` is called now and then by the process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._digests: frozenset[bytes] = frozenset()
        self._unreadable: frozenset[bytes] = frozenset()
        """Digests of keys with limits that cannot be read."""
        self._limits: Mapping[bytes, UsageLimits] = {}
        """By client, of those that have some."""
        self._guesses = Guesses()
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
            keys = [key for p, _ in stats for key in keys_of(p.read_bytes(), p.name)]
        except FileNotFoundError:
            if self._directory.is_dir():
                return
            seen, keys = (), []
        self._digests = frozenset(_digest(k.key) for k in keys)
        self._unreadable = frozenset(_digest(k.key) for k in keys if k.limits is None)
        limits: dict[bytes, UsageLimits] = {}
        for key in keys:
            if key.limits:
                client = _client(_digest(key.key))
                limits[client] = key.limits.tighter(limits.get(client, NO_LIMITS))
        self._limits = limits
        self._seen = seen

    @property
    def counts(self) -> tuple[int, int]:
        """Keys that are accepted, and keys with limits that cannot be read."""
        return len(self._digests - self._unreadable), len(self._unreadable)

    @property
    def limited(self) -> bool:
        """Whether any key has limits."""
        return bool(self._limits)

    def limits_of(self, client: bytes) -> UsageLimits:
        """The limits of a client's key; `client` as `tenant_of` returns it."""
        return self._limits.get(client, NO_LIMITS)

    def check(
        self, authorization: bytes | None, api_key: bytes | None = None, address: str = ""
    ) -> None:
        """Check that a header carries an accepted key; `Authorization` counts first.

        Args:
            authorization: `Authorization: Bearer <key>`, as OpenAI clients send it.
            api_key: `x-api-key: <key>`, for paths on which a proxy keeps `Authorization`.
            address: the client's, by which guesses are counted.

        Raises:
            ApiError: 401 without an accepted key; 403 with one whose limits cannot be read; 429
                after too many wrong ones from the address.
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
        digest, now = _digest(key.strip()), time.monotonic()
        if wait := self._guesses.wait(address, digest, now):
            raise ApiError(
                429,
                "too many wrong API keys from this address",
                code="too_many_attempts",
                headers=((b"retry-after", b"%d" % max(1, round(wait + 0.5))),),
            )
        if scheme.lower() != b"bearer" or digest not in self._digests:
            self._guesses.wrong(address, now)
            raise _refusal("incorrect API key provided")
        self._guesses.right(address, digest, now)
        if digest in self._unreadable:
            raise ApiError(
                403,
                "the limits of this API key cannot be read; the log of the gateway says which",
                kind="permission_error",
                code="unreadable_limits",
            )


def tenant_of(authorization: bytes | None, api_key: bytes | None) -> bytes:
    """16 bytes that stand for a client's key, the same in all gateways; empty without a key.

    The key cannot be found from them. See `KeyRing.check` for the arguments.
    """
    key = authorization.strip().partition(b" ")[2] if authorization is not None else api_key
    if key is None:
        return b""
    return _client(_digest(key.strip()))


def keys_of(content: bytes, name: str = "") -> list[ApiKey]:
    """The well-formed keys of one file, in order; with a `name`, what is wrong is logged."""
    keys = []
    for number, line in enumerate(content.splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        key, *amounts = text.split()
        if not KEY.fullmatch(key) or not all(b"=" in amount for amount in amounts):
            if name:
                logger.warning("%s, line %d: not a well-formed API key; ignored", name, number)
            continue
        try:
            keys.append(ApiKey(key, _limits_of(amounts)))
        except ValueError as error:
            keys.append(ApiKey(key, None))
            if name:
                logger.warning("%s, line %d: %s; the key is refused", name, number, error)
    return keys


def _limits_of(amounts: list[bytes]) -> UsageLimits:
    """What stands behind a key; raises ValueError that says what would be right."""
    found: dict[str, int] = {}
    for amount in amounts:
        name, _, value = amount.decode("latin-1").partition("=")
        if name not in AMOUNTS:
            raise ValueError(f"{name[:64]!r} is no limit (known: {', '.join(AMOUNTS)})")
        if name in found:
            raise ValueError(f"{name} stands twice")
        if not (value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_LIMIT))):
            raise ValueError(f"{name} must be a whole number of 1 to {MAX_LIMIT}")
        found[name] = int(value)
        if not 1 <= found[name] <= MAX_LIMIT:
            raise ValueError(f"{name} must be a whole number of 1 to {MAX_LIMIT}")
    return UsageLimits.of(found)


def _client(digest: bytes) -> bytes:
    return hashlib.blake2b(digest, digest_size=16, person=b"tenant").digest()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal(message: str) -> ApiError:
    return ApiError(
        401, message, code="invalid_api_key", headers=((b"www-authenticate", b"Bearer"),)
    )
