"""The first computations of an instance: with them the first prompt is predicted well."""

from __future__ import annotations

import time

import numpy as np

from pdserve.refengine.kv.pool import BlockPool, blocks_for
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.model_config import BLOCK_TOKENS
from pdserve.refengine.model.plan import Rows
from pdserve.refengine.model.tensors import Array
from pdserve.refengine.runtime.estimates import Estimates

WARM_UP_TOKENS = (16, 16, 64, 128, 256)
"""Lengths of the prompts; the first only brings code and weights into memory."""


def warm_up(
    model: LoadedModel, memory: Array, pool: BlockPool, estimates: Estimates, most: int
) -> None:
    """Compute a few prompts of different lengths, of `most` tokens at most.

    Blocks for some tenths of a second; nothing may run yet.
    """
    for number, tokens in enumerate(WARM_UP_TOKENS):
        count = min(tokens, most)
        blocks = pool.allocate(min(blocks_for(count), pool.total))
        count = min(count, len(blocks) * BLOCK_TOKENS)
        try:
            rows = Rows(np.zeros(count, np.int32), 0, np.asarray(blocks, np.int64), logits=True)
            begin = time.perf_counter()
            model.llama.step([rows], memory)
            if number:
                estimates.learn_prefill(count, time.perf_counter() - begin)
        finally:
            pool.release(blocks)
