"""Turns chosen tokens into text: detokenising, stop strings, and why an output ends.

Both legs of a P/D request use the same class. A decode feeds it the prefill's first token, so stop
strings and UTF-8 characters that are cut by the handoff need no special case. Replayed tokens pass
through it before, for the same reason; their text is the client's already.
"""

from __future__ import annotations

from pdserve.refengine.model.sampler import Sampled
from pdserve.refengine.model.tokenizer import TextStream
from pdserve.refengine.runtime.request import Finish, GenerationRequest, TokenEvent


class Output:
    """Text of one request so far.

    Text that may be the beginning of a stop string is held back until the next tokens decide.
    """

    def __init__(self, request: GenerationRequest, text: TextStream, context: int) -> None:
        self._request, self._text = request, text
        self._limit = min(request.max_tokens, context - request.client_prompt_tokens)
        self._held = ""
        self.count = 0
        for token in request.replayed:
            self.push(Sampled(token))

    def banned(self) -> tuple[int, ...]:
        """Tokens that may not be chosen next: the ends, before `min_tokens`."""
        if self.count >= self._request.min_tokens:
            return ()
        return (*self._request.eos, *self._request.stop_tokens)

    def push(self, sampled: Sampled) -> TokenEvent:
        """Take one token in; decides whether it is the last."""
        r = self._request
        self.count += 1
        ends = sampled.token in r.stop_tokens or (not r.ignore_eos and sampled.token in r.eos)
        self._held += "" if ends else self._text.push(sampled.token)
        finish = Finish.STOP if ends else None
        if finish is None and self.count >= self._limit:
            finish = Finish.LENGTH
        if finish is not None:
            self._held += self._text.finish()
        if self.count >= r.min_tokens and (at := self._first_stop()) is not None:
            text, self._held = self._held[:at], ""
            return TokenEvent(sampled, text, Finish.STOP)
        keep = 0 if finish is not None else self._undecided()
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return TokenEvent(sampled, text, finish)

    def _first_stop(self) -> int | None:
        found = [self._held.find(s) for s in self._request.stop_strings]
        return min((at for at in found if at >= 0), default=None)

    def _undecided(self) -> int:
        """Length of the longest tail that is a proper prefix of a stop string."""
        longest = 0
        for stop in self._request.stop_strings:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
