"""The PDService of the `world`, with what a test wants to vary."""

from __future__ import annotations

from collections.abc import Iterable

from pdserve.dst.api_fields import copy
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonObject
from pdserve.wire import names

NPU = "huawei.com/Ascend910"
NS = "default"


def service(
    name: str = "shop",
    scenarios: Iterable[str] = ("chat",),
    *,
    devices: int = 4,
    prefill: tuple[int, int] = (1, 4),
    decode: tuple[int, int] = (1, 4),
    groups: tuple[int, int] = (1, 3),
    ratio: JsonObject | None = None,
    schedule: Iterable[JsonObject] = (),
    namespace: str = NS,
    **spec: object,
) -> Object:
    """A PDService; every scenario but the last matches a header.

    `prefill` and `decode`: fewest and most instances of the role in a scenario.
    """
    listed, windows = list(scenarios), [copy(window) for window in schedule]
    role = {
        "instance": {"devicesPerNode": devices, "resource": NPU},
        "maxConcurrency": 4,
        "args": [],
        "env": [],
        "startupDeadlineSeconds": 120,
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PDService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": "tiny"},
            "engine": {"type": "Reference", "image": "pdserve/engine:test"},
            "prefill": copy(role),
            "decode": copy(role),
            "fabric": {"domainRef": {"name": "az1"}},
            "scenarios": [
                {
                    "name": s,
                    "match": {"headers": {"x-scenario": s}} if s != listed[-1] else {},
                    "slo": {
                        "ttft": "800ms", "handoff": "200ms", "tpot": "40ms",
                        "attainmentPercent": 99,
                    },
                    "groups": {"min": groups[0], "max": groups[1]},
                    "ratio": {
                        "mode": "Auto",
                        "prefill": {"min": prefill[0], "max": prefill[1]},
                        "decode": {"min": decode[0], "max": decode[1]},
                        **(ratio or {}),
                    },
                    **({"schedule": windows} if windows else {}),
                    "expected": {
                        "promptTokens": 100, "outputTokens": 50, "requestsPerSecond": 2,
                    },
                }
                for s in listed
            ],
            **spec,
        },
    }  # fmt: skip
