"""Checks at every start that exact mode holds on this machine's BLAS and CPU.

`kernels` relies on one property of products with 8 rows: a row's result does not depend on its
position in the tile, on its neighbours, or on how many tiles are stacked. OpenBLAS behaves so
without promising it; the check covers the very shapes in use and takes about 10 ms.

Equal digests of all results show that two instances compute the same bits. A prefill and a decode
on different CPU types may differ; then P/D output may differ from aggregated output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from pdserve.refengine.model.kernels import TILE, silu
from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig
from pdserve.refengine.model.tensors import Array

Product = Callable[[Array, Array], Array]
STACK = 3


class NotExactError(RuntimeError):
    """This BLAS breaks the rule that exact mode stands on; the message names the shape."""


def numerics_digest(
    config: LlamaConfig, shapes: Iterable[tuple[int, int]], product: Product = np.matmul
) -> str:
    """Check every product shape and return a digest of the results.

    Args:
        config: for the attention shapes.
        shapes: (K, N) of the weight pieces in use.
        product: matrix product under test.

    Raises:
        NotExactError: a row's bits changed with its position or neighbours.
    """
    attention = {(config.head_dim, BLOCK_TOKENS), (BLOCK_TOKENS, config.head_dim)}
    digest = hashlib.blake2b(digest_size=8)
    for k, n in sorted(set(shapes) | attention):
        rng = np.random.default_rng(k * 65536 + n)
        x = rng.standard_normal((STACK, TILE, k), dtype=np.float32)
        w = rng.standard_normal((k, n), dtype=np.float32)
        whole = product(x, w).reshape(-1, n)
        digest.update(whole.tobytes())
        for row in range(STACK * TILE):
            alone = np.zeros((1, TILE, k), np.float32)
            place = (row * 3 + 1) % TILE
            alone[0, place] = x.reshape(-1, k)[row]
            if not np.array_equal(product(alone, w)[0, place], whole[row]):
                raise NotExactError(
                    f"this BLAS gives other bits for row {row} of an 8 x {k} x {n} product at "
                    f"tile row {place}: exact mode is not possible on it"
                )
    values = np.linspace(-30, 30, 1001, dtype=np.float32)
    digest.update(np.exp(values).tobytes())
    digest.update(silu(values).tobytes())
    for start in (1, 3, 500):
        if not np.array_equal(np.exp(values[start:].copy()), np.exp(values)[start:]):
            raise NotExactError("exp of an array depends on where it starts: no exact mode here")
    return digest.hexdigest()
