"""Until when a prefill may accept a request so that its TTFT target can still hold.

A request accepted later than `arrival + TTFT target - 1.05 x T_p` would miss its target after
having cost a prefill, so it is turned away instead (early intervention, P/D-Serve section 3.5).
T_p is predicted from the prompt length; the gateway has no tokenizer and learns how many tokens
a byte is worth from the usage that engines report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAFETY = 1.05
"""Predictions of T_p are multiplied by this before they are subtracted from a target."""

_START_TOKENS_PER_BYTE = 0.25
_LEARN = 0.1


def predict_prefill(coefficients: tuple[float, float] | None, prompt_tokens: float) -> float:
    """T_p in seconds as `a + b * tokens`; 0 while the route table has no prediction."""
    if coefficients is None:
        return 0.0
    return coefficients[0] + coefficients[1] * prompt_tokens


def admission_deadline(arrived: float, ttft: float, predicted: float) -> float:
    """Latest time at which a prefill may accept; not after `arrived` means infeasible."""
    return arrived + ttft - SAFETY * predicted


class TokenEstimate:
    """Prompt tokens from prompt bytes, learned per scenario (exponential average)."""

    __slots__ = ("tokens_per_byte",)

    def __init__(self) -> None:
        self.tokens_per_byte = _START_TOKENS_PER_BYTE

    def tokens(self, size: PromptSize) -> float:
        """Expected prompt tokens; exact for prompts given as token ids."""
        return size.tokens + size.chars * self.tokens_per_byte

    def learn(self, size: PromptSize, prompt_tokens: int) -> None:
        """Take one engine-reported count into account."""
        if size.chars > 0 and prompt_tokens > size.tokens:
            seen = (prompt_tokens - size.tokens) / size.chars
            self.tokens_per_byte += _LEARN * (seen - self.tokens_per_byte)


class PromptSize:
    """Length of a prompt before tokenisation: characters of text plus ready token ids."""

    __slots__ = ("chars", "tokens")

    def __init__(self, chars: int = 0, tokens: int = 0) -> None:
        self.chars = chars
        self.tokens = tokens


def prompt_size(body: Mapping[str, Any]) -> PromptSize:
    """Length of the prompt in a validated completions or chat body."""
    size = PromptSize()
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        size.chars += len(prompt)
    elif isinstance(prompt, list):
        for part in prompt:
            _add_part(size, part)
    for message in body.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            size.chars += len(content)
        elif isinstance(content, list):
            size.chars += sum(
                len(p["text"])
                for p in content
                if isinstance(p, dict) and isinstance(p.get("text"), str)
            )
    return size


def _add_part(size: PromptSize, part: Any) -> None:
    if isinstance(part, str):
        size.chars += len(part)
    elif isinstance(part, list):
        size.tokens += len(part)
    else:
        size.tokens += 1
