"""Fetch one file over HTTP: retried, resumed, bounded in bytes and patience, its hash checked.

Rules:

  1. What may pass is tried again with growing pauses: broken connections, timeouts, hardly any
     bytes a second (`watch`), 408, 429 and 5xx. After `TRIES` tries without `PROGRESS` bytes more
     it fails. Anything else that a server refuses fails at once.
  2. What is there is kept, and the next try asks for the rest alone (`Range`, with `If-Range` once
     the file's validator is known). A resumed file with another hash is fetched once more, whole.
  3. Redirects are followed by these rules alone: at most `REDIRECTS`, never from https to http, and
     another origin gets no credential.
  4. Nothing is written beyond the bound, or where the disk would be full.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

from pdserve.downloader.access import ServerAccess
from pdserve.downloader.errors import DownloadError, WrongDigestError
from pdserve.downloader.part_file import PIECE, ByteBudget, PartFile
from pdserve.downloader.watch import Say, SpeedWatch, WatchedHttp, WatchedHttps

TRIES: Final = 6
PROGRESS: Final = 1 << 20
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds."""
TIMEOUT: Final = 30.0
"""Seconds for a connection, for an answer, and for each piece of it."""
SLOW_SECONDS: Final = 60.0
REDIRECTS: Final = 5
_PASSING: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_MOVED: Final = frozenset((301, 302, 303, 307, 308))
_NO_URL: Final = "it is no URL that can be asked, or redirects to such a one"
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Patience:
    """How waiting is done; times in seconds."""

    sleep: Callable[[float], None] = time.sleep
    timeout: float = TIMEOUT
    slow_seconds: float = SLOW_SECONDS


class _PassingError(Exception):
    """Worth another try, after `pause` seconds at least."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class Transfer:
    """Fetches files with the same credentials."""

    def __init__(self, access: ServerAccess, say: Say, patience: Patience | None = None) -> None:
        self._access, self._say = access, say
        self._patience = patience or Patience()
        self._watch = self._new_watch()
        self._opener = urllib.request.build_opener(
            _NoRedirect(), WatchedHttp(self._connected), WatchedHttps(self._connected, access.tls)
        )

    def fetch(self, url: str, sha256: str, target: Path, budget: ByteBudget) -> None:
        """Leave the file at `target`, which appears when it is whole and its hash is `sha256`.

        Args:
            url: without credentials.
            sha256: in hexadecimal digits.
            target: in a directory that is there; `.NAME.part` beside it holds what came so far. No
                file of a manifest or an archive has such a name.
            budget: what may be written; less the file's size afterwards.

        Raises:
            WrongDigestError: the server has other content; nothing of it is kept.
            DownloadError: it cannot be had.
        """
        path = target.with_name(f".{target.name}.part")
        try:
            part = PartFile(path, budget)
            self._complete(url, sha256, part)
            if part.digest.hexdigest() != sha256 and part.resumed:
                self._say(f"{target.name}: what was there does not fit; fetching all of it again")
                path.unlink()
                part = PartFile(path, budget)
                self._complete(url, sha256, part)
            found = part.digest.hexdigest()
            if found != sha256:
                path.unlink()
                raise WrongDigestError(f"{_shown(url)}: its SHA-256 is {found}, not {sha256}")
            budget.take(part.size)
            path.rename(target)
        except OSError as error:
            raise DownloadError(f"{target.name}: {error.strerror or error}") from error

    def _complete(self, url: str, sha256: str, part: PartFile) -> None:
        """Fetch what is missing, until the server has no more of it."""
        tries, kept = 0, part.size
        while not part.size or part.digest.hexdigest() != sha256:
            try:
                with part:
                    self._once(url, part)
                return
            except _PassingError as error:
                if part.size >= kept + PROGRESS:
                    tries, kept = 0, part.size
                tries += 1
                if tries >= TRIES:
                    raise DownloadError(f"{_shown(url)}: {error}, {tries} times in a row") from None
                pause = max(error.pause, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)))
                self._say(f"{_shown(url)}: {error}; again in {pause:g} s, from byte {part.size}")
                self._patience.sleep(pause)

    def _once(self, url: str, part: PartFile) -> None:
        self._watch = watch = self._new_watch()
        try:
            with watch, self._answer(url, part) as answer:
                self._receive(url, answer, part)
        except http.client.InvalidURL as error:
            raise DownloadError(f"{_shown(url)}: {_NO_URL}") from error
        except http.client.HTTPException as error:
            broken = f"the answer is broken ({type(error).__name__})"
            raise _PassingError(watch.late or broken) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                message = f"{_shown(url)}: its certificate is not trusted: {reason.verify_message}"
                raise DownloadError(message) from error
            why = str(getattr(reason, "strerror", None) or reason)
            raise _PassingError(watch.late or why) from error
        except ValueError as error:  # of a host's name, a port, or characters
            raise DownloadError(f"{_shown(url)}: {_NO_URL}") from error
        if watch.late:
            raise _PassingError(watch.late)

    def _new_watch(self) -> SpeedWatch:
        return SpeedWatch(self._patience.slow_seconds, self._say)

    def _connected(self, connection: socket.socket) -> None:
        self._watch.connected(connection)

    def _answer(self, url: str, part: PartFile) -> HTTPResponse:
        """The answer with the file's bytes, behind all redirects."""
        at, own = url, True
        for _ in range(REDIRECTS + 1):
            request = self._request(at, own, part)
            try:
                answer: HTTPResponse = self._opener.open(request, timeout=self._patience.timeout)
            except urllib.error.HTTPError as refused:
                with refused:
                    code, headers = refused.code, refused.headers
            else:
                return answer
            if code not in _MOVED:
                self._refuse(at, code, headers, part)
            there = _moved(at, headers)
            at, own = there, own and _origin(there) == _origin(at)
        raise DownloadError(f"{_shown(url)}: more than {REDIRECTS} redirects")

    def _request(self, url: str, own: bool, part: PartFile) -> urllib.request.Request:
        """`own`: it is the origin that the credentials are for."""
        if own and self._access.query:
            url = f"{url}{'&' if urlsplit(url).query else '?'}{self._access.query}"
        request = urllib.request.Request(url)  # noqa: S310 - `_moved` and the API let HTTP through
        request.add_header("User-Agent", "pdserve-downloader")
        request.add_header("Accept-Encoding", "identity")
        if own and self._access.authorization:
            request.add_unredirected_header("Authorization", self._access.authorization)
        if part.size:
            part.resumed = True
            request.add_header("Range", f"bytes={part.size}-")
            if part.validator:
                request.add_header("If-Range", part.validator)
        return request

    def _refuse(self, url: str, code: int, headers: Message, part: PartFile) -> None:
        """Raise what an answer without the file means."""
        if code == 416 and part.size:
            part.restart()
            raise _PassingError("what was there does not fit")
        if code in _PASSING:
            raise _PassingError(f"the server answers {code}", _retry_after(headers))
        why = ""
        if code in (401, 403):
            given = self._access.authorization or self._access.query
            why = ": the Secret's credentials are not accepted" if given else (
                ": it wants credentials, which model.source.uri.secretRef would name"
            )  # fmt: skip
        raise DownloadError(f"{_shown(url)}: the server answers {code}{why}")

    def _receive(self, url: str, answer: HTTPResponse, part: PartFile) -> None:
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DownloadError(f"{_shown(url)}: the server compresses what was asked for as it is")
        if part.size and not _goes_on(answer, part.size):
            part.restart()
            if answer.status == 206:
                raise _PassingError("another part came than was asked for")
        part.validator = _validator(answer.headers)
        part.expect(answer.length)
        whole = None if answer.length is None else part.size + answer.length
        while piece := answer.read1(PIECE):
            part.write(piece)
            self._watch.came(len(piece), part.size, whole)
        if answer.length:
            early = f"the connection ended {answer.length} bytes too early"
            raise _PassingError(self._watch.late or early)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Every redirect is an answer, whatever its `Location` says."""

    def http_error_302(self, *_args: object, **_kwargs: object) -> None:
        """urllib: a redirect came."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _moved(url: str, headers: Message) -> str:
    target = urljoin(url, headers.get("Location", ""))
    there = urlsplit(target)
    if there.scheme not in ("http", "https") or not there.hostname or "@" in there.netloc:
        raise DownloadError(f"{_shown(url)}: it redirects to no HTTP URL")
    if urlsplit(url).scheme == "https" and there.scheme != "https":
        raise DownloadError(f"{_shown(url)}: it redirects from https to http")
    return target


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def _goes_on(answer: HTTPResponse, size: int) -> bool:
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return answer.status == 206 and found is not None and int(found[1]) == size


def _validator(headers: Message) -> str:
    """A strong ETag, else the date of the last change."""
    tag: str = headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    changed: str = headers.get("Last-Modified", "")
    return changed


def _retry_after(headers: Message) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), LONGEST_PAUSE) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


def _shown(url: str) -> str:
    """Without what may be secret; any text."""
    return re.sub("//[^/]*@", "//", url.partition("?")[0].partition("#")[0])
