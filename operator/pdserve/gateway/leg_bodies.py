"""The bodies of one request's legs, and what replies mean, by the flow of its engine type.

Neighbours: `engines.flow` is the protocol, `request_driver` sends and reads.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.engines.flow import (
    EngineFlow,
    FinishedReply,
    FlowError,
    LegAttempt,
    LegRequest,
    continuing,
    prefills_locally,
)
from pdserve.forwarding.request.effects import CannotGoOnError, FlowTraits, Head, Prefilled
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.scheduler import ScenarioScheduler
from pdserve.gateway.job import Job
from pdserve.gateway.prefix_feeds import naming_blocks
from pdserve.gateway.sent_stream import SentStream
from pdserve.terms.json import JsonMap, JsonObject


class LegBodies:
    """What is made of one client's body, each as long as it may be needed."""

    def __init__(self, flow: EngineFlow, job: Job) -> None:
        self.flow, self.job = flow, job
        self._together = flow.order == "together"
        self._prefill = b""
        """What the prefill legs share; empty once one was accepted."""
        self._decode = b""
        """What the decode legs share."""
        self.kv: JsonMap | None = None
        """What the last prefill said of its KV, or a decode that computed the prompt."""
        self.final: FinishedReply | None = None
        """The client's answer when token 1 ended the request."""

    def of_another(self, flow: EngineFlow, model: str) -> LegBodies:
        """The same request for another engine type, or under another name of its model there.

        Raises:
            FlowError: no leg can be made of this request.
        """
        job = self.job
        job.body = {**job.body, "model": model}
        bodies = LegBodies(flow, job)
        bodies.prepare()
        return bodies

    def traits(self) -> FlowTraits:
        """What the request must know of its engine type."""
        flow = self.flow
        return FlowTraits(
            self._together,
            flow.first_token == "prefill",  # noqa: S105 (a model token)
            flow.lease_seconds,
            prefills_locally(flow) is not None,
            continuing(flow) is not None,
        )

    def prepare(self) -> None:
        """Make what the first legs need.

        Raises:
            FlowError: no leg can be made of this request.
        """
        self._prepare_prefill()
        if self._together:
            self._decode = self.flow.prepare_decode(self.job.endpoint, self.job.body, None)

    def of_leg(self, leg: Leg, scheduler: ScenarioScheduler) -> LegRequest:
        """What is sent.

        Raises:
            FlowError: no leg can be made of this request.
        """
        flow, job, own = self.flow, self.job, leg.instance.route
        attempt = LegAttempt(
            job.endpoint,
            leg.name,
            leg.number,
            own if leg.source is None else leg.source.instance.route,
            leg.decode if leg.kind == "prefill" else own,
            job.trace,
            leg.deadline_ms,
            leg.early_head,
            leg.token_ids,
        )
        if leg.kind == "decode":
            return flow.decode_leg(attempt, self._decode)
        if leg.kind == "prefill":
            if not self._prefill:
                self._prepare_prefill()
            request = flow.prefill_leg(attempt, self._prefill)
            return naming_blocks(request, scheduler, leg.instance, job.size.blocks)
        local, choice = prefills_locally(flow), scheduler.local
        if local is None:
            raise FlowError("no decode of this engine computes prompts")
        tpot = scheduler.scenario.slo.tpot if choice is not None and choice.bounded else None
        return local.local_leg(attempt, local.prepare_local(job.endpoint, job.body), tpot)

    def read_head(self, leg: Leg, status: int, headers: Mapping[bytes, bytes]) -> Head:
        """What the head of a leg's reply means."""
        answer, hint = self.flow.read_head(status, headers), self.flow.read_hint(headers)
        if leg.kind == "local" and answer.kind == "accepted":
            local = prefills_locally(self.flow)
            if local is not None:
                said = local.read_local(headers)
                self.kv, counts = said.kv, (said.prompt_tokens, said.cached_tokens)
                return Head(answer.kind, answer.reason, status, hint, *counts)
        return Head(answer.kind, answer.reason, status, hint)

    def read_prefill(self, reply: bytes) -> Prefilled:
        """What the reply of an accepted prefill leg means; the decode legs are made of it.

        Raises:
            FlowError: it is off contract.
        """
        flow, job, final = self.flow, self.job, None
        outcome = flow.read_prefill(job.body, reply)
        if self._together:
            pass  # the decode has the request already
        elif outcome.finished:
            final = flow.finished_reply(job.endpoint, job.body, outcome)
        else:
            self._decode = flow.prepare_decode(job.endpoint, job.body, outcome)
        self._prefill = b""  # made anew in the rare case that it is needed again
        self.kv, self.final = outcome.kv, final
        return Prefilled(
            outcome.finished,
            outcome.kv is not None,
            outcome.release_id,
            outcome.prompt_tokens,
            outcome.cached_tokens,
            0 if final is None else final.completion_tokens,
        )

    def lacks_local(self, error: bytes) -> bool:
        """Whether the body of a client error says that a decode computes no prompts."""
        local = prefills_locally(self.flow)
        return local is not None and local.lacks_local(error)

    def go_on(self, sent: SentStream | None) -> int:
        """Make the client's body anew such that legs go on after what was sent; returns its tokens.

        Raises:
            CannotGoOnError: this request cannot be continued.
        """
        flow = continuing(self.flow)
        if flow is None or sent is None or sent.kv is None:
            raise CannotGoOnError("the stream cannot be continued")
        try:
            self.job.body = flow.continued(self.job.body, sent.kv, sent.part())
        except FlowError as error:
            raise CannotGoOnError(str(error)) from error
        except ValueError as wrong:
            raise CannotGoOnError(f"the stream cannot be continued: {wrong}") from wrong
        return sent.count

    def decode_sent(self) -> None:
        """No other decode is asked with the same KV."""
        self._decode = b""

    def begun(self, sent: SentStream | None) -> None:
        """The client has bytes: of its body is left what another decode needs to go on."""
        self._prefill = self._decode = b""
        if sent is None or not sent.keep(self.job.memory):
            body = self.job.body
            ends: JsonObject = {n: body[n] for n in ("stream", "stream_options") if n in body}
            self.job.body = ends

    def close(self) -> None:
        """The request has ended."""
        self._prefill = self._decode = b""
        self.kv = self.final = None

    def _prepare_prefill(self) -> None:
        self._prefill = self.flow.prepare_prefill(self.job.endpoint, self.job.body)
