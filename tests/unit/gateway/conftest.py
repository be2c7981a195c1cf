"""Fixtures of the gateway tests."""

from collections.abc import AsyncIterator

import pytest_asyncio
from tests.support.gateway_rig import Rig


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.close()
    bugs = [bug for engine in rig.engines.values() for bug in engine.bugs]
    assert not bugs, bugs
