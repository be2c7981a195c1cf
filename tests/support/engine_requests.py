"""Requests to real engine processes, and when an instance holds nothing."""

from __future__ import annotations

from typing import Any

from tests.support.engines import Client, EngineProcess

PATH = "/v1/completions"
BODY: dict[str, Any] = {
    "model": "reference",
    "prompt": list(range(5, 90)),
    "max_tokens": 8,
    "temperature": 0,
    "ignore_eos": True,
}


async def slots(client: Client, engine: EngineProcess, state: str) -> float:
    return await client.metric(engine, f'pdserve_engine_slots{{state="{state}"}}')


async def is_idle(client: Client, engine: EngineProcess) -> bool:
    """No slot used, no KV block held.

    To be waited for less than the 30 s after which the end of a lease frees a prefill anyway.
    """
    states = ("executing", "holding") if engine.role == "prefill" else ("running", "prefetching")
    used = [await slots(client, engine, s) for s in states]
    usage = await client.metric(engine, 'vllm:kv_cache_usage_perc{model_name="reference"}')
    return not any(used) and usage == 0
