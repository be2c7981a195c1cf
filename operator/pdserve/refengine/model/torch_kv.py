"""Where the torch back-end has its KV: in the host's pool, or on a device with a copy of it.

The pool is float32 and the same for all back-ends, so KV moves between them. On the CPU torch reads
and writes it in place. On another device the blocks live there, in the model's own numbers, and
only those that are handed over or taken in are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.plan import Rows
from pdserve.refengine.model.tensors import Array

Tensor: TypeAlias = torch.Tensor


class SharedKv:
    """The host's pool itself."""

    def __init__(self, config: LlamaConfig) -> None:
        self._config = config

    def blocks(self, _batch: Sequence[Rows], pool: Array) -> Tensor:
        """[blocks, layers, 2, kv_heads, dim * tokens] for the steps of this batch."""
        return _shaped(torch.from_numpy(pool), self._config)


class DeviceKv:
    """`KvMirror` of one pool, which is the first that a step comes with."""

    def __init__(self, config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._device, self._dtype = config, device, dtype
        self._pool: Array | None = None
        self._blocks: Tensor | None = None
        self._lock = threading.Lock()
        self._received: set[int] = set()

    def received(self, blocks: list[int]) -> None:
        """As `KvMirror`; called on the event loop."""
        with self._lock:
            self._received.update(blocks)

    def fetch(self, blocks: list[int]) -> None:
        """As `KvMirror`."""
        if self._pool is None or self._blocks is None:
            return
        index = torch.as_tensor(blocks, device=self._device)
        found = self._blocks[index].float().cpu().numpy()
        self._pool[blocks] = found.reshape(len(blocks), *self._pool.shape[1:])

    def blocks(self, batch: Sequence[Rows], pool: Array) -> Tensor:
        """As `SharedKv.blocks`, on the device, with what others wrote since."""
        if self._blocks is None or self._pool is not pool:
            self._pool = pool
            shape = _shaped(torch.from_numpy(pool[:1]), self._config).shape[1:]
            self._blocks = torch.zeros((len(pool), *shape), dtype=self._dtype, device=self._device)
        with self._lock:
            late = [int(b) for b in np.concatenate([r.table for r in batch]) if b in self._received]
            self._received.difference_update(late)
        if late:
            given = torch.from_numpy(pool[late]).to(self._device, self._dtype)
            index = torch.as_tensor(late, device=self._device)
            self._blocks[index] = _shaped(given, self._config)
        return self._blocks


def _shaped(pool: Tensor, c: LlamaConfig) -> Tensor:
    return pool.view(pool.shape[0], c.layers, 2, c.kv_heads, c.head_dim * BLOCK_TOKENS)
