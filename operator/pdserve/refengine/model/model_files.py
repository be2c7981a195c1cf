"""What a model is made of, from a directory in Hugging Face's form or from one GGUF file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdserve.models.errors import ModelError
from pdserve.refengine.model.model_config import LlamaConfig, load_config, parse_config
from pdserve.refengine.model.tensors import Array, WeightsError, read_safetensors
from pdserve.refengine.model.tokenizer import TokenizerFiles, tokenizer_files


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Everything of a model that was read, before it is made ready to compute with."""

    config: LlamaConfig
    tensors: dict[str, Array]
    """float32, by Hugging Face's names."""
    tokenizer: TokenizerFiles
    fingerprint: str
    """Equal for equal files."""


def read_model(path: Path) -> ModelFiles:
    """Read a directory, a GGUF file, or a directory whose model is its only GGUF file.

    Raises:
        WeightsError: a file is missing, cannot be read, or is not of the Llama family.
    """
    if path.is_file():
        return _gguf(path)
    found = sorted(path.glob("*.gguf"))
    if found and not (path / "config.json").exists():
        if len(found) > 1:
            raise WeightsError(f"{path}: {len(found)} GGUF files; name one of them")
        return _gguf(found[0])
    return _directory(path)


def _directory(root: Path) -> ModelFiles:
    config = load_config(root / "config.json")
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{root}: no *.safetensors file")
    tensors: dict[str, Array] = {}
    for file in files:
        tensors |= read_safetensors(file)
    tokenizer = tokenizer_files(root / "tokenizer.json")
    templates = [root / "tokenizer_config.json", root / "chat_template.jinja"]
    texts = [root / "config.json", root / "tokenizer.json", *filter(Path.is_file, templates)]
    return ModelFiles(config, tensors, tokenizer, _fingerprint([*texts, *files]))


def _gguf(file: Path) -> ModelFiles:
    try:
        # Only who has such a file needs the library.
        from pdserve.models.gguf_model import read_gguf
    except ImportError as error:
        raise WeightsError(f"{file}: GGUF needs the package gguf: {error}") from error
    try:
        found = read_gguf(file)
    except ModelError as error:
        raise WeightsError(str(error)) from error
    tensors = {name: values.astype(np.float32) for name, values in found.weights.items()}
    template = found.settings.get("chat_template")
    tokenizer = TokenizerFiles(file, found.tokenizer, found.settings, template)
    config = parse_config(found.config, file)
    return ModelFiles(config, tensors, tokenizer, _fingerprint([file]))


def _fingerprint(files: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()
