"""A validated request, and the events that answer it: values without behaviour."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pdserve.refengine.model.sampler import Sampled, SamplingParams
from pdserve.wire.prefixes import NO_BLOCKS, PromptBlocks


@dataclass(frozen=True, slots=True)
class RemoteKv:
    """Where a decode finds the KV of a prompt, and the first token the prefill chose.

    `generation` as in `WantedKv`.
    """

    engine: str
    request: str
    tokens: int
    first: Sampled
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """The part of an answer that its client has already, from a decode that was lost.

    The tokens follow the prompt, and get KV with it; the answer goes on after them.
    """

    tokens: tuple[int, ...]
    """All of them, from token 1 on."""
    reply_id: str
    """`id` of the reply's events."""
    created: int
    """Their `created`: seconds since 1970."""
    cached: int
    """Prompt tokens that the first prefill found in its prefix cache, as usage reports them."""


@dataclass(frozen=True, slots=True)
class LocalLeg:
    """A decode computes this prompt itself.

    `tpot`: seconds per token within which the answers that run there must stay on average; None:
    they are not looked at.
    """

    tpot: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A validated generation request.

    `prompt` is empty on a decode leg (the KV comes from `remote`). `hand_over` marks a prefill
    leg: one token, then KV is kept for a decode. `budget` is the seconds left for this leg when
    it arrived, None without a deadline. `eos` ends the output unless `ignore_eos`. `max_tokens` and
    `min_tokens` count replayed tokens too. Prompts of different `cache_salt` share no cached block.
    `local`: a leg of a decode that has its prompt here.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    eos: tuple[int, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    hand_over: bool = False
    remote: RemoteKv | None = None
    budget: float | None = None
    replay: Replay | None = None
    cache_salt: bytes = b""
    local: LocalLeg | None = None
    named: PromptBlocks = NO_BLOCKS
    """The client's prompt as the gateway names its blocks."""

    @property
    def replayed(self) -> tuple[int, ...]:
        """Output tokens that the client has already."""
        return self.replay.tokens if self.replay else ()

    @property
    def prompt_tokens(self) -> int:
        """Tokens that get KV before the first new one is chosen: the prompt and what is replayed.

        Also where the token ids are elsewhere.
        """
        return self.remote.tokens if self.remote else len(self.prompt)

    @property
    def client_prompt_tokens(self) -> int:
        """Length of the client's prompt in tokens."""
        return self.prompt_tokens - len(self.replayed)


class Finish(enum.StrEnum):
    """OpenAI's finish reasons that a plain generation can have."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One more token. `text` is what became certain with it (may be empty)."""

    sampled: Sampled
    text: str
    finish: Finish | None
