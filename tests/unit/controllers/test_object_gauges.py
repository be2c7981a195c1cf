"""K6.8: the operator's gauges of its objects, and what every process says of itself."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

import pytest
from tests.unit.docs import registries

from pdserve import __version__
from pdserve.controllers import core
from pdserve.controllers.object_gauges import ObjectGauges
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, NS, service
from pdserve.exposition import Registry
from pdserve.exposition.process_metrics import tell_process
from pdserve.kube.request import KubeRequest

SCENARIO = (NS, "shop", "chat")


def make() -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    return world


def registry_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Registry]:
    """The registry of the newest operator."""
    made: list[Registry] = []

    class Seen(ObjectGauges):
        def __init__(self, registry: Registry, caches: core.Caches) -> None:
            super().__init__(registry, caches)
            made.append(registry)

    monkeypatch.setattr(core, "ObjectGauges", Seen)
    return lambda: made[-1]


def test_k6_8_instances_counts_devices_and_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = registry_of(monkeypatch)

    @virtual_time
    async def run() -> None:
        world = make()
        world.create(PDSERVICES, service(devices=4, decode=(2, 4)))
        async with world.running(), world.operator():
            await world.until(world.service_ready)
            of = registry().value
            for role, count in (("prefill", 1), ("decode", 2)):
                assert of("pdserve_operator_instances_wanted", *SCENARIO, role) == count
                assert of("pdserve_operator_instances_ready", *SCENARIO, role) == count
                assert of("pdserve_operator_counts", *SCENARIO, role) == count
            assert of("pdserve_operator_counts", *SCENARIO, "groups") == 1
            taken = "pdserve_operator_free_devices"
            await world.until(lambda: of(taken, "az1", NPU) == 32 - 12)
            assert of("pdserve_operator_condition", "PDService", NS, "shop", "Ready") == 1
            assert of("pdserve_operator_condition", "PDService", NS, "shop", "Degraded") == 0
            assert of("pdserve_operator_condition", "RoCEDomain", "", "az1", "Ready") == 1
            group = ("ScenarioGroup", NS, "shop-chat", "Placed")
            assert of("pdserve_operator_condition", *group) == 1
            writes = len(world.recorders[-1].writes())
            registry().render()
            assert len(world.recorders[-1].writes()) == writes

            world.api.handle(KubeRequest("delete", PDSERVICES, NS, "shop"))
            await world.until(lambda: world.get(SCENARIO_GROUPS, "shop-chat") is None)
            await world.until(lambda: 'service="shop"' not in instances(registry()))
            assert 'name="shop"' not in registry().render()
            await world.until(lambda: of(taken, "az1", NPU) == 32)  # its devices are given back
        assert 'domain="az1"' not in registry().render(), "a standby tells nothing"

    run()


def instances(registry: Registry) -> str:
    return "\n".join(
        line for line in registry.render().splitlines() if line.startswith("pdserve_operator_inst")
    )


async def test_k6_8_every_process_tells_its_build_and_its_resources() -> None:
    made = {
        "gateway": registries.gateway_registry(),
        "engine": registries.engine_metrics().registry,
        "operator": await registries.operator_registry(),
    }
    for component, registry in made.items():
        text = registry.render()
        found = re.search(r"^pdserve_build_info\{(.*)\} 1$", text, re.MULTILINE)
        assert found is not None, component
        assert f'component="{component}"' in found[1] and f'version="{__version__}"' in found[1]
        assert "process_cpu_seconds_total" in text


def test_k6_8_process_values_are_those_of_this_process() -> None:
    registry = Registry()
    tell_process(registry, "test", "1")
    assert registry.value("process_cpu_seconds_total") > 0
    assert registry.value("process_resident_memory_bytes") > 1 << 20
    resident = registry.value("process_resident_memory_bytes")
    assert resident < registry.value("process_virtual_memory_bytes")
    before = registry.value("process_open_fds")
    held = os.open("/dev/null", os.O_RDONLY)
    assert registry.value("process_open_fds") == before + 1 <= registry.value("process_max_fds")
    os.close(held)
    started = registry.value("process_start_time_seconds")
    assert time.time() - 86_400 < started <= time.time()
