"""Read safetensors files: the few lines this engine needs of the format.

Format (huggingface/safetensors README): 8 bytes little-endian header length N, N bytes of JSON
mapping tensor name -> {dtype, shape, data_offsets}, then the data. Everything becomes float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pdserve.terms.json import JsonObject

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
MAX_HEADER = 100 << 20


class WeightsError(ValueError):
    """Weights, configuration or tokenizer cannot be used; the message names file and reason."""


def read_safetensors(path: Path) -> dict[str, Array]:
    """All tensors of one file as float32, C-contiguous.

    Raises:
        WeightsError: not a safetensors file, or a dtype other than F32, F16, BF16.
    """
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER, len(data) - 8):
        raise WeightsError(f"{path}: not a safetensors file (header of {size} bytes)")
    try:
        header: JsonObject = json.loads(data[8 : 8 + size])
    except ValueError as error:
        raise WeightsError(f"{path}: header is not JSON: {error}") from error
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size :]
    return {name: _tensor(path, name, entry, body) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: JsonObject, body: memoryview) -> Array:
    dtype, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
    begin, end = (int(n) for n in entry["data_offsets"])
    width = {"F32": 4, "F16": 2, "BF16": 2}.get(dtype)
    if width is None:
        raise WeightsError(f"{path}: {name} has dtype {dtype}; F32, F16 and BF16 are supported")
    if end - begin != width * math.prod(shape) or not 0 <= begin <= end <= len(body):
        raise WeightsError(f"{path}: {name} {shape} does not fit its offsets [{begin}, {end})")
    raw = body[begin:end]
    if dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return np.frombuffer(raw, "<f4" if width == 4 else "<f2").astype(np.float32).reshape(shape)


@contextmanager
def checked(tensors: Mapping[str, Array], vocab: int, hidden: int) -> Iterator[Array]:
    """The embedding [vocab, hidden], while the other tensors of a model are read inside the block.

    Raises:
        WeightsError: a tensor is missing, or the embedding has another shape.
    """
    try:
        embed = tensors["model.embed_tokens.weight"]
        if embed.shape != (vocab, hidden):
            raise WeightsError(
                f"weights: model.embed_tokens.weight is {embed.shape}, config.json says "
                f"({vocab}, {hidden})"
            )
        yield embed
    except KeyError as error:
        raise WeightsError(f"weights: tensor {error} is missing") from error
