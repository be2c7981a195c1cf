"""Llama forward pass over paged KV, exact for every way of batching and chunking.

One call of `Llama.step` advances several sequences at once: prompt chunks of any length and single
decode tokens mixed. New K and V are first written into the sequences' blocks; then every new
position attends over its own sequence's blocks. `loader` reads the weights; `kernels` explains the
shapes of the products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdserve.refengine.model import kernels
from pdserve.refengine.model.kernels import TILE, Ints, TiledLinear
from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.tensors import Array, WeightsError

QUERIES = 64
"""Queries of one prompt chunk that attend together: bounds memory, skips blocks after them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """New positions of one sequence: `tokens` at `start`, `start + 1`, ...

    `table` holds the ids of the blocks covering positions [0, start + len(tokens)).
    """

    tokens: npt.NDArray[np.int32]
    start: int
    table: Ints
    logits: bool


class _Layer:
    def __init__(self, tensors: Mapping[str, Array], index: int) -> None:
        def get(name: str) -> Array:
            return tensors[f"model.layers.{index}.{name}.weight"]

        qkv = [get(f"self_attn.{n}_proj") for n in "qkv"]
        self.qkv = TiledLinear(np.concatenate(qkv))
        self.out = TiledLinear(get("self_attn.o_proj"))
        self.gate = TiledLinear(get("mlp.gate_proj"))
        self.up = TiledLinear(get("mlp.up_proj"))
        self.down = TiledLinear(get("mlp.down_proj"))
        self.norm_in = get("input_layernorm")
        self.norm_mlp = get("post_attention_layernorm")

    def linears(self) -> tuple[TiledLinear, ...]:
        return (self.qkv, self.out, self.gate, self.up, self.down)


class Llama:
    """A loaded model. Not thread-safe in its KV argument: one step at a time per pool.

    Raises:
        WeightsError: a tensor is missing, or its shape is not that of `config`.
    """

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, Array]) -> None:
        self.config = config
        try:
            self._embed = tensors["model.embed_tokens.weight"]
            self._layers = [_Layer(tensors, i) for i in range(config.layers)]
            self._norm = tensors["model.norm.weight"]
            head = self._embed if config.tied else tensors["lm_head.weight"]
        except KeyError as error:
            raise WeightsError(f"weights: tensor {error} is missing") from error
        if self._embed.shape != (config.vocab, config.hidden):
            raise WeightsError(
                f"weights: model.embed_tokens.weight is {self._embed.shape}, config.json says "
                f"({config.vocab}, {config.hidden})"
            )
        self._head = TiledLinear(head)
        self._cos, self._sin = kernels.rope_tables(
            config.context, config.head_dim, config.rope_theta
        )

    def linears(self) -> list[TiledLinear]:
        """Every matrix, for the self-test."""
        return [*(m for layer in self._layers for m in layer.linears()), self._head]

    def step(self, batch: Sequence[Rows], pool: Array) -> Array:
        """Write KV of all rows into `pool` and return logits.

        Args:
            batch: at least one; a sequence appears at most once.
            pool: [blocks, layers, 2, kv_heads * head_dim * BLOCK_TOKENS] float32.

        Returns:
            [n, vocab] for the last row of each member with `logits`, in batch order.
        """
        plan = _Plan(batch, self.config)
        x = kernels.pad_tiles(self._embed[plan.tokens])
        cos, sin = self._cos[plan.positions], self._sin[plan.positions]
        for index, layer in enumerate(self._layers):
            h = kernels.rms_norm(x, layer.norm_in, self.config.norm_eps)
            mixed = self._attention(plan, index, layer.qkv(h), cos, sin, pool)
            x += layer.out(mixed)
            h = kernels.rms_norm(x, layer.norm_mlp, self.config.norm_eps)
            gated = kernels.silu(layer.gate(h))
            gated *= layer.up(h)
            x += layer.down(gated)
        last = x.reshape(-1, self.config.hidden)[plan.last]
        if not len(last):
            return np.empty((0, self.config.vocab), np.float32)
        h = kernels.rms_norm(kernels.pad_tiles(last), self._norm, self.config.norm_eps)
        logits = self._head(h)
        return logits.reshape(-1, self.config.vocab)[: len(last)]

    def _attention(
        self, plan: _Plan, index: int, qkv: Array, cos: Array, sin: Array, pool: Array
    ) -> Array:
        c = self.config
        rows, width = len(plan.positions), c.heads * c.head_dim
        flat = qkv.reshape(-1, qkv.shape[-1])[:rows]
        kv = c.kv_heads * c.head_dim
        q = kernels.rope(flat[:, :width].reshape(rows, c.heads, c.head_dim), cos, sin)
        q *= np.float32(c.head_dim**-0.5)
        key = kernels.rope(
            flat[:, width : width + kv].reshape(rows, c.kv_heads, c.head_dim), cos, sin
        )
        value = flat[:, width + kv :].reshape(rows, c.kv_heads, c.head_dim)
        keys, values = _views(pool, index, c)
        keys[plan.block, :, :, plan.offset] = key
        values[plan.block, :, plan.offset] = value
        out = np.zeros((kernels.tiles(rows) * TILE, width), np.float32)
        q = q.reshape(rows, c.kv_heads, c.group, c.head_dim)
        if plan.singles:
            out[plan.single_rows] = _attend_singles(q[plan.single_rows], plan, keys, values)
        for rows_slice, item in plan.chunks:
            out[rows_slice] = _attend_chunk(q[rows_slice], item, keys, values)
        return out.reshape(-1, TILE, width)


class _Plan:
    """Where the rows of one step lie: flat arrays over all rows, and how they attend."""

    def __init__(self, batch: Sequence[Rows], config: LlamaConfig) -> None:
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
        if self.singles:
            blocks = max(_blocks(r.start + 1) for r in self.singles)
            # Padding repeats block 0 of the pool: finite numbers that the mask turns into zeros.
            self.single_tables = np.zeros((len(self.singles), blocks), np.int64)
            for row, r in zip(self.single_tables, self.singles, strict=True):
                used = _blocks(r.start + 1)
                row[:used] = r.table[:used]
            seen = np.asarray([r.start + 1 for r in self.singles], np.int64)
            group = kernels.tiles(config.group)
            self.single_visible: Ints = np.broadcast_to(
                seen[:, None, None], (len(seen), group, TILE)
            )


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _views(pool: Array, layer: int, c: LlamaConfig) -> tuple[Array, Array]:
    """K [blocks, kv_heads, dim, tokens] and V [blocks, kv_heads, tokens, dim] of one layer."""
    blocks = pool.shape[0]
    k = pool[:, layer, 0].reshape(blocks, c.kv_heads, c.head_dim, BLOCK_TOKENS)
    v = pool[:, layer, 1].reshape(blocks, c.kv_heads, BLOCK_TOKENS, c.head_dim)
    return k, v


def _attend_singles(q: Array, plan: _Plan, keys: Array, values: Array) -> Array:
    count, kv_heads, group, dim = q.shape
    tiled = kernels.pad_rows(q, 2).reshape(count, kv_heads, -1, TILE, dim)
    table = plan.single_tables
    out = kernels.attend(tiled, keys[table], values[table], plan.single_visible)
    return out.reshape(count, kv_heads, -1, dim)[:, :, :group].reshape(count, -1)


def _attend_chunk(q: Array, item: Rows, keys: Array, values: Array) -> Array:
    count, kv_heads, group, dim = q.shape
    used = item.table[: _blocks(item.start + count)]
    k, v = keys[used][None], values[used][None]
    out = np.empty((count, kv_heads * group * dim), np.float32)
    for begin in range(0, count, QUERIES):
        end = min(begin + QUERIES, count)
        part = q[begin:end].transpose(1, 0, 2, 3).reshape(kv_heads, (end - begin) * group, dim)
        tiled = kernels.pad_rows(part, 1).reshape(1, kv_heads, -1, TILE, dim)
        seen = np.ones(tiled.shape[2] * TILE, np.int64)
        positions = np.arange(item.start + begin, item.start + end)
        seen[: part.shape[1]] = np.repeat(positions + 1, group)
        blocks = _blocks(item.start + end)
        mixed = kernels.attend(tiled, k[:, :blocks], v[:, :blocks], seen.reshape(1, -1, TILE))
        flat = mixed.reshape(kv_heads, -1, dim)[:, : part.shape[1]]
        out[begin:end] = (
            flat.reshape(kv_heads, end - begin, group, dim)
            .transpose(1, 0, 2, 3)
            .reshape(end - begin, -1)
        )
    return out


def new_pool(config: LlamaConfig, blocks: int) -> Array:
    """Zeroed KV memory of so many blocks; the system commits pages only when they are written."""
    return np.zeros(
        (blocks, config.layers, 2, config.kv_heads * config.head_dim * BLOCK_TOKENS), np.float32
    )
