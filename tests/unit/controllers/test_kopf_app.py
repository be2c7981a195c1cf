"""kopf's part of the operator: what it is told, without a cluster."""

from __future__ import annotations

import asyncio
import getpass
import random
from typing import Any

import kopf
import pytest
from kopf._core.engines import peering

from pdserve.controllers import kopf_app
from pdserve.kube.workqueue import WorkQueue


async def test_it_runs_as_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's uid is in no passwd; kopf must not ask for it. Found on a kind cluster."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    asked: list[Any] = []

    def run(**settings: Any) -> None:
        asked.append(settings.get("identity") or peering.detect_own_id(manual=False))

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setattr(kopf, "run", run)
    with pytest.raises(RuntimeError, match="nobody stopped it"):
        await asyncio.wait_for(kopf_app.run_kopf(WorkQueue(), None, random.Random(1)), 5)
    assert asked == ["pdserve"]
