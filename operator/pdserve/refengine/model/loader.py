"""Make a model ready: read it (`model_files`) and choose how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pdserve.refengine.model.fast import FastLlama
from pdserve.refengine.model.llama import Llama
from pdserve.refengine.model.model_config import LlamaConfig
from pdserve.refengine.model.model_files import read_model
from pdserve.refengine.model.selftest import numerics_digest
from pdserve.refengine.model.tensors import Array
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


def load_model(path: Path | None, *, fast: bool = False) -> LoadedModel:
    """Read and check a model: a directory, or a GGUF file; None: the built-in one.

    `fast`: whole matrix products, whose last bits depend on the batch (`fast`); else exact mode.

    Raises:
        WeightsError: a file is missing or not of the Llama family.
        NotExactError: exact mode does not hold on this machine.
    """
    files = read_model(path or BUILT_IN)
    config = files.config
    tokenizer = Tokenizer(files.tokenizer, config.bos, config.vocab, config.eos)
    llama, numerics = _forward(config, files.tensors, fast)
    return LoadedModel(config, llama, tokenizer, files.fingerprint, numerics)


def _forward(
    config: LlamaConfig, tensors: dict[str, Array], fast: bool
) -> tuple[Llama | FastLlama, str]:
    if fast:
        return FastLlama(config, tensors), "fast"
    llama = Llama(config, tensors)
    shapes = {shape for linear in llama.linears() for shape in linear.shapes()}
    return llama, numerics_digest(config, shapes)
