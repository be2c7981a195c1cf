"""Small GGUF files of a made-up Llama, written by the `gguf` library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, quants

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HEAD, CONTEXT = 2, 64, 96, 4, 2, 16, 128
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, the 256 bytes in GPT-2's alphabet, and one token per merge."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in plain] + [chr(256 + n) for n in range(256 - len(plain))]
    return [*SPECIAL, *letters, *(m.replace(" ", "") for m in MERGES)]


def weights(seed: int = 0) -> dict[str, Any]:
    """float32 weights by llama.cpp's names; the rows of q and k in pairs, as it stores them."""
    rng = np.random.default_rng(seed)
    shapes = {
        "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD, HIDDEN), "attn_k": (KV_HEADS * HEAD, HIDDEN),
        "attn_v": (KV_HEADS * HEAD, HIDDEN), "attn_output": (HIDDEN, HEADS * HEAD),
        "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN),
    }  # fmt: skip
    found = {"token_embd.weight": rng.normal(size=(len(vocabulary()), HIDDEN))}
    for layer in range(LAYERS):
        for part, shape in shapes.items():
            found[f"blk.{layer}.{part}.weight"] = rng.normal(size=shape)
    found["output_norm.weight"] = rng.normal(size=(HIDDEN,))
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def write_gguf(
    path: Path, tensors: dict[str, Any], *, quantised: bool = False, **changed: Any
) -> None:
    """Write a file; `changed` replaces `architecture`, `pre`, `model`, `heads` or `scaling`."""
    writer = GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(changed.get("heads", HEADS))
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if "scaling" in changed:
        writer.add_rope_scaling_type(RopeScalingType(changed["scaling"]))
    tokens = vocabulary()
    writer.add_tokenizer_model(changed.get("model", "gpt2"))
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(tokens)
    types = [TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in tokens]
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, values in tensors.items():
        kind = GGMLQuantizationType.Q8_0
        if quantised and values.ndim > 1:
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
