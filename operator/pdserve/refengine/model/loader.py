"""Make a model ready: read it (`model_files`) and choose how it is computed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pdserve.refengine.model.arithmetic import EXACT, Arithmetic, KvMirror
from pdserve.refengine.model.fast import FastLlama
from pdserve.refengine.model.llama import Llama
from pdserve.refengine.model.model_config import LlamaConfig
from pdserve.refengine.model.model_files import ModelFiles, read_model
from pdserve.refengine.model.plan import Rows
from pdserve.refengine.model.selftest import numerics_digest
from pdserve.refengine.model.tensors import Array, WeightsError
from pdserve.refengine.model.tokenizer import Tokenizer

BUILT_IN = Path(__file__).resolve().parent.parent / "weights"


class ForwardPass(Protocol):
    """One way of computing a model."""

    def step(self, batch: Sequence[Rows], pool: Array, /) -> Array:
        """Write KV of all rows into `pool` and return logits, as `llama.Llama.step` does."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything about a model. KV may only move between equal `fingerprint`s (same files)."""

    config: LlamaConfig
    llama: ForwardPass
    tokenizer: Tokenizer
    fingerprint: str
    numerics: str
    """Equal where two instances compute the same bits; "fast..." where none are promised."""
    computes: str = "numpy, float32, cpu"
    """By what, in what, and where; for people."""
    mirror: KvMirror | None = None
    """KV of a device with memory of its own; None: steps read and write the pool."""


def load_model(path: Path | None, arithmetic: Arithmetic = EXACT) -> LoadedModel:
    """Read and check a model: a directory, or a GGUF file; None: the built-in one.

    Args:
        path: the model.
        arithmetic: how it is to be computed; `Arithmetic.problem` finds nothing wrong with it.

    Raises:
        WeightsError: a file is missing or not of the Llama family, or the back-end is not here.
        NotExactError: exact mode does not hold on this machine.
    """
    loaded = _made_ready(read_model(path or BUILT_IN), arithmetic)
    _return_memory()
    return loaded


def _made_ready(files: ModelFiles, arithmetic: Arithmetic) -> LoadedModel:
    config = files.config
    tokenizer = Tokenizer(files.tokenizer, config.bos, config.vocab, config.eos)
    if arithmetic.backend == "torch":
        return _by_torch(files, tokenizer, arithmetic)
    llama: ForwardPass
    if arithmetic.mode == "fast":
        llama, numerics = FastLlama(config, files.tensors), arithmetic.numerics
    else:
        llama, numerics = _exact(config, files.tensors)
    return LoadedModel(config, llama, tokenizer, files.fingerprint, numerics)


def _return_memory() -> None:
    """Of what only reading needed: glibc keeps hundreds of megabytes of many small objects."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _exact(config: LlamaConfig, tensors: dict[str, Array]) -> tuple[Llama, str]:
    llama = Llama(config, tensors)
    shapes = {shape for linear in llama.linears() for shape in linear.shapes()}
    return llama, numerics_digest(config, shapes)


def _by_torch(files: ModelFiles, tokenizer: Tokenizer, arithmetic: Arithmetic) -> LoadedModel:
    try:
        # Gigabytes, which only this back-end needs.
        from pdserve.refengine.model.torch_llama import TorchLlama
    except ImportError as error:
        why = f"backend torch needs the package torch (pip install 'pdserve[torch]'): {error}"
        raise WeightsError(why) from error
    llama = TorchLlama(files.config, files.tensors, arithmetic)
    computes = f"torch, {arithmetic.dtype}, {llama.device}"
    return LoadedModel(
        files.config, llama, tokenizer, files.fingerprint, arithmetic.numerics, computes,
        llama.mirror,
    )  # fmt: skip
