"""A service of a type that needs a proxy: its pods have it, and it comes up like any other."""

from __future__ import annotations

from tests.unit.controllers.test_ownership_and_counts import make

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world_service import service
from pdserve.engines.pods import PROXY_CONTAINER
from pdserve.kube.resource import PODS


@virtual_time
async def test_pods_have_the_proxy_from_the_gateways_image() -> None:
    world = make()
    document = service(devices=2)
    document["spec"]["engine"] = {"type": "vLLM", "image": "vllm/vllm-openai:v0.32.0"}
    world.create(PDSERVICES, document)
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        images = {
            container["name"]: container["image"]
            for pod in world.seen(PODS)
            if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "instance"
            for container in pod["spec"]["containers"]
        }
    assert images == {
        "engine": "vllm/vllm-openai:v0.32.0",
        PROXY_CONTAINER: "pdserve/gateway:test",
    }
