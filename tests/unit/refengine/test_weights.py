"""Loading models: the built-in one, others of the family, and what is wrong with a directory."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.refengine.model.arithmetic import EXACT, FAST
from pdserve.refengine.model.loader import BUILT_IN, LoadedModel, load_model
from pdserve.refengine.model.plan import Rows, new_pool
from pdserve.refengine.model.tensors import WeightsError, read_safetensors


def write_safetensors(path: Path, tensors: dict[str, Any], dtype: str) -> None:
    header, body = {}, b""
    for name, value in tensors.items():
        if dtype == "BF16":
            raw = (np.asarray(value, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = np.asarray(value, "<f4" if dtype == "F32" else "<f2").tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(np.shape(value)),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def other_model(directory: Path, dtype: str = "F32", **changes: Any) -> Path:
    """A random model of other sizes: no GQA sharing by three, untied head, wide FFN."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": 96,
        "intermediate_size": 1100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
    } | changes
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(BUILT_IN / "tokenizer.json", directory / "tokenizer.json")
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (2048, 96),
        "lm_head": (2048, 96),
        "model.norm": (96,),
    }
    for layer in range(2):
        p = f"model.layers.{layer}."
        shapes |= {p + f"self_attn.{n}_proj": (96, 96) for n in "qkvo"}
        shapes |= {p + "mlp.gate_proj": (1100, 96), p + "mlp.up_proj": (1100, 96)}
        shapes |= {p + "mlp.down_proj": (96, 1100), p + "input_layernorm": (96,)}
        shapes |= {p + "post_attention_layernorm": (96,)}
    tensors = {n + ".weight": rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}
    write_safetensors(directory / "model.safetensors", tensors, dtype)
    return directory


def test_built_in_weights_are_small() -> None:
    assert sum(f.stat().st_size for f in BUILT_IN.iterdir()) <= 8 << 20


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_another_llama_is_exact_too(dtype: str, tmp_path: Path) -> None:
    loaded = load_model(other_model(tmp_path, dtype))
    assert loaded.config.eos == (1, 2)
    tokens = np.arange(5, 75, dtype=np.int32)
    table = np.asarray([3, 1, 2], np.int64)
    pool = new_pool(loaded.config, 4)
    whole = loaded.llama.step([Rows(tokens, 0, table, True)], pool)
    assert np.isfinite(whole).all()
    for start in range(0, 70, 9):
        part = loaded.llama.step([Rows(tokens[start : start + 9], start, table, True)], pool)
    assert np.array_equal(part, whole)


def test_dtypes_agree(tmp_path: Path) -> None:
    value = {"t": np.asarray([1.0, -2.5, 0.15625], np.float32)}  # Exact in all three.
    for dtype in ("F32", "F16", "BF16"):
        write_safetensors(tmp_path / dtype, value, dtype)
        assert read_safetensors(tmp_path / dtype)["t"].tolist() == [1.0, -2.5, 0.15625]


def test_fingerprints_tell_models_apart(tmp_path: Path, model: LoadedModel) -> None:
    one = load_model(other_model(tmp_path / "a"))
    two = load_model(other_model(tmp_path / "b", rope_theta=5000.0))
    assert len({one.fingerprint, two.fingerprint, model.fingerprint}) == 3
    assert load_model(tmp_path / "a").fingerprint == one.fingerprint


def _edit(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda d: (d / name).write_bytes(edit((d / name).read_bytes()))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), r"config.json: No such file"),
    "config not json": (_edit("config.json", lambda b: b[:50]), "config.json: JSONDecodeError"),
    "another family": (
        _edit("config.json", lambda b: b.replace(b'"llama"', b'"gemma"')),
        "model_type 'gemma'",
    ),
    "rope scaling": (
        _edit("config.json", lambda b: b.replace(b"{", b'{"rope_scaling": {"factor": 8}, ', 1)),
        "rope_scaling = .* is not supported",
    ),
    "odd heads": (
        _edit("config.json", lambda b: b.replace(b'value_heads": 4', b'value_heads": 3')),
        "4 heads over 3 KV heads",
    ),
    "missing size": (
        _edit("config.json", lambda b: b.replace(b"hidden_size", b"hidden")),
        "KeyError",
    ),
    "other sizes": (
        _edit("config.json", lambda b: b.replace(b'"vocab_size": 2048', b'"vocab_size": 4096')),
        r"embed_tokens.weight is \(2048, 96\)",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"no \*.safetensors"),
    "cut off": (_edit("model.safetensors", lambda b: b[:-100]), "does not fit its offsets"),
    "not safetensors": (_edit("model.safetensors", lambda b: b"PK" * 20), "not a safetensors"),
    "integer weights": (
        _edit("model.safetensors", lambda b: b.replace(b'"F32"', b'"I32"')),
        "dtype I32",
    ),
    "tensor missing": (
        _edit("model.safetensors", lambda b: b.replace(b"lm_head.weight", b"xx_head.weight")),
        "'lm_head.weight' is missing",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: No such file"),
    "broken tokenizer": (_edit("tokenizer.json", lambda b: b"{}"), "tokenizer.json: "),
    "vocabulary too large": (
        lambda d: other_model(d, vocab_size=2000),
        "ids up to 2047, the model has 2000",
    ),
}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories_say_what_is_wrong(case: str, fast: bool, tmp_path: Path) -> None:
    breaks, message = BROKEN[case]
    breaks(other_model(tmp_path))
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path, FAST if fast else EXACT)
