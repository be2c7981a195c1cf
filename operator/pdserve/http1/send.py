"""Framing of replies: status lines and chunks."""

from __future__ import annotations

from http import HTTPStatus

STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One piece of a body of unknown length; nothing for no bytes, as an empty one would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
