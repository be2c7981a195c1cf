"""Checks of full, left and draining instances: refusal before queueing, abort, drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from pdserve.enginecheck.leg_checks import accepted, frees
from pdserve.enginecheck.pair import Pair, PrefilledLeg, Running
from pdserve.enginecheck.probe import OpenReply, ProbeAnswer, ProbeError
from pdserve.enginecheck.subject import (
    MOST_SLOTS,
    CheckedInstance,
    CheckSubject,
    NotCheckedError,
    UnkeptError,
    controlled,
)
from pdserve.engines.flow import LegRequest
from pdserve.wire import calls
from pdserve.wire.bounds import WireError
from pdserve.wire.links import DrainReport

LATE_SECONDS: Final = 1.0
"""In which the end of a stream that the engine has ended is read here."""
_LONGER: Final = (
    "give more with --tokens, or a field that ignores the end with --body '{\"ignore_eos\": true}'"
)


async def full_prefill(subject: CheckSubject) -> str:
    """A prefill whose slots are all taken refuses at once.

    Raises:
        UnkeptError: the rule is not kept.
    """
    pair = Pair(subject)
    total = _total(pair.prefill)
    body = subject.body(2)
    async with _taken(pair, total, subject):
        try:
            answer = await pair.ask_prefill(body)
        except ProbeError as error:
            raise UnkeptError(f"with all {total} slots taken: {error}: refuse at once with 503 "
                              "and x-pdserve-reject: full, do not queue") from error  # fmt: skip
        _refused(subject, answer, calls.REJECT_FULL, f"with all {total} slots taken")
        hint = pair.hint(answer)
        _expect(hint is not None and hint.free == 0, f"it refuses, and its hint says {hint}: "
                "say 0 of N slots")  # fmt: skip
    _expect(await frees(pair.prefill_hint), "its slots stay taken after they were released")
    return f"refused at once with all {total} slots taken, 0 free by its hint"


async def left_prefill(subject: CheckSubject) -> str:
    """A prefill whose client goes away gives the slot back.

    Raises:
        NotCheckedError: it was too fast.
    """
    pair = Pair(subject)
    leg = asyncio.create_task(pair.hold(subject.body(2, long=True)))
    await asyncio.wait((leg,), timeout=0.01)
    if leg.done():
        await pair.release(leg.result())
        raise NotCheckedError("it answered before its client could go")
    leg.cancel()
    await asyncio.gather(leg, return_exceptions=True)
    _expect(await frees(pair.prefill_hint), "the slot stays taken after its client went away: "
            "abort the request when its connection closes, and free the KV")  # fmt: skip
    return "the slot is free again"


async def full_decode(subject: CheckSubject) -> str:
    """A decode with no slot free refuses at once.

    Raises:
        NotCheckedError: its slots cannot be filled.
        UnkeptError: the rule is not kept.
    """
    pair = Pair(subject)
    if pair.together:
        raise NotCheckedError("both legs are sent at once: the prefill's refusal shows it")
    total = pair.decode.total = _total(pair.decode, (await pair.decode_hint()).total)
    body = subject.body(subject.tokens, stream=True)
    async with contextlib.AsyncExitStack() as stack:
        running = []
        for _ in range(total):
            running.append(await pair.generate(body))
            stack.push_async_callback(running[-1].stop)
            accepted(subject, running[-1].reply)
        held = await pair.hold(body)
        stack.push_async_callback(pair.release, held)
        try:
            reply = await pair.pull(held, body)
        except ProbeError as error:
            raise UnkeptError(f"with all {total} slots taken: {error}: refuse at once with 503 "
                              "and x-pdserve-reject: decode_full, no queue") from error  # fmt: skip
        stack.push_async_callback(reply.abort)
        for one in running:
            await one.reply.first(b"data:")
        taken = subject.flow.read_head(reply.status, reply.headers).kind != "refused"
        ends = [one.reply.ends_within(LATE_SECONDS if taken else 0) for one in running]
        if any(await asyncio.gather(*ends)):
            raise NotCheckedError(f"a stream ended before all slots were taken: {_LONGER}")
        _refused(subject, reply, calls.REJECT_DECODE_FULL, f"with all {total} slots taken")
        hint = pair.hint(reply)
        _expect(hint is not None and hint.free == 0, f"it refuses, and its hint says {hint}: "
                "say 0 of N slots")  # fmt: skip
    return f"refused at once with all {total} slots taken, 0 free by its hint"


async def left_decode(subject: CheckSubject) -> str:
    """A stream whose client goes away gives the slot back.

    Raises:
        NotCheckedError: the stream ended too early.
    """
    pair = Pair(subject)
    running = await pair.generate(subject.body(subject.tokens, stream=True))
    accepted(subject, running.reply)
    await running.reply.first(b"data:")
    ended = running.reply.ended
    await running.stop()
    if ended:
        raise NotCheckedError(f"the stream ended before its client could go: {_LONGER}")
    told = pair.prefill_hint if pair.together else pair.decode_hint
    _expect(await frees(told), "a slot stays taken after the stream's client went away: end a "
            "request when its connection closes")  # fmt: skip
    return "the slot is free again"


async def drain(subject: CheckSubject, target: CheckedInstance) -> str:
    """A draining instance takes nothing new, ends what runs, and says when that is done.

    Raises:
        UnkeptError: the rule is not kept.
    """
    running = await _something(subject, target)
    try:
        report = await _drain(subject, target)
        told = ""
        if isinstance(running, Running):
            if report.idle and not await running.reply.ends_within(LATE_SECONDS):
                raise UnkeptError(
                    "its drain report says that nothing runs, while a stream does: count it"
                )
            rest = await running.reply.rest()
            _expect(b"[DONE]" in rest, "a stream that ran when the drain began was cut: end what "
                    "runs")  # fmt: skip
            told = "its stream ended whole, "
        elif running is not None:
            _expect(report.holding > 0, "its drain report does not count KV that is held")
            await Pair(subject).release(running)
    finally:
        if isinstance(running, Running):
            await running.stop()
    await _looks_drained(subject, target)
    return f"{told}new legs are refused as draining, and the report says that nothing is left"


async def _something(
    subject: CheckSubject, target: CheckedInstance
) -> Running | PrefilledLeg | None:
    """What runs at an instance when its drain begins."""
    try:
        pair = Pair(subject)
        if target.role == "decode":
            return await _begun(subject, pair)
        return None if pair.together else await pair.hold(subject.body(2))
    except NotCheckedError:
        return None


async def _begun(subject: CheckSubject, pair: Pair) -> Running:
    running = await pair.generate(subject.body(min(32, subject.tokens), stream=True))
    try:
        accepted(subject, running.reply)
        await running.reply.first(b"data:")
    except BaseException:
        await running.stop()
        raise
    return running


async def _looks_drained(subject: CheckSubject, target: CheckedInstance) -> None:
    path = subject.parts(target).ready_path
    answer = await target.probe.call("GET", path, token=False)
    _expect(answer.status != 200, f"GET {path} still answers 200: a draining instance is not ready")
    leg = _leg_of(subject, target)
    if leg is not None:
        reply = await target.probe.call("POST", leg.path, leg.body, dict(leg.headers))
        _refused(subject, reply, calls.REJECT_DRAINING, "while it drains")
    for _ in range(int(target.probe.seconds / 0.05)):
        report = await _drain(subject, target)
        if report.idle:
            return
        await asyncio.sleep(0.05)
    raise UnkeptError(f"its drain report still says {report.to_json()}: count down to 0")


def _leg_of(subject: CheckSubject, target: CheckedInstance) -> LegRequest | None:
    """A leg that the drained instance must refuse; None where none can be made."""
    flow, body = subject.flow, subject.body(2)
    try:
        pair = Pair(subject)
        attempt = pair.attempt(body)
    except NotCheckedError:
        return None
    if target.role == "prefill":
        return flow.prefill_leg(attempt, flow.prepare_prefill("completions", body))
    if pair.together:
        return flow.decode_leg(attempt, flow.prepare_decode("completions", body, None))
    outcome = flow.read_prefill(body, subject.prefill_reply)
    return flow.decode_leg(attempt, flow.prepare_decode("completions", body, outcome))


async def _drain(subject: CheckSubject, target: CheckedInstance) -> DrainReport:
    request = subject.control.post_drain()
    answer = await controlled(target, request)
    _expect(answer.status in request.accepts, f"{request.method} {request.path} gets "
            f"{answer.status}: answer 200 with a drain report")  # fmt: skip
    try:
        return subject.control.read_drain(answer.body)
    except WireError as error:
        raise UnkeptError(f"{request.method} {request.path}: {error}") from error


@contextlib.asynccontextmanager
async def _taken(pair: Pair, total: int, subject: CheckSubject) -> AsyncIterator[None]:
    """All slots of the prefill: by KV that is held, or by legs that wait for their decode."""
    body = subject.body(2)
    if not pair.together:
        held = [await pair.hold(body) for _ in range(total)]
        try:
            yield
        finally:
            for one in held:
                await pair.release(one)
        return
    legs = [asyncio.create_task(pair.ask_prefill(body)) for _ in range(total)]
    try:
        for _ in range(100):
            if (await pair.prefill_hint()).free == 0:
                break
            await asyncio.sleep(0.05)
        yield
    finally:
        for leg in legs:
            leg.cancel()
        await asyncio.gather(*legs, return_exceptions=True)


def _refused(subject: CheckSubject, reply: ProbeAnswer | OpenReply, reason: str, when: str) -> None:
    answer = subject.flow.read_head(reply.status, reply.headers)
    _expect(answer.kind == "refused", f"{when} a leg gets {reply.status} ({answer.kind}): answer "
            f"503 with x-pdserve-reject: {reason}")  # fmt: skip
    _expect(answer.reason == reason, f"{when} a leg is refused as {answer.reason!r}: say {reason}")


def _total(target: CheckedInstance, known: int = 0) -> int:
    total = known or target.total
    if not 0 < total <= MOST_SLOTS:
        raise NotCheckedError(f"it has {total} slots; at most {MOST_SLOTS} are filled: start it "
                              "with fewer for this check")  # fmt: skip
    return total


def _expect(kept: object, message: str) -> None:
    if not kept:
        raise UnkeptError(message)
