"""Whom `kubectl pdserve ask` asks, and how a request must look to reach one scenario. No I/O.

Which scenario takes a request is decided by the gateway's own rule (`forwarding.match`) on the
PDService's spec. Neighbours: `ask` reads the cluster, `ask_stream` sends the request.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pdserve import api
from pdserve.desired.routing import route_table
from pdserve.forwarding.match import match_scenario
from pdserve.gateway.auth import keys_of
from pdserve.terms.json import JsonMap


@dataclass(frozen=True)
class GatewayPod:
    """A gateway pod that can be asked."""

    name: str
    ip: str
    """Its address; empty where the pod tells none."""
    tls: bool = False
    """Whether it speaks HTTPS."""

    @property
    def is_here(self) -> bool:
        """True on process nodes, whose pods have addresses of this machine alone.

        The API server's proxy refuses to connect to such ones, and need not: they are ours.
        """
        try:
            return ipaddress.ip_address(self.ip).is_loopback
        except ValueError:
            return False


class AskError(Exception):
    """The question cannot be asked, or was not answered; the message says what to do."""


@dataclass(frozen=True)
class Address:
    """What a request carries to be taken by `scenario`."""

    scenario: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)


def address(service: api.PDService, scenario: str | None) -> Address:
    """How to reach a scenario; None: what a request that says nothing special reaches.

    Raises:
        AskError: no such scenario, or no request can reach it.
    """
    routes = route_table(service, None, {}, {}, None)
    own = service.spec.model.name
    known = ", ".join(s.name for s in routes.scenarios)
    if scenario is None:
        taken = match_scenario(routes, own, {})
        if taken is None:
            raise AskError(
                f"no scenario takes a request for model {own!r} without headers: "
                f"choose one with --scenario ({known})"
            )
        return Address(taken.name, own)
    wanted = next((s for s in routes.scenarios if s.name == scenario), None)
    if wanted is None:
        raise AskError(
            f"PDService {service.metadata.name!r} has no scenario {scenario!r}; there: {known}"
        )
    others: dict[str, str] = {}
    for model in wanted.models or (own,):
        taken = match_scenario(routes, model, wanted.headers)
        if taken is wanted:
            return Address(scenario, model, wanted.headers)
        if taken is not None:
            others[taken.name] = model
    first = next(iter(others))
    raise AskError(
        f"scenario {scenario!r} gets no request that matches it: {first!r} stands before it and "
        "takes them; give it a match of its own, or put it first"
    )


def gateways(pods: Sequence[JsonMap]) -> list[GatewayPod]:
    """The gateway pods that are ready and stay, in order of their names."""
    stay = [p for p in pods if not p["metadata"].get("deletionTimestamp") and _ready(p)]
    found = (
        GatewayPod(p["metadata"]["name"], p["status"].get("podIP") or "", _speaks_tls(p))
        for p in stay
    )
    return sorted(found, key=lambda pod: pod.name)


def no_gateway(service: api.PDService, pods: Sequence[JsonMap]) -> str:
    """What to tell when `gateways` finds none."""
    name, namespace = service.metadata.name, service.metadata.namespace
    there = "no gateway pod of it is ready" if pods else "it has no gateway pod"
    state = readiness(service)
    return (
        f"PDService {namespace}/{name} cannot be asked: {there}"
        + (f" ({state})" if state else "")
        + f"; wait with `kubectl wait pds/{name} -n {namespace} --for=condition=Ready`, "
        f"look with `kubectl pdserve status {name} -n {namespace}`"
    )


def readiness(service: api.PDService) -> str:
    """Why it is not Ready, in one line; empty when it is."""
    ready = next((c for c in service.status.conditions if c.type == "Ready"), None)
    if ready is None:
        return "the operator has not seen it yet: is it running?"
    if ready.status == "True":
        return ""
    return f"Ready={ready.status} {ready.reason}: {ready.message}".rstrip(": ")


def first_key(secret: JsonMap) -> str | None:
    """An API key of a Secret as gateways read it (one key per line); None when it holds none."""
    for _, value in sorted((secret.get("data") or {}).items()):
        try:
            keys = keys_of(base64.b64decode(value))
        except binascii.Error:
            continue
        for key in keys:
            if key.limits is not None:
                return key.key.decode()
    return None


def _speaks_tls(pod: JsonMap) -> bool:
    """By its probe, which asks what clients ask."""
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    probe = (containers[0].get("readinessProbe") or {}).get("httpGet") or {}
    return bool(probe.get("scheme") == "HTTPS")


def _ready(pod: JsonMap) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
