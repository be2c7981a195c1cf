"""Prompts of the demo: text of any length, cut from a few sentences. Seeded, so runs agree."""

from __future__ import annotations

import random

_SENTENCES = (
    "The prefill instance reads the whole prompt at once and keeps its keys and values.",
    "A decode instance writes one token after another and needs memory bandwidth most of all.",
    "When the traffic changes its shape, the ratio between the two must change as well.",
    "A request that finds no free slot is sent on at once instead of waiting in a queue.",
    "Two racks hang under one spine, and every leaf switch has its own uplinks.",
    "If an instance is lost, exactly one new instance takes its place in the group.",
    "The operator looks at what is there, plans the smallest difference, and applies it.",
    "Numbers that nobody measured are opinions, so every step of this run is measured.",
)


def prompt(words: int, seed: int) -> str:
    """About `words` words; equal for equal arguments."""
    rng = random.Random(seed)  # noqa: S311  prompts, not secrets
    out: list[str] = []
    while len(out) < words:
        out += rng.choice(_SENTENCES).split()
    return " ".join(out[:words])
