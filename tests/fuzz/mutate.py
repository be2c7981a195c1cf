"""Odd inputs: bytes changed blindly, and JSON changed where it has structure."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

from pdserve.dst import values

MAX_INPUT = 1 << 16
"""Bytes; larger ones are cut."""
INTERESTING = (
    b"\x00", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"NaN", b"Infinity", b"1e999",
    b"-1", b"0", b"18446744073709551616", b"1e308", b"null", b"true", b"[", b"{", b'"', b"\\u0000",
    b"\\ud800", b"\r\n", b"\r\n\r\n", b"\n\n", b"data: ", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b": ", b"/", b"%00", b"," * 50, b"9" * 400,
)  # fmt: skip

Mutator = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip up to four bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def insert(data: bytes, rng: random.Random) -> bytes:
    """Put an interesting piece somewhere."""
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(INTERESTING) + data[at:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Replace a span by an interesting piece."""
    start, end = _span(data, rng)
    return data[:start] + rng.choice(INTERESTING) + data[end:]


def remove(data: bytes, rng: random.Random) -> bytes:
    """Take a span out."""
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Repeat a span, up to thousands of times."""
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 2, 30, 3000)) + data[end:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """End early."""
    return data[: rng.randint(0, len(data))]


def nest(data: bytes, rng: random.Random) -> bytes:
    """Put it deep inside lists."""
    depth = rng.choice((1, 40, 5000))
    return b"[" * depth + data + b"]" * rng.choice((0, depth))


BYTES: Sequence[Mutator] = (flip, insert, overwrite, remove, repeat, truncate, nest)


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One input made of the seeds: about half by structure where they are JSON."""
    data = rng.choice(seeds)
    if rng.random() < 0.5:
        data = _by_structure(data, rng)
    if rng.random() < 0.15:
        other = rng.choice(seeds)
        data = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        data = rng.choice(BYTES)(data, rng)
        if len(data) > MAX_INPUT:
            data = data[:MAX_INPUT]
    return data


def _by_structure(data: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.randint(1, 3)):
        value = values.spoiled(value, rng)
    try:
        return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 2, 8, 64, 1024)))
