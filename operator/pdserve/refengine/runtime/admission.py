"""Gives a request its KV blocks, or refuses it: no memory, or no time."""

from __future__ import annotations

import time
from collections.abc import Collection

from pdserve.refengine.config import EngineConfig
from pdserve.refengine.kv.pool import BlockPool, OutOfBlocksError, blocks_for, prompt_hashes
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.model_config import BLOCK_TOKENS
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.forecast import least_left, leg_seconds, slowest_tpot
from pdserve.refengine.runtime.output import Output
from pdserve.refengine.runtime.rejections import Rejections
from pdserve.refengine.runtime.request import GenerationRequest
from pdserve.refengine.runtime.sequence import Sequence, Sink
from pdserve.wire import calls

TPOT_MARGIN = 0.95
"""Share of a TPOT target up to which a prompt may slow answers down."""


class Admission:
    """Makes sequences of requests that have a slot."""

    def __init__(
        self,
        config: EngineConfig,
        context: int,
        model: LoadedModel,
        pool: BlockPool,
        estimates: Estimates,
        rejections: Rejections,
    ) -> None:
        """`context`: positions that a sequence may have."""
        self._config, self._context, self._model = config, context, model
        self._pool, self._estimates, self._rejections = pool, estimates, rejections

    def sequence(
        self, request: GenerationRequest, sink: Sink, active: Collection[Sequence]
    ) -> Sequence:
        """A sequence with its blocks; nothing is taken when it raises.

        Args:
            request: what to generate.
            sink: who gets its tokens.
            active: the sequences that run.

        Raises:
            RejectedError: no blocks, or it cannot be done in its time.
        """
        hashes: list[bytes] = []
        if self._config.prefix_cache:
            hashes = prompt_hashes(request.prompt, request.cache_salt)
        # At least one prompt token is computed, so that there are logits.
        usable = hashes[: max(0, len(request.prompt) - 1) // BLOCK_TOKENS]
        blocks = self._pool.match(usable)
        cached = len(blocks) * BLOCK_TOKENS
        try:
            self._check_budget(request, cached, active)
            self._check_running(request, cached, active)
            blocks = blocks + self._pool.allocate(
                blocks_for(self._positions(request)) - len(blocks)
            )
            return Sequence(
                request,
                sink,
                Output(request, self._model.tokenizer.stream(), self._context),
                blocks,
                hashes,
                accepted_at=time.monotonic(),
                computed=cached,
                cached=cached,
            )
        except OutOfBlocksError as error:
            self._pool.release(blocks)
            reason = calls.REJECT_DECODE_FULL if request.remote else calls.REJECT_FULL
            raise self._rejections.reject(reason, f"no KV memory: {error}") from error
        except BaseException:
            self._pool.release(blocks)
            raise

    def _check_running(
        self, request: GenerationRequest, cached: int, active: Collection[Sequence]
    ) -> None:
        """Raise RejectedError where a decode cannot compute a prompt beside what it runs.

        It would have to wait for a running place, or make an answer that runs slower than it may
        become.
        """
        if request.local is None:
            return
        if len(active) >= self._config.slots:
            message = "a prompt is computed here only where it can begin at once"
            raise self._rejections.reject(calls.REJECT_DECODE_FULL, message)
        if request.local.tpot is None:
            return
        new = (cached, request.prompt_tokens)
        slowest = slowest_tpot(self._estimates, time.monotonic(), new, active)
        if slowest > TPOT_MARGIN * request.local.tpot:
            raise self._rejections.reject(
                calls.REJECT_TPOT,
                f"an answer that runs here would take {slowest * 1000:.0f} ms a token, and may "
                f"take {request.local.tpot * 1000:.0f} ms",
            )

    def _positions(self, request: GenerationRequest) -> int:
        if request.hand_over:
            return request.prompt_tokens
        # The last token is never fed back.
        return min(request.client_prompt_tokens + request.max_tokens - 1, self._context)

    def _check_budget(
        self, request: GenerationRequest, cached: int, active: Collection[Sequence]
    ) -> None:
        """Raise RejectedError where a request cannot be done in its time, or makes others late."""
        if request.budget is None:
            return
        now = time.monotonic()
        chunk = self._config.local_chunk_tokens
        expected = leg_seconds(self._estimates, now, request, cached, active, chunk)
        if expected <= request.budget:
            self._check_accepted(request, now, expected, active)
            return
        if request.remote is None and not active and self._estimates.tries_out(now):
            return
        raise self._rejections.too_late(expected, request.budget)

    def _check_accepted(
        self, request: GenerationRequest, now: float, expected: float, active: Collection[Sequence]
    ) -> None:
        """Raise RejectedError where a prompt would make one late that was accepted before."""
        if request.remote is None and expected > least_left(self._estimates, now, active):
            message = "a prompt that was accepted before would be late"
            raise self._rejections.reject(calls.REJECT_FULL, message)
