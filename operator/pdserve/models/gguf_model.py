"""Read a GGUF file of a Llama-family model in Hugging Face's form, and write it as a directory.

GGUF (ggml-org/ggml docs/gguf.md) holds weights, shape and tokenizer in one file, the weights often
quantised. What differs, beside names:

  1. weights are dequantised, and written as float16: no value of a 4- or 8-bit format needs more
     than its block's own scale, which is a float16;
  2. llama.cpp stores the rows of the query and key projections with the two halves of a rotary
     pair side by side; Hugging Face keeps first halves before second halves. Per head of size D
     the rows are turned from (D/2, 2) back to (2, D/2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, dequantize

from pdserve.models.errors import ModelError
from pdserve.models.gguf_tokenizer import tokenizer_config, tokenizer_document
from pdserve.terms.json import JsonObject, JsonValue

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IGNORED = frozenset({"rope_freqs.weight"})

Floats = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What is in a file, as the files of a directory have it."""

    config: JsonObject
    """`config.json`."""
    tokenizer: JsonObject
    """`tokenizer.json`."""
    settings: JsonObject
    """`tokenizer_config.json`."""
    weights: Mapping[str, Half]
    """Tensors by Hugging Face's names."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Write `config.json`, `tokenizer.json`, `tokenizer_config.json`, `model.safetensors`.

    Raises:
        ModelError: not a GGUF file, not of the Llama family, or a part of it is missing.
    """
    model = read_gguf(file)
    _write(folder / "config.json", model.config)
    _write(folder / "tokenizer.json", model.tokenizer)
    _write(folder / "tokenizer_config.json", model.settings)
    from safetensors.numpy import save_file

    save_file(dict(model.weights), folder / "model.safetensors", {"format": "pt"})


def read_gguf(file: Path) -> GgufModel:
    """Read a whole file.

    Raises:
        ModelError: not a GGUF file, not of the Llama family, or a part of it is missing.
    """
    try:
        reader = GGUFReader(file)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(f"{file.name}: not a GGUF file ({error})") from error
    fields = _Fields(file.name, reader)
    if fields.need("general.architecture") != "llama":
        raise ModelError(
            f"{file.name}: architecture {fields.need('general.architecture')!r}; only 'llama'"
        )
    try:
        weights = dict(_weights(file.name, reader, fields))
        config = _config(fields, tied="lm_head.weight" not in weights)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{file.name}: its shapes and numbers do not fit ({error})") from error
    _check_layers(file.name, weights, int(config["num_hidden_layers"]))
    return GgufModel(config, tokenizer_document(fields), tokenizer_config(fields), weights)


class _Fields(Mapping[str, JsonValue]):
    """Key-value pairs of the file, read once each."""

    def __init__(self, name: str, reader: GGUFReader) -> None:
        self._name = name
        self._fields = reader.fields

    def __getitem__(self, key: str) -> JsonValue:
        return self._fields[key].contents()

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def need(self, key: str) -> JsonValue:
        """The value; raises ModelError where the file has none."""
        if key not in self._fields:
            raise ModelError(f"{self._name}: key {key} is missing")
        return self[key]


def _config(fields: _Fields, *, tied: bool) -> JsonObject:
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"rope scaling {scaling!r} is not converted")
    hidden = int(fields.need("llama.embedding_length"))
    heads = int(fields.need("llama.attention.head_count"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(fields.need("llama.feed_forward_length")),
        "num_hidden_layers": int(fields.need("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
        "head_dim": int(fields.get("llama.rope.dimension_count", hidden // heads)),
        "max_position_embeddings": int(fields.need("llama.context_length")),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10_000.0)),
        "rms_norm_eps": float(np.float32(fields.need("llama.attention.layer_norm_rms_epsilon"))),
        "vocab_size": len(fields.need("tokenizer.ggml.tokens")),
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }


def _weights(name: str, reader: GGUFReader, fields: _Fields) -> Iterator[tuple[str, Half]]:
    heads = int(fields.need("llama.attention.head_count"))
    kv_heads = int(fields.get("llama.attention.head_count_kv", heads))
    for tensor in reader.tensors:
        if tensor.name in _IGNORED:
            continue
        wanted = _name(tensor.name)
        if wanted is None:
            raise ModelError(f"{name}: tensor {tensor.name} is of no plain Llama")
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, KeyError, ValueError) as error:
            raise ModelError(f"{name}: {tensor.name}: {error}") from error
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        if wanted.endswith("q_proj.weight"):
            values = _halves(values, heads)
        elif wanted.endswith("k_proj.weight"):
            values = _halves(values, kv_heads)
        yield wanted, np.ascontiguousarray(values, np.float16)


def _name(name: str) -> str | None:
    stem, dot, kind = name.rpartition(".")
    if dot and kind == "weight":
        if stem in _TOP:
            return f"{_TOP[stem]}.weight"
        first, _, rest = stem.partition(".")
        layer, _, part = rest.partition(".")
        if first == "blk" and layer.isdecimal() and part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.weight"
    return None


def _halves(rows: Floats, heads: int) -> Floats:
    """Rows with rotary pairs side by side -> first halves, then second halves, of each head."""
    out, into = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, into).swapaxes(1, 2).reshape(out, into)


def _check_layers(name: str, weights: Mapping[str, Half], layers: int) -> None:
    wanted = {f"{_TOP[part]}.weight" for part in ("token_embd", "output_norm")}
    wanted |= {f"model.layers.{n}.{part}.weight" for n in range(layers) for part in _LAYER.values()}
    missing = sorted(wanted - weights.keys())
    if missing:
        raise ModelError(f"{name}: {len(missing)} tensors are missing, the first is {missing[0]}")


def _write(path: Path, document: JsonObject) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
