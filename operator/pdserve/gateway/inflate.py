"""Request bodies that clients have compressed: gzip, inflated piece by piece, bounded in bytes.

What counts for every limit is the inflated size, so a small body cannot become a large one that a
plain body could not have been. Neighbours: `app` reads bodies, `http1.limits` bounds their memory.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

from pdserve.gateway.errors import overloaded
from pdserve.http1.errors import ApiError

PIECE: Final = 64 * 1024
"""Bytes read, and bytes inflated, in one go; between two the event loop does other work."""
_PLAIN: Final = frozenset((b"", b"identity"))
_GZIP: Final = frozenset((b"gzip", b"x-gzip"))


async def plain_body(
    body: bytes, encoding: bytes, most: int, grows: Callable[[int], bool]
) -> bytes:
    """The body as it was before the client encoded it.

    Args:
        body: as received.
        encoding: value of the header Content-Encoding; empty where there is none.
        most: bytes that the result may have.
        grows: counts so many more bytes as this request's; False: there is no room for them.

    Raises:
        ApiError: 415, another encoding; 400, not gzip or cut short; 413, more than `most` bytes;
            503, the bodies in progress fill the memory.
    """
    encoding = encoding.strip().lower()
    if encoding in _PLAIN:
        return body
    if encoding not in _GZIP:
        shown = encoding[:100].decode("latin-1")
        raise ApiError(
            415,
            f"content-encoding {shown!r} is not supported: send gzip, or the body as it is",
            code="unsupported_encoding",
            headers=((b"accept-encoding", b"gzip, identity"),),
        )
    return await _gunzipped(body, most, grows)


async def _gunzipped(body: bytes, most: int, grows: Callable[[int], bool]) -> bytes:
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    view, at = memoryview(body), 0
    found, rest = bytearray(), b""
    while not stream.eof:
        if not rest:
            rest, at = bytes(view[at : at + PIECE]), at + PIECE
            if not rest:
                raise _unreadable("it ends too early")
        try:
            piece = stream.decompress(rest, PIECE)
        except zlib.error as error:
            raise _unreadable(str(error)) from error
        rest = stream.unconsumed_tail
        if len(found) + len(piece) > most:
            raise ApiError(
                413, f"the inflated body is larger than the limit of {most} bytes", code="too_large"
            )
        if not grows(len(piece)):
            raise overloaded("too_much_at_once", "the bodies in progress fill the memory", 2, 2, 0)
        found += piece
        await asyncio.sleep(0)
    after = len(stream.unused_data) + len(view[at:])
    if after:
        raise _unreadable(f"{after} bytes follow its end")
    return bytes(found)


def _unreadable(why: str) -> ApiError:
    return ApiError(400, f"the gzip body cannot be read: {why}", code="invalid_encoding")
