"""What arrives and is not yet a request is bounded, and what no context holds is refused early."""

import asyncio

import pytest
from tests.support.gateway_rig import Rig, eventually, parse_answer

from pdserve.http1.limits import ClientLimits
from pdserve.wire import metrics as names
from pdserve.wire.calls import PATH_COMPLETIONS
from pdserve.wire.links import largest_body


@pytest.mark.invariant(10)
async def test_bodies_in_progress_are_bounded_in_bytes_and_small_ones_pass(rig: Rig) -> None:
    """Waiting, being received or served: whatever it is counts until it is gone."""
    await rig.one_group(limits=ClientLimits(memory=600_000))
    prefill = rig.engines["p0"]
    prefill.gate = asyncio.Event()
    large = "x" * 100_000
    memory = rig.gateway.server.memory
    waiting = [asyncio.create_task(rig.complete(prompt=large))]
    await eventually(lambda: prefill.running == 1, "one is served")
    refused = await rig.complete(prompt=large)
    assert (refused.status, refused.json["error"]["code"]) == (503, "receiving_too_much")
    assert int(refused.headers["retry-after"]) >= 1
    waiting.append(asyncio.create_task(rig.complete()))
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    await eventually(lambda: scheduler.dispatcher.waiting == 1, "a small one waits in the room")
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 300000\r\n\r\n" + b"x" * 290_000
    )
    answer = parse_answer(await reader.readuntil(b"}}"))
    assert (answer.status, answer.json["error"]["code"]) == (503, "receiving_too_much")
    writer.close()
    full = await rig.complete(tools=[[]] * 5000)
    assert (full.status, full.json["error"]["code"]) == (503, "too_much_at_once")
    many = await rig.complete(tools=[{}] * 2500)
    assert (many.status, many.json["error"]["message"]) == (413, "the body holds too many values")
    prefill.gate.set()
    assert [a.status for a in await asyncio.gather(*waiting)] == [200, 200]
    await eventually(lambda: memory.used == 0, "nothing is counted any more")
    assert (await rig.complete(prompt=large)).status == 200


@pytest.mark.invariant(12)
async def test_what_a_client_that_left_had_sent_is_not_counted(rig: Rig) -> None:
    await rig.one_group(limits=ClientLimits())
    memory = rig.gateway.server.memory
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    head = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 100000\r\n\r\n"
    writer.write(head + b"x" * 50_000)
    await eventually(lambda: memory.used > 0, "counted")
    writer.close()
    await eventually(lambda: memory.used == 0, "forgotten")
    stream = asyncio.create_task(rig.complete(stream=True, prompt="y" * 200_000, max_tokens=500))
    rig.engines["d0"].token_seconds = 600.0
    await eventually(lambda: rig.engines["d0"].running == 1, "a stream")
    await eventually(lambda: memory.used == 0, "a stream that has begun keeps no body")
    stream.cancel()


@pytest.mark.parametrize("kind", ["complete", "ids", "messages"])
async def test_a_prompt_that_fits_into_no_context_reaches_no_engine(rig: Rig, kind: str) -> None:
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start()
    await rig.routes(made, max_prompt_bytes=1000)
    fits, long = ("\u00e9" * 500, "\u00e9" * 500 + "x")
    if kind == "ids":
        answers = [await rig.complete(prompt=[5] * count) for count in (1000, 1001)]
    elif kind == "messages":
        # The message itself counts as one.
        answers = [
            await rig.chat(messages=[{"role": "user", "content": text}])
            for text in ("\u00e9" * 499 + "x", fits)
        ]
    else:
        answers = [await rig.complete(prompt=text) for text in (fits, long)]
    assert [a.status for a in answers] == [200, 400]
    error = answers[1].json["error"]
    assert error["code"] == "context_length_exceeded"
    assert "1001 bytes of text, ids and messages, and at most 1000 fit" in error["message"]
    assert made[0].events["attempts"] == 1
    assert await rig.metric(names.GATEWAY_OFFERED) == 1


@pytest.mark.invariant(10)
async def test_a_body_that_holds_no_prompt_that_fits_is_not_parsed(rig: Rig) -> None:
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start(limits=ClientLimits())
    await rig.routes(made, max_prompt_bytes=1000)
    most = largest_body(1000)
    small = b'{"model":"tiny","prompt":"x"}'
    fits = small + b" " * (most - len(small))
    assert (await rig.request("POST", PATH_COMPLETIONS, fits)).status == 200
    for body in (fits + b" ", b"[" * (most + 1)):
        answer = await rig.request("POST", PATH_COMPLETIONS, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
        assert f"{most + 1} bytes; one with a prompt that fits has at most {most}" in str(
            answer.json
        )
    await rig.routes(made)
    assert (await rig.request("POST", PATH_COMPLETIONS, fits + b" ")).status == 200, (
        "no bound is known"
    )


@pytest.mark.invariant(10)
async def test_unfinished_heads_are_bounded_in_bytes_too(rig: Rig) -> None:
    await rig.one_group(limits=ClientLimits(memory=200_000))
    memory = rig.gateway.server.memory
    writers, answers = [], []
    for _ in range(12):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nx-a: " + b"v" * 20_000)
        writers.append(writer)
        answers.append(asyncio.create_task(reader.read()))
    await eventually(lambda: sum(a.done() for a in answers) >= 7, "most are refused")
    assert memory.used <= 100_000
    refused = [parse_answer(a.result()) for a in answers if a.done()]
    assert {(a.status, a.json["error"]["code"]) for a in refused} == {(503, "receiving_too_much")}
    assert (await rig.complete()).status == 200
    for writer in writers:
        writer.close()
    await eventually(lambda: memory.used == 0, "nothing is counted any more")
