"""Several choices in one request: memory, bounds and numbers that hold for one hold for all."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from tests.support.gateway_rig import PATIENCE, Rig, eventually
from tests.unit.gateway.test_choices import Client

from pdserve.gateway import fan_out, generate
from pdserve.gateway.choices import ChoiceReply, JoinedReply, choices_of, size_of_all
from pdserve.gateway.dense import PIECE
from pdserve.gateway.intake import parse_body, parsed_size
from pdserve.http1.errors import ApiError
from pdserve.http1.limits import ClientLimits
from pdserve.wire import metrics as names

LIMITS = ClientLimits(memory=600_000)
LONG = "[" + ",".join(["12345"] * (PIECE // 2)) + "]"
"""Token ids enough to stay bytes; see `gateway.dense`."""


class Ids(list[int]):
    """Token ids that can be watched while they live."""


@pytest.mark.interpreted
@pytest.mark.invariant(10)
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_has_begun_keeps_nothing_of_its_body(
    rig: Rig, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on the memory counts it no more."""
    prompts: list[weakref.ref[Ids]] = []

    def watched(*given: Any) -> dict[str, Any]:
        fields = parse_body(*given)
        ids = Ids(fields["prompt"])
        prompts.append(weakref.ref(ids))
        return {**fields, "prompt": ids}

    monkeypatch.setattr(generate, "parse_body", watched)
    await rig.one_group(prefills=2, decodes=2)
    for decode in ("d0", "d1"):
        rig.engines[decode].token_seconds = 3600.0
    stream = asyncio.create_task(rig.complete(prompt=[5] * 100, n=n, stream=True, max_tokens=9))
    await eventually(lambda: sum(rig.engines[d].running for d in ("d0", "d1")) == n, "all run")
    memory = rig.gateway.server.memory
    await eventually(lambda: memory.used == 0, "the body is not counted")
    gc.collect()
    assert [prompt() for prompt in prompts] == [None]
    stream.cancel()


async def test_fields_that_every_choice_repeats_are_counted_for_each(rig: Rig) -> None:
    await rig.one_group(limits=LIMITS)
    one = await rig.complete(prompt=["a"], user="u" * 60_000, max_tokens=1)
    assert one.status == 200
    answer = await rig.complete(prompt=["a"] * 8, user="u" * 60_000, max_tokens=1)
    assert (answer.status, answer.json["error"]["code"]) == (413, "too_large")
    assert len(rig.engines["p0"].seen) == 1


async def test_choices_that_never_fit_are_refused_for_good(rig: Rig) -> None:
    """A client that is asked to come back later would do so for ever."""
    await rig.one_group(limits=LIMITS)
    answer = await rig.complete(prompt="a" * 60_000, n=8, max_tokens=1)
    assert (answer.status, answer.json["error"]["code"]) == (413, "too_large")


def test_the_size_of_all_choices_is_that_of_their_bodies() -> None:
    for prompts, n in ((["x" * 9000], 5), (["x" * 9000] * 4, 1), (["x" * 30, "y" * 9000], 3)):
        raw = orjson.dumps({"model": "m", "prompt": prompts, "n": n, "user": "u" * 5000})
        body = parse_body("completions", raw)
        bodies = [orjson.dumps(choice.body) for choice in choices_of(body)]
        want = sum(map(parsed_size, bodies))
        assert 0.9 * want < size_of_all(body, parsed_size(raw)) < 1.1 * want


@pytest.mark.invariant(10)
@pytest.mark.parametrize("prompt", [LONG, f"[{LONG}]"])
async def test_a_long_prompt_that_fits_no_context_is_refused_for_every_n(
    rig: Rig, prompt: str
) -> None:
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start(limits=ClientLimits())
    await rig.routes(made, max_prompt_bytes=PIECE // 2 - 1)
    for n in (1, 2):
        raw = f'{{"model":"tiny","n":{n},"prompt":{prompt}}}'.encode()
        answer = await rig.request("POST", "/v1/completions", raw)
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
    assert made[0].events["attempts"] == 0


@pytest.mark.parametrize(
    ("seed", "want"),
    [
        (-5, [-5, -4, -3]),
        (-1, [-1, -1, -1]),
        (0, [0, 1, 2]),
        (2**63 - 3, [2**63 - 3, 2**63 - 2, 2**63 - 1]),
        (True, [True, True, True]),
        ("7", ["7", "7", "7"]),
        (None, [None, None, None]),
    ],
)
def test_seeds_of_choices(seed: object, want: list[object]) -> None:
    """-1 is vLLM's word for none; what is no number is the engine's to refuse."""
    raw = orjson.dumps({"model": "m", "prompt": "x", "n": 3, "seed": seed})
    found = [choice.body["seed"] for choice in choices_of(parse_body("completions", raw))]
    assert [(type(s), s) for s in found] == [(type(s), s) for s in want]


@pytest.mark.parametrize("seed", [2**63 - 2, 2**64 - 1])
def test_seeds_that_would_leave_their_range_are_refused(seed: int) -> None:
    raw = orjson.dumps({"model": "m", "prompt": "x", "n": 3, "seed": seed})
    with pytest.raises(ApiError, match="n - 1 must be at most 9223372036854775807") as refused:
        parse_body("completions", raw)
    assert (refused.value.status, refused.value.param) == (400, "seed")
    alone = orjson.dumps({"model": "m", "prompt": "x", "seed": seed})
    assert parse_body("completions", alone)["seed"] == seed, "the engine's business"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_joined_any_more_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Engines would generate, and the client wait, for nothing."""
    ended: list[str] = []

    class Odd:
        """A driver whose engine's reply makes no sense beside another."""

        def __init__(self, reply: ChoiceReply, _: float) -> None:
            self.reply, self.request = reply, SimpleNamespace(outcome=None, invalid=False)

        async def served(self) -> None:
            await asyncio.sleep(0)  # both have begun
            if self.reply.choice.index == 0 and not stream:
                self.reply.send(200, b"[]", "application/json")
                self.request.outcome = "completed"
                return
            try:
                if stream:
                    self.reply.start(200, "text/event-stream", b"data: {\n\n")
                await asyncio.Event().wait()
            finally:
                ended.append(self.request.outcome)

    driver_of: Any = Odd
    monkeypatch.setattr(fan_out, "at_once", lambda _: 2)
    body = {"model": "m", "prompt": "x", "n": 2, "stream": stream}
    joined = JoinedReply(Client(), choices_of(body), body)
    view: Any = None
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ApiError) as failed:
            await fan_out.serve_choices(joined, view, driver_of, 0.0)
    assert failed.value.status == 502
    assert set(ended) == {"failed"}


@pytest.mark.parametrize(
    ("step", "status", "outcomes"),
    [("500", 502, {"failed": 2}), ("400", 400, {}), ("error:2", 200, {"failed": 2})],
)
async def test_choices_that_end_with_another_count_as_that_one(
    rig: Rig, step: str, status: int, outcomes: dict[str, int]
) -> None:
    """The client has left none of them."""
    made = [await rig.engine("prefill", "p0", slots=2), await rig.engine("decode", "d0", slots=2)]
    await rig.start()
    await rig.routes(made)
    prefill, decode = made
    if step == "error:2":
        decode.script = ["ok", step]
    else:
        prefill.script = ["ok", step, step]
        decode.token_seconds = 3600.0
    answer = await rig.complete(n=2, stream=True, max_tokens=1 << 20)
    assert answer.status == status
    await eventually(lambda: not any(e.used for e in made), "all slots are free")
    outcome = "pdserve_gateway_outcome_total"
    for name in ("completed", "failed", "cancelled_late", "expired"):
        assert await rig.metric(outcome, outcome=name) == outcomes.get(name, 0), name
    assert await rig.metric(names.GATEWAY_CLIENT_CANCELLED) == 0
