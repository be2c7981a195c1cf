"""Bytes of one connection -> complete requests, in order, or a refusal.

Bodies are collected whole: they are JSON and bounded. A body longer than its owner keeps
(`keeps`) is read to its end but not stored, so that it can be refused in order. What breaks a
limit or the protocol is refused once; nothing after it is kept. The offer of another protocol is
ignored, as a server may: some clients (Java's, `curl --http2`) make it with every first request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httptools

from pdserve.http1.errors import ApiError

_OFFER = (b"upgrade", b"http2-settings", b"connection", b"expect")
"""Headers of an offer to speak another protocol; a body that was asked for is on its way."""


@dataclass(slots=True)
class HttpRequest:
    """One received request; header names in lower case, `head_at` on `time.perf_counter`.

    `size` is the body's length in bytes; `body` is empty where that is more than is kept.
    """

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    head_at: float
    keep_alive: bool
    http_1_1: bool
    size: int = 0

    def header(self, name: str) -> str | None:
        """A header as text (Latin-1), by its name in lower case; None where it is absent."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")


class HeaderTexts(Mapping[str, str]):
    """Headers as text (Latin-1), each decoded when it is looked at."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> str:
        return self._headers[name.encode("latin-1", "replace")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._headers)

    def __len__(self) -> int:
        return len(self._headers)


def no_room() -> ApiError:
    """503: more is being received than there is memory for."""
    return ApiError(
        503,
        "too much is being received at once; send it again in a while",
        kind="overloaded_error",
        code="receiving_too_much",
        headers=((b"retry-after", b"2"), (b"x-should-retry", b"false")),
    )


class Receiver:
    """Receiving side of one connection.

    `began`, `awaits_body`, `screened`, `keeps`, `has_room`, `complete` and `failed` are for its
    owner to extend.
    """

    def __init__(self, max_head: int, max_body: int) -> None:
        """Limits are in bytes; the head counts target, names and values."""
        self.received: deque[HttpRequest] = deque()
        self.refusal: ApiError | None = None
        """Set once; to be answered after the requests received before it."""
        self._max_head, self._max_body = max_head, max_body
        self._parser = httptools.HttpRequestParser(self)
        self._in_head = False
        self._ended = False
        """A request ended in the bytes that came last."""
        self._body, self._body_size = bytearray(), 0
        self._begin()

    def receive(self, data: bytes) -> None:
        """Take bytes as they arrive; `received` and `refusal` may have changed afterwards."""
        if self.refusal is not None:
            return
        self._ended = False
        rest: memoryview | None = memoryview(data)
        try:
            while rest is not None:
                rest = self._feed(rest)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, Exception):
                self.failed(error.__context__)
                return
            self.refuse(ApiError(400, f"malformed HTTP: {error}", code="bad_request"))
        if self._in_head and not self._ended:
            # All of it is of one head: the parser keeps an unfinished header to itself.
            self._head_bytes += len(data)
            if self._head_bytes > self._max_head:
                self._head_too_large()

    @property
    def unfinished_head(self) -> int:
        """Bytes of a head that has begun and is not complete; 0 when there is none."""
        return max(self._head_size, self._head_bytes) if self._in_head else 0

    def refuse(self, error: ApiError) -> None:
        """Take nothing more; the first refusal stands."""
        if self.refusal is None:
            self.refusal = error

    def began(self) -> None:
        """Called with the first byte of a request."""

    def awaits_body(self) -> None:
        """Called when the client sends its body only after `100 Continue`."""

    def keeps(self, path: str) -> int:
        """How many bytes of a body sent to `path` to store; longer bodies are dropped."""
        return self._max_body

    def screened(self, method: str, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        """Why a request is refused by its head alone, before its body; None: go on."""
        return None

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes of a body may be stored."""
        return True

    def complete(self) -> None:
        """Called when a request was added to `received`."""

    def failed(self, error: Exception) -> None:
        """Called with what one of these methods raised; nothing more is to be received."""
        raise error

    def no_more(self) -> None:
        """No bytes come any more: the parser, which refers to this object, need not keep it."""
        self._parser = httptools.HttpRequestParser(None)

    # --- httptools callbacks ---

    def on_message_begin(self) -> None:
        """A request starts."""
        self._begin()
        self._in_head = True
        self.began()

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self.method = self._parser.get_method().decode("latin-1")
        self._url.append(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, of repeated ones the last wins; or a trailer, which nothing reads.

        Trailers come after the head was screened, so they must not change it (RFC 9110, 6.5.1).
        """
        if self._in_head:
            self._headers[name.lower()] = value
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The head is in: this instant is the request's arrival."""
        self._head_at = time.perf_counter()
        self._in_head = False
        path = self._path()
        if self.refusal is None and (error := self.screened(self.method, path, self._headers)):
            self.refuse(error)
            return
        self._kept = self.keeps(path)
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            self._too_large()
        elif self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.awaits_body()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_size += len(body)
        if self._body_size > self._max_body:
            self._too_large()
        elif self._body_size > self._kept or self.refusal is not None:
            self._body.clear()
        elif self.has_room(len(body)):
            self._body += body
        else:
            self._body.clear()
            self.refuse(no_room())

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._ended = True
        if self.method == "CONNECT":
            self.refuse(ApiError(400, "this is no proxy for CONNECT", code="bad_request"))
        if self.refusal is not None or self._parser.should_upgrade():
            return
        self.received.append(
            HttpRequest(
                method=self.method,
                path=self._path(),
                headers=self._headers,
                body=bytes(self._body),
                head_at=self._head_at,
                keep_alive=self._parser.should_keep_alive(),
                http_1_1=self._parser.get_http_version() == "1.1",
                size=self._body_size,
            )
        )
        self._body = bytearray()
        self.complete()

    # --- internals ---

    def _feed(self, data: memoryview) -> memoryview | None:
        """Parse; what follows a head that offered another protocol, or None."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self.refusal is None:
                self._decline()
                return data[offer.args[0] :]
        return None

    def _decline(self) -> None:
        """Read a request that offers another protocol as if it did not (RFC 9110, 7.8).

        The parser stops behind such a head, so another one reads the head without the offer, and
        what follows it.
        """
        kept = {k: v for k, v in self._headers.items() if k not in _OFFER}
        options = self._headers.get(b"connection", b"").lower()
        if b"close" in options:
            kept[b"connection"] = b"close"
        version = self._parser.get_http_version()
        lines = [f"{self.method} ".encode() + b"".join(self._url) + f" HTTP/{version}".encode()]
        lines += [b"%b: %b" % header for header in kept.items()]
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"\r\n".join((*lines, b"\r\n")))

    def _begin(self) -> None:
        self.method = ""
        """Of the request that is coming, or was refused; empty until its target begins."""
        self._url: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._head_size = self._head_bytes = 0
        # One buffer: a list of pieces would cost up to 26 times the bytes.
        self._body = bytearray()
        self._body_size = self._kept = 0
        self._head_at = 0.0

    def _path(self) -> str:
        target = b"".join(self._url)
        if not target.startswith(b"/") and b"://" in target:
            # As proxies are sent it; every server must take it (RFC 9112, 3.2.2).
            _, slash, rest = target.partition(b"://")[2].partition(b"/")
            target = b"/" + rest if slash else b"/"
        return target.partition(b"?")[0].decode("latin-1")

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self._max_head:
            self._head_too_large()

    def _head_too_large(self) -> None:
        self.refuse(
            ApiError(
                431, f"request head is larger than {self._max_head} bytes", code="head_too_large"
            )
        )

    def _too_large(self) -> None:
        self.refuse(
            ApiError(
                413,
                f"request body is larger than the limit of {self._max_body} bytes",
                code="too_large",
            )
        )
