"""Several choices, and several prompts, in one request: one answer, all or nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from tests.support.gateway_rig import Answer, Rig, eventually

from pdserve.gateway.choices import JoinedReply, choices_of
from pdserve.http1.errors import ApiError, Headers
from pdserve.wire import metrics as names

WORDS = "t0 t1 t2 "


def texts(answer: Answer) -> list[str]:
    """The text of each choice, streamed or not."""
    found: dict[int, str] = {}
    events = answer.events if answer.body.startswith(b"data:") else [answer.json]
    for event in events:
        for one in event["choices"] if isinstance(event, dict) else ():
            part = one.get("message") or one.get("delta") or {"content": one.get("text")}
            found[one["index"]] = found.get(one["index"], "") + (part.get("content") or "")
    assert sorted(found) == list(range(len(found)))
    return [found[k] for k in sorted(found)]


def all_free(rig: Rig) -> bool:
    return not any(engine.used for engine in rig.engines.values())


@pytest.mark.parametrize("endpoint", ["complete", "chat"])
@pytest.mark.parametrize("stream", [False, True])
async def test_each_choice_is_there_under_its_number(rig: Rig, endpoint: str, stream: bool) -> None:
    await rig.one_group(prefills=2, decodes=2)
    answer = await getattr(rig, endpoint)(n=3, max_tokens=3, stream=stream)
    assert answer.status == 200
    assert texts(answer) == [WORDS] * 3
    for engine in rig.engines.values():
        assert all("n" not in body and "best_of" not in body for body in engine.seen)
    assert sum(len(rig.engines[p].seen) for p in ("p0", "p1")) >= 3
    await eventually(lambda: all_free(rig), "all slots are free")


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_come_one_after_the_other(rig: Rig, stream: bool) -> None:
    await rig.one_group()
    prompts = ["a", [1, 2, 3], "c"]
    answer = await rig.complete(prompt=prompts, n=2, best_of=2, max_tokens=3, stream=stream)
    assert texts(answer) == [WORDS] * 6
    asked = [body["prompt"] for body in rig.engines["p0"].seen]
    assert sorted(map(str, asked)) == sorted(map(str, prompts * 2))


async def test_usage_counts_each_prompt_once(rig: Rig) -> None:
    await rig.one_group(prefills=2, decodes=2)
    whole = await rig.complete(prompt=["a", "b"], n=3, max_tokens=3)
    assert whole.json["usage"]["prompt_tokens"] == 2 * 7
    assert whole.json["usage"]["completion_tokens"] == 6 * 3
    assert whole.json["usage"]["total_tokens"] == 14 + 18
    asked = await rig.complete(n=2, stream=True, stream_options={"include_usage": True})
    *_, usage, done = asked.events
    assert done == "[DONE]" and asked.events.count("[DONE]") == 1
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert {e["id"] for e in asked.events if isinstance(e, dict)} == {"cmpl-1"}
    plain = await rig.complete(n=2, stream=True)
    assert all("usage" not in e and e["choices"] for e in plain.events if isinstance(e, dict))


async def test_choices_of_one_seed_differ(rig: Rig) -> None:
    await rig.one_group()
    await rig.complete(n=3, seed=40, max_tokens=2)
    assert sorted(body["seed"] for body in rig.engines["p0"].seen) == [40, 41, 42]


async def test_no_more_are_begun_than_there_are_slots(rig: Rig) -> None:
    """The others would miss their targets behind their own siblings."""
    await rig.one_group()
    answer = await rig.complete(n=5, max_tokens=3)
    assert texts(answer) == [WORDS] * 5
    assert [engine.max_used for engine in rig.engines.values()] == [1, 1]
    assert [engine.events["attempts"] for engine in rig.engines.values()] == [5, 5]
    assert await rig.metric(names.GATEWAY_OUTPUT_TOKENS) == 15


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_fails_at_first_fails_the_request(rig: Rig, stream: bool) -> None:
    await rig.one_group(prefills=2, decodes=1)
    for prefill in ("p0", "p1"):
        rig.engines[prefill].breaks_on = "bad"
    answer = await rig.complete(prompt=["bad", "good"], stream=stream, max_tokens=3)
    assert answer.status == 502
    assert answer.json["error"]["code"] == "upstream_error"
    await eventually(lambda: all_free(rig), "all slots are free")


@pytest.mark.parametrize("step", ["error:2", "cut:2"])
async def test_one_that_fails_in_its_stream_ends_it_with_an_error(rig: Rig, step: str) -> None:
    await rig.one_group(prefills=1, decodes=1)
    rig.engines["d0"].script = ["ok", step]
    answer = await rig.complete(n=4, stream=True, max_tokens=6)
    assert answer.status == 200
    assert answer.events[-1]["error"]["code"] == "upstream_error"
    assert "[DONE]" not in answer.events
    await eventually(lambda: all_free(rig), "all slots are free")
    assert len(rig.engines["d0"].seen) == 2, "the others are not begun"


async def test_a_client_that_leaves_ends_all(rig: Rig) -> None:
    await rig.one_group(prefills=2, decodes=2)
    for decode in ("d0", "d1"):
        rig.engines[decode].token_seconds = 3600.0
    request = asyncio.create_task(rig.complete(n=2, stream=True, max_tokens=50))
    await eventually(lambda: sum(rig.engines[d].running for d in ("d0", "d1")) == 2, "both run")
    request.cancel()
    await eventually(lambda: all_free(rig), "all slots are free")


@pytest.mark.parametrize("whole", [b'{"choices": [5]}', b'{"choices": [{}], "usage": 5}'])
async def test_a_whole_reply_that_cannot_be_joined_is_502(rig: Rig, whole: bytes) -> None:
    await rig.one_group()
    rig.engines["d0"].whole = whole
    answer = await rig.complete(n=2)
    assert answer.status == 502


class Client:
    """What a joined answer writes to."""

    def __init__(self) -> None:
        self.headers: Headers = ()
        self.started = self.ended = False
        self.data = b""
        self.flow: list[Any] = []
        self.bodies_done = 0

    def start(
        self, status: int, content_type: str, first: bytes, *, ends: bool = False
    ) -> None:  # fmt: skip
        self.started, self.data, self.ended = True, first, ends

    def write(self, data: bytes) -> None:
        self.data += data

    def end(self, data: bytes = b"") -> None:
        self.data += data
        self.ended = True

    def send(self, status: int, body: bytes, content_type: str) -> None:
        self.data, self.ended = body, True

    def body_done(self) -> None:
        self.bodies_done += 1

    def on_flow(self, pause: Any, resume: Any) -> None:
        self.flow = [pause, resume]


def joined(**body: Any) -> tuple[JoinedReply, Client]:
    body = {"model": "tiny", "prompt": "x", **body}
    client = Client()
    return JoinedReply(client, choices_of(body), body), client


def event(**value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def test_a_client_that_reads_too_slowly_holds_every_stream() -> None:
    answer, client = joined(n=3, stream=True)
    seen: list[str] = []
    first, second, third = answer.parts
    first.on_flow(lambda: seen.append("hold 0"), lambda: seen.append("go 0"))
    second.on_flow(lambda: seen.append("hold 1"), lambda: seen.append("go 1"))
    second.end()
    client.flow[0]()
    assert seen == ["hold 0"], "the connection of one that ended serves others"
    third.on_flow(lambda: seen.append("hold 2"), lambda: seen.append("go 2"))
    assert seen == ["hold 0", "hold 2"], "one that begins meanwhile is held at once"
    client.flow[1]()
    assert seen[2:] == ["go 0", "go 2"]


def test_the_body_is_done_with_when_no_choice_needs_it() -> None:
    answer, client = joined(n=2, stream=True)
    answer.parts[0].body_done()
    assert client.bodies_done == 0
    answer.parts[1].body_done()
    assert client.bodies_done == 1


@pytest.mark.parametrize(
    "odd", [b"data: {\n\n", event(choices=[5]), event(choices={"a": 1}), event(choices=5)]
)
def test_an_event_that_cannot_be_joined_breaks_the_answer_and_nothing_else(odd: bytes) -> None:
    answer, client = joined(n=2, stream=True)
    answer.parts[0].start(200, "text/event-stream", event(id="a", choices=[{"index": 0}]))
    answer.parts[1].start(200, "text/event-stream", odd)
    shown = client.data
    answer.parts[0].write(event(id="a", choices=[{"index": 0}]))
    assert client.data == shown
    with pytest.raises(ApiError) as failed:
        answer.check()
    assert failed.value.status == 502


def test_events_have_one_identity_whatever_their_engines_say() -> None:
    answer, client = joined(n=2, stream=True)
    answer.parts[1].start(
        200, "text/event-stream",
        event(id="b", created=5, usage={"completion_tokens": 1}, choices=[{"index": 0}]),
    )  # fmt: skip
    answer.parts[0].start(
        200, "text/event-stream", b": a comment\r\n\r\n" + event(id="a", choices=[{"index": 0}])
    )
    lines = [orjson.loads(line[6:]) for line in client.data.split(b"\n\n") if line]
    assert [(e["id"], e["created"], e["choices"][0]["index"]) for e in lines] == [
        ("b", 5, 1), ("b", 5, 0),
    ]  # fmt: skip
    assert all("usage" not in e for e in lines)
