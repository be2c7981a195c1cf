"""What forward passes are tested with: a textbook's Llama, and KV memory that was used before."""

from __future__ import annotations

from typing import Any

import numpy as np

from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.model.loader import BUILT_IN, LoadedModel
from pdserve.refengine.model.plan import new_pool
from pdserve.refengine.model.tensors import read_safetensors


def textbook_logits(model: LoadedModel, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Llama in float64 as the papers write it: no cache, no tiles, one token after another."""
    c = model.config
    w = {
        k: v.astype(np.float64) for k, v in read_safetensors(BUILT_IN / "model.safetensors").items()
    }

    def norm(x: Any, weight: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * weight

    def rope(x: Any) -> Any:
        half = c.head_dim // 2
        angle = np.arange(len(x))[:, None] * c.rope_theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(c.layers):
        p = f"model.layers.{layer}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (
            (h @ w[p + f"self_attn.{n}_proj.weight"].T).reshape(len(tokens), -1, c.head_dim)
            for n in "qkv"
        )
        q, k = rope(q), rope(k)
        mixed = np.zeros_like(q)
        for t in range(len(tokens)):
            for head in range(c.heads):
                scores = k[: t + 1, head // c.group] @ q[t, head] / np.sqrt(c.head_dim)
                weights = np.exp(scores - scores.max())
                mixed[t, head] = weights @ v[: t + 1, head // c.group] / weights.sum()
        x = x + mixed.reshape(len(tokens), -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        gate = gate / (1 + np.exp(-gate)) * (h @ w[p + "mlp.up_proj.weight"].T)
        x = x + gate @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"])[-1] @ w["model.embed_tokens.weight"].T


def prompt(length: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(5, 2000, length).astype(np.int32)


class Memory:
    """A dirty pool: blocks hold other requests' old values, ids are scattered."""

    def __init__(self, model: LoadedModel, seed: int) -> None:
        self.model = model
        self.rng = np.random.default_rng(seed)
        self.pool = new_pool(model.config, 200)
        self.pool[:] = self.rng.standard_normal(self.pool.shape[1:], dtype=np.float32) * 50
        self.free = list(self.rng.permutation(np.arange(1, 200)))

    def table(self, tokens: int) -> Any:
        return np.asarray([self.free.pop() for _ in range(blocks_for(tokens))], np.int64)
