"""Time of block-free KV transfer beside block-fixed, by a model of cost per descriptor.

`t = n*alpha + bytes/bandwidth`: block-fixed transfer has a descriptor (message and confirmation)
for each contiguous piece, one after another; block-free has one of meta data and one of payload,
and its receiver then copies the bytes into blocks. arXiv 2408.08147, sections 2.2.3 and 3.6. The
model fits a descriptor's cost that `benchmarks/kv.py` measures on this repository's own transport.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from benchmarks.harness import Progress, Row
from benchmarks.kv import descriptor_rows
from benchmarks.parts.paper_claims import Claim, Point, points

PAPER_SAVING = 46.0
"""Percent of the mean transfer time, section 4.3."""
COPY = 8e11
"""Bytes per second of the receiver's copy into blocks: half of 1.6 TB/s, read and written."""
PROMPTS = 400
OWN_BLOCK = "64 KiB"
"""Of the repository's own model: its descriptor's cost is the one that counts."""
ROUNDS = 5
"""Of the measurement of a descriptor's cost."""
MODELS = {"70B, 8 KV heads": (80, 512), "175B, 96 heads": (96, 6144)}
"""Layers, and bytes of KV per token and layer that one of 8 devices holds, at fp16: Llama 2 70B and
GPT-3."""
LAYOUTS = ("K and V of a layer", "all layers")
"""What of a block is contiguous."""
ALPHAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is assumed."""

    model: str
    layout: str
    block: int
    """Tokens of a block."""
    bandwidth: float
    """Bytes per second of one device."""
    prompt: float
    """Mean tokens."""
    alpha: float
    """Seconds of a descriptor."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Means over prompts, of one device."""

    wire: float
    """Seconds of the bytes alone."""
    copy: float
    """Seconds of the copy into blocks."""
    pieces: float
    """Descriptors of a block-fixed transfer."""


def settings() -> Iterator[Setting]:
    """All that are computed."""
    for model, layout, block, gigabytes, prompt, alpha in itertools.product(
        MODELS, LAYOUTS, (16, 64, 128), (12.5, 25.0, 50.0), (1000.0, 4000.0), ALPHAS
    ):
        yield Setting(model, layout, block, 1e9 * gigabytes, prompt, 1e-6 * alpha)


def transfer(setting: Setting, seed: int) -> Transfer:
    """What prompts with lognormal lengths (sigma 0.5) amount to."""
    rng = np.random.default_rng(seed)
    prompts = np.maximum(1, setting.prompt * np.exp(0.5 * rng.standard_normal(PROMPTS) - 0.125))
    layers, per_token = MODELS[setting.model]
    size = float(prompts.mean()) * layers * per_token
    blocks = float(np.ceil(prompts / setting.block).mean())
    pieces = blocks * (2 * layers if setting.layout == LAYOUTS[0] else 1)
    return Transfer(size / setting.bandwidth, size / COPY, pieces)


def saving(t: Transfer, alpha: float) -> float:
    """Percent of the time of a block-fixed transfer that block-free saves; negative: it costs."""
    return 100 * (1 - (2 * alpha + t.wire + t.copy) / (t.pieces * alpha + t.wire))


def alpha_for(t: Transfer, percent: float) -> float:
    """Seconds of a descriptor at which block-free saves so much; infinite: at none."""
    share = percent / 100
    left = t.pieces * (1 - share) - 2
    return (share * t.wire + t.copy) / left if left > 0 else float("inf")


def measure(setting: Setting, seed: int) -> dict[str, float]:
    """Percent saved, and the microseconds of a descriptor that save what the paper says."""
    found = transfer(setting, seed)
    return {
        "saving": saving(found, setting.alpha), "alpha": 1e6 * alpha_for(found, PAPER_SAVING)
    }  # fmt: skip


def assumed(s: Setting) -> str:
    """In words."""
    return f"{_without_alpha(s)}, alpha {1e6 * s.alpha:g} us"


def _without_alpha(s: Setting) -> str:
    return (
        f"{s.model}, {s.layout} contiguous, blocks of {s.block} tokens, "
        f"{s.bandwidth / 1e9:g} GB/s, prompts of {s.prompt:g}"
    )


Results = Mapping[Setting, Sequence[Mapping[str, float]]]
"""What `measure` returned, of each seed."""


def claims(results: Results) -> list[Claim]:
    """What is saved, by layout, and which cost of a descriptor saves what the paper says."""
    found = []
    for layout in LAYOUTS:
        saved = {
            assumed(s): [seed["saving"] for seed in seeds]
            for s, seeds in results.items() if s.layout == layout
        }  # fmt: skip
        if saved:
            what = f"D2D time saved by block-free, {layout} contiguous in a block"
            found.append(Claim(what, PAPER_SAVING, "%", points(saved), 4.0))
    return found


def alphas(results: Results) -> tuple[Point, ...]:
    """By assumptions but the cost of a descriptor: the cost, in us, that saves what the paper
    says."""
    return points({
        _without_alpha(s): [seed["alpha"] for seed in seeds] for s, seeds in results.items()
    })  # fmt: skip


def rows(results: Results) -> list[Row]:
    """A descriptor's cost as measured on our transport, and what the model saves with it."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return []
    made = descriptor_rows(cores, ROUNDS, Progress())
    measured = next(row.reference for row in made if row.unit == "us" and OWN_BLOCK in row.what)
    assumptions = {replace(s, alpha=0.0) for s in results}
    saved = [saving(transfer(s, 1), 1e-6 * measured) for s in assumptions]
    needed = [p.mean for p in alphas(results)]
    return [
        *made,
        Row(f"alpha that saves {PAPER_SAVING:g} %, median of {min(needed):.2g} .. "
            f"{max(needed):.2g} us", statistics.median(needed), "us", "measured on our transport",
            measured, 0.0, "higher", len(needed)),
        Row(f"D2D time saved with our transport's alpha, median of {min(saved):.2g} .. "
            f"{max(saved):.2g} %", statistics.median(saved), "%", "paper", PAPER_SAVING, 0.0,
            "higher", len(saved)),
    ]  # fmt: skip
