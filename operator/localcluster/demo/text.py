"""Requests of the demo: prompts of any length, cut from a few sentences. Seeded, so runs agree."""

from __future__ import annotations

import random
import re

from pdserve.cli.load import Ask

MODEL = "pdserve-tiny"

_SENTENCES = (
    "The prefill instance reads the whole prompt at once and keeps its keys and values.",
    "A decode instance writes one token after another and needs memory bandwidth most of all.",
    "When the traffic changes its shape, the ratio between the two must change as well.",
    "A request that finds no free slot is sent on at once instead of waiting in a queue.",
    "Two racks hang under one spine, and every leaf switch has its own uplinks.",
    "If an instance is lost, exactly one new instance takes its place in the group.",
    "The operator looks at what is there, plans the smallest difference, and applies it.",
    "A number without a measurement is a claim, so every step of this run is measured.",
)


def prompt(words: int, seed: int) -> str:
    """A prompt of about `words` words; equal for equal arguments."""
    rng = random.Random(seed)  # noqa: S311  prompts, not secrets
    out: list[str] = []
    while len(out) < words:
        out += rng.choice(_SENTENCES).split()
    return " ".join(out[:words])


def chat(i: int, *, words: int, tokens: int) -> Ask:
    """Request `i` of scenario chat: a prompt of `words` words, an answer of `tokens` tokens."""
    return Ask(MODEL, prompt(words, i), tokens, label="chat", extra={"ignore_eos": True})


def search(i: int) -> Ask:
    """Request `i` (0 or more) of scenario search: a long prompt, a short answer."""
    return Ask(
        MODEL, prompt(110, 1000 + i), 8,
        label="search", extra={"ignore_eos": True}, headers={"x-scenario": "search"},
    )  # fmt: skip


def in_words(text: str) -> str:
    """`text` with each `2P4D` written out as `2 prefill + 4 decode`."""
    return re.sub(r"\b(\d+)P(\d+)D\b", r"\1 prefill + \2 decode", text)
