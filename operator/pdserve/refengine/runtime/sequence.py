"""The running state of one request, and the listener for its events.

A `Sequence` belongs to a `GenerationRequest`: its blocks, how many positions have KV, the tokens
chosen so far. Only the event loop changes it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pdserve.http1.errors import ApiError
from pdserve.refengine.runtime.output import Output
from pdserve.refengine.runtime.request import GenerationRequest, TokenEvent


class Sink(Protocol):
    """Hears what becomes of a sequence, on the event loop; nothing after `failed` or the end."""

    def token(self, sequence: Sequence, event: TokenEvent) -> None:
        """A token was chosen (on a decode, the first call means: KV is here, slot is sure)."""

    def failed(self, sequence: Sequence, error: ApiError) -> None:
        """It ends without a result."""


class Phase(enum.Enum):
    """Where a sequence is. PULLING and READY exist on decodes only."""

    PULLING = "pulling"
    READY = "ready"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Sequence:
    """Running state of one request. Times are of the engine's monotonic clock, in seconds."""

    request: GenerationRequest
    sink: Sink
    text: Output
    blocks: list[int]
    hashes: list[bytes]
    accepted_at: float
    phase: Phase = Phase.RUNNING
    computed: int = 0
    cached: int = 0
    in_step: bool = False
    computing: bool = False
    """The compute thread may write its blocks now."""
    output: list[int] = field(default_factory=list)
    first_token_at: float | None = None
    last_token_at: float = 0.0

    @property
    def cached_of_prompt(self) -> int:
        """Prompt tokens from the prefix cache, as usage reports them: of the first prefill."""
        replay = self.request.replay
        return replay.cached if replay else self.cached

    @property
    def prefilled(self) -> bool:
        """All prompt positions have KV."""
        return self.computed >= self.request.prompt_tokens

    @property
    def decodes(self) -> bool:
        """It takes part in steps with one token each."""
        return self.phase is Phase.RUNNING and self.prefilled

    def pending(self, limit: int) -> npt.NDArray[np.int32]:
        """The next tokens without KV: rest of the prompt (at most `limit`), or the last output."""
        if self.prefilled:
            index = self.computed - self.request.prompt_tokens
            return np.asarray(self.output[index : index + 1], np.int32)
        return np.asarray(self.request.prompt[self.computed : self.computed + limit], np.int32)

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it."""
        return self.phase is Phase.ENDED
