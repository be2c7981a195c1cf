"""Frames of the tcp transport and their authentication; pure, no sockets.

A frame is `PDKV`, version, kind, a 4-byte big-endian length and that much JSON. Handshake
(client C opens, server S answers; both prove the service's token without sending it):

    S -> C  CHALLENGE {id, nonce}
    C -> S  HELLO     {id, to, nonce, model, numerics, mac}
    S -> C  WELCOME   {model, numerics, mac}        or  REFUSED {reason}, then S closes

    mac = HMAC-SHA256(token, side | version | S.id | C.id | S.nonce | C.nonce | model)

Then, any number of times:  C PING -> S PONG;  C PULL {request} -> S KV {tokens, bytes, crc} and
the payload, or MISSING {reason};  C DONE {request} after checking it -> S frees it.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from typing import Any

import orjson

from pdserve.refengine.kv.transport import TransportError

VERSION = 1
MAX_FRAME = 16 << 10
HEAD = struct.Struct("!4sBBI")
_MAGIC = b"PDKV"


class Kind(enum.IntEnum):
    """Frame kinds."""

    CHALLENGE = 1
    HELLO = 2
    WELCOME = 3
    REFUSED = 4
    PING = 5
    PONG = 6
    PULL = 7
    KV = 8
    MISSING = 9
    DONE = 10


def encode(kind: Kind, body: dict[str, Any] | None = None) -> bytes:
    """One frame."""
    data = orjson.dumps(body or {})
    return HEAD.pack(_MAGIC, VERSION, kind, len(data)) + data


def decode(buffer: memoryview) -> tuple[Kind, dict[str, Any], int] | None:
    """First frame of `buffer` and its size, or None when more bytes are needed.

    Raises:
        TransportError: other protocol, other version, oversized or malformed frame.
    """
    if len(buffer) < HEAD.size:
        return None
    magic, version, kind, size = HEAD.unpack_from(buffer)
    if magic != _MAGIC:
        raise TransportError("the other side does not speak pdserve's KV protocol")
    if version != VERSION:
        raise TransportError(f"the other side speaks KV protocol {version}, this one {VERSION}")
    if size > MAX_FRAME:
        raise TransportError(f"KV frame of {size} bytes, at most {MAX_FRAME} allowed")
    if len(buffer) < HEAD.size + size:
        return None
    try:
        body = orjson.loads(buffer[HEAD.size : HEAD.size + size])
        if not isinstance(body, dict):
            raise TypeError(f"body is {type(body).__name__}")
        return Kind(kind), body, HEAD.size + size
    except (ValueError, TypeError) as error:
        raise TransportError(f"malformed KV frame: {error}") from error


def mac(
    token: str, side: str, *, server: str, client: str, nonces: tuple[str, str], model: str
) -> str:
    """Proof that `side` ("client" or "server") knows the token, for this one handshake."""
    parts = (side, str(VERSION), server, client, *nonces, model)
    message = "\x00".join(parts).encode()
    return hmac.new(token.encode(), message, hashlib.sha256).hexdigest()


def same(expected: str, given: object) -> bool:
    """Constant-time comparison of a MAC with what arrived."""
    return isinstance(given, str) and hmac.compare_digest(expected.encode(), given.encode())
