"""A failing computation fails its requests and nothing else; wrong numerics are distinguished."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from tests.support.engines import Client, fresh_host

from pdserve.refengine.config import EngineConfig
from pdserve.refengine.model.loader import ForwardPass, LoadedModel
from pdserve.refengine.model.plan import Rows
from pdserve.refengine.model.tensors import Array
from pdserve.refengine.server import running


class Brittle:
    """A model that breaks on one token, as hardware does without warning."""

    def __init__(self, real: ForwardPass, breaks_on: int) -> None:
        self._real, self._breaks_on = real, breaks_on

    def step(self, batch: list[Rows], pool: Array) -> Array:
        if any(self._breaks_on in rows.tokens for rows in batch):
            raise FloatingPointError("device is gone")
        return self._real.step(batch, pool)


async def test_a_failing_step_fails_its_requests_and_frees_everything(
    model: LoadedModel, client: Client
) -> None:
    brittle: Any = Brittle(model.llama, breaks_on=99)
    config = EngineConfig(bind=fresh_host(), port=8000, slots=4, prefix_cache=False)
    async with running(config, dataclasses.replace(model, llama=brittle)):
        url = f"http://{config.bind}:8000/v1/completions"
        good = {"model": "reference", "prompt": [5, 6], "max_tokens": 4, "temperature": 0}
        good |= {"ignore_eos": True}
        want = await client.call("POST", url, good)
        for _ in range(3):
            replies = await asyncio.gather(
                client.call("POST", url, good | {"prompt": [99, 5]}),
                client.call("POST", url, good | {"prompt": [5, 99]}),
            )
            for reply in replies:
                assert reply.status == 500
                assert "device is gone" in reply.body["error"]["message"]
        again = await client.call("POST", url, good)
        assert again.body["choices"] == want.body["choices"]
        metrics = (await client.call("GET", f"http://{config.bind}:8000/metrics")).body
        assert 'pdserve_engine_slots{state="running"} 0\n' in metrics
        metrics = (await client.call("GET", f"http://{config.bind}:8000/metrics/vllm")).body
        assert 'vllm:kv_cache_usage_perc{model_name="reference"} 0\n' in metrics
