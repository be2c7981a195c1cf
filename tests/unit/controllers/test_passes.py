"""How often the operator looks at each object while a service comes up, counted, not timed."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.support.simulated_operator import make

from pdserve.controllers import worker
from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.controllers.shared.context import OperatorContext
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world_service import service
from pdserve.kube.resource import ObjectKey

MOST = {"PDService": 20, "ScenarioGroup": 32, "RoCEDomain": 4}


@virtual_time
async def test_a_service_of_six_instances_comes_up_in_few_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: Counter[str] = Counter()

    def counted(kind: str, reconcile: worker.Reconciler) -> worker.Reconciler:
        async def look(context: OperatorContext, key: ObjectKey) -> float | None:
            passes[kind] += 1
            return await reconcile(context, key)

        return look

    kinds = {kind: counted(kind, reconcile) for kind, reconcile in worker.RECONCILERS.items()}
    monkeypatch.setattr(worker, "RECONCILERS", kinds)
    world = make()
    world.create(PDSERVICES, service(prefill=(2, 2), decode=(4, 4), groups=(1, 1), devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 60, "PDService Ready")
    assert {kind: count for kind, count in passes.items() if count > MOST[kind]} == {}
