"""Both legs of a request, as a gateway would send them: by the type's flow, in the type's order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pdserve.enginecheck.probe import OpenReply, ProbeAnswer, ProbeError
from pdserve.enginecheck.subject import (
    CheckedInstance,
    CheckSubject,
    NotCheckedError,
    UnkeptError,
    fresh_id,
)
from pdserve.engines.flow import Endpoint, FlowError, LegAttempt, LegRequest, PrefillOutcome
from pdserve.terms.json import JsonObject
from pdserve.wire.hints import Hint


@dataclass(frozen=True, slots=True)
class PrefilledLeg:
    """A prefill that has answered, and what its reply means."""

    attempt: LegAttempt
    outcome: PrefillOutcome
    answer: ProbeAnswer


class Running:
    """A request at a decode, and at a prefill too where both legs are sent at once."""

    def __init__(self, reply: OpenReply, beside: asyncio.Task[ProbeAnswer] | None) -> None:
        self.reply, self._beside = reply, beside

    async def stop(self) -> None:
        """The client goes away."""
        await self.reply.abort()
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.gather(self._beside, return_exceptions=True)


class Pair:
    """Sends legs; every call raises ProbeError where no reply comes."""

    def __init__(self, subject: CheckSubject) -> None:
        """One pair of a subject's instances.

        Raises:
            NotCheckedError: there is no prefill.
        """
        prefill = subject.of("prefill")
        if prefill is None:
            raise NotCheckedError("give the URL of a prefill too: a decode alone generates nothing")
        self._s, self.prefill = subject, prefill

    @property
    def decode(self) -> CheckedInstance:
        """The decode of the pair.

        Raises:
            NotCheckedError: there is none.
        """
        found = self._s.of("decode")
        if found is None:
            raise NotCheckedError("give the URL of a decode too")
        return found

    @property
    def together(self) -> bool:
        """Whether both legs are sent at once."""
        return self._s.flow.order == "together"

    async def ask_prefill(self, body: JsonObject, *, deadline_ms: int | None = None) -> ProbeAnswer:
        """A prefill leg alone, and its whole reply."""
        attempt = self.attempt(body, deadline_ms)
        leg = self._s.flow.prefill_leg(attempt, self._s.flow.prepare_prefill(_path(body), body))
        return await self._whole(self.prefill, leg)

    async def hold(self, body: JsonObject) -> PrefilledLeg:
        """A prefill that holds KV for a decode.

        Raises:
            UnkeptError: it answers otherwise.
        """
        attempt = self.attempt(body)
        leg = self._s.flow.prefill_leg(attempt, self._s.flow.prepare_prefill(_path(body), body))
        answer = await self._whole(self.prefill, leg)
        kind = self._s.flow.read_head(answer.status, answer.headers)
        if kind.kind != "accepted":
            raise UnkeptError(
                f"a prefill leg gets {answer.status} ({kind.kind} {kind.reason}): answer 200 with "
                "the KV's parameters while a slot is free; all earlier legs have ended"
            )
        try:
            outcome = self._s.flow.read_prefill(body, answer.body)
        except FlowError as error:
            raise UnkeptError(f"{error}: the flow of the type cannot read the reply") from error
        return PrefilledLeg(attempt, outcome, answer)

    async def pull(
        self, held: PrefilledLeg, body: JsonObject, *, deadline_ms: int | None = None
    ) -> OpenReply:
        """A decode leg with that KV, once its reply has begun."""
        attempt = self.attempt(body, deadline_ms, held.attempt.request_id)
        prepared = self._s.flow.prepare_decode(_path(body), body, held.outcome)
        return await _opened(self.decode, self._s.flow.decode_leg(attempt, prepared))

    async def generate(self, body: JsonObject) -> Running:
        """A whole request, once the decode's reply has begun."""
        if not self.together:
            return Running(await self.pull(await self.hold(body), body), None)
        flow, attempt, path = self._s.flow, self.attempt(body), _path(body)
        first = flow.prefill_leg(attempt, flow.prepare_prefill(path, body))
        second = flow.decode_leg(attempt, flow.prepare_decode(path, body, None))
        beside = asyncio.create_task(self._whole(self.prefill, first))
        try:
            return Running(await _opened(self.decode, second), beside)
        except BaseException:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
            raise

    async def release(self, held: PrefilledLeg) -> bool:
        """Say that no decode will pull this KV; False where the type has no such request.

        Raises:
            UnkeptError: it is not taken.
        """
        name = held.outcome.release_id or held.attempt.request_id
        leg = self._s.flow.release_leg(name)
        if leg is None:
            return False
        answer = await self._whole(self.prefill, leg)
        if not 200 <= answer.status < 300:
            raise UnkeptError(f"a release gets {answer.status} {answer.shown()}: answer 204")
        return True

    def hint(self, reply: ProbeAnswer | OpenReply) -> Hint | None:
        """What a reply says of free slots."""
        return self._s.flow.read_hint(reply.headers)

    async def prefill_hint(self) -> Hint:
        """What the prefill says of its slots now: in the refusal of a leg whose time is over.

        Raises:
            UnkeptError: it does not refuse, or says nothing.
        """
        return self._told(self.prefill, await self.ask_prefill(self._s.body(1), deadline_ms=0))

    async def decode_hint(self) -> Hint:
        """What the decode says of its slots now; raises as `prefill_hint`."""
        body = self._s.body(4)
        held = await self.hold(body)
        reply = await self.pull(held, body, deadline_ms=0)
        try:
            return self._told(self.decode, reply)
        finally:
            await reply.abort()
            await self.release(held)

    def _told(self, target: CheckedInstance, reply: ProbeAnswer | OpenReply) -> Hint:
        answer = self._s.flow.read_head(reply.status, reply.headers)
        if answer.kind != "refused":
            raise UnkeptError(
                f"{target.name} answers {reply.status} to a leg that has 0 ms left: refuse it "
                "with 503 and the reason deadline"
            )
        hint = self.hint(reply)
        if hint is None:
            raise UnkeptError(f"{target.name} refuses without hints: give "
                              "x-pdserve-slots, -free-in-ms, -epoch with each reply")  # fmt: skip
        return hint

    def attempt(
        self, body: JsonObject, deadline_ms: int | None = None, name: str | None = None
    ) -> LegAttempt:
        """An attempt of this pair.

        Raises:
            NotCheckedError: the type's order needs a decode.
        """
        decode = self._s.of("decode")
        route = None if decode is None else decode.route()
        if self.together and route is None:
            raise NotCheckedError("give the URL of a decode too: this type sends both legs at once")
        return LegAttempt(
            _path(body), name or fresh_id(), 1, self.prefill.route(), route, (), deadline_ms, False
        )

    async def _whole(self, target: CheckedInstance, leg: LegRequest) -> ProbeAnswer:
        return await target.probe.call("POST", leg.path, leg.body, dict(leg.headers))


def _path(body: JsonObject) -> Endpoint:
    return "chat" if "messages" in body else "completions"


async def _opened(target: CheckedInstance, leg: LegRequest) -> OpenReply:
    try:
        return await target.probe.open("POST", leg.path, leg.body, dict(leg.headers))
    except ProbeError as error:
        raise ProbeError(f"{target.name}: {error}") from error


def leg(subject: CheckSubject, target: CheckedInstance) -> tuple[str, bytes]:
    """Path and body of a leg of the instance's role, as far as one can be made without a pair."""
    flow, body, route = subject.flow, subject.body(1), target.route()
    attempt = LegAttempt("completions", fresh_id(), 1, route, route, (), None, False)
    if target.role == "decode" and flow.order == "together":
        made = flow.decode_leg(attempt, flow.prepare_decode("completions", body, None))
    else:
        made = flow.prefill_leg(attempt, flow.prepare_prefill("completions", body))
    return made.path, made.body
