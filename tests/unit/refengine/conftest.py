"""Fixtures of the reference engine's tests: the built-in model, and real engine processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.support.engines import Client, EngineProcess, Group, until

if TYPE_CHECKING:
    from pdserve.refengine.model.loader import LoadedModel

Start = Callable[[EngineProcess], Awaitable[EngineProcess]]
StartGroup = Callable[..., Awaitable[Group]]


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """The built-in model."""
    from pdserve.refengine.model.loader import load_model

    return load_model(None)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    """HTTP client."""
    made = Client()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def start(client: Client) -> AsyncIterator[Start]:
    """Start engine processes; all are killed at the end."""
    started: list[EngineProcess] = []

    async def begin(engine: EngineProcess) -> EngineProcess:
        started.append(engine)
        engine.start()
        await until(lambda: client.up(engine), f"{engine.name} listens", 60)
        return engine

    yield begin
    for engine in started:
        engine.kill()


@pytest_asyncio.fixture
async def start_group(client: Client, start: Start) -> StartGroup:
    """Start and link one P/D group."""

    async def begin(
        prefill: tuple[str, ...] = (), decode: tuple[str, ...] = (), decodes: int = 1
    ) -> Group:
        members = [await start(EngineProcess("prefill", prefill))]
        others = [await start(EngineProcess("decode", decode)) for _ in range(decodes)]
        group = Group(client, members, others)
        await group.push()
        return group

    return begin
