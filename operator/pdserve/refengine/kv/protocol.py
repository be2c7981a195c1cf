"""Frames of the tcp transport and their authentication; pure, no sockets.

A frame is `PDKV`, version, kind, a 4-byte big-endian length and that much JSON. Handshake
(client C opens, server S answers; both prove one key without sending it):

    S -> C  CHALLENGE {id, nonce}
    C -> S  HELLO     {id, to, nonce, model, numerics, mac, key?}
    S -> C  WELCOME   {model, numerics, mac, devices?}  or  REFUSED {reason}, then S closes

`devices`: addresses of S's devices at which it listens too; engines of older versions name none.

    mac = HMAC-SHA256(key, side | scheme | S.id | C.id | S.nonce | C.nonce | model)

The key is the pair key of S and C (scheme `pair`; HELLO names it by its fingerprint in `key`), or
the token that all instances of the service share (scheme `1`, engines of older versions).

Then, any number of times:  C PING -> S PONG;  C PULL {request} -> S KV {tokens, bytes, crc} and
the payload, or MISSING {reason};  C DONE {request} after checking it -> S frees it.

Between two ends that check frames (`integrity`):  C PULL {request, tokens, generation, each} ->
S KV {tokens, bytes, generation} and frames of `each` blocks, a head before each, or MISSING where S
holds other KV than that. The end of a nonce says whether its sender checks frames: engines of older
versions take any nonce, and both MACs cover it, so no byte changed on the way hides the ability.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
import struct

import orjson

from pdserve.engines.trust import Proof
from pdserve.refengine.kv.kv_transport import TransportError
from pdserve.terms.json import JsonObject

VERSION = 1
MAX_FRAME = 16 << 10
HEAD = struct.Struct("!4sBBI")
_MAGIC = b"PDKV"
_CHECKS = ".crc32c"


class FrameKind(enum.IntEnum):
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


def encode(kind: FrameKind, body: JsonObject | None = None) -> bytes:
    """One frame."""
    data = orjson.dumps(body or {})
    return HEAD.pack(_MAGIC, VERSION, kind, len(data)) + data


def decode(buffer: memoryview) -> tuple[FrameKind, JsonObject, int] | None:
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
        return FrameKind(kind), body, HEAD.size + size
    except (ValueError, TypeError) as error:
        raise TransportError(f"malformed KV frame: {error}") from error


def new_nonce() -> str:
    """A nonce of an end that checks frames."""
    return secrets.token_hex(16) + _CHECKS


def checks_frames(nonce: str) -> bool:
    """Whether the end that sent this nonce checks frames."""
    return nonce.endswith(_CHECKS)


def mac(
    proof: Proof, side: str, *, server: str, client: str, nonces: tuple[str, str], model: str
) -> str:
    """What `side` ("client" or "server") sends as its proof, for this one handshake."""
    parts = (side, proof.scheme, server, client, *nonces, model)
    message = "\x00".join(parts).encode()
    return hmac.new(proof.key.encode(), message, hashlib.sha256).hexdigest()


def same(expected: str, given: object) -> bool:
    """Constant-time comparison of a MAC with what arrived."""
    return isinstance(given, str) and hmac.compare_digest(expected.encode(), given.encode())
