"""The OpenAI Python SDK, unchanged, against the gateway."""

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam
from tests.support.gateway_rig import Rig

from pdserve.terms import Slo


@pytest_asyncio.fixture
async def client(rig: Rig, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    (tmp_path / "key").write_text("sk-test")
    await rig.one_group(keys=tmp_path, slo=Slo(ttft=0.3, handoff=0.1, tpot=0.1, attainment=0.9))
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{rig.port}/v1", api_key="sk-test"
    ) as client:
        yield client


async def test_completions(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="tiny", prompt="x", max_tokens=5)
    assert whole.choices[0].text == "t0 t1 t2 t3 t4 "
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 5
    stream = await client.completions.create(model="tiny", prompt="x", max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


async def test_chat(client: openai.AsyncOpenAI) -> None:
    said: list[ChatCompletionMessageParam] = [{"role": "user", "content": "x"}]
    whole = await client.chat.completions.create(
        model="tiny", messages=said, max_completion_tokens=5
    )
    assert whole.choices[0].message.content == "t0 t1 t2 t3 t4 "
    stream = await client.chat.completions.create(
        model="tiny", messages=said, max_tokens=5, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_several_choices(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="tiny", prompt=["x", "y"], n=2, max_tokens=2)
    assert [(c.index, c.text) for c in whole.choices] == [(k, "t0 t1 ") for k in range(4)]
    said: list[ChatCompletionMessageParam] = [{"role": "user", "content": "x"}]
    found = ["", ""]
    async for chunk in await client.chat.completions.create(
        model="tiny", messages=said, n=2, max_tokens=2, stream=True
    ):
        for choice in chunk.choices:
            found[choice.index] += choice.delta.content or ""
    assert found == ["t0 t1 ", "t0 t1 "]


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [m.id async for m in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "pdserve"
    with pytest.raises(openai.NotFoundError, match="known: tiny"):
        await client.models.retrieve("gpt-9")


async def test_error_classes(rig: Rig, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="gpt-9", prompt="x")
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        await client.completions.create(model="tiny", prompt="x", n=0)
    assert bad.value.param == "n"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="sk-no").models.list()
    with pytest.raises(openai.APIStatusError, match="larger than the limit"):
        await client.completions.create(model="tiny", prompt="x" * 70_000)


async def test_overload_is_not_retried_by_the_sdk(rig: Rig, client: openai.AsyncOpenAI) -> None:
    rig.engines["d0"].script = ["full"] * 99
    with pytest.raises(openai.InternalServerError) as overload:
        await client.completions.create(model="tiny", prompt="x")
    assert overload.value.status_code == 503
    assert overload.value.code == "decode_overload"
    prefill = rig.engines["p0"]
    assert prefill.events["attempts"] == 1


async def test_error_in_mid_stream_raises(rig: Rig, client: openai.AsyncOpenAI) -> None:
    rig.engines["d0"].script = ["cut:2"]
    stream = await client.completions.create(model="tiny", prompt="x", stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="connection lost"):
        async for chunk in stream:
            seen += [choice.text for choice in chunk.choices]
    assert seen == ["t0 ", "t1 "]
