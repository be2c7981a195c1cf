"""Everything the engine expects of the near future: step times, remaining work, transfers.

In paced mode the profile gives the times; otherwise `predict` learns from finished steps. Used for
`x-pdserve-free-in-ms` and to reject what cannot meet its deadline; never for admission itself.
A learned prediction that refuses a prompt gets no new measurement, so it could stay wrong for ever.
Therefore an idle instance computes one refused prompt in each `TRY_OUT_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.refengine.runtime.batch import Batch
from pdserve.refengine.runtime.pacing import Pacer
from pdserve.refengine.runtime.predict import Average, PrefillTime

TRY_OUT_SECONDS = 5.0

Span = tuple[int, int]
"""[computed, total) positions of a prompt that is still to be computed."""


class Estimates:
    """Predictions of one instance; seconds throughout."""

    def __init__(self, pacer: Pacer | None) -> None:
        self._pacer = pacer
        self._prefill = PrefillTime()
        self._step_due = 0.0
        self._step: Batch | None = None
        self._tried = -TRY_OUT_SECONDS
        self.decode_step = Average()
        self.output_tokens = Average()
        self.transfer = Average()

    def step_began(self, step: Batch, started: float) -> None:
        """A step started (`started`: seconds, as `now` elsewhere); remember when it should end."""
        self._step = step
        self._step_due = started + self._step_seconds(step)

    def step_ended(self, step: Batch, seconds: float) -> None:
        """Learn from a finished step."""
        self._step = None
        if step.chunks:
            self._prefill.add(step.prompt_tokens, seconds)
        else:
            self.decode_step.add(seconds)

    def learn_prefill(self, tokens: int, seconds: float) -> None:
        """Take in a measurement made outside of steps (`Engine.warm_up`)."""
        self._prefill.add(tokens, seconds)

    def tries_out(self, now: float) -> bool:
        """Whether an idle instance computes a prompt although it is predicted to be too late."""
        if self._pacer is not None or now - self._tried < TRY_OUT_SECONDS:
            return False
        self._tried = now
        return True

    def step_left(self, now: float) -> float:
        """Seconds until the running step ends, by the prediction; 0 without one."""
        return 0.0 if self._step is None else max(0.0, self._step_due - now)

    def prefill_after(self, now: float, spans: Sequence[Span]) -> float:
        """Seconds until the last of `spans` has its first token.

        The running step comes first, then all of them.
        """
        return self.step_left(now) + self._prefill_seconds(spans)

    def tokens_left(self, produced: int, most: int) -> float:
        """Expected tokens until an output ends."""
        usual = self.output_tokens.get(float(most))
        return max(1.0, min(most - produced, usual - produced))

    def profile_seconds(self, step: Batch) -> float:
        """Seconds of a step by the profile, before dilation.

        A step with both prompts and decodes goes over the weights once: of the two fixed parts only
        the larger one counts.

        Raises:
            ValueError: the engine is not paced, so it has no profile.
        """
        if self._pacer is None:
            raise ValueError("no profile without paced mode")
        profile, seconds = self._pacer.profile, 0.0
        if step.chunks:
            seconds += profile.prefill_seconds(step.chunks)
        if step.decodes:
            seconds += profile.decode_seconds(step.decodes, step.context)
        if step.chunks and step.decodes:
            seconds -= min(profile.a, profile.d)
        return seconds

    def added_by(self, spans: Sequence[Span]) -> float:
        """Seconds that computing prompts in the steps of running answers adds to these steps."""
        if self._pacer is not None:
            profile = self._pacer.profile
            return (profile.prefill_seconds(spans) - profile.a) * self._pacer.factor
        tokens = sum(end - start for start, end in spans)
        return max(0.0, self._prefill.seconds(tokens) - self._prefill.seconds(0))

    def decode_seconds(self, batch: int, context: int) -> float:
        """Seconds of a step of `batch` answers whose contexts sum to `context` tokens."""
        if self._pacer is not None:
            return self._pacer.profile.decode_seconds(batch, context) * self._pacer.factor
        return self.decode_step.get(0.0)

    def _step_seconds(self, step: Batch) -> float:
        if self._pacer is not None:
            return self.profile_seconds(step) * self._pacer.factor
        if step.chunks:
            return self._prefill.seconds(step.prompt_tokens)
        return self.decode_step.get(0.0)

    def _prefill_seconds(self, spans: Sequence[Span]) -> float:
        if self._pacer is not None:
            return self._pacer.profile.prefill_seconds(spans) * self._pacer.factor
        return self._prefill.seconds(sum(end - start for start, end in spans))
