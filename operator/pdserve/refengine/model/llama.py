"""Llama forward pass over paged KV, exact for every way of batching and chunking.

One call of `Llama.step` advances several sequences at once: prompt chunks of any length and single
decode tokens mixed. New K and V are first written into the sequences' blocks; then every new
position attends over its own sequence's blocks. `loader` reads the weights; `kernels` explains the
shapes of the products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pdserve.refengine.model import kernels
from pdserve.refengine.model.kernels import TILE, TiledLinear
from pdserve.refengine.model.layer_share import LayerShare
from pdserve.refengine.model.model_config import LlamaConfig
from pdserve.refengine.model.plan import Rows, StepPlan, blocks_of, kv_views
from pdserve.refengine.model.tensors import Array, checked

QUERIES = 64
"""Queries of one prompt chunk that attend together: bounds memory, skips blocks after them."""


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
    """A loaded model, or the layers of it that one member computes. Not thread-safe in its KV
    argument: one step at a time per pool.

    Raises:
        WeightsError: a tensor is missing, or its shape is not that of `config`.
    """

    def __init__(
        self, config: LlamaConfig, tensors: Mapping[str, Array], share: LayerShare | None = None
    ) -> None:
        """`share`: the layers to compute; None: all. Only the leader's has embedding and head."""
        self.config = config
        with checked(tensors, config.vocab, config.hidden) as embed:
            computed = range(config.layers) if share is None else share.layers
            self._layers = [_Layer(tensors, i) for i in computed]
            leads = share is None or share.leads
            self._embed = embed if leads else np.empty((0, config.hidden), np.float32)
            self._norm = tensors["model.norm.weight"]
            head = embed if config.tied else tensors["lm_head.weight"]
        self._head = TiledLinear(head) if leads else None
        self._cos, self._sin = kernels.rope_tables(
            config.context, config.head_dim, config.rope_theta
        )

    def linears(self) -> list[TiledLinear]:
        """Every matrix, for the self-test."""
        head = [] if self._head is None else [self._head]
        return [*(m for layer in self._layers for m in layer.linears()), *head]

    def step(self, batch: Sequence[Rows], pool: Array) -> Array:
        """Write KV of all rows into `pool` and return logits.

        Args:
            batch: at least one; a sequence appears at most once.
            pool: [blocks, layers, 2, kv_heads * head_dim * BLOCK_TOKENS] float32.

        Returns:
            [n, vocab] for the last row of each member with `logits`, in batch order.
        """
        plan = StepPlan(batch)
        x = self.embedded(plan)
        self.advance(x, plan, pool)
        return self.logits(x, plan)

    def embedded(self, plan: StepPlan) -> Array:
        """What the first layer gets: [tiles, 8, hidden]."""
        return kernels.pad_tiles(self._embed[plan.tokens])

    def hidden_shape(self, plan: StepPlan) -> tuple[int, ...]:
        """Of what passes between layers."""
        return kernels.tiles(len(plan.positions)), TILE, self.config.hidden

    def advance(self, x: Array, plan: StepPlan, pool: Array) -> None:
        """Compute the own layers in place; layer n of them has its KV at `pool[:, n]`."""
        cos, sin = self._cos[plan.positions], self._sin[plan.positions]
        for index, layer in enumerate(self._layers):
            h = kernels.rms_norm(x, layer.norm_in, self.config.norm_eps)
            mixed = self._attention(plan, index, layer.qkv(h), cos, sin, pool)
            x += layer.out(mixed)
            h = kernels.rms_norm(x, layer.norm_mlp, self.config.norm_eps)
            gated = kernels.silu(layer.gate(h))
            gated *= layer.up(h)
            x += layer.down(gated)

    def logits(self, x: Array, plan: StepPlan) -> Array:
        """[n, vocab] of the last row of each member with `logits`, after the last layer."""
        last = x.reshape(-1, self.config.hidden)[plan.last]
        if not len(last) or self._head is None:
            return np.empty((0, self.config.vocab), np.float32)
        h = kernels.rms_norm(kernels.pad_tiles(last), self._norm, self.config.norm_eps)
        logits = self._head(h)
        return logits.reshape(-1, self.config.vocab)[: len(last)]

    def _attention(
        self, plan: StepPlan, index: int, qkv: Array, cos: Array, sin: Array, pool: Array
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
        keys, values = kv_views(pool, index, c)
        keys[plan.block, :, :, plan.offset] = key
        values[plan.block, :, plan.offset] = value
        out = np.zeros((kernels.tiles(rows) * TILE, width), np.float32)
        q = q.reshape(rows, c.kv_heads, c.group, c.head_dim)
        if plan.singles:
            out[plan.single_rows] = _attend_singles(q[plan.single_rows], plan, keys, values)
        for rows_slice, item in plan.chunks:
            out[rows_slice] = _attend_chunk(q[rows_slice], item, keys, values)
        return out.reshape(-1, TILE, width)


def _attend_singles(q: Array, plan: StepPlan, keys: Array, values: Array) -> Array:
    count, kv_heads, group, dim = q.shape
    tiled = kernels.pad_rows(q, 2).reshape(count, kv_heads, -1, TILE, dim)
    table = plan.single_tables
    seen = np.broadcast_to(plan.single_seen[:, None, None], (count, tiled.shape[2], TILE))
    out = kernels.attend(tiled, keys[table], values[table], seen)
    return out.reshape(count, kv_heads, -1, dim)[:, :, :group].reshape(count, -1)


def _attend_chunk(q: Array, item: Rows, keys: Array, values: Array) -> Array:
    count, kv_heads, group, dim = q.shape
    used = item.table[: blocks_of(item.start + count)]
    k, v = keys[used][None], values[used][None]
    out = np.empty((count, kv_heads * group * dim), np.float32)
    for begin in range(0, count, QUERIES):
        end = min(begin + QUERIES, count)
        part = q[begin:end].transpose(1, 0, 2, 3).reshape(kv_heads, (end - begin) * group, dim)
        tiled = kernels.pad_rows(part, 1).reshape(1, kv_heads, -1, TILE, dim)
        seen = np.ones(tiled.shape[2] * TILE, np.int64)
        positions = np.arange(item.start + begin, item.start + end)
        seen[: part.shape[1]] = np.repeat(positions + 1, group)
        blocks = blocks_of(item.start + end)
        mixed = kernels.attend(tiled, k[:, :blocks], v[:, :blocks], seen.reshape(1, -1, TILE))
        flat = mixed.reshape(kv_heads, -1, dim)[:, : part.shape[1]]
        out[begin:end] = (
            flat.reshape(kv_heads, end - begin, group, dim)
            .transpose(1, 0, 2, 3)
            .reshape(end - begin, -1)
        )
    return out
