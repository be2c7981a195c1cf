"""Checks of requests: replies of both roles, hints, KV that is kept, released or lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from pdserve.enginecheck.pair import Pair
from pdserve.enginecheck.probe import OpenReply
from pdserve.enginecheck.replies import check_stream, check_whole
from pdserve.enginecheck.subject import CheckSubject, NotCheckedError, UnkeptError
from pdserve.wire.hints import Hint

PAUSE: Final = 0.05
FREE_SECONDS: Final = 10.0
"""How long a slot may stay taken after its request has ended."""
FEW: Final = 6
"""Tokens of a short reply."""
_ONE_BY_ONE: Final = "this type sends both legs at once: its prefill hands no parameters over"


async def deadline(subject: CheckSubject) -> str:
    """A leg whose time is over is refused at once, with hints."""
    hint = await Pair(subject).prefill_hint()
    return f"refused with the reason deadline, and hints ({hint.free} of {hint.total} free)"


async def prefill(subject: CheckSubject) -> str:
    """A prefill's reply has what a decode needs, and the usage."""
    pair = _one_by_one(subject)
    held = await pair.hold(subject.body(FEW))
    subject.prefill_reply = held.answer.body
    outcome = held.outcome
    _expect(not outcome.finished, "its reply ends a request for more than one token: the "
            "finish_reason of token 1 is length unless the model ends there")  # fmt: skip
    _expect(outcome.kv, "its reply has no parameters for a decode")
    _expect(outcome.prompt_tokens > 0, "its reply has no usage.prompt_tokens: the ratio loop and "
            "clients' bills go by it")  # fmt: skip
    await pair.release(held)
    return f"{outcome.prompt_tokens} prompt tokens, KV parameters: {', '.join(outcome.kv or ())}"


async def hints(subject: CheckSubject) -> str:
    """Replies say how many slots are free, and the count follows what is held."""
    pair = Pair(subject)
    before = await pair.prefill_hint()
    pair.prefill.total = before.total
    _expect(before.total > 0, "its hint has 0 slots in total")
    if pair.together:
        return f"{before.total} slots"
    held = await pair.hold(subject.body(FEW))
    said = pair.hint(held.answer)
    _expect(said is not None, "an accepted prefill's reply has no hints: give them with every "
            "reply of a leg")  # fmt: skip
    during = await pair.prefill_hint()
    await pair.release(held)
    _expect(during.free < before.free, f"{before.free} of {before.total} slots are free before a "
            f"prefill, and {during.free} while its KV is held: a slot is taken until the KV was "
            "pulled, released, or its lease ended")  # fmt: skip
    _expect(during.epoch > before.epoch, f"the epoch is {before.epoch} before a prefill and "
            f"{during.epoch} after it: raise it with each change")  # fmt: skip
    return f"{before.total} slots, one of them taken while KV is held"


async def release(subject: CheckSubject) -> str:
    """A release gives the slot back.

    Raises:
        NotCheckedError: nothing shows it here.
    """
    pair = _one_by_one(subject)
    held = await pair.hold(subject.body(FEW))
    if not await pair.release(held):
        raise NotCheckedError("the type's flow has no release: the lease alone ends what is held")
    if subject.of("decode") is None and not await frees(pair.prefill_hint):
        raise NotCheckedError("the slot stays taken: give a decode's URL too, it may be needed")
    _expect(await frees(pair.prefill_hint), "the slot of released KV stays taken: free it when "
            "the release names its request")  # fmt: skip
    again = await pair.release(held)
    return "the slot is free again" + (", and a second release does no harm" if again else "")


async def completion(subject: CheckSubject) -> str:
    """A whole reply through both legs, of both endpoints."""
    pair, told = Pair(subject), ""
    for chat in (False, True):
        body = subject.body(FEW, chat=chat)
        running = await pair.generate(body)
        try:
            accepted(subject, running.reply)
            told = check_whole(await running.reply.rest(), FEW, chat=chat)
        finally:
            await running.stop()
    return told


async def stream(subject: CheckSubject) -> str:
    """A stream through both legs, of both endpoints."""
    pair, told = Pair(subject), ""
    for chat in (False, True):
        running = await pair.generate(subject.body(FEW, chat=chat, stream=True))
        try:
            accepted(subject, running.reply)
            kind = running.reply.headers.get(b"content-type", b"").decode("latin-1")
            _expect(kind.startswith("text/event-stream"), f"a stream's content-type is {kind!r}: "
                    "answer text/event-stream")  # fmt: skip
            told = check_stream(await running.reply.rest(), FEW, chat=chat)
        finally:
            await running.stop()
    return told


async def handoff(subject: CheckSubject) -> str:
    """A prefill's slot is free once the decode has the KV."""
    pair = _one_by_one(subject)
    running = await pair.generate(subject.body(FEW, stream=True))
    try:
        accepted(subject, running.reply)
        await running.reply.first(b"data:")
        _expect(await frees(pair.prefill_hint), "the prefill's slot stays taken after the "
                "decode's first token: free it when the KV was pulled")  # fmt: skip
    finally:
        await running.stop()
    return "the prefill's slot is free at the decode's first token"


async def kept_kv(subject: CheckSubject) -> str:
    """A decode that refuses leaves the KV where it is."""
    pair = _one_by_one(subject)
    body = subject.body(FEW)
    held = await pair.hold(body)
    refused = await pair.pull(held, body, deadline_ms=0)
    kind = subject.flow.read_head(refused.status, refused.headers).kind
    hint = pair.hint(refused)
    await refused.abort()
    _expect(kind == "refused", f"a decode leg with 0 ms left gets {refused.status}: refuse it "
            "before the KV is touched")  # fmt: skip
    _expect(hint is not None, "a decode's refusal has no hints")
    reply = await pair.pull(held, body)
    try:
        answer = subject.flow.read_head(reply.status, reply.headers)
        _expect(answer.kind == "accepted", f"the leg gets {reply.status} ({answer.kind}) after one "
                "refusal: a refusal must leave the KV at the prefill")  # fmt: skip
        check_whole(await reply.rest(), FEW, chat=False)
    finally:
        await reply.abort()
    return "a refused leg succeeds when it is sent again"


async def lost_kv(subject: CheckSubject) -> str:
    """A decode whose KV is gone says so, and generates nothing.

    Raises:
        NotCheckedError: nothing shows it here.
    """
    pair = _one_by_one(subject)
    body = subject.body(FEW)
    held = await pair.hold(body)
    if not await pair.release(held) or not await frees(pair.prefill_hint):
        raise NotCheckedError("the KV cannot be released first")
    reply = await pair.pull(held, body)
    try:
        answer = subject.flow.read_head(reply.status, reply.headers)
        _expect(answer.kind in ("kv_failed", "refused"), f"a decode leg whose KV was released gets "
                f"{reply.status} ({answer.kind}): answer 502 with x-pdserve-reject: kv_failed, so "
                "that the gateway computes the prompt again")  # fmt: skip
    finally:
        await reply.abort()
    return f"answered as {answer.kind}"


def accepted(subject: CheckSubject, reply: OpenReply) -> None:
    """A decode took a leg.

    Raises:
        UnkeptError: it did not.
    """
    answer = subject.flow.read_head(reply.status, reply.headers)
    _expect(answer.kind == "accepted", f"a decode leg gets {reply.status} ({answer.kind} "
            f"{answer.reason}): answer 200 while a slot is free")  # fmt: skip


async def frees(hint: Callable[[], Awaitable[Hint]]) -> bool:
    """Whether all slots are free within `FREE_SECONDS`."""
    deadline = time.monotonic() + FREE_SECONDS
    while time.monotonic() < deadline:
        now = await hint()
        if now.free == now.total:
            return True
        await asyncio.sleep(PAUSE)
    return False


def _one_by_one(subject: CheckSubject) -> Pair:
    pair = Pair(subject)
    if pair.together:
        raise NotCheckedError(_ONE_BY_ONE)
    return pair


def _expect(kept: object, message: str) -> None:
    if not kept:
        raise UnkeptError(message)
