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
from pdserve.refengine.model.kernels import piece_shapes
from pdserve.refengine.model.layer_share import LayerShare, layer_shares
from pdserve.refengine.model.llama import Llama
from pdserve.refengine.model.model_config import LlamaConfig
from pdserve.refengine.model.model_files import ModelFiles, read_model
from pdserve.refengine.model.plan import Rows, StepPlan
from pdserve.refengine.model.selftest import numerics_digest
from pdserve.refengine.model.tensors import Array, WeightsError
from pdserve.refengine.model.tokenizer import Tokenizer

BUILT_IN = Path(__file__).resolve().parent.parent / "weights"


class ForwardPass(Protocol):
    """One way of computing a model."""

    def step(self, batch: Sequence[Rows], pool: Array, /) -> Array:
        """Write KV of all rows into `pool` and return logits, as `llama.Llama.step` does."""


class StagedPass(ForwardPass, Protocol):
    """One whose layers can be computed apart from embedding and head, so by several members."""

    def embedded(self, plan: StepPlan, /) -> Array:
        """What the first layer gets."""

    def hidden_shape(self, plan: StepPlan, /) -> tuple[int, ...]:
        """Of what passes between layers, for the rows of a step."""

    def advance(self, x: Array, plan: StepPlan, pool: Array, /) -> None:
        """Compute the own layers in place; layer n of them has its KV at `pool[:, n]`."""

    def logits(self, x: Array, plan: StepPlan, /) -> Array:
        """What `step` returns, of the output of the last layer."""


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
    staged: StagedPass | None = None
    """The same as `llama` where its layers can be shared between members; else None."""
    share: LayerShare | None = None
    """The layers that are computed here; None: all."""


def load_model(
    path: Path | None, arithmetic: Arithmetic = EXACT, members: int = 1, member: int = 0
) -> LoadedModel:
    """Read and check a model: a directory, or a GGUF file; None: the built-in one.

    Args:
        path: the model.
        arithmetic: how it is to be computed; `Arithmetic.problem` finds nothing wrong with it.
        members: of the instance; with more than one, only the weights of one share are kept.
        member: whose share, from 0.

    Raises:
        WeightsError: a file is missing or not of the Llama family, the back-end is not here, or
            there are more members than layers.
        NotExactError: exact mode does not hold on this machine.
    """
    files = read_model(path or BUILT_IN)
    try:
        share = None if members == 1 else layer_shares(files.config.layers, members)[member]
    except ValueError as error:
        raise WeightsError(f"{path or BUILT_IN}: {error}") from error
    loaded = _made_ready(files, arithmetic, share)
    _return_memory()
    return loaded


def _made_ready(files: ModelFiles, arithmetic: Arithmetic, share: LayerShare | None) -> LoadedModel:
    config = files.config
    tokenizer = Tokenizer(files.tokenizer, config.bos, config.vocab, config.eos)
    if arithmetic.backend == "torch":
        return _by_torch(files, tokenizer, arithmetic)
    llama: StagedPass
    if arithmetic.mode == "fast":
        llama, numerics = FastLlama(config, files.tensors, share), arithmetic.numerics
    else:
        llama, numerics = _exact(config, files.tensors, share)
    return LoadedModel(
        config, llama, tokenizer, files.fingerprint, numerics, staged=llama, share=share
    )


def _return_memory() -> None:
    """Of what only reading needed: glibc keeps hundreds of megabytes of many small objects."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _exact(
    config: LlamaConfig, tensors: dict[str, Array], share: LayerShare | None
) -> tuple[Llama, str]:
    llama = Llama(config, tensors, share)
    shapes = {shape for linear in llama.linears() for shape in linear.shapes()}
    # Of the head too where only the leader has it: the digests of all members are compared.
    shapes |= piece_shapes(config.vocab, config.hidden)
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
