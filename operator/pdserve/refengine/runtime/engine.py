"""The engine core: admission, batching and the life of every sequence.

All state belongs to the event loop. The cycle: `admit` takes a slot and blocks or refuses at
once; `_pump` gives the compute thread the next step when it is free; `_apply` hands out tokens
and frees what ended. A decode's KV arrives beside running steps (`_pull`) and joins the next one.

A prefill leg ends with its first token: the KV moves into a payload of its own (`handoff`), the
blocks stay only as prefix cache, the slot stays taken until the KV is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pdserve.http.errors import ApiError
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.errors import RejectedError
from pdserve.refengine.kv.payload import Payload, landing
from pdserve.refengine.kv.pool import BlockPool, OutOfBlocksError, blocks_for, prompt_hashes
from pdserve.refengine.kv.transport import PeerAddress, Transport, TransportError
from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.model.config import BLOCK_TOKENS
from pdserve.refengine.model.llama import new_pool
from pdserve.refengine.model.load import LoadedModel
from pdserve.refengine.model.sampler import Sampled
from pdserve.refengine.runtime import batch as batching
from pdserve.refengine.runtime import compute
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.handoff import Handoff
from pdserve.refengine.runtime.output import Output
from pdserve.refengine.runtime.pacing import Pacer
from pdserve.refengine.runtime.request import Finish, RemoteKv, Request
from pdserve.refengine.runtime.sequence import Phase, Sequence, Sink
from pdserve.refengine.runtime.slots import SlotHint, Slots
from pdserve.refengine.runtime.worker import Worker
from pdserve.wire import http


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
        self.transport: Transport | None = None
        self.peer_address: Callable[[str], PeerAddress | None] = lambda peer: None

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

    def admit(self, request: Request, sink: Sink) -> Sequence:
        """Take a slot and blocks for a request and start it.

        Raises:
            RejectedError: no slot, no blocks, draining, or it cannot be done in its time.
        """
        reason = self.refusal()
        if reason is not None:
            raise self.reject(reason, f"instance is {reason.replace('_', ' ')}")
        hashes = prompt_hashes(request.prompt) if self._config.prefix_cache else []
        # At least one prompt token is computed, so that there are logits.
        usable = hashes[: max(0, len(request.prompt) - 1) // BLOCK_TOKENS]
        cached = self._pool.match(usable)
        try:
            self._check_budget(request, len(cached) * BLOCK_TOKENS)
            total = self._positions(request)
            blocks = cached + self._pool.allocate(blocks_for(total) - len(cached))
        except OutOfBlocksError as error:
            self._pool.release(cached)
            reason = http.REJECT_DECODE_FULL if request.remote else http.REJECT_FULL
            raise self.reject(reason, f"no KV memory: {error}") from error
        except RejectedError:
            self._pool.release(cached)
            raise
        self._slots.take()
        sequence = Sequence(
            request,
            sink,
            Output(request, self._model.tokenizer.stream(), self.context),
            blocks,
            hashes,
            accepted_at=self._now(),
            computed=len(cached) * BLOCK_TOKENS,
            cached=len(cached) * BLOCK_TOKENS,
        )
        self._active[request.id] = sequence
        if request.remote is not None:
            self._start_pull(sequence, request.remote)
        self._pump()
        return sequence

    def knows(self, request_id: str) -> bool:
        """Whether an id is in use (running or held)."""
        return request_id in self._active or request_id in self.handoff

    def cancel(self, sequence: Sequence) -> None:
        """The client is gone: free slot and KV (blocks in a running step: when it ends)."""
        if not sequence.ended:
            self._end(sequence)

    def release(self, request_id: str) -> bool:
        """Free what is held or running for a prefill leg; False when the id is unknown."""
        if self.handoff.release(request_id):
            return True
        sequence = self._active.get(request_id)
        if sequence is None or not sequence.request.hand_over:
            return False
        self._end(sequence)
        sequence.sink.failed(sequence, ApiError(499, "released", code="released"))
        return True

    # --- what others may know ----------------------------------------------------------------

    def hint(self) -> SlotHint:
        """Slot hint for the headers of a reply."""
        return self._slots.hint(0.0 if self._slots.free else self._free_in())

    @property
    def executing(self) -> int:
        """Sequences that run or wait for their KV here."""
        return len(self._active)

    def publish_occupancy(self) -> None:
        """Bring the gauges up to date; called when they are about to be read."""
        active = self._active.values()
        running = sum(s.phase is Phase.RUNNING for s in active)
        states = {"total": self._slots.total}
        if self._config.role == "prefill":
            states |= {"executing": len(active), "holding": len(self.handoff)}
        else:
            states |= {"running": running, "prefetching": len(active) - running}
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
        if self._step is not None:
            return
        self._promote()
        step = batching.build(
            self._active.values(), self._config.max_batch_tokens, self._config.chunk_tokens
        )
        if not step.members:
            return
        self._step = step
        for member in step.members:
            member.sequence.in_step = True
        banned = [m.sequence.text.banned() if m.rows.logits else () for m in step.members]
        now = self._now()
        started = now if self.pacer is None else self.pacer.begin(now)
        self._estimates.step_began(step, started)
        self._worker.submit(
            lambda: compute.run(step, banned, self._model, self._memory),
            lambda result: self._computed(step, started, result),
            self._broken,
        )

    def _computed(self, step: batching.Batch, started: float, result: compute.StepResult) -> None:
        if self.pacer is None:
            self._apply(step, started, result)
            return
        due = self.pacer.end(started, result.seconds, self._estimates.profile_seconds(step))
        self._loop.call_later(max(0.0, due - self._now()), self._deliver, step, started, result)

    def _deliver(self, step: batching.Batch, started: float, result: compute.StepResult) -> None:
        if self.pacer is not None:
            self.metrics.paced_late.inc(self.pacer.delivered(self._now()))
            self.metrics.paced_valid.set(self.pacer.valid)
        self._apply(step, started, result)

    def _apply(self, step: batching.Batch, started: float, result: compute.StepResult) -> None:
        self._step = None
        seconds = self._now() - started
        self._estimates.step_ended(step, seconds)
        self._count_step(step, seconds)
        for index, member in enumerate(step.members):
            sequence, chosen = member.sequence, result.sampled[index]
            sequence.in_step = False
            if sequence.ended:
                self._pool.release(sequence.blocks)
                continue
            sequence.computed = member.end
            if chosen is not None:
                if member.is_prompt:
                    self._prompt_done(sequence)
                self._token(sequence, chosen, result.payloads[index])
        self._pump()

    def _broken(self, error: BaseException) -> None:
        """A step raised: nobody can know what the blocks hold, so every member fails."""
        step, self._step = self._step, None
        for member in step.members if step else ():
            sequence, member.sequence.in_step = member.sequence, False
            if sequence.ended:
                self._pool.release(sequence.blocks)
                continue
            self._end(sequence)
            sequence.sink.failed(
                sequence, ApiError(500, f"computation failed: {error}", kind="server_error")
            )
        self._pump()

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
            self._end(sequence)
            message = str(error) if error is not None else "instance stops"
            sequence.sink.failed(sequence, self.reject(http.REJECT_KV_FAILED, message, 502))
        else:
            sequence.phase = Phase.READY
            sequence.computed = remote.tokens
            self._token(sequence, remote.first, None)
        self._pump()

    async def _fetch(self, sequence: Sequence, remote: RemoteKv) -> None:
        address, tokens = self.peer_address(remote.engine), remote.tokens
        if address is None or self.transport is None:
            raise TransportError(f"{remote.engine!r} is not in this instance's peer table")
        started = self._now()
        buffers = landing(self._memory, sequence.blocks, tokens)
        size = await self.transport.pull(address, remote.request, tokens, buffers)
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
        elif not sequence.in_step:
            self._pool.release(sequence.blocks)
        if payload is not None:
            self.handoff.hold(sequence.request.id, payload)
        else:
            self._slots.give_back()

    def _slot_freed(self) -> None:
        self._slots.give_back()

    # --- figures ---------------------------------------------------------------------------

    def _positions(self, request: Request) -> int:
        if request.hand_over:
            return request.prompt_tokens
        # The last token is never fed back.
        return min(request.prompt_tokens + request.max_tokens - 1, self.context)

    def _check_budget(self, request: Request, cached: int) -> None:
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
        if expected > request.budget:
            raise self.reject(
                http.REJECT_DEADLINE,
                f"needs {expected * 1000:.0f} ms, {request.budget * 1000:.0f} ms are left",
            )

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
