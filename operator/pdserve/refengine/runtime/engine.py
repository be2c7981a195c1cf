"""The engine core: slots, and the life of every sequence.

All state belongs to the event loop. The cycle: `claim` takes a slot or refuses at once; `admit`
makes the claim a sequence with KV blocks (`admission`); `steps` gives the compute thread the next
step when it is free, and `done` hands out tokens and frees what ended. A decode's KV arrives
beside running steps (`pulls`), and the decode joins the step that follows. `release` ends a
request by name in any of these states.

A prefill leg ends with its first token: the KV moves into a payload of its own (`handoff`), the
blocks stay only as prefix cache, the slot stays taken until the KV is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from pdserve.engines.cached_digests import CachedDigests
from pdserve.engines.instance_answers import SlotHint
from pdserve.http1.errors import ApiError
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.kv.kv_transport import KvSource
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.pool import BlockPool, blocks_for
from pdserve.refengine.members.messages import MemberGoneError
from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.model_config import BLOCK_TOKENS
from pdserve.refengine.model.plan import new_pool
from pdserve.refengine.model.sampler import Sampled
from pdserve.refengine.runtime import batch as batching
from pdserve.refengine.runtime import compute
from pdserve.refengine.runtime.admission import Admission
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.forecast import decode_free_in, prefill_free_in
from pdserve.refengine.runtime.handoff import Handoff
from pdserve.refengine.runtime.pacing import Pacer
from pdserve.refengine.runtime.pulls import PullFailure, Pulls
from pdserve.refengine.runtime.rejections import Rejections
from pdserve.refengine.runtime.request import Finish, GenerationRequest, RemoteKv
from pdserve.refengine.runtime.sequence import Phase, Sequence, Sink
from pdserve.refengine.runtime.slot_claims import EarlyReleases, SlotClaim
from pdserve.refengine.runtime.slots import Slots
from pdserve.refengine.runtime.steps import Steps
from pdserve.refengine.runtime.warm_up import warm_up
from pdserve.wire import calls

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
        self._config, self._model = config, model
        # Not the loop's clock: uvloop's has a resolution of 1 ms and stands still inside a turn.
        self._now = time.monotonic
        self.metrics, self.pacer = metrics, pacer
        self.context = min(config.max_model_len or model.config.context, model.config.context)
        total = config.slots + config.prefetch
        blocks = blocks_for(config.kv_tokens) or total * blocks_for(self.context)
        self.blocks = blocks + 1
        self._memory = new_pool(model.config, self.blocks)
        self._pool = BlockPool(blocks + 1, config.prefix_cache)
        self.cached: CachedDigests[bytes] = CachedDigests()
        """Prompt blocks of gateways that are in the prefix cache."""
        self._pool.removed = self.cached.removed
        self._slots = Slots(total)
        self._claims: dict[str, SlotClaim] = {}
        self._early = EarlyReleases()
        self._active: dict[str, Sequence] = {}
        self._estimates = Estimates(pacer)
        self._pulls = Pulls(self._memory, self._estimates, metrics, pacer, self._pulled)
        if model.mirror is not None:
            self._pulls.received = model.mirror.received
        self._steps = Steps(self, model, self._memory, self._estimates, metrics, pacer, loop)
        self.rejections = Rejections(metrics)
        self._admission = Admission(
            config, self.context, model, self._pool, self._estimates, self.rejections
        )
        seconds = config.lease_seconds, config.transfer_timeout
        self.handoff = Handoff(loop, seconds, metrics, pacer, self._slot_freed)
        self.draining = False
        self.members_missing: Callable[[], str | None] = lambda: None
        """Members of the instance that are not there; None: none."""

    def pull_from(self, source: KvSource) -> None:
        """Pull KV of decode legs from there."""
        self._pulls.source = source

    # --- admission -------------------------------------------------------------------------

    def refusal(self) -> str | None:
        """Why any request would be rejected now, known without reading it; None when not."""
        if self.draining:
            return calls.REJECT_DRAINING
        if self.members_missing() is not None:
            return calls.REJECT_NOT_READY
        if self._slots.free <= 0:
            return calls.REJECT_DECODE_FULL if self._config.role == "decode" else calls.REJECT_FULL
        return None

    def warm_up(self) -> None:
        """Compute a few prompts; not on paced instances, which know their times, nor on decodes."""
        if self.pacer is None and self._config.role != "decode":
            most = min(self.context, self._config.chunk_tokens)
            warm_up(self._model, self._memory, self._pool, self._estimates, most)

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
            raise self.rejections.reject(reason, f"instance is {reason.replace('_', ' ')}")
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
            sequence = self._admission.sequence(request, sink, self._active.values())
        except BaseException:
            self.drop(claim)
            raise
        # The slot passes from the claim to the sequence.
        claim.open = False
        del self._claims[claim.name]
        self._active[request.id] = sequence
        try:
            if request.remote is not None:
                sequence.phase = Phase.PULLING
                self._pulls.start(sequence, request.remote)
            elif request.local is not None:
                sequence.phase = Phase.READY  # it takes a running place like any other here
            self._steps.pump()
        except BaseException:
            if not sequence.ended:
                self._end(sequence)
            raise
        return sequence

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

    def forget_kv(self, why: str) -> None:
        """KV of running requests and cached prompts is lost: they fail, and are not found again."""
        for sequence in [*self._active.values()]:
            self._fail(sequence, self._member_gone(why))
        self._pool.forget()

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
        self._pulls.stop()
        self.handoff.close()
        self._steps.stop()

    # --- steps ---------------------------------------------------------------------------------

    def next_batch(self) -> batching.Batch:
        """StepOwner: the next tokens and chunks of what runs."""
        self._promote()
        config = self._config
        active, most = self._active.values(), config.max_batch_tokens
        if config.role == "decode" and any(s.decodes for s in active):
            most = min(most, config.local_chunk_tokens)
        return batching.build(active, most, config.chunk_tokens)

    def not_started(self, error: Exception) -> None:
        """StepOwner: what should have run in the step fails."""
        for sequence in [s for s in self._active.values() if s.phase is Phase.RUNNING]:
            sequence.in_step = sequence.computing = False
            self._fail(sequence, _internal(error))

    def settled(self, step: batching.Batch) -> None:
        """StepOwner: free the blocks of what ended meanwhile."""
        for member in step.members:
            sequence = member.sequence
            if sequence.computing:
                sequence.computing = False
                if sequence.ended:
                    self._pool.release(sequence.blocks)

    def done(self, step: batching.Batch, result: compute.StepResult) -> None:
        """StepOwner: hand out the tokens."""
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

    def failed(self, step: batching.Batch, error: BaseException) -> None:
        """StepOwner: every member fails."""
        failure = self._member_gone if isinstance(error, MemberGoneError) else _internal
        for member in step.members:
            self._fail(member.sequence, failure(error))

    def _member_gone(self, why: object) -> ApiError:
        return self.rejections.reject(calls.REJECT_NOT_READY, f"a member is gone: {why}")

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
        request = sequence.request
        if request.named.digests:
            tokens = request.client_prompt_tokens
            chain = sequence.hashes[: tokens // BLOCK_TOKENS]
            self.cached.computed(request.named, chain, tokens, BLOCK_TOKENS, self._pool)
        computed = request.prompt_tokens - sequence.cached
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

    def _pulled(self, sequence: Sequence, remote: RemoteKv, failure: PullFailure | None) -> None:
        """A pull is over, and nothing is written into the blocks any more."""
        if sequence.ended:
            self._pool.release(sequence.blocks)
        elif failure is not None:
            error = self.rejections.reject(failure.reason, failure.message, 502)
            self._fail(sequence, error)
        else:
            sequence.phase = Phase.READY
            sequence.computed = remote.tokens
            try:
                self._token(sequence, remote.first, None)
            except Exception as wrong:
                log.exception("request %s failed", sequence.request.id)
                self._fail(sequence, _internal(wrong))
        self._steps.pump()

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
        # A pull or a step frees the blocks once nothing can be written into them any more.
        if not self._pulls.cancel(sequence) and not sequence.computing:
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

    def _free_in(self) -> float:
        now, active = self._now(), self._active.values()
        if self._config.role == "prefill":
            return prefill_free_in(self._estimates, now, active, self.handoff)
        return decode_free_in(self._estimates, active)


def _internal(error: BaseException) -> ApiError:
    return ApiError(500, f"computation failed: {error}", kind="server_error")
