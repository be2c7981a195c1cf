"""Numpy kernels whose results do not depend on what else is in the batch (exact mode).

BLAS sums in another order for another matrix shape. So the same row gives other last bits in
another batch, and one flipped bit can change a token. The rules here:

  1. every matrix product is a stack of products with exactly 8 rows (zero-padded) and a fixed
     K and N; with OpenBLAS such a product is bit-invariant to the row's position and neighbours
     (`selftest` checks it for the shapes in use at every start);
  2. weights are cut at load time into pieces of at most 512 x N with 8*K*N <= 1e6. The pieces fix
     the summation order, and below that size OpenBLAS uses its fast small-matrix kernel (115
     against 30 GFLOP/s measured on AVX-512);
  3. attention works on KV blocks of one size; scores beyond a query's position are -inf, so they
     add exactly 0; sums run over blocks in ascending order;
  4. everything else is elementwise or reduces a fixed-length contiguous axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdserve.refengine.model.tensors import Array, Ints

TILE = 8
MAX_SEGMENT = 512
MAX_PRODUCT = 125_000
"""K * N of one piece; 8 rows of it stay below OpenBLAS's small-matrix limit of 1e6."""


def tiles(rows: int) -> int:
    """How many 8-row tiles hold `rows` rows, rounded up."""
    return -(-rows // TILE)


def _cuts(total: int, most: int, step: int) -> list[tuple[int, int]]:
    """Cover [0, total) by equal pieces of at most `most`, each a multiple of `step`."""
    count = -(-total // max(step, most))
    width = -(-total // count)
    width = -(-width // step) * step
    return [(start, min(start + width, total)) for start in range(0, total, width)]


class TiledLinear:
    """y = x W for x of [tiles, 8, K], in pieces fixed at load time (module docstring, 1 and 2).

    Takes the weight as stored by Hugging Face: [N, K].
    """

    def __init__(self, weight: Array) -> None:
        self.outputs, self.inputs = weight.shape
        w = weight.T
        self._segments: list[tuple[int, int, list[tuple[int, int, Array]]]] = []
        for k0, k1 in _cuts(self.inputs, MAX_SEGMENT, TILE):
            chunks = [
                (n0, n1, np.ascontiguousarray(w[k0:k1, n0:n1]))
                for n0, n1 in _cuts(self.outputs, _widest(k1 - k0), 16)
            ]
            self._segments.append((k0, k1, chunks))

    def __call__(self, x: Array) -> Array:
        """Product of every tile; K segments are added in ascending order."""
        out = np.empty((*x.shape[:-1], self.outputs), np.float32)
        for index, (k0, k1, chunks) in enumerate(self._segments):
            part = x if len(self._segments) == 1 else np.ascontiguousarray(x[..., k0:k1])
            for n0, n1, w in chunks:
                if index == 0:
                    np.matmul(part, w, out=out[..., n0:n1])
                else:
                    out[..., n0:n1] += np.matmul(part, w)
        return out

    def shapes(self) -> set[tuple[int, int]]:
        """(K, N) of every distinct piece, for the self-test."""
        return {w.shape for _, _, chunks in self._segments for _, _, w in chunks}


def piece_shapes(outputs: int, inputs: int) -> set[tuple[int, int]]:
    """`TiledLinear.shapes` of a weight [outputs, inputs], without one."""
    found = set()
    for k0, k1 in _cuts(inputs, MAX_SEGMENT, TILE):
        for n0, n1 in _cuts(outputs, _widest(k1 - k0), 16):
            found.add((k1 - k0, n1 - n0))
    return found


def _widest(inputs: int) -> int:
    return max(16, MAX_PRODUCT // inputs // 16 * 16)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """RMSNorm over the last axis: x / sqrt(mean(x^2) + eps) * weight."""
    mean = np.add.reduce(x * x, axis=-1, keepdims=True) * np.float32(1.0 / x.shape[-1])
    scaled: Array = x / np.sqrt(mean + np.float32(eps)) * weight
    return scaled


def silu(x: Array) -> Array:
    """Sigmoid-weighted x; where exp overflows to inf the result is -0, as it should be."""
    with np.errstate(over="ignore"):
        gated: Array = x / (1 + np.exp(-x))
    return gated


def rope_tables(context: int, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine [context, head_dim / 2] for rotary position embedding, via float64.

    `context`: most positions; `head_dim`: values of a head, even; `theta`: base of the angles.
    """
    half = head_dim // 2
    angle = np.arange(context)[:, None] * theta ** (-np.arange(half) / half)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate halves of x [rows, heads, dim] by per-row cos and sin [rows, dim / 2]."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cos[:, None], sin[:, None]
    out = np.empty_like(x)
    out[..., :half] = a * c - b * s
    out[..., half:] = b * c + a * s
    return out


def attend(q: Array, k: Array, v: Array, visible: Ints) -> Array:
    """Softmax attention of query tiles over KV blocks.

    Args:
        q: [batch, kv_heads, tiles, 8, dim], already scaled by dim ** -0.5.
        k: [batch, blocks, kv_heads, dim, block_tokens] (keys stored transposed).
        v: [batch, blocks, kv_heads, block_tokens, dim].
        visible: [batch, tiles, 8] number of leading keys each row may see (at least 1).

    Returns:
        [batch, kv_heads, tiles, 8, dim].
    """
    blocks, size = k.shape[1], k.shape[-1]
    scores = np.matmul(q[:, None], k[:, :, :, None])
    key = np.arange(blocks * size).reshape(1, blocks, 1, 1, 1, size)
    # Blocks that every row sees in full need no mask.
    first = int(visible.min()) // size
    if first < blocks:
        hidden = key[:, first:] >= visible[:, None, None, :, :, None]
        np.copyto(scores[:, first:], np.float32(-np.inf), where=hidden)
    scores -= scores.max(axis=(1, 5), keepdims=True)
    np.exp(scores, out=scores)
    total = np.add.reduce(np.add.reduce(scores, axis=-1), axis=1)
    mixed = np.add.reduce(np.matmul(scores, v[:, :, :, None]), axis=1)
    out: Array = mixed / total[..., None]
    return out


def pad_tiles(x: Array) -> Array:
    """[rows, K] -> [tiles, 8, K], zero rows at the end."""
    rows, width = x.shape
    out = np.zeros((tiles(rows) * TILE, width), np.float32)
    out[:rows] = x
    return out.reshape(-1, TILE, width)


def pad_rows(x: Array, axis: int) -> Array:
    """Zero-pad one axis to a multiple of 8."""
    missing = -x.shape[axis] % TILE
    if not missing:
        return np.ascontiguousarray(x)
    widths: Sequence[tuple[int, int]] = [(0, missing if n == axis else 0) for n in range(x.ndim)]
    return np.pad(x, widths)
