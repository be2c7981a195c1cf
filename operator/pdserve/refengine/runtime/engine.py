"""The engine core: admission, batching and the life of every sequence.

All state belongs to the event loop. The cycle: `claim` takes a slot or refuses at once; `admit`
makes the claim a sequence with KV blocks; `_pump` gives the compute thread the next step when it
is free; `_apply` hands out tokens and frees what ended. A decode's KV arrives beside running
steps (`_fetch`) and joins the next one. `release` ends a request by name wherever it is.

A prefill leg ends with its first token: the KV moves into a payload of its own (`handoff`), the
blocks stay only as prefix cache, the slot stays taken until the KV is gone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

import numpy as np

from pdserve.http1.errors import ApiError
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.errors import RejectedError
from pdserve.refengine.kv.kv_transport import KvSource, TransportError
from pdserve.refengine.kv.payload import Payload, landing
from pdserve.refengine.kv.pool import BlockPool, OutOfBlocksError, blocks_for, prompt_hashes
from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.model.llama import Rows, new_pool
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.model_config import BLOCK_TOKENS
from pdserve.refengine.model.sampler import Sampled
from pdserve.refengine.runtime import batch as batching
from pdserve.refengine.runtime import compute
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.handoff import Handoff
from pdserve.refengine.runtime.output import Output
from pdserve.refengine.runtime.pacing import Pacer
from pdserve.refengine.runtime.request import Finish, GenerationRequest, RemoteKv
from pdserve.refengine.runtime.sequence import Phase, Sequence, Sink
from pdserve.refengine.runtime.slot_claims import EarlyReleases, SlotClaim
from pdserve.refengine.runtime.slots import SlotHint, Slots
from pdserve.refengine.runtime.step_worker import Worker
from pdserve.wire import http

WARM_UP_TOKENS = (16, 16, 64, 128, 256)
"""Lengths of the prompts of a warm-up; the first only brings code and weights into memory."""

log = logging.getLogger(__name__)


class Engine:
    """One instance: a model, its KV memory and its slots."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        metrics: EngineMetrics,
        pacer: Pacer | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config, self._model, self._loop = config, model, loop
        # Not the loop's clock: uvloop's has a resolution of 1 ms and stands still inside a turn.
        self._now = time.monotonic
        self.metrics, self.pacer = metrics, pacer
        self.context = min(config.max_model_len or model.config.context, model.config.context)
        total = config.slots + config.prefetch
        blocks = blocks_for(config.kv_tokens) or total * blocks_for(self.context)
        self._memory = new_pool(model.config, blocks + 1)
        self._pool = BlockPool(blocks + 1, config.prefix_cache and config.role != "decode")
        self._slots = Slots(total)
        self._claims: dict[str, SlotClaim] = {}
        self._early = EarlyReleases()
        self._active: dict[str, Sequence] = {}
        self._pulls: dict[Sequence, asyncio.Task[None]] = {}
        self._step: batching.Batch | None = None
        self._worker = Worker(loop)
        self._estimates = Estimates(pacer)
        self.handoff = Handoff(
            loop,
            (config.lease_seconds, config.transfer_timeout),
            metrics,
            pacer,
            self._slot_freed,
        )
        self.draining = False
        self.kv_source: KvSource | None = None

    # --- admission -------------------------------------------------------------------------

    def refusal(self) -> str | None:
        """Why any request would be rejected now, known without reading it; None when not."""
        if self.draining:
            return http.REJECT_DRAINING
        if self._slots.free <= 0:
            return http.REJECT_DECODE_FULL if self._config.role == "decode" else http.REJECT_FULL
        return None

    def reject(self, reason: str, message: str, status: int = 503) -> RejectedError:
        """Count a rejection; the caller raises or sends what this returns."""
        self.metrics.rejected(reason)
        return RejectedError(reason, message, status)

    def too_late(self, needed: float, left: float) -> RejectedError:
        """Count a rejection for the deadline; both arguments in seconds."""
        needed_ms, left_ms = max(1, math.ceil(needed * 1000)), max(0, int(left * 1000))
        error = self.reject(http.REJECT_DEADLINE, f"needs {needed_ms} ms, {left_ms} ms are left")
        times = ((http.HEADER_NEEDED_MS, needed_ms), (http.HEADER_LEFT_MS, left_ms))
        error.headers += tuple((name.encode(), b"%d" % value) for name, value in times)
        return error

    def warm_up(self) -> None:
        """Compute a few prompts of different lengths, so that the first client's is predicted.

        Blocks for some tenths of a second; nothing may run yet. Paced instances know their times,
        and decodes compute no prompts.
        """
        if self.pacer is not None or self._config.role == "decode":
            return
        for number, tokens in enumerate(WARM_UP_TOKENS):
            count = min(tokens, self.context, self._config.chunk_tokens)
            blocks = self._pool.allocate(min(blocks_for(count), self._pool.total))
            count = min(count, len(blocks) * BLOCK_TOKENS)
            try:
                rows = Rows(np.zeros(count, np.int32), 0, np.asarray(blocks, np.int64), logits=True)
                begin = time.perf_counter()
                self._model.llama.step([rows], self._memory)
                if number:
                    self._estimates.learn_prefill(count, time.perf_counter() - begin)
            finally:
                self._pool.release(blocks)

    def claim(self, name: str, released: Callable[[], None]) -> SlotClaim:
        """Take a slot for a request that is about to be prepared.

        Args:
            name: of the request; no other request of this name may be known.
            released: called when `release` ends the claim.

        Raises:
            RejectedError: no slot, or draining.
            ApiError: 409, the name was released before the request came.
        """
        reason = self.refusal()
        if reason is not None:
            raise self.reject(reason, f"instance is {reason.replace('_', ' ')}")
        if self._early.has(name, self._now()):
            raise ApiError(409, f"request {name!r} was released before it came", code="released")
        self._slots.take()
        claim = self._claims[name] = SlotClaim(name, released)
        return claim

    def drop(self, claim: SlotClaim) -> None:
        """Give a claim's slot back; nothing when it is over already."""
        if claim.open:
            claim.open = False
            del self._claims[claim.name]
            self._slots.give_back()

    def admit(self, claim: SlotClaim, request: GenerationRequest, sink: Sink) -> Sequence:
        """Give a claimed request its blocks and start it; when it raises, the claim is dropped.

        Raises:
            RejectedError: no blocks, or it cannot be done in its time.
            ApiError: 499, the claim is over.
        """
        if not claim.open:
            raise ApiError(499, "released", code="released")
        try:
            sequence = self._sequence(request, sink)
        except BaseException:
            self.drop(claim)
            raise
        # The slot passes from the claim to the sequence.
        claim.open = False
        del self._claims[claim.name]
        self._active[request.id] = sequence
        try:
            if request.remote is not None:
                self._start_pull(sequence, request.remote)
            self._pump()
        except BaseException:
            if not sequence.ended:
                self._end(sequence)
            raise
        return sequence

    def _sequence(self, request: GenerationRequest, sink: Sink) -> Sequence:
        """A sequence with its blocks; nothing is taken when it raises."""
        hashes = prompt_hashes(request.prompt) if self._config.prefix_cache else []
        # At least one prompt token is computed, so that there are logits.
        usable = hashes[: max(0, len(request.prompt) - 1) // BLOCK_TOKENS]
        blocks = self._pool.match(usable)
        cached = len(blocks) * BLOCK_TOKENS
        try:
            self._check_budget(request, cached)
            total = self._positions(request)
            blocks = blocks + self._pool.allocate(blocks_for(total) - len(blocks))
            return Sequence(
                request,
                sink,
                Output(request, self._model.tokenizer.stream(), self.context),
                blocks,
                hashes,
                accepted_at=self._now(),
                computed=cached,
                cached=cached,
            )
        except OutOfBlocksError as error:
            self._pool.release(blocks)
            reason = http.REJECT_DECODE_FULL if request.remote else http.REJECT_FULL
            raise self.reject(reason, f"no KV memory: {error}") from error
        except BaseException:
            self._pool.release(blocks)
            raise

    def knows(self, request_id: str) -> bool:
        """Whether an id is in use (being prepared, running or held)."""
        return (
            request_id in self._active or request_id in self._claims or request_id in self.handoff
        )

    def cancel(self, sequence: Sequence) -> None:
        """The client is gone: free slot and KV (blocks in a running step: when it ends)."""
        if not sequence.ended:
            self._end(sequence)

    def release(self, request_id: str) -> bool:
        """End the request of this name wherever it is: prepared, computed or held.

        Idempotent. An unknown name is remembered for a while and refused when it comes
        (`EarlyReleases`); returns False then.
        """
        if self.handoff.release(request_id):
            return True
        claim = self._claims.get(request_id)
        if claim is not None:
            self.drop(claim)
            claim.released()
            return True
        sequence = self._active.get(request_id)
        if sequence is not None:
            self._fail(sequence, ApiError(499, "released", code="released"))
            return True
        self._early.remember(request_id, self._now())
        return False

    # --- what others may know ----------------------------------------------------------------

    def hint(self) -> SlotHint:
        """Slot hint for the headers of a reply."""
        return self._slots.hint(0.0 if self._slots.free else self._free_in())

    @property
    def executing(self) -> int:
        """Requests that are prepared, run, or wait for their KV here."""
        return len(self._claims) + len(self._active)

    def publish_occupancy(self) -> None:
        """Bring the gauges up to date; called when they are about to be read."""
        active = self._active.values()
        running = sum(s.phase is Phase.RUNNING for s in active)
        states = {"total": self._slots.total}
        if self._config.role == "prefill":
            states |= {"executing": self.executing, "holding": len(self.handoff)}
        else:
            states |= {"running": running, "prefetching": self.executing - running}
        share = self._pool.used / self._pool.total
        self.metrics.occupancy(states, len(active), share)

    def stop(self) -> None:
        """End pulls, timers and the compute thread."""
        for task in self._pulls.values():
            task.cancel()
        self.handoff.close()
        self._worker.stop()

    # --- steps ---------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start the next step when none runs. A failure ends what should have run in it."""
        if self._step is not None:
            return
        try:
            self._start_step()
        except Exception as error:
            log.exception("no step could be started")
            self._step = None
            for sequence in [s for s in self._active.values() if s.phase is Phase.RUNNING]:
                sequence.in_step = sequence.computing = False
                self._fail(sequence, _internal(error))

    def _start_step(self) -> None:
        self._promote()
        step = batching.build(
            self._active.values(), self._config.max_batch_tokens, self._config.chunk_tokens
        )
        if not step.members:
            return
        banned = [m.sequence.text.banned() if m.rows.logits else () for m in step.members]
        now = self._now()
        started = now if self.pacer is None else self.pacer.begin(now)
        self._estimates.step_began(step, started)
        self._step = step
        for member in step.members:
            member.sequence.in_step = member.sequence.computing = True
        self._worker.submit(
            lambda: compute.run(step, banned, self._model, self._memory),
            lambda result: self._computed(step, started, result),
            lambda error: self._broken(step, error),
        )

    def _computed(self, step: batching.Batch, started: float, result: compute.StepResult) -> None:
        self._blocks_settled(step)
        try:
            if self.pacer is not None:
                seconds = self._estimates.profile_seconds(step)
                due = self.pacer.end(started, result.seconds, seconds)
                wait = max(0.0, due - self._now())
                self._loop.call_later(wait, self._deliver, step, started, result)
                return
        except Exception as error:
            log.exception("a step could not be paced")
            self._broken(step, error)
            return
        self._apply(step, started, result)

    def _deliver(self, step: batching.Batch, started: float, result: compute.StepResult) -> None:
        if self.pacer is not None:
            self.metrics.paced_late.inc(self.pacer.delivered(self._now()))
            self.metrics.paced_valid.set(self.pacer.valid)
        self._apply(step, started, result)

    def _blocks_settled(self, step: batching.Batch) -> None:
        """Nothing writes into the members' blocks any more: free those of what ended meanwhile."""
        for member in step.members:
            sequence = member.sequence
            if sequence.computing:
                sequence.computing = False
                if sequence.ended:
                    self._pool.release(sequence.blocks)

    def _apply(self, step: batching.Batch, started: float, result: compute.StepResult) -> None:
        self._step = None
        for member in step.members:
            member.sequence.in_step = False
        seconds = self._now() - started
        try:
            self._estimates.step_ended(step, seconds)
            self._count_step(step, seconds)
        except Exception:
            log.exception("a step was not counted")
        for index, member in enumerate(step.members):
            sequence, chosen = member.sequence, result.sampled[index]
            if sequence.ended:
                continue
            sequence.computed = member.end
            if chosen is not None:
                try:
                    if member.is_prompt:
                        self._prompt_done(sequence)
                    self._token(sequence, chosen, result.payloads[index])
                except Exception as error:
                    # One request's fault; its neighbours in the step go on.
                    log.exception("request %s failed", sequence.request.id)
                    self._fail(sequence, _internal(error))
        self._pump()

    def _broken(self, step: batching.Batch, error: BaseException) -> None:
        """A step raised: what the blocks hold is unknown, so every member fails."""
        self._step = None
        self._blocks_settled(step)
        for member in step.members:
            member.sequence.in_step = False
            self._fail(member.sequence, _internal(error))
        self._pump()

    def _fail(self, sequence: Sequence, error: ApiError) -> None:
        """End a sequence without a result, whatever state it is in, and tell its sink."""
        if not sequence.ended:
            self._end(sequence)
        elif sequence.request.id in self.handoff and sequence.request.hand_over:
            self.handoff.release(sequence.request.id)
        try:
            sequence.sink.failed(sequence, error)
        except Exception:
            log.exception("request %s: its client could not be notified", sequence.request.id)

    def _prompt_done(self, sequence: Sequence) -> None:
        self._pool.publish(sequence.blocks, sequence.hashes)
        computed = sequence.request.prompt_tokens - sequence.cached
        self.metrics.prefill_requests.inc()
        self.metrics.prefill_tokens.inc(computed)
        self.metrics.prefill_squared.inc(computed * computed)

    def _token(self, sequence: Sequence, chosen: Sampled, payload: Payload | None) -> None:
        now = self._now()
        if sequence.first_token_at is None:
            sequence.first_token_at = now
            seconds = now - sequence.accepted_at
            self.metrics.first_token(sequence.request.prompt_tokens, seconds)
        else:
            self.metrics.next_token(now - sequence.last_token_at)
        sequence.last_token_at = now
        sequence.output.append(chosen.token)
        event = sequence.text.push(chosen)
        if event.finish is not None:
            kept = payload if event.finish is Finish.LENGTH else None
            self._end(sequence, kept)
            self.metrics.finished(event.finish, now - sequence.accepted_at)
            self._estimates.output_tokens.add(len(sequence.output))
        sequence.sink.token(sequence, event)

    # --- decode: KV from a peer ------------------------------------------------------------------

    def _start_pull(self, sequence: Sequence, remote: RemoteKv) -> None:
        sequence.phase = Phase.PULLING
        task = self._loop.create_task(self._fetch(sequence, remote))
        self._pulls[sequence] = task
        task.add_done_callback(lambda done: self._pull_over(sequence, remote, done))

    def _pull_over(self, sequence: Sequence, remote: RemoteKv, task: asyncio.Task[None]) -> None:
        del self._pulls[sequence]
        error = None if task.cancelled() else task.exception()
        if sequence.ended:
            # Cancelled meanwhile; only now can nothing be written into the blocks any more.
            self._pool.release(sequence.blocks)
        elif task.cancelled() or error is not None:
            message = str(error) if error is not None else "instance stops"
            self._fail(sequence, self.reject(http.REJECT_KV_FAILED, message, 502))
        else:
            sequence.phase = Phase.READY
            sequence.computed = remote.tokens
            try:
                self._token(sequence, remote.first, None)
            except Exception as failure:
                log.exception("request %s failed", sequence.request.id)
                self._fail(sequence, _internal(failure))
        self._pump()

    async def _fetch(self, sequence: Sequence, remote: RemoteKv) -> None:
        if self.kv_source is None:
            raise TransportError("this instance pulls no KV")
        tokens, started = remote.tokens, self._now()
        buffers = landing(self._memory, sequence.blocks, tokens)
        size = await self.kv_source.pull(remote.engine, remote.request, tokens, buffers)
        if self.pacer is not None:
            due = self.pacer.transfer_end(started, tokens)
            await asyncio.sleep(max(0.0, due - self._now()))
        seconds = self._now() - started
        self._estimates.transfer.add(seconds)
        self.metrics.transfer_seconds.inc(seconds)
        self.metrics.transfers.inc()
        self.metrics.transfer_bytes.inc(size)

    def _promote(self) -> None:
        """Sequences whose KV is here take the slots that are free, in order of acceptance."""
        running = sum(s.phase is Phase.RUNNING for s in self._active.values())
        for sequence in self._active.values():
            if running >= self._config.slots:
                return
            if sequence.phase is Phase.READY:
                sequence.phase = Phase.RUNNING
                running += 1

    # --- ends ------------------------------------------------------------------------------------

    def _end(self, sequence: Sequence, payload: Payload | None = None) -> None:
        """Take a sequence out; with a payload its slot stays taken until the KV is gone."""
        sequence.phase = Phase.ENDED
        del self._active[sequence.request.id]
        task = self._pulls.get(sequence)
        if task is not None:
            # The pull frees the blocks once nothing can be written into them any more.
            task.cancel()
        elif not sequence.computing:
            self._pool.release(sequence.blocks)
        if payload is None:
            self._slots.give_back()
            return
        try:
            self.handoff.hold(sequence.request.id, payload)
        except BaseException:
            if not self.handoff.release(sequence.request.id):
                self._slots.give_back()
            raise

    def _slot_freed(self) -> None:
        self._slots.give_back()

    # --- figures ---------------------------------------------------------------------------

    def _positions(self, request: GenerationRequest) -> int:
        if request.hand_over:
            return request.prompt_tokens
        # The last token is never fed back.
        return min(request.prompt_tokens + request.max_tokens - 1, self.context)

    def _check_budget(self, request: GenerationRequest, cached: int) -> None:
        if request.budget is None:
            return
        if request.remote is not None:
            expected = self._estimates.transfer.get(0.0)
        else:
            before = [
                (s.computed, s.request.prompt_tokens)
                for s in self._active.values()
                if not s.prefilled and not s.in_step
            ]
            mine = (cached, request.prompt_tokens)
            expected = self._estimates.prefill_after(self._now(), [*before, mine])
        if expected <= request.budget:
            return
        if request.remote is None and not self._active and self._estimates.tries_out(self._now()):
            return
        raise self.too_late(expected, request.budget)

    def _free_in(self) -> float:
        now = self._now()
        if self._config.role == "prefill":
            hold = self.handoff.hold_seconds.get(0.0)
            waits = [max(0.0, hold - self.handoff.oldest_hold())] if len(self.handoff) else []
            if self._active:
                waits.append(self._estimates.step_left(now) + hold)
            return min(waits, default=0.0)
        left = [
            self._estimates.tokens_left(len(s.output), s.request.max_tokens)
            for s in self._active.values()
            if s.phase is Phase.RUNNING
        ]
        return min(left, default=1.0) * self._estimates.decode_step.get(0.0)

    def _count_step(self, step: batching.Batch, seconds: float) -> None:
        if step.chunks:
            self.metrics.prefill_batches.inc()
            self.metrics.prefill_seconds.inc(seconds)
            return
        self.metrics.decode_steps.inc()
        self.metrics.decode_seconds.inc(seconds)
        self.metrics.decode_requests.inc(step.decodes)
        self.metrics.decode_context.inc(step.context)


def _internal(error: BaseException) -> ApiError:
    return ApiError(500, f"computation failed: {error}", kind="server_error")
