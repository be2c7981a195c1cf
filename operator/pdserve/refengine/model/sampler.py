"""Choosing a token from logits: a pure function of (logits, parameters, seed, position).

Randomness is counter-based: the uniform number of a position is a hash of (seed, choice,
position), so it is the same on a prefill, on a decode, and in an aggregated instance, and no
generator state has to travel. The distribution is inverted in float64 over tokens sorted by
descending logit, ties by ascending id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdserve.refengine.model.tensors import Array

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep everything.

    `logprobs` is how many alternatives to report (None: no logprobs at all, 0: only the chosen).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    choice: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token, its log-probability under the unmodified distribution, and the best few."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that decides `position` of choice `choice`; 53 random bits.

    Equal arguments give equal numbers on every machine.
    """
    text = f"{seed}:{choice}:{position}".encode()
    return (
        int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 11
    ) * 2.0**-53


def sample(
    logits: Array, params: SamplingParams, position: int, banned: Collection[int] = ()
) -> Sampled:
    """Choose the token of `position` (0-based index in prompt + output).

    Args:
        logits: [vocab].
        params: see `SamplingParams`.
        position: counter of the random number.
        banned: ids that may not be chosen now (e.g. EOS before `min_tokens`).
    """
    scores = logits.astype(np.float64)
    allowed = scores
    if banned:
        allowed = scores.copy()
        allowed[list(banned)] = -np.inf
    if params.temperature == 0:
        token = int(np.argmax(allowed))
    else:
        token = _draw(allowed, params, uniform(params.seed, params.choice, position))
    if params.logprobs is None:
        return Sampled(token)
    logprobs = scores - (scores.max() + np.log(np.exp(scores - scores.max()).sum()))
    best = np.argsort(-scores, kind="stable")[: params.logprobs]
    return Sampled(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))


def _draw(scores: Doubles, params: SamplingParams, u: float) -> int:
    order = np.argsort(-scores, kind="stable")
    if params.top_k:
        order = order[: params.top_k]
    sorted_scores = scores[order] / params.temperature
    weights = np.exp(sorted_scores - sorted_scores[0])
    cumulative = np.cumsum(weights)
    if params.top_p < 1.0:
        keep = int(np.searchsorted(cumulative, params.top_p * cumulative[-1], side="left")) + 1
        cumulative = cumulative[:keep]
    index = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return int(order[min(index, len(cumulative) - 1)])
