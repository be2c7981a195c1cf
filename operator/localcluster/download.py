"""Fetches files whose SHA-256 is known, and gives up soon on hosts that do not answer.

A machine behind a firewall must not wait long: a connection is made within `CONNECT_SECONDS`, name
lookup, proxy and TLS included, and a host that failed once is not asked again in this run.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from localcluster.errors import LocalError, Progress, quiet, sparsely

ENV_MIRROR = "PDSERVE_RELEASE_MIRROR"
"""Where `https://HOST/PATH` is fetched from instead: $PDSERVE_RELEASE_MIRROR/HOST/PATH."""

CONNECT_SECONDS = 3.0
STALL_SECONDS = 15.0
"""A connected host that sends nothing for so long has failed."""
FILE_SECONDS = 300.0
"""For one file: what takes longer is built in less time."""
SAY_EVERY_SECONDS = 2.0
_CHUNK = 1 << 18
_MB = 1e6


class Downloads:
    """Downloads of one run. It remembers which hosts failed.

    Args:
        mirror: replaces `https:/` of every address; default: $PDSERVE_RELEASE_MIRROR, else none.
    """

    def __init__(self, mirror: str | None = None) -> None:
        self._mirror = (mirror or os.environ.get(ENV_MIRROR, "")).rstrip("/")
        self._failed: dict[str, str] = {}
        self._opener = urllib.request.build_opener(_Http(), _Https())

    def fetch(self, url: str, sha256: str, target: Path, progress: Progress) -> None:
        """Write the file at `url` to `target`.

        Raises:
            LocalError: its host does not answer (or did not before), has no such file, or the
                file's SHA-256 is another than `sha256`. `target` is then of no use.
        """
        digest = hashlib.sha256()

        def write(chunk: bytes) -> None:
            digest.update(chunk)
            out.write(chunk)

        with target.open("wb") as out:
            self._get(url, write, progress)
        if digest.hexdigest() != sha256:
            raise LocalError(
                f"{url} is not the pinned file and is not used: "
                f"its SHA-256 is {digest.hexdigest()}, pinned is {sha256}"
            )

    def text(self, url: str) -> str:
        """A small text file.

        Raises:
            LocalError: its host does not answer, or answers something else.
        """
        chunks: list[bytes] = []
        self._get(url, chunks.append, quiet)
        return b"".join(chunks).decode("utf-8", "replace")

    def _get(self, url: str, write: Callable[[bytes], object], progress: Progress) -> None:
        address = f"{self._mirror}/{url.partition('://')[2]}" if self._mirror else url
        host = urlsplit(address).netloc
        if host in self._failed:
            raise LocalError(f"cannot download {url}: {host} failed before: {self._failed[host]}")
        progress(f"downloading {address}")
        try:
            self._read(address, write, progress)
        except urllib.error.HTTPError as error:
            if error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                self._failed[host] = str(error)
            raise LocalError(f"cannot download {address}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            self._failed[host] = str(reason)
            raise LocalError(f"cannot download {address}: {reason}") from error

    def _read(self, address: str, write: Callable[[bytes], object], progress: Progress) -> None:
        still = sparsely(progress, SAY_EVERY_SECONDS)
        name = address.rpartition("/")[2]
        end = time.monotonic() + FILE_SECONDS
        with self._opener.open(address, timeout=CONNECT_SECONDS) as reply:
            length = int(reply.headers.get("Content-Length") or 0)
            source: BinaryIO = reply
            got = 0
            while chunk := source.read(_CHUNK):
                write(chunk)
                got += len(chunk)
                of = f" of {length / _MB:.0f}" if length else ""
                still(f"downloading {name}: {got / _MB:.0f}{of} MB")
                if time.monotonic() > end:
                    raise TimeoutError(f"only {got / _MB:.0f}{of} MB in {FILE_SECONDS:.0f} s")
        if got < length:
            raise ConnectionError(f"the connection ended after {got} of {length} bytes")


class _HttpConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        _connect(self, super().connect)


class _HttpsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        _connect(self, super().connect)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req, context=ssl.create_default_context())


def _connect(connection: http.client.HTTPConnection, connect: Callable[[], None]) -> None:
    """Connect within CONNECT_SECONDS.

    In a thread, because a name lookup has no time limit of its own. What it raises is raised here.
    """
    failure: list[BaseException] = []

    def attempt() -> None:
        try:
            connect()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=attempt, name="connect", daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"no connection in {CONNECT_SECONDS:g} s")
    if failure:
        raise failure[0]
    connection.sock.settimeout(STALL_SECONDS)
