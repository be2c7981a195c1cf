"""Reads large request bodies without holding the event loop.

A parser holds the interpreter until it returns: 2 million token ids in 4 MiB take a fifth of a
second, on any thread. So a long list of token ids is checked piece by piece, with the loop's other
work in between, and stays bytes: the legs' bodies take it as it is. A body with more than
`MOST_VALUES` of anything else is refused. Neighbours: `intake` says what a body must be.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import suppress
from typing import Final, NamedTuple

import orjson

from pdserve.engines.flow import Endpoint
from pdserve.gateway.errors import invalid
from pdserve.gateway.intake import count_mark, parse_body
from pdserve.http1.errors import ApiError
from pdserve.terms.json import JsonObject

PIECE: Final = 64 * 1024
"""Bytes looked at in one go. A list of ids is found from two of them on."""
SMALL: Final = 2 * PIECE
"""Bytes of a body that is parsed in one go."""
MOST_VALUES: Final = 200_000
"""Values of a body beside one list of token ids; parsing so many takes about 10 ms."""
_LIST: Final = b"0123456789, \t\r\n"
_VALUE: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[,\[{]', re.DOTALL)
_QUOTE: Final = ord('"')
_MARK: Final = f"ids-{secrets.token_hex(16)}"
"""Stands for the list while the rest is parsed; no client can know it."""


class Body(NamedTuple):
    """A request body that both legs can be made from."""

    fields: JsonObject
    """`prompt` is an `orjson.Fragment`, or a list of one, where it was a long list of ids."""
    ids: int = 0
    """Token ids in that list."""


async def read_body(endpoint: Endpoint, raw: bytes) -> Body:
    """The body, as `intake.parse_body` checks it; holds the loop for some milliseconds at most.

    Raises:
        ApiError: it is wrong (400), or has too many values (413).
    """
    if len(raw) <= SMALL:
        return Body(parse_body(endpoint, raw))
    found = _long_list(raw)
    if found is None:
        await _check_values(raw)
        return Body(parse_body(endpoint, raw))
    start, end = found
    rest = b'%b"%b"%b' % (raw[:start], _MARK.encode(), raw[end:])
    await _check_values(rest)
    fields = parse_body(endpoint, rest)
    prompt = fields.get("prompt")
    if prompt not in (_MARK, [_MARK]):
        await _check_values(raw)  # one of several prompts, or no prompt
        return Body(parse_body(endpoint, raw))
    ids = raw[start:end]
    count = await _count_ids(ids)
    fragment = orjson.Fragment(ids)
    fields["prompt"] = fragment if prompt == _MARK else [fragment]
    return Body(fields, count)


def _long_list(raw: bytes) -> tuple[int, int] | None:
    """Where the first long list of numbers begins and ends, brackets included."""
    for at in range(0, len(raw) - PIECE + 1, PIECE):
        if raw[at : at + PIECE].translate(None, _LIST):
            continue
        start, end = raw.rfind(b"[", 0, at), raw.find(b"]", at)
        if start < 0 or end < 0 or raw[start + 1 : end].translate(None, _LIST):
            return None  # digits of something else
        before = raw[:start].replace(b"\\\\", b"").replace(b'\\"', b"")
        # After an odd number of quotes it is text.
        return None if before.count(b'"') % 2 else (start, end + 1)
    return None


async def _count_ids(ids: bytes) -> int:
    """How many there are; ApiError unless each is a token id. `ids` has brackets around it."""
    count, at = 0, 1
    while at < len(ids):
        end = ids.rfind(b",", at, at + PIECE) if len(ids) - at > PIECE else len(ids) - 1
        piece: list[object] = []
        with suppress(orjson.JSONDecodeError):
            piece = orjson.loads(b"[%b]" % ids[at:end])
        if end < at or not piece or set(map(type, piece)) != {int}:
            raise invalid("prompt", f"token id {count} or one of the next is no whole number")
        count, at = count + len(piece), end + 1
        await asyncio.sleep(0)
    return count


async def _check_values(raw: bytes) -> None:
    if sum(count_mark(raw, mark) for mark in (b",", b"[", b"{")) <= MOST_VALUES:
        return
    # Most may be in text. Looked for in a thread, which gives way every few milliseconds.
    if await asyncio.to_thread(_has_more_values, raw):
        raise _too_many()


def _has_more_values(raw: bytes) -> bool:
    count = 0
    for token in _VALUE.finditer(raw):
        count += raw[token.start()] != _QUOTE
        if count > MOST_VALUES:
            return True
    return False


def _too_many() -> ApiError:
    return ApiError(
        413,
        f"the body holds too many values: at most {MOST_VALUES}, beside a prompt of token ids",
        code="too_large",
    )
