"""A GGUF file becomes a directory that the engine loads, with the same weights and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.gguf_files import (
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    SPECIAL,
    vocabulary,
    weights,
    write_gguf,
)

from pdserve.models.errors import ModelError
from pdserve.models.gguf_model import convert_gguf
from pdserve.refengine.model.chat_template import ChatMessage
from pdserve.refengine.model.loader import LoadedModel, load_model
from pdserve.refengine.model.plan import Rows, new_pool
from pdserve.refengine.model.tensors import WeightsError, read_safetensors


def converted(folder: Path, tensors: dict[str, Any] | None = None, **changed: Any) -> Path:
    made = folder / "made"
    made.mkdir()
    write_gguf(folder / "m.gguf", weights() if tensors is None else tensors, **changed)
    convert_gguf(folder / "m.gguf", made)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(converted(tmp_path_factory.mktemp("gguf")))


def test_the_shape_is_the_file_s(model: LoadedModel) -> None:
    c = model.config
    assert (c.layers, c.hidden, c.ffn, c.heads, c.kv_heads, c.head_dim) == (2, 64, 96, 4, 2, 16)
    assert (c.context, c.rope_theta, c.vocab) == (128, 5000.0, len(vocabulary()))
    assert (c.tied, c.bos, c.eos) == (True, 1, (2,))
    assert c.norm_eps == pytest.approx(1e-5)


@pytest.mark.parametrize("quantised", [False, True], ids=["float32", "Q8_0"])
def test_weights_keep_their_values(tmp_path: Path, quantised: bool) -> None:
    want = weights()
    found = read_safetensors(converted(tmp_path, want, quantised=quantised) / "model.safetensors")
    off = 0.02 if quantised else 0.002
    np.testing.assert_allclose(
        found["model.layers.1.mlp.down_proj.weight"], want["blk.1.ffn_down.weight"], atol=off
    )
    np.testing.assert_allclose(
        found["model.embed_tokens.weight"], want["token_embd.weight"], atol=off
    )
    assert found["model.layers.0.mlp.down_proj.weight"].shape == (64, 96)


@pytest.mark.parametrize(
    ("part", "name", "heads"), [("q_proj", "attn_q", HEADS), ("k_proj", "attn_k", KV_HEADS)]
)
def test_rotary_pairs_become_halves(tmp_path: Path, part: str, name: str, heads: int) -> None:
    """Row 2i of a head and row 2i + 1 are one pair; Hugging Face keeps them HEAD/2 rows apart."""
    want = weights()
    found = read_safetensors(converted(tmp_path, want) / "model.safetensors")
    rows = found[f"model.layers.0.self_attn.{part}.weight"]
    pairs = want[f"blk.0.{name}.weight"]
    for head in range(heads):
        for i in range(HEAD // 2):
            first, second = head * HEAD + i, head * HEAD + HEAD // 2 + i
            np.testing.assert_allclose(rows[first], pairs[head * HEAD + 2 * i], atol=0.002)
            np.testing.assert_allclose(rows[second], pairs[head * HEAD + 2 * i + 1], atol=0.002)
    assert rows.shape == (heads * HEAD, HIDDEN)


def test_text_is_split_into_digits_and_merged_as_the_file_says(model: LoadedModel) -> None:
    tokens = vocabulary()
    ids = model.tokenizer.encode("hello 12")
    assert [tokens[i] for i in ids] == ["hello", "Ġ", "1", "2"]
    assert b"".join(model.tokenizer.token_bytes(i) for i in ids) == b"hello 12"


def test_the_file_s_own_chat_template_is_used(model: LoadedModel) -> None:
    ids = model.tokenizer.encode_chat([ChatMessage("user", "hello")])
    assert ids[0] == SPECIAL.index("<|im_start|>")
    assert ids.count(SPECIAL.index("<|im_end|>")) == 1


@pytest.mark.parametrize("where", ["the file", "its directory"])
def test_an_engine_loads_the_file_itself_with_the_same_results(
    tmp_path: Path, where: str, model: LoadedModel
) -> None:
    write_gguf(tmp_path / "m.gguf", weights())
    direct = load_model(tmp_path / "m.gguf" if where == "the file" else tmp_path)
    assert direct.config == model.config
    asked = [ChatMessage("user", "hello <|im_end|> 12")]
    assert direct.tokenizer.encode_chat(asked) == model.tokenizer.encode_chat(asked)
    rows = [Rows(np.arange(40, dtype=np.int32), 0, np.asarray([1, 2], np.int64), logits=True)]
    want = model.llama.step(rows, new_pool(model.config, 3))
    assert np.array_equal(direct.llama.step(rows, new_pool(model.config, 3)), want)
    assert direct.fingerprint != model.fingerprint, "KV moves between equal files alone"
    assert direct.fingerprint == load_model(tmp_path / "m.gguf").fingerprint


def test_an_engine_says_why_it_does_not_load_a_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", weights(), architecture="bert")
    with pytest.raises(WeightsError, match="only 'llama'"):
        load_model(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(WeightsError, match="2 GGUF files; name one of them"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architecture": "bert"}, "only 'llama'"),
        ({"pre": "llama-bpe"}, "known are gpt-2, smollm"),
        ({"model": "llama"}, "only byte-level BPE"),
        ({"scaling": "yarn"}, "rope scaling"),
        ({"heads": 0}, "do not fit"),
        ({"heads": 7}, "do not fit"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_converted_is_refused(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        converted(tmp_path, **changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), "model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.pop("output_norm.weight"), "model.norm.weight"),
        (lambda t: t.update({"blk.0.ffn_gate_inp.weight": t["output_norm.weight"]}), "plain Llama"),
    ],
    ids=["a layer's", "the last norm", "of a mixture of experts"],
)
def test_missing_and_unknown_tensors_are_named(tmp_path: Path, change: Any, said: str) -> None:
    tensors = weights()
    change(tensors)
    with pytest.raises(ModelError, match=said):
        converted(tmp_path, tensors)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF" + bytes(20), b"<html>not found</html>" * 10]
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.gguf"):
        convert_gguf(tmp_path / "m.gguf", tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", weights())
    data = (tmp_path / "whole.gguf").read_bytes()
    for part in (0.2, 0.5, 0.9):
        (tmp_path / "m.gguf").write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ModelError):
            convert_gguf(tmp_path / "m.gguf", tmp_path)


def test_the_tokenizer_file_is_plain_json(tmp_path: Path) -> None:
    document = json.loads((converted(tmp_path) / "tokenizer.json").read_text())
    assert [t["content"] for t in document["added_tokens"]] == list(SPECIAL)
