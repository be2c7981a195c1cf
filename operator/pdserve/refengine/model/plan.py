"""Where the rows of one step lie: which tokens at which positions, and in which KV blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.tensors import Array, Ints


@dataclass(frozen=True, slots=True)
class Rows:
    """New positions of one sequence: `tokens` at `start`, `start + 1`, ...

    `table` holds the ids of the blocks covering positions [0, start + len(tokens)).
    """

    tokens: npt.NDArray[np.int32]
    start: int
    table: Ints
    logits: bool


class StepPlan:
    """Flat arrays over all rows of a step, and how the rows attend.

    `block` and `offset` say where the KV of each row is written, and `last` which rows give logits.
    Members of one row (decode) attend together: row number `single_rows[i]` sees the first
    `single_seen[i]` positions of the blocks `single_tables[i]`. Each of `chunks` attends by itself.
    """

    def __init__(self, batch: Sequence[Rows]) -> None:
        self.tokens = np.concatenate([r.tokens for r in batch])
        spans = [np.arange(r.start, r.start + len(r.tokens)) for r in batch]
        self.positions: Ints = np.concatenate(spans)
        self.block: Ints = np.concatenate(
            [r.table[s // BLOCK_TOKENS] for r, s in zip(batch, spans, strict=True)]
        )
        self.offset: Ints = self.positions % BLOCK_TOKENS
        ends = np.cumsum([len(r.tokens) for r in batch])
        self.last: Ints = np.asarray(
            [end - 1 for end, r in zip(ends, batch, strict=True) if r.logits], np.int64
        )
        self.singles = [r for r in batch if len(r.tokens) == 1]
        self.single_rows: Ints = np.asarray(
            [end - 1 for end, r in zip(ends, batch, strict=True) if len(r.tokens) == 1], np.int64
        )
        self.chunks = [
            (slice(int(end) - len(r.tokens), int(end)), r)
            for end, r in zip(ends, batch, strict=True)
            if len(r.tokens) > 1
        ]
        self.single_seen: Ints = np.asarray([r.start + 1 for r in self.singles], np.int64)
        most = max((blocks_of(r.start + 1) for r in self.singles), default=0)
        # Padding repeats block 0 of the pool: finite numbers that the mask turns into zeros.
        self.single_tables: Ints = np.zeros((len(self.singles), most), np.int64)
        for row, r in zip(self.single_tables, self.singles, strict=True):
            used = blocks_of(r.start + 1)
            row[:used] = r.table[:used]


def blocks_of(tokens: int) -> int:
    """How many KV blocks hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def alike_singles(plan: StepPlan) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Decoding sequences that attend together: their numbers, how much they see, their tables.

    Each takes as long as the longest of them, which sees at most twice as much, or one block.
    """
    order = np.argsort(plan.single_seen, kind="stable")
    while len(order):
        seen = plan.single_seen[order]
        end = int(np.searchsorted(seen, max(BLOCK_TOKENS, 2 * seen[0]), side="right"))
        some, seen = order[:end], seen[:end]
        yield some, seen, plan.single_tables[some, : blocks_of(int(seen[-1]))]
        order = order[end:]


def hidden_scores(seen: Ints, tables: Ints) -> Array:
    """What to add to scores [sequences, kv_heads, rows, keys]: -inf beyond the keys a row sees.

    `seen`: how many keys each row [sequences, rows] sees; `tables`: blocks of each sequence.
    """
    key = np.arange(tables.shape[1] * BLOCK_TOKENS)
    shut = key >= seen[:, None, :, None]
    return np.where(shut, np.float32(-np.inf), np.float32(0))


def kv_views(pool: Array, layer: int, c: LlamaConfig) -> tuple[Array, Array]:
    """K [blocks, kv_heads, dim, tokens] and V [blocks, kv_heads, tokens, dim] of one layer."""
    blocks = pool.shape[0]
    k = pool[:, layer, 0].reshape(blocks, c.kv_heads, c.head_dim, BLOCK_TOKENS)
    v = pool[:, layer, 1].reshape(blocks, c.kv_heads, BLOCK_TOKENS, c.head_dim)
    return k, v


def new_pool(config: LlamaConfig, blocks: int) -> Array:
    """Zeroed KV memory of so many blocks; the system commits pages only when they are written."""
    return np.zeros(
        (blocks, config.layers, 2, config.kv_heads * config.head_dim * BLOCK_TOKENS), np.float32
    )
