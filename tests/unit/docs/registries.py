"""Every metric family that a process of pdserve declares: (kind, labels) by name."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

from kubernetes.aio.client.api_client import ApiClient

from pdserve.controllers.core import Core
from pdserve.controllers.shared import event_reasons
from pdserve.engineproxy.places import Places
from pdserve.engineproxy.proxy_metrics import ProxyMetrics
from pdserve.exposition import Registry
from pdserve.gateway.metrics import GatewayMetrics
from pdserve.kube.client import KubeClient
from pdserve.kube.events import EventRecorder, Reporter
from pdserve.kube.lease import LeaseElector
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object
from pdserve.kube.transport import HttpTransport
from pdserve.refengine.metrics import EngineMetrics
from pdserve.terms import ROLES
from pdserve.wire.metrics import DECODE_STEPS, PREFILL_BATCHES

Families = dict[str, tuple[str, tuple[str, ...]]]


def gateway() -> Families:
    """Of a gateway."""
    return _families(gateway_registry())


def engine() -> Families:
    """Of an instance, paced mode included."""
    metrics = engine_metrics()
    return _families(metrics.registry) | _families(metrics.vllm)


def engine_proxy() -> Families:
    """Of the proxies before engines of other projects, of both roles."""
    found: Families = {}
    for role, steps in zip(ROLES, (PREFILL_BATCHES, DECODE_STEPS), strict=True):
        found |= _families(ProxyMetrics(role, 1, Places(1), {steps: "engine:steps"}).registry)
    return found


async def operator() -> Families:
    """Of the operator."""
    return _families(await operator_registry())


def gateway_registry() -> Registry:
    """Of a gateway."""
    return GatewayMetrics().registry


def engine_metrics() -> EngineMetrics:
    """Of an instance, paced mode included."""
    return EngineMetrics("model", paced=True)


async def operator_registry() -> Registry:
    """Of the operator, made of the same parts as `controllers.app.run` makes it of."""
    registry = Registry()
    client = KubeClient(_Nowhere())
    Core(
        client, namespace=None, gateway_image="",
        operator_namespace="pdserve-system", registry=registry, now=lambda: 0.0,
        rng=random.Random(0),
    )  # fmt: skip
    EventRecorder(client, Reporter("operator", "me"), event_reasons.ALL, registry=registry)
    LeaseElector(client, "pdserve-system", "lease", "me", registry=registry)
    api = ApiClient()
    HttpTransport(api, registry)
    await api.close()
    return registry


def _families(registry: Registry) -> Families:
    return {f.name: (f.kind, f.label_names) for f in registry.families.values()}


class _Nowhere:
    """A transport that is never used."""

    async def send(self, request: KubeRequest) -> Object:
        raise AssertionError(request)

    def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        raise AssertionError(request)

    async def close(self) -> None:
        return None
