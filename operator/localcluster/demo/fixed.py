"""The service that the shift of load is compared with: the demo's scenario chat, counts fixed.

It is the same PDService in a namespace of its own, in mode Fixed at the counts that chat has when
it is applied. Model, engines, pacing, targets, kind of placement and gateway are the same: only
the counts differ.
"""

from __future__ import annotations

import copy

import yaml

from localcluster.demo.stage import CHAT, NAMESPACE, SERVICE, Stage, condition, until
from pdserve.cli.snapshot import GROUPS, SERVICES
from pdserve.terms.json import JsonObject

FIXED_NAMESPACE = "fixed-counts"


def manifest(demo: JsonObject, groups: int, prefill: int, decode: int) -> JsonObject:
    """The PDService with chat alone, at fixed counts."""
    service = copy.deepcopy(demo)
    service["metadata"]["namespace"] = FIXED_NAMESPACE
    [chat] = [s for s in service["spec"]["scenarios"] if s["name"] == "chat"]
    chat["ratio"] |= {
        "mode": "Fixed",
        "fixed": {"groups": groups, "prefill": prefill, "decode": decode},
    }
    service["spec"]["scenarios"] = [chat]
    return service


async def apply(stage: Stage) -> None:
    """Create it at the counts of the demo's chat; it starts on its own."""
    demo = yaml.safe_load((stage.root / "examples/demo-pdservice.yaml").read_text())
    spec = (await stage.client.get(GROUPS, CHAT, NAMESPACE))["spec"]
    service = manifest(
        demo, spec["replicas"], spec["prefill"]["replicas"], spec["decode"]["replicas"]
    )
    await stage.kubectl("create", "namespace", FIXED_NAMESPACE)
    await stage.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(service))


async def address(stage: Stage) -> str:
    """Its gateway, once it is Ready.

    Raises:
        DemoError: it is not Ready within 60 s.
    """

    async def ready() -> bool:
        service = await stage.client.get(SERVICES, SERVICE, FIXED_NAMESPACE)
        return condition(service, "Ready") == "True"

    await until(ready, 60, "the PDService with fixed counts Ready")
    return await stage.gateway(SERVICE, FIXED_NAMESPACE)


async def remove(stage: Stage) -> None:
    """Delete it; its pods go on their own.

    Not by its namespace: of one that ends, pods go before what made them, and would be made anew.
    """
    await stage.kubectl("-n", FIXED_NAMESPACE, "delete", "pds", SERVICE, "--wait=false")
