"""What the clients' port is like: certificate, web pages that may call, where metrics are.

Read from the environment, which the operator fills from `spec.gateway` of the PDService:

    PDSERVE_TLS_CERT, PDSERVE_TLS_KEY   PEM files; serve HTTPS
    PDSERVE_METRICS_PORT                /metrics is there, and no longer on the clients' port
    PDSERVE_CORS_ORIGINS                origins separated by commas, or *
    PDSERVE_MAX_BODY_BYTES              read by `process`, the default of --max-body-bytes

Neighbours: `process` reads it, `app` uses it.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pdserve.http1.errors import Headers

logger = logging.getLogger(__name__)

_METHODS = b"GET, POST, OPTIONS"
_EXPOSED = b", ".join(
    (
        b"x-request-id, x-pdserve-scenario, retry-after",
        b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests",
        b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
    )
)
_MAX_AGE = b"600"


class Certificate:
    """A certificate and its key, taken up anew when their files change."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load them.

        Raises:
            OSError: they cannot be used (ssl.SSLError is one).
        """
        self._files = (certificate, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._stamp()
        self.context.load_cert_chain(certificate, key)

    def refresh(self) -> None:
        """Load changed files; the last good pair serves on where they cannot be used."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            # Into a fresh one first: a failed load may leave half a pair behind.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
            self.context.load_cert_chain(*self._files)
        except OSError as error:
            logger.error("the new certificate cannot be used, the last one serves on: %s", error)
            return
        logger.info("a new certificate is in use")

    def _stamp(self) -> tuple[tuple[str, int, int], ...]:
        found = []
        for path in self._files:
            real = path.resolve()  # kubelet swaps a Secret's files by a link
            stat = real.stat()
            found.append((str(real), stat.st_mtime_ns, stat.st_size))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Cors:
    """Which web pages a browser lets call (Fetch standard, "CORS protocol")."""

    origins: frozenset[str] = frozenset()
    """`*`: all."""

    def headers(self, origin: bytes | None) -> Headers:
        """What every answer to a request of `origin` carries."""
        if origin is None or not self.origins:
            return ()
        vary = (b"vary", b"origin")
        if "*" in self.origins:
            return ((b"access-control-allow-origin", b"*"), self._exposed)
        if origin.decode("latin-1") not in self.origins:
            return (vary,)
        return ((b"access-control-allow-origin", origin), self._exposed, vary)

    def preflight(self, headers: Mapping[bytes, bytes]) -> Headers | None:
        """What a browser's question before the request is answered with; None: it is none."""
        if not self.origins or b"access-control-request-method" not in headers:
            return None
        asked = headers.get(b"access-control-request-headers", b"")
        wanted = asked if asked.replace(b"-", b"").replace(b",", b"").replace(b" ", b"").isalnum() \
            else b"authorization, content-type"  # fmt: skip
        return (
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", _MAX_AGE),
        )

    @property
    def _exposed(self) -> tuple[bytes, bytes]:
        return (b"access-control-expose-headers", _EXPOSED)


@dataclass(frozen=True, slots=True)
class Front:
    """The clients' port of one process."""

    certificate: Certificate | None = None
    """None: HTTP."""
    metrics_port: int | None = None
    """None: metrics are on the clients' port, as before they had one of their own."""
    cors: Cors = field(default_factory=Cors)


def read_front(env: Mapping[str, str]) -> Front:
    """Read the environment.

    Raises:
        ValueError: a variable is wrong; names it.
    """
    certificate, key = env.get("PDSERVE_TLS_CERT", ""), env.get("PDSERVE_TLS_KEY", "")
    if bool(certificate) != bool(key):
        raise ValueError("PDSERVE_TLS_CERT and PDSERVE_TLS_KEY belong together")
    try:
        tls = Certificate(Path(certificate), Path(key)) if certificate else None
    except OSError as error:
        raise ValueError(f"PDSERVE_TLS_CERT, PDSERVE_TLS_KEY: {error}") from error
    origins = env.get("PDSERVE_CORS_ORIGINS", "").split(",")
    return Front(
        tls,
        _port(env.get("PDSERVE_METRICS_PORT", "")),
        Cors(frozenset(o.strip() for o in origins if o.strip())),
    )


def body_bytes(env: Mapping[str, str], default: int) -> int:
    """`PDSERVE_MAX_BODY_BYTES`, or `default`: bytes, 1 to 2^30.

    Raises:
        ValueError: the variable holds something else.
    """
    text = env.get("PDSERVE_MAX_BODY_BYTES", "")
    if not text:
        return default
    if not text.isdecimal() or not 0 < int(text) <= 1 << 30:
        raise ValueError(f"PDSERVE_MAX_BODY_BYTES: {text!r} is no number of bytes")
    return int(text)


def _port(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"PDSERVE_METRICS_PORT: {text!r} is no port")
    return int(text)
