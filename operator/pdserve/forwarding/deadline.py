"""Until when a prefill may accept a request so that its TTFT target can still hold.

A request accepted later than `arrival + TTFT target - 1.05 x T_p` would miss its target after
having cost a prefill, so it is turned away instead (early intervention, P/D-Serve section 3.5).
T_p is predicted from the prompt length; the gateway has no tokenizer and learns how many tokens
a byte is worth from the usage that engines report, and how long prefills of a length took here. A
request is refused only when prefills of that length did take too long here, not by a prediction
alone. Now and then one is tried although it would be refused, so that outdated times are replaced.
"""

from __future__ import annotations

from collections import deque
from math import log2

from pdserve.terms.json import JsonMap
from pdserve.wire.prefixes import NO_BLOCKS

SAFETY = 1.05
"""Predictions of T_p are multiplied by this before they are subtracted from a target."""

TOKENS_PER_BYTE = (0.05, 2.0)
TOKENS_PER_MESSAGE = (0.0, 64.0)
"""What a chat template may add to each message."""
_START = (0.25, 8.0)
"""Tokens per byte and per message until some were seen; weighs as much as `_PRIOR`."""
_PRIOR = (2048.0, 32.0)
_DECAY = 0.98
_HEAVIEST = 4096.0
"""One prompt counts for at most so many bytes or messages together."""
_SAMPLES = 4
_LEARN = 0.1
HALF_LIFE = 60.0
"""Seconds."""
_PROVEN = 3
TRIAL_SECONDS = 10.0
"""How often a request that would be refused as infeasible is tried."""


def predict_prefill(coefficients: tuple[float, float] | None, prompt_tokens: float) -> float:
    """T_p in seconds as `a + b * tokens`; 0 while the route table has no prediction.

    `coefficients`: a in seconds, b in seconds per token. `prompt_tokens`: those to compute.
    """
    if coefficients is None:
        return 0.0
    return coefficients[0] + coefficients[1] * prompt_tokens


def admission_deadline(arrived: float, ttft: float, predicted: float) -> float:
    """Latest time at which a prefill may accept; not after `arrived` means infeasible.

    All in seconds: `arrived` and the result on the caller's clock, the TTFT target, predicted T_p.
    """
    return arrived + ttft - SAFETY * predicted


class TokenEstimate:
    """Prompt tokens from bytes of text and number of messages, learned per scenario.

    Least squares over what engines reported, older reports weighing less, with a prior: large
    prompts teach how many tokens a byte is worth, many small messages what the template adds. Both
    stay in their bounds whatever clients send.
    """

    __slots__ = ("_bb", "_bm", "_bt", "_mm", "_mt", "per_byte", "per_message")

    def __init__(self) -> None:
        self._bb = self._bm = self._mm = self._bt = self._mt = 0.0
        self.per_byte, self.per_message = _START

    def tokens(self, size: PromptSize) -> float:
        """Expected prompt tokens; exact for prompts given as token ids."""
        return size.tokens + size.text * self.per_byte + size.messages * self.per_message

    def learn(self, size: PromptSize, prompt_tokens: int) -> None:
        """Take one engine-reported count of prompt tokens into account.

        Counts no larger than the prompt's ready token ids, and prompts of those alone, teach
        nothing.
        """
        if prompt_tokens <= size.tokens or size.text + size.messages == 0:
            return
        # Weighted by size, not by its square.
        units = size.text + size.messages
        share = min(units, _HEAVIEST) ** 0.5 / units
        b, m, t = size.text * share, size.messages * share, (prompt_tokens - size.tokens) * share
        self._bb = self._bb * _DECAY + b * b
        self._bm = self._bm * _DECAY + b * m
        self._mm = self._mm * _DECAY + m * m
        self._bt = self._bt * _DECAY + b * t
        self._mt = self._mt * _DECAY + m * t
        self._solve()

    def _solve(self) -> None:
        """Normal equations of two unknowns; the prior keeps the determinant above zero."""
        wb, wm = _PRIOR
        bb, mm = self._bb + wb, self._mm + wm
        bt, mt = self._bt + wb * _START[0], self._mt + wm * _START[1]
        det = bb * mm - self._bm * self._bm
        self.per_message = _within((bb * mt - self._bm * bt) / det, TOKENS_PER_MESSAGE)
        # The bound of one is part of what the other is solved for.
        self.per_byte = _within((bt - self._bm * self.per_message) / bb, TOKENS_PER_BYTE)


class PrefillTimes:
    """How long prefills took here: the least of the last few in each half power of two tokens, and
    what a token costs.
    """

    __slots__ = ("_seen", "_squares", "_weighted")

    def __init__(self) -> None:
        self._seen: dict[int, deque[float]] = {}
        self._squares = self._weighted = 0.0

    @property
    def per_token(self) -> float:
        """Seconds that one more token to compute takes; 0 until a prefill was seen.

        Least squares through the origin, older prefills weighing less: long prompts decide.
        """
        return self._weighted / self._squares if self._squares else 0.0

    def learn(self, tokens: float, seconds: float) -> None:
        """Note that a prompt with so many tokens to compute took so many seconds."""
        self._seen.setdefault(_bucket(tokens), deque(maxlen=_SAMPLES)).append(seconds)
        self._squares = self._squares * _DECAY + tokens * tokens
        self._weighted = self._weighted * _DECAY + tokens * seconds

    def at_most(self, tokens: float) -> float:
        """Seconds within which a prompt of at least this length was prefilled; inf: none was."""
        here = _bucket(tokens)
        return min((min(s) for b, s in self._seen.items() if b >= here), default=float("inf"))

    def too_long(self, tokens: float, left: float) -> bool:
        """Whether the last prompts of a length up to this one all took over `left` seconds.

        False until three of such a length were seen.
        """
        here = _bucket(tokens)
        return any(b <= here and len(s) >= _PROVEN and min(s) > left for b, s in self._seen.items())


class HandoffTime:
    """How long after a prefill's answer its decode's began, of late: a mean of streams."""

    __slots__ = ("_at", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        """0 until one was seen."""
        self._at = 0.0

    def learn(self, seconds: float, now: float) -> None:
        """Take in one handoff; `now` in monotonic seconds."""
        self.seconds += (_LEARN if self.seconds else 1.0) * (seconds - self.seconds)
        self._at = now

    def fading(self, now: float) -> float:
        """The mean at `now`, half as much for each minute since the last handoff."""
        return float(self.seconds * 0.5 ** ((now - self._at) / HALF_LIFE))


class PromptSize:
    """A prompt before tokenisation: bytes of text, ready token ids, chat messages; its blocks."""

    __slots__ = ("blocks", "messages", "text", "tokens")

    def __init__(self, text: int = 0, tokens: int = 0, messages: int = 0) -> None:
        self.text = text
        self.tokens = tokens
        self.messages = messages
        self.blocks = NO_BLOCKS
        """For the prefix index, where a scenario has one."""


def prompt_size(body: JsonMap) -> PromptSize:
    """Length of a validated body's prompt, in bytes of UTF-8, token ids and messages."""
    size = PromptSize()
    prompt, messages = body.get("prompt"), body.get("messages")
    if isinstance(prompt, str):
        size.text += _bytes(prompt)
    elif isinstance(prompt, list) and set(map(type, prompt)) == {int}:
        size.tokens = len(prompt)
    elif isinstance(prompt, list):
        for part in prompt:
            _add_part(size, part)
    if not isinstance(messages, list):
        return size
    size.messages = len(messages)
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            size.text += _bytes(content)
        elif isinstance(content, list):
            size.text += sum(
                _bytes(p["text"])
                for p in content
                if isinstance(p, dict) and isinstance(p.get("text"), str)
            )
    return size


def _add_part(size: PromptSize, part: object) -> None:
    if isinstance(part, str):
        size.text += _bytes(part)
    elif isinstance(part, list):
        size.tokens += len(part)
    else:
        size.tokens += 1


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _bucket(tokens: float) -> int:
    return int(2 * log2(max(1.0, tokens)))


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
