"""Drain and SIGTERM of real engine processes: streams in flight finish."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import aiohttp
import pytest
from tests.support.engine_requests import BODY, PATH
from tests.support.engines import Client, Group

from pdserve.wire import calls


async def test_drain(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    prefill, decode = group.prefills[0], group.decodes[0]
    long = BODY | {"max_tokens": 400, "stream": True}
    held = (await group.prefill(PATH, BODY)).body[calls.PARAM_KV]
    params = (await group.prefill(PATH, long)).body[calls.PARAM_KV]
    async with client.stream(decode.url + PATH, long | {calls.PARAM_KV: params}) as stream:
        report = (await client.call("POST", decode.url + calls.PATH_DRAIN)).body
        assert report == {"executing": 1, "holding": 0, "streams": 1}
        refused = await group.decode(PATH, BODY, held)
        assert (refused.status, refused.headers[calls.HEADER_REJECT]) == (503, "draining")
        assert (await client.call("GET", decode.url + calls.PATH_READY)).status == 503
        text = (await stream.read()).decode()
    assert text.endswith("data: [DONE]\n\n")
    again = (await client.call("POST", decode.url + calls.PATH_DRAIN)).body
    assert again == {"executing": 0, "holding": 0, "streams": 0}
    report = (await client.call("POST", prefill.url + calls.PATH_DRAIN)).body
    assert report == {"executing": 0, "holding": 1, "streams": 0}


async def test_sigterm_lets_streams_finish(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    long = BODY | {"max_tokens": 300, "stream": True}
    params = (await group.prefill(PATH, long)).body[calls.PARAM_KV]
    process = group.decodes[0].process
    assert process is not None
    async with client.stream(
        group.decodes[0].url + PATH, long | {calls.PARAM_KV: params}
    ) as stream:
        process.send_signal(signal.SIGTERM)
        assert (await stream.read()).endswith(b"data: [DONE]\n\n")
    assert await asyncio.to_thread(process.wait, 10) == 0


@pytest.mark.parametrize(("seconds", "finishes"), [("600", True), ("0.2", False)])
async def test_streams_finish_within_drain_seconds(
    seconds: str, finishes: bool, client: Client, start_group: Any
) -> None:
    paced = ("--paced", "demo-small", "--pace-factor", "5", "--drain-seconds", seconds)
    group: Group = await start_group((), paced)
    long = BODY | {"max_tokens": 20, "stream": True}
    params = (await group.prefill(PATH, long)).body[calls.PARAM_KV]
    process = group.decodes[0].process
    assert process is not None
    text = b""
    async with client.stream(
        group.decodes[0].url + PATH, long | {calls.PARAM_KV: params}
    ) as stream:
        process.send_signal(signal.SIGTERM)
        try:
            while piece := await stream.content.readany():
                text += piece
        except aiohttp.ClientError:
            assert not finishes
    assert text.endswith(b"data: [DONE]\n\n") == finishes
    assert await asyncio.to_thread(process.wait, 60) == 0
