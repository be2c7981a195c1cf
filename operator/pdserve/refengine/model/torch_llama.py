"""Llama forward pass by torch: several threads, bfloat16 weights, other devices. Never exact.

The steps are those of `fast`, in torch's products. With bfloat16 the matrices, and what they are
multiplied with, are bfloat16; sums between layers, norms, rotations and softmax stay float32, and
so does KV in the host's pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import linear, silu

from pdserve.refengine.model import kernels
from pdserve.refengine.model.arithmetic import Arithmetic, KvMirror
from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.plan import Rows, StepPlan, alike_singles, blocks_of, hidden_scores
from pdserve.refengine.model.tensors import Array, Ints, WeightsError, checked
from pdserve.refengine.model.torch_kv import DeviceKv, SharedKv, Tensor

QUERIES = 256
"""Queries of one prompt chunk that attend together: bounds memory, skips blocks after them."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device_of(name: str) -> torch.device:
    """The device of this name; `auto`: the first GPU, else the CPU.

    Raises:
        WeightsError: torch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"device {name}: torch cannot use it here: {first}") from error
    return device


class _Layer:
    """Matrices of one layer, [outputs, inputs], with the norms before them inside."""

    def __init__(self, tensors: Mapping[str, Array], index: int, model: TorchLlama) -> None:
        def get(name: str) -> Array:
            return tensors[f"model.layers.{index}.{name}.weight"]

        norm_in, norm_mlp = get("input_layernorm"), get("post_attention_layernorm")
        query = get("self_attn.q_proj") * np.float32(model.config.head_dim**-0.5)
        qkv = np.concatenate([query, get("self_attn.k_proj"), get("self_attn.v_proj")])
        gate_up = np.concatenate([get("mlp.gate_proj"), get("mlp.up_proj")])
        self.qkv = model.matrix(qkv * norm_in)
        self.out = model.matrix(get("self_attn.o_proj"))
        self.gate_up = model.matrix(gate_up * norm_mlp)
        self.down = model.matrix(get("mlp.down_proj"))


class TorchLlama:
    """A loaded model. Not thread-safe in its KV argument: one step at a time per pool.

    `mirror` is where its KV is when the device has memory of its own.

    Raises:
        WeightsError: a tensor is missing or of another shape, or there is no such device.
    """

    def __init__(
        self,
        config: LlamaConfig,
        tensors: Mapping[str, Array],
        arithmetic: Arithmetic,
        *,
        mirrored: bool | None = None,
    ) -> None:
        """`mirrored`: KV is kept apart from the host's pool; None: where the device needs it."""
        torch.set_num_threads(arithmetic.threads)
        self.config = config
        self.device = device_of(arithmetic.device)
        self._dtype = DTYPES[arithmetic.dtype]
        apart = self.device.type != "cpu" if mirrored is None else mirrored
        own = DeviceKv(config, self.device, self._dtype)
        self.mirror: KvMirror | None = own if apart else None
        self._kv: DeviceKv | SharedKv = own if apart else SharedKv(config)
        with checked(tensors, config.vocab, config.hidden) as embed:
            self._embed = self.matrix(embed)
            self._layers = [_Layer(tensors, i, self) for i in range(config.layers)]
            head = embed if config.tied else tensors["lm_head.weight"]
            self._head = self.matrix(head * tensors["model.norm.weight"])
        tables = kernels.rope_tables(config.context, config.head_dim, config.rope_theta)
        self._cos, self._sin = (torch.from_numpy(t).to(self.device) for t in tables)

    def matrix(self, weight: Array) -> Tensor:
        """A weight on the device, in the model's numbers."""
        return torch.from_numpy(np.ascontiguousarray(weight)).to(self.device, self._dtype)

    def matrices(self) -> list[Tensor]:
        """Every matrix, [outputs, inputs], in the order in which a step multiplies by them."""
        layers = [[layer.qkv, layer.out, layer.gate_up, layer.down] for layer in self._layers]
        return [*(matrix for layer in layers for matrix in layer), self._head]

    def step(self, batch: Sequence[Rows], pool: Array) -> Array:
        """Write KV of all rows into `pool` and return logits, as `llama.Llama.step` does.

        With a `mirror` the KV is written there.
        """
        with torch.inference_mode():
            found: Array = self._step(batch, pool).float().cpu().numpy()
            return found

    def _step(self, batch: Sequence[Rows], pool: Array) -> Tensor:
        plan, c = StepPlan(batch), self.config
        kv = self._kv.blocks(batch, pool)
        attention = _Attention(plan, c, kv)
        positions, block, offset, last = map(
            attention.index, (plan.positions, plan.block, plan.offset, plan.last)
        )
        x = self._embed[attention.index(plan.tokens.astype(np.int64))].float()
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        rotated = c.heads + c.kv_heads
        for index, layer in enumerate(self._layers):
            qkv = self._product(x, layer.qkv).view(len(x), -1, c.head_dim)
            turned = _rope(qkv[:, :rotated], cos, sin)
            of_layer = kv[:, index]
            keys = of_layer[:, 0].view(-1, c.kv_heads, c.head_dim, BLOCK_TOKENS)
            values = of_layer[:, 1].view(-1, c.kv_heads, BLOCK_TOKENS, c.head_dim)
            keys[block, :, :, offset] = turned[:, c.heads :].to(kv.dtype)
            values[block, :, offset] = qkv[:, rotated:].to(kv.dtype)
            mixed = attention(turned[:, : c.heads], index)
            x += linear(mixed.to(self._dtype), layer.out)
            gate, up = self._product(x, layer.gate_up).chunk(2, dim=-1)
            x += linear((silu(gate) * up).to(self._dtype), layer.down)
        return linear(_scaled(x[last], c.norm_eps).to(self._dtype), self._head)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Of the normed rows, as float32."""
        return linear(_scaled(x, self.config.norm_eps).to(self._dtype), weight).float()


def _scaled(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without its weights, which the next matrix holds."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves of x [rows, heads, dim] by cos and sin [rows, 1, dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class _Attention:
    """Attention of all rows of one step, layer by layer."""

    def __init__(self, plan: StepPlan, config: LlamaConfig, kv: Tensor) -> None:
        self._plan, self._config = plan, config
        self._device = kv.device
        self._heads = kv.view(-1, config.head_dim * BLOCK_TOKENS)
        self._alike = [
            (
                self.index(plan.single_rows[some]),
                self._rows_of(tables),
                self._floats(hidden_scores(seen[:, None], tables)),
            )
            for some, seen, tables in alike_singles(plan)
        ]
        self._chunks = [part for span, item in plan.chunks for part in self._parts(span, item)]

    def __call__(self, q: Tensor, layer: int) -> Tensor:
        """[rows, heads * dim] of queries [rows, heads, dim] that are scaled already."""
        c = self._config
        q = q.reshape(len(q), c.kv_heads, c.group, c.head_dim)
        out = torch.empty_like(q)
        first = layer * 2 * c.kv_heads
        for rows, index, hidden in self._alike:
            out[rows] = self._attend(q[rows], index + first, hidden)
        for span, index, hidden in self._chunks:
            part = q[span].transpose(0, 1).reshape(1, c.kv_heads, -1, c.head_dim)
            mixed = self._attend(part, index + first, hidden)
            out[span] = mixed.view(c.kv_heads, -1, c.group, c.head_dim).transpose(0, 1)
        return out.view(len(q), -1)

    def index(self, numbers: Ints) -> Tensor:
        """Numbers of rows or blocks on the device."""
        return torch.from_numpy(numbers).to(self._device)

    def _floats(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _rows_of(self, tables: Ints) -> Tensor:
        """Rows of the pool with K [sequences, kv_heads, blocks] of layer 0."""
        c = self._config
        per_block = c.layers * 2 * c.kv_heads
        return self.index(tables[:, None] * per_block + np.arange(c.kv_heads)[:, None])

    def _parts(self, span: slice, item: Rows) -> list[tuple[slice, Tensor, Tensor]]:
        """Of one prompt chunk: rows of the step, rows of the pool, what is hidden from them."""
        found = []
        count = span.stop - span.start
        for begin in range(0, count, QUERIES):
            end = min(begin + QUERIES, count)
            table = item.table[None, : blocks_of(item.start + end)]
            seen = np.arange(item.start + begin, item.start + end) + 1
            hidden = hidden_scores(np.repeat(seen, self._config.group)[None], table)
            rows = slice(span.start + begin, span.start + end)
            found.append((rows, self._rows_of(table), self._floats(hidden)))
        return found

    def _rows(self, index: Tensor) -> Tensor:
        # On a CPU a third of the time of `heads[index]`.
        return torch.index_select(self._heads, 0, index.flatten())

    def _attend(self, q: Tensor, index: Tensor, hidden: Tensor) -> Tensor:
        """Softmax attention [sequences, kv_heads, rows, dim]; arguments as in `fast`."""
        count, kv_heads, rows, dim = q.shape
        blocks = index.shape[2]
        keys = self._rows(index).view(count, kv_heads, blocks, dim, BLOCK_TOKENS)
        # Keys are stored transposed, block by block.
        scores = torch.matmul(q[:, :, None].to(keys.dtype), keys).float()
        scores = scores.transpose(2, 3).reshape(count, kv_heads, rows, -1)
        chances = torch.softmax(scores + hidden, dim=-1)
        values = self._rows(index + kv_heads).view(count, kv_heads, -1, dim)
        return torch.matmul(chances.to(values.dtype), values).float()
