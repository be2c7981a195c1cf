"""Which prompt blocks a prefill has in its prefix cache, between gateways and instances.

A gateway cuts a prompt into blocks and names each by a digest (`forwarding.prefix.blocks`), keyed
with a secret that engines do not have. A prefill leg may carry the digests of its prompt
(`HEADER_PROMPT_BLOCKS`); the instance remembers where in its cache each one ends, and streams to
every gateway that asks (`PATH_PREFIXES`) which digests are cached and which are no more. Engines
only repeat what gateways sent: they need neither the secret nor the way a prompt was cut.

The stream is a line of JSON after another. Digests are 8 bytes each, in base64:

- `{"snapshot": N}`: what was sent before is void, and N digests follow.
- `{"held": D, "gone": D}`: digests that are cached, the least recently used first; and those that
  are no more. Either may be missing.
- `{}`: the stream is alive.

Pure. Neighbours: `engines.prefix_feed` writes the stream, `gateway.prefix_feeds` reads it.
"""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import orjson

from pdserve.wire.bounds import Fields, WireError, parse_json

PATH_PREFIXES = "/pdserve/v1/prefixes"
"""POST with `{"most": N}`: the N most recently used digests, then what changes."""
HEADER_PROMPT_BLOCKS = "x-pdserve-prompt-blocks"
"""On a prefill leg: length of its prompt in blocks, a space, and the digests of its full ones."""
MAX_DIGESTS = 1 << 16
"""In the cache of one instance, as far as gateways may know."""
MAX_PROMPT_DIGESTS = 2048
MAX_LINE = 32 << 10
LINE_DIGESTS = 1024
"""Digests in one line, at most: 11 KiB of it."""
ALIVE_SECONDS = 5.0
"""A stream without news says that it is alive, so often."""
_BYTES = 8
_LONGEST = 1e9
"""Blocks of a prompt: more than any body holds."""


class PromptBlocks(NamedTuple):
    """The leading blocks of one prompt."""

    digests: array[int] = array("Q")
    """One of 64 bits for each full block, in order."""
    share: float = 0.0
    """Part of the whole prompt that one block is, 0 to 1."""


NO_BLOCKS = PromptBlocks()


class FeedLine(NamedTuple):
    """One line of the stream."""

    held: array[int]
    gone: array[int]
    snapshot: int | None = None
    """How many digests follow that replace all former ones; None: none does."""


def blocks_header(blocks: PromptBlocks) -> tuple[bytes, bytes]:
    """The header that names the blocks of a prompt, of which there is at least one."""
    value = b"%.6g " % (1 / blocks.share) + base64.b64encode(blocks.digests.tobytes())
    return HEADER_PROMPT_BLOCKS.encode(), value


def parse_blocks(value: str) -> PromptBlocks:
    """The blocks that a header's value names.

    Raises:
        WireError: it is no such value.
    """
    length, _, digests = value.partition(" ")
    found = _digests(digests, HEADER_PROMPT_BLOCKS, MAX_PROMPT_DIGESTS)
    try:
        blocks = float(length)
    except ValueError:
        blocks = 0.0
    if not 1.0 <= blocks <= _LONGEST or not found:
        raise WireError(f"{HEADER_PROMPT_BLOCKS}: want a length in blocks and digests")
    return PromptBlocks(found, 1 / blocks)


def wanted(most: int) -> bytes:
    """The body that asks an instance for at most `most` digests."""
    return orjson.dumps({"most": most})


def parse_wanted(body: bytes) -> int:
    """How many digests a gateway asks for: 1 to MAX_DIGESTS.

    Raises:
        WireError: the body is no such document.
    """
    value = Fields(parse_json(body, max_bytes=256), "prefixes")
    return value.integer("most", low=1, high=MAX_DIGESTS)


def feed_lines(held: Sequence[int], gone: Sequence[int] = ()) -> Iterator[bytes]:
    """The lines that bring these digests."""
    for name, digests in (("gone", gone), ("held", held)):
        for start in range(0, len(digests), LINE_DIGESTS):
            part = array("Q", digests[start : start + LINE_DIGESTS])
            text = base64.b64encode(part.tobytes()).decode()
            yield orjson.dumps({name: text}) + b"\n"


def snapshot_lines(held: Sequence[int]) -> Iterator[bytes]:
    """The lines that replace everything by these digests, the least recently used first."""
    yield orjson.dumps({"snapshot": len(held)}) + b"\n"
    yield from feed_lines(held)


def parse_line(line: bytes) -> FeedLine:
    """One line of the stream; fields of newer versions are ignored.

    Raises:
        WireError: it is no such line.
    """
    value = Fields(parse_json(line, max_bytes=MAX_LINE, max_depth=2), "prefixes")
    most = MAX_LINE
    held = _digests(value.text("held", "", most=most), "prefixes.held", LINE_DIGESTS)
    gone = _digests(value.text("gone", "", most=most), "prefixes.gone", LINE_DIGESTS)
    snapshot = value.integer("snapshot", high=MAX_DIGESTS) if value.has("snapshot") else None
    return FeedLine(held, gone, snapshot)


def _digests(text: str, path: str, most: int) -> array[int]:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WireError(f"{path}: not base64") from None
    if len(raw) % _BYTES or len(raw) > most * _BYTES:
        raise WireError(f"{path}: want at most {most} digests of {_BYTES} bytes")
    found = array("Q")
    found.frombytes(raw)
    return found
