"""Load a model directory: `config.json`, `tokenizer.json`, `*.safetensors` (built-in or given)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pdserve.refengine.model.fast import FastLlama
from pdserve.refengine.model.llama import Llama
from pdserve.refengine.model.model_config import LlamaConfig, load_config
from pdserve.refengine.model.selftest import numerics_digest
from pdserve.refengine.model.tensors import Array, WeightsError, read_safetensors
from pdserve.refengine.model.tokenizer import Tokenizer

BUILT_IN = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything about a model. KV may only move between equal `fingerprint`s (same files)."""

    config: LlamaConfig
    llama: Llama | FastLlama
    tokenizer: Tokenizer
    fingerprint: str
    numerics: str
    """Equal where two instances compute the same bits; "fast" where none are promised."""


def load_model(directory: Path | None, *, fast: bool = False) -> LoadedModel:
    """Read and check a model.

    `fast`: whole matrix products, whose last bits depend on the batch (`fast`); else exact mode.

    Raises:
        WeightsError: a file is missing or not of the Llama family.
        NotExactError: exact mode does not hold on this machine.
    """
    root = directory or BUILT_IN
    config = load_config(root / "config.json")
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{root}: no *.safetensors file")
    tensors: dict[str, Array] = {}
    for file in files:
        tensors |= read_safetensors(file)
    tokenizer = Tokenizer(root / "tokenizer.json", config.bos, config.vocab, config.eos)
    llama, numerics = _forward(config, tensors, fast)
    templates = [root / "tokenizer_config.json", root / "chat_template.jinja"]
    texts = [root / "config.json", root / "tokenizer.json", *filter(Path.is_file, templates)]
    fingerprint = _fingerprint([*texts, *files])
    return LoadedModel(config, llama, tokenizer, fingerprint, numerics)


def _forward(
    config: LlamaConfig, tensors: dict[str, Array], fast: bool
) -> tuple[Llama | FastLlama, str]:
    if fast:
        return FastLlama(config, tensors), "fast"
    llama = Llama(config, tensors)
    shapes = {shape for linear in llama.linears() for shape in linear.shapes()}
    return llama, numerics_digest(config, shapes)


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
