"""What a fuzzed parser is; those of reports of prefix caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgpack

from pdserve.engineproxy.kv_events import KvEventError, parse_batch
from pdserve.wire import prefixes
from pdserve.wire.bounds import WireError


@dataclass(frozen=True, slots=True)
class Target:
    """One parser."""

    name: str
    parse: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...]
    seeds: tuple[bytes, ...]


_KV_EVENTS = [
    {"type": "BlockStored", "block_hashes": [b"x" * 32, 7], "parent_block_hash": None,
     "token_ids": [5] * 32, "block_size": 16, "medium": "GPU", "session_id": "leg"},
    ["BlockRemoved", [b"x" * 32], "GPU"], {"type": "AllBlocksCleared"},
]  # fmt: skip


def prefix_targets() -> tuple[Target, ...]:
    """Gateways read the lines, instances the header, the proxy vLLM's events."""
    return (
        Target("wire.prefix_line", prefixes.parse_line, (WireError,),
               (b'{"snapshot": 2}', *prefixes.feed_lines([1, 2**64 - 1], [5]))),
        Target("wire.prompt_blocks", lambda data: prefixes.parse_blocks(data.decode("latin-1")),
               (WireError,), (b"2.5 AAAAAAAAAAEAAAAAAAAAAg==",)),
        Target("proxy.kv_events", parse_batch, (KvEventError,),
               (msgpack.packb([0.5, _KV_EVENTS]), msgpack.packb({"events": _KV_EVENTS}))),
    )  # fmt: skip
