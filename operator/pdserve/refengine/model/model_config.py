"""Shape of a Llama-family model, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pdserve.refengine.model.tensors import WeightsError
from pdserve.terms.json import JsonObject

BLOCK_TOKENS = 32
"""Tokens per KV block. Part of exact mode: attention sums block by block, so it is a constant."""


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes in elements; `group` query heads share one KV head (GQA)."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool
    bos: int | None
    eos: tuple[int, ...]

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of float32 K and V of all layers, for one token."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4

    @property
    def block_floats(self) -> int:
        """How many float32 numbers one KV block of all layers has."""
        return self.kv_bytes_per_token * BLOCK_TOKENS // 4


def load_config(path: Path) -> LlamaConfig:
    """Parse `config.json`.

    Raises:
        WeightsError: it cannot be read, or describes anything but a plain Llama.
    """
    try:
        document: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: {type(error).__name__}: {error}") from error
    return parse_config(document, path)


def parse_config(c: JsonObject, path: Path) -> LlamaConfig:
    """Read the content of a `config.json`; `path` says in errors where it comes from.

    Raises:
        WeightsError: it describes anything but a plain Llama.
    """
    try:
        if c.get("model_type") != "llama":
            raise WeightsError(f"{path}: model_type {c.get('model_type')!r}; only 'llama' is known")
        for key in ("rope_scaling", "attention_bias", "mlp_bias"):
            if c.get(key):
                raise WeightsError(f"{path}: {key} = {c[key]!r} is not supported")
        eos = c.get("eos_token_id")
        heads = int(c["num_attention_heads"])
        config = LlamaConfig(
            vocab=int(c["vocab_size"]),
            hidden=int(c["hidden_size"]),
            ffn=int(c["intermediate_size"]),
            layers=int(c["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(c.get("num_key_value_heads") or heads),
            head_dim=int(c.get("head_dim") or int(c["hidden_size"]) // heads),
            context=int(c["max_position_embeddings"]),
            rope_theta=float(c.get("rope_theta", 10000.0)),
            norm_eps=float(c.get("rms_norm_eps", 1e-6)),
            tied=bool(c.get("tie_word_embeddings", False)),
            bos=c.get("bos_token_id"),
            eos=tuple(eos) if isinstance(eos, list) else (() if eos is None else (int(eos),)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: {type(error).__name__}: {error}") from error
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise WeightsError(
            f"{path}: {config.heads} heads over {config.kv_heads} KV heads of {config.head_dim}: "
            "heads must divide evenly and head_dim be even"
        )
    return config
