"""The tokenizer of a GGUF file in Hugging Face's form: byte-level BPE with its pre-tokenizer.

GGUF names the pre-tokenizer by a word (`tokenizer.ggml.pre`), whose rule stands in llama.cpp
(src/llama-vocab.cpp); those known here are split as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from pdserve.models.errors import ModelError
from pdserve.terms.json import JsonObject, JsonValue

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Types of tokens (gguf.TokenType)."""
_BYTE_LEVEL: Final[JsonObject] = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
}  # fmt: skip


def _digits_then_bytes() -> JsonObject:
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, _BYTE_LEVEL]}


_PRE_TOKENIZERS: Final[Mapping[str, Callable[[], JsonObject]]] = {
    "smollm": _digits_then_bytes,
    "gpt-2": lambda: dict(_BYTE_LEVEL),
}
"""By the word in the file."""


class GgufFields(Protocol):
    """Key-value pairs of a GGUF file."""

    def need(self, key: str, /) -> JsonValue:
        """The value of a field.

        Raises:
            ModelError: the file has none.
        """

    def get(self, key: str, /) -> JsonValue:
        """The value; None where the file has none."""


def tokenizer_document(fields: GgufFields) -> JsonObject:
    """`tokenizer.json`.

    Raises:
        ModelError: not byte-level BPE, an unknown pre-tokenizer, or lists that do not fit.
    """
    kind, pre = fields.need("tokenizer.ggml.model"), fields.need("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ModelError(f"tokenizer {kind!r} is not converted; only byte-level BPE ('gpt2') is")
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise ModelError(f"pre-tokenizer {pre!r} is not converted; known are {known}")
    tokens = [str(t) for t in fields.need("tokenizer.ggml.tokens")]
    types = [int(t) for t in fields.need("tokenizer.ggml.token_type")]
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelError(f"{len(tokens)} tokens of {len(types)} types do not fit, or repeat")
    merges = [str(m).split(" ") for m in fields.need("tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ModelError("a merge is not a pair of tokens")
    added = [
        _added(number, text, kind)
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != _NORMAL
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre](),
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": merges,
        },
    }


def tokenizer_config(fields: GgufFields) -> JsonObject:
    """`tokenizer_config.json`: special tokens and the model's own chat template."""
    tokens = fields.need("tokenizer.ggml.tokens")
    found: JsonObject = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token")),
        "model_max_length": int(fields.need("llama.context_length")),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = fields.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            found[f"{name}_token"] = str(tokens[int(number)])
    template = fields.get("tokenizer.chat_template")
    if template is not None:
        found["chat_template"] = str(template)
    return found


def _added(number: int, text: str, kind: int) -> JsonObject:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": kind == _USER_DEFINED,
        "special": kind == _CONTROL,
    }
