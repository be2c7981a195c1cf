"""What vLLM publishes of its KV blocks: batches of events in msgpack, read with bounds.

A batch is `[seconds, events, ...]`; newer versions write it as a map. An event is a map with `type`
(0.32), or a list that begins with it (older versions). Of a hybrid model's cache groups the first
one counts, of media the device's memory. Fields of newer versions are ignored. Pure.

Source of the format: the classes of KV events in vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgpack

MAX_BATCH: Final = 16 << 20
"""Bytes of one batch: a prompt of a million tokens has 5 MB."""
MAX_EVENTS: Final = 1 << 16
MAX_BLOCKS: Final = 1 << 16
"""Block hashes of one event."""
MAX_HASH: Final = 64
"""Bytes of a block hash."""
MAX_BLOCK_TOKENS: Final = 1 << 16
DEVICE: Final = ("GPU", None)
_STORED: Final = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id",
                  "medium", "lora_name", "extra_keys", "group_idx")  # fmt: skip
_REMOVED: Final = ("block_hashes", "medium", "group_idx")
"""Order of the fields in events that are lists."""

BlockHash: TypeAlias = bytes | int


class KvEventError(ValueError):
    """A batch is none; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Full blocks that follow each other are cached."""

    blocks: tuple[BlockHash, ...]
    parent: BlockHash | None
    """The block before the first of them; None: the prompt begins with it."""
    size: int
    """Tokens of a block."""
    session: str
    """Of the request that stored or found them; empty where vLLM does not say."""


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks that are cached no more."""

    blocks: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """No block is cached any more."""


KvEvent: TypeAlias = BlocksStored | BlocksRemoved | BlocksCleared


def parse_batch(raw: bytes) -> list[KvEvent]:
    """The events of one batch that count here, in order.

    Raises:
        KvEventError: it is no batch, or larger than any that makes sense.
    """
    if len(raw) > MAX_BATCH:
        raise KvEventError(f"a batch of {len(raw)} bytes")
    try:
        value = msgpack.unpackb(raw, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise KvEventError(f"no msgpack: {error!s:.200}") from None
    events = value.get("events") if isinstance(value, dict) else None
    if isinstance(value, list) and len(value) > 1:
        events = value[1]
    if not isinstance(events, list) or len(events) > MAX_EVENTS:
        raise KvEventError(f"a batch has a list of at most {MAX_EVENTS} events")
    found = [_event(event) for event in events]
    return [event for event in found if event is not None]


def _event(value: object) -> KvEvent | None:
    """None: it says nothing of the blocks that count here."""
    kind: object = None
    fields: dict[object, object] = {}
    if isinstance(value, dict):
        kind, fields = value.get("type"), value
    elif isinstance(value, list) and value:
        kind = value[0]
        names: Sequence[str] = _STORED if kind == "BlockStored" else _REMOVED
        fields = dict(zip(names, value[1:], strict=False))
    if not isinstance(kind, str):
        raise KvEventError("an event has a type")
    if kind == "AllBlocksCleared":
        return BlocksCleared()
    if kind not in ("BlockStored", "BlockRemoved"):
        return None
    blocks = _hashes(fields.get("block_hashes"))
    if fields.get("medium") not in DEVICE or fields.get("group_idx") not in (None, 0):
        return None
    if kind == "BlockRemoved":
        return BlocksRemoved(blocks)
    size, session = fields.get("block_size"), fields.get("session_id")
    if type(size) is not int or not 0 < size <= MAX_BLOCK_TOKENS:
        raise KvEventError(f"block_size: a number of 1 to {MAX_BLOCK_TOKENS}")
    parent = fields.get("parent_block_hash")
    return BlocksStored(
        blocks, None if parent is None else _hash(parent), size,
        session if isinstance(session, str) else "",
    )  # fmt: skip


def _hashes(value: object) -> tuple[BlockHash, ...]:
    if not isinstance(value, list) or len(value) > MAX_BLOCKS:
        raise KvEventError(f"block_hashes: a list of at most {MAX_BLOCKS}")
    return tuple(map(_hash, value))


def _hash(value: object) -> BlockHash:
    if isinstance(value, bytes) and 0 < len(value) <= MAX_HASH:
        return value
    if type(value) is int:
        return value
    raise KvEventError(f"a block hash is a number or at most {MAX_HASH} bytes")
