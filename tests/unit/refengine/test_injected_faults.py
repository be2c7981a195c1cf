"""Whatever function of the request path raises, neither a slot nor KV is lost.

The rule is tried out on every step: one request after the other, an exception is thrown at the
entry of the n-th Python function that the event loop enters inside the engine, for every n. The
client gets some answer or a closed connection; afterwards nothing is held and a request works.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from types import FrameType
from typing import Any

import aiohttp
import pytest
from tests.support.engines import Client, fresh_host

from pdserve.engines.reference.metrics import VLLM_KV_USAGE
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.server import StartedInstance, running

REQUEST_PATH = (
    "http1/connection", "http1/reply", "refengine/api/", "refengine/runtime/", "refengine/kv/pool",
    "refengine/kv/leases",
)  # fmt: skip
GIVES_BACK = frozenset(
    {
        # They free what a request holds: total functions on plain numbers and lists, by which
        # the cleanup after any other fault is done.
        "give_back", "release", "_end", "_fail", "drop", "_leave", "cancel", "answered",
        "_slot_freed", "_ended", "end", "ended", "_internal", "failed", "_refuse", "_guarded",
        "settled", "not_started", "done", "pump", "_apply", "_computed", "_broken", "_over",
        "free", "hint", "_free_in", "prefill_free_in", "decode_free_in", "headers", "used",
        "available", "get", "oldest_hold", "oldest", "__len__", "__contains__", "__init__",
        "add", "_take", "<lambda>",
        # The connection: it answers, or closes.
        "connection_made", "connection_lost", "data_received", "_next", "_rest", "_failed",
        "began", "complete", "screened", "keeps", "has_room", "_count_head_kept",
        "error", "send", "write", "_write_head", "_finish", "finished", "free_served", "draining",
        "_answered", "_free", "close",
        # Entries of callbacks of the event loop: what they do inside is guarded.
        "_tokenised",
    }
)  # fmt: skip


class InjectedError(Exception):
    """Thrown by the test."""


class Injector:
    """Raises at the entry of the n-th function of the request path; counts them."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.where = at, 0, ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name in GIVES_BACK:
            return
        if not any(part in code.co_filename for part in REQUEST_PATH):
            return
        self.seen += 1
        if self.seen == self.at:
            self.where = f"{code.co_filename}:{code.co_name}"
            raise InjectedError(self.where)


async def settled(instance: StartedInstance) -> bool:
    engine = instance.engine
    for _ in range(3000):
        engine.publish_occupancy()
        slots = engine.hint()
        kv = engine.metrics.vllm.value(VLLM_KV_USAGE, "reference")
        if not (engine.executing or len(engine.handoff) or slots.free < slots.total or kv):
            return True
        await asyncio.sleep(0.01)
    return False


BODIES: dict[str, dict[str, Any]] = {
    "ids": {"prompt": [5, 6, 7]},
    "long text": {"prompt": "word " * 600},
    "stream": {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}},
}


@pytest.mark.timeout(900)  # one request per place where it may break, each traced line by line
@pytest.mark.parametrize("case", BODIES)
async def test_no_fault_loses_a_slot_or_kv(
    case: str, model: LoadedModel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    config = EngineConfig(bind=fresh_host(), port=8000, slots=2, prefix_cache=False)
    body = {"model": "reference", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    body |= BODIES[case]
    async with running(config, model) as instance:
        url = f"http://{config.bind}:8000/v1/completions"
        want = (await client.call("POST", url, body)).body
        tried: set[str] = set()
        for number in range(1, 10_000):
            injector = Injector(number)
            sys.setprofile(None)
            sys.settrace(injector)  # type: ignore[arg-type]
            try:
                async with asyncio.timeout(60):
                    await client.call("POST", url, body)
            except TimeoutError:
                sys.settrace(None)
                raise AssertionError(f"no answer after a fault in {injector.where}") from None
            except aiohttp.ClientError:
                pass
            finally:
                sys.settrace(None)
            assert await settled(instance), f"lost after a fault in {injector.where}"
            if not injector.where:
                break
            tried.add(injector.where.rsplit("/", 1)[1])
        assert len(tried) > 15, tried
        again = (await client.call("POST", url, body)).body
        assert case == "stream" or again["choices"] == want["choices"]
