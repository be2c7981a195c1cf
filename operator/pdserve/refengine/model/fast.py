"""Llama forward pass for speed: each matrix product whole, all sequences of a step together.

The last bits of a row may depend on what else is in the batch, so a token may differ where two are
almost equally likely. `llama` is the exact form. Both read and write the same KV blocks, and a
sequence that one began may go on in the other. What is cheaper here than there:

  1. rows are not padded to tiles, and weights are not cut; q, k and v are one product, as are gate
     and up. The weights of a norm, and the factor of the scores, are part of the matrix after it;
  2. sequences of about one length attend together. First K, then V are copied out of their blocks,
     of as many sequences at once as stay in the processor's cache, so that one product per
     sequence and KV head mixes all values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pdserve.refengine.model import kernels
from pdserve.refengine.model.layer_share import LayerShare
from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.plan import (
    Rows,
    StepPlan,
    alike_singles,
    blocks_of,
    hidden_scores,
    kv_views,
)
from pdserve.refengine.model.tensors import Array, Ints, checked

CACHED_FLOATS = 1 << 18
"""Most float32 numbers of K or V that are copied at once, unless one sequence alone has more."""
QUERIES = 64
"""Queries of one prompt chunk that attend together: bounds memory, skips blocks after them."""


class _Layer:
    """Matrices of one layer as [inputs, outputs], which BLAS multiplies fastest here."""

    def __init__(self, tensors: Mapping[str, Array], index: int, scale: float) -> None:
        def get(name: str) -> Array:
            return tensors[f"model.layers.{index}.{name}.weight"]

        norm_in, norm_mlp = get("input_layernorm"), get("post_attention_layernorm")
        query = get("self_attn.q_proj") * np.float32(scale)
        qkv = np.concatenate([query, get("self_attn.k_proj"), get("self_attn.v_proj")])
        gate_up = np.concatenate([get("mlp.gate_proj"), get("mlp.up_proj")])
        self.qkv = _columns(qkv * norm_in)
        self.out = _columns(get("self_attn.o_proj"))
        self.gate_up = _columns(gate_up * norm_mlp)
        self.down = _columns(get("mlp.down_proj"))


class FastLlama:
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
            scale = config.head_dim**-0.5
            self._layers = [_Layer(tensors, i, scale) for i in computed]
            leads = share is None or share.leads
            self._embed = embed if leads else np.empty((0, config.hidden), np.float32)
            head = embed if config.tied else tensors["lm_head.weight"]
            norm = tensors["model.norm.weight"]
            self._head = _columns(head * norm) if leads else self._embed
        cos, sin = kernels.rope_tables(config.context, config.head_dim, config.rope_theta)
        self._cos, self._sin = cos, sin

    def matrices(self) -> list[Array]:
        """Every matrix, [inputs, outputs], in the order in which a step multiplies by them."""
        layers = [[layer.qkv, layer.out, layer.gate_up, layer.down] for layer in self._layers]
        return [*(matrix for layer in layers for matrix in layer), self._head]

    def step(self, batch: Sequence[Rows], pool: Array) -> Array:
        """Write KV of all rows into `pool` and return logits, as `llama.Llama.step` does."""
        plan = StepPlan(batch)
        x = self.embedded(plan)
        self.advance(x, plan, pool)
        return self.logits(x, plan)

    def embedded(self, plan: StepPlan) -> Array:
        """What the first layer gets: [rows, hidden]."""
        x: Array = self._embed[plan.tokens]
        return x

    def hidden_shape(self, plan: StepPlan) -> tuple[int, ...]:
        """Of what passes between layers."""
        return len(plan.positions), self.config.hidden

    def advance(self, x: Array, plan: StepPlan, pool: Array) -> None:
        """Compute the own layers in place; layer n of them has its KV at `pool[:, n]`."""
        c = self.config
        attention = _Attention(plan, c, pool)
        cos, sin = self._cos[plan.positions], self._sin[plan.positions]
        rotated = c.heads + c.kv_heads
        for index, layer in enumerate(self._layers):
            qkv = (_scaled(x, c.norm_eps) @ layer.qkv).reshape(len(x), -1, c.head_dim)
            turned = kernels.rope(qkv[:, :rotated], cos, sin)
            keys, values = kv_views(pool, index, c)
            keys[plan.block, :, :, plan.offset] = turned[:, c.heads :]
            values[plan.block, :, plan.offset] = qkv[:, rotated:]
            x += attention(turned[:, : c.heads], index) @ layer.out
            x += _gated(_scaled(x, c.norm_eps) @ layer.gate_up) @ layer.down

    def logits(self, x: Array, plan: StepPlan) -> Array:
        """[n, vocab] of the last row of each member with `logits`, after the last layer."""
        return _scaled(x[plan.last], self.config.norm_eps) @ self._head


def _columns(weight: Array) -> Array:
    """[inputs, outputs] in memory of a weight stored as [outputs, inputs]."""
    return np.ascontiguousarray(weight.T)


def _scaled(x: Array, eps: float) -> Array:
    """RMSNorm without its weights, which the next matrix holds."""
    mean = np.einsum("rk,rk->r", x, x) * np.float32(1.0 / x.shape[-1])
    scaled: Array = x * (1 / np.sqrt(mean + np.float32(eps)))[:, None]
    return scaled


def _gated(both: Array) -> Array:
    """silu(gate) * up of [rows, 2 * ffn], gate before up."""
    half = both.shape[-1] // 2
    gate, up = both[:, :half], both[:, half:]
    out = np.negative(gate)
    with np.errstate(over="ignore"):
        np.exp(out, out=out)
    out += 1
    np.divide(gate, out, out=out)
    out *= up
    return out


class _Attention:
    """Attention of all rows of one step, layer by layer."""

    def __init__(self, plan: StepPlan, config: LlamaConfig, pool: Array) -> None:
        self._plan, self._config = plan, config
        self._block_rows = pool.shape[1] * 2 * config.kv_heads
        self._heads = pool.reshape(-1, config.head_dim * BLOCK_TOKENS)
        width = self._heads.shape[1]
        self._buffer = np.empty((CACHED_FLOATS // width, width), np.float32)
        self._alike = [
            (plan.single_rows[some], self._index(tables), hidden_scores(seen[:, None], tables))
            for some, seen, tables in alike_singles(plan)
        ]

    def __call__(self, q: Array, layer: int) -> Array:
        """[rows, heads * dim] of queries [rows, heads, dim] that are scaled already."""
        c = self._config
        q = q.reshape(len(q), c.kv_heads, c.group, c.head_dim)
        out = np.empty_like(q)
        for rows, index, hidden in self._alike:
            out[rows] = self._attend(q[rows], index + layer * 2 * c.kv_heads, hidden)
        for span, item in self._plan.chunks:
            self._chunk(q[span], out[span], item, layer)
        return out.reshape(len(q), -1)

    def _index(self, tables: Ints) -> Ints:
        """Rows of the pool with K [sequences, kv_heads, blocks] of layer 0."""
        c = self._config
        rows: Ints = tables[:, None] * self._block_rows + np.arange(c.kv_heads)[:, None]
        return rows

    def _attend(self, q: Array, index: Ints, hidden: Array) -> Array:
        """Softmax attention [sequences, kv_heads, rows, dim].

        Args:
            q: [sequences, kv_heads, rows, dim], scaled.
            index: rows of the pool with K [sequences, kv_heads, blocks].
            hidden: as `hidden_scores` gives it.
        """
        count, kv_heads, rows, dim = q.shape
        blocks = index.shape[2]
        scores = np.empty((count, kv_heads, rows, blocks * BLOCK_TOKENS), np.float32)
        # Keys are stored transposed, block by block.
        by_block = scores.reshape(count, kv_heads, rows, blocks, BLOCK_TOKENS).swapaxes(2, 3)
        for part, keys in self._copied(index):
            k = keys.reshape(-1, kv_heads, blocks, dim, BLOCK_TOKENS)
            np.matmul(q[part, :, None], k, out=by_block[part])
        scores += hidden
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed = np.empty_like(q)
        for part, values in self._copied(index + kv_heads):
            v = values.reshape(-1, kv_heads, blocks * BLOCK_TOKENS, dim)
            np.matmul(scores[part], v, out=mixed[part])
        mixed /= np.add.reduce(scores, axis=-1, keepdims=True)
        return mixed

    def _copied(self, index: Ints) -> Iterator[tuple[slice, Array]]:
        """K or V of a few sequences after the other, in memory that the next ones overwrite."""
        each = index[0].size
        some = max(1, len(self._buffer) // each)
        if each > len(self._buffer):
            self._buffer = np.empty((each, self._buffer.shape[1]), np.float32)
        for first in range(0, len(index), some):
            part = slice(first, min(first + some, len(index)))
            into = self._buffer[: (part.stop - first) * each]
            np.take(self._heads, index[part].reshape(-1), axis=0, out=into, mode="clip")
            yield part, into

    def _chunk(self, q: Array, out: Array, item: Rows, layer: int) -> None:
        c, count = self._config, len(q)
        table = item.table[None, : blocks_of(item.start + count)]
        index = self._index(table) + layer * 2 * c.kv_heads
        for begin in range(0, count, QUERIES):
            end = min(begin + QUERIES, count)
            blocks = blocks_of(item.start + end)
            seen = np.arange(item.start + begin, item.start + end) + 1
            hidden = hidden_scores(np.repeat(seen, c.group)[None], table[:, :blocks])
            part = q[begin:end].transpose(1, 0, 2, 3).reshape(1, c.kv_heads, -1, c.head_dim)
            mixed = self._attend(part, index[:, :, :blocks], hidden)
            by_row = mixed.reshape(c.kv_heads, -1, c.group, c.head_dim)
            out[begin:end] = by_row.transpose(1, 0, 2, 3)
