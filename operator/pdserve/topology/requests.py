"""What a pod takes on its node, as the scheduler reckons it. Pure.

Of each resource a pod takes the greater of all its containers together with its sidecars, and of
any one init container beside the sidecars started before it; then the overhead of its runtime class
on top. An amount stated for the pod as a whole stands in place of its containers'. A limit without
a request is a request. Every pod is also one of the node's `pods`, and its host ports are amounts
of resources of their own (`port_keys`). Nothing is left of a pod that has ended.

CPU is counted in thousandths, everything else in whole units; a part of one counts as one. What a
LimitRange or a RuntimeClass adds is in the pod only once the API server has admitted it.
Source: k8s.io/component-helpers/resource (helpers.go), kubernetes/pkg/scheduler/framework/plugins
(noderesources, nodeports).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Final

from pdserve.terms.json import JsonMap
from pdserve.terms.quantity import QuantityError, quantity
from pdserve.terms.raw import part, parts, text

TERMINAL_PHASES: Final = frozenset({"Succeeded", "Failed"})
PODS: Final = "pods"
UNSTATED: Final = frozenset({"cpu", "memory", PODS})
"""Every kubelet states these of its node: where they are missing nothing is known, so nothing is
restricted. A node without another resource has none of it."""
EVERY_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - compared, not bound
_HOST_PORT: Final = "hostport:"
_OF_THE_POD: Final = ("cpu", "memory", "hugepages-")
"""Resources that can be stated for a pod as a whole."""
_SHORT: Final = 32
_BINARY: Final = (("Ei", 2**60), ("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20))


def pod_requests(pod: JsonMap) -> Mapping[str, int]:
    """Amounts by resource, in the order of their names; {} for a pod that has ended.

    Raises:
        ObjectError: as `requested`.
    """
    if text(part(pod, "status"), "phase") in TERMINAL_PHASES:
        return {}
    return requested(pod)


def requested(pod: JsonMap) -> Mapping[str, int]:
    """What a pod asks for, whether or not it still takes it.

    Raises:
        ObjectError: a part of its spec is no object or list.
    """
    spec = part(pod, "spec")
    running: dict[str, int] = {}
    peak: dict[str, int] = {}
    ports: list[str] = []
    on_host = bool(spec.get("hostNetwork"))
    for container in parts(spec, "initContainers"):
        request = _stated(part(container, "resources"))
        if container.get("restartPolicy") == "Always":
            _add(running, request)
            ports += _ports(container, on_host)
        else:
            _raise(peak, {r: n + running.get(r, 0) for r, n in request.items()})
    for container in parts(spec, "containers"):
        _add(running, _stated(part(container, "resources")))
        ports += _ports(container, on_host)
    _raise(peak, running)
    _of_the_pod(peak, part(spec, "resources"))
    _add(peak, {r: amount_of(r, v) for r, v in part(spec, "overhead").items()})
    peak[PODS] = 1
    peak.update(dict.fromkeys(ports, 1))
    return {resource: count for resource, count in sorted(peak.items()) if count > 0}


def is_extended(resource: str) -> bool:
    """True for device-like resources: `vendor.example/thing`, not Kubernetes' own names."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and not domain.endswith("kubernetes.io")


def is_port(resource: str) -> bool:
    """True for the amounts that stand for host ports."""
    return resource.startswith(_HOST_PORT)


def amount_of(resource: str, value: object) -> int:
    """What a pod's quantity of a resource takes.

    CPU in thousandths, others in whole units, rounded up. 0 for what is not a quantity or is
    negative: nothing can be counted, and no scheduler binds it.
    """
    try:
        return max(0, math.ceil(_scaled(value, resource == "cpu")))
    except QuantityError:
        return 0


def offered(resource: str, value: object) -> int:
    """What a node's quantity of a resource holds, 0 or more.

    CPU in thousandths, others in whole units.

    Raises:
        QuantityError: `value` is not a quantity.
    """
    return max(0, math.floor(_scaled(value, resource == "cpu")))


def amount_text(resource: str, amount: int) -> str:
    """An amount as people write it: `500m`, `64Gi`, `3`; CPU is given in thousandths."""
    if resource == "cpu":
        return f"{amount}m" if amount % 1000 else str(amount // 1000)
    if "/" not in resource:
        for suffix, unit in _BINARY:
            if amount >= unit and amount % unit == 0:
                return f"{amount // unit}{suffix}"
    return str(amount)


# --- host ports --------------------------------------------------------------------------------


def port_keys(protocol: str, port: int, address: str) -> tuple[str, str]:
    """The resources that a host port takes one of: the port, and the port of that address."""
    key = f"{_HOST_PORT}{port}:{protocol}"
    return key, f"{key}@{address or EVERY_ADDRESS}"


def port_conflicts(key: str) -> tuple[str, ...]:
    """Resources of which a node may hold none where a pod wants the port `key`.

    A port of every address conflicts with that port of any address; one of a single address with
    that of the same and of every address. Empty for the first of `port_keys`, which says less.
    """
    port, at, address = key.partition("@")
    if not at:
        return ()
    return (port,) if address == EVERY_ADDRESS else (key, f"{port}@{EVERY_ADDRESS}")


def port_text(key: str) -> str:
    """`8080/TCP`, with the address where it is one."""
    port, _, address = key.removeprefix(_HOST_PORT).replace(":", "/", 1).partition("@")
    return port if address in ("", EVERY_ADDRESS) else f"{port} of {address}"


def _ports(container: JsonMap, on_host: bool) -> Iterator[str]:
    for port in parts(container, "ports"):
        number = port.get("hostPort") or (port.get("containerPort") if on_host else None)
        if isinstance(number, int) and number > 0:
            protocol = str(port.get("protocol") or "TCP")
            yield from port_keys(protocol, number, str(port.get("hostIP") or ""))


def _scaled(value: object, thousandths: bool) -> Fraction | int:
    if type(value) is str and len(value) <= _SHORT:
        return _read(value, thousandths)
    return quantity(value) * (1000 if thousandths else 1)


@functools.lru_cache(maxsize=4096)
def _read(text: str, thousandths: bool) -> Fraction | int:
    """Kept, for a cluster's objects state few different ones; whole amounts as plain numbers."""
    amount = quantity(text) * (1000 if thousandths else 1)
    return int(amount) if amount.denominator == 1 else amount


# --- adding up -----------------------------------------------------------------------------------


def _stated(resources: JsonMap) -> dict[str, int]:
    stated = {**part(resources, "limits"), **part(resources, "requests")}
    return {r: amount_of(r, v) for r, v in stated.items()}


def _of_the_pod(peak: dict[str, int], resources: JsonMap) -> None:
    requests = part(resources, "requests")
    for r, v in {**part(resources, "limits"), **requests}.items():
        if r.startswith(_OF_THE_POD) and (r in requests or r not in peak):
            peak[r] = amount_of(r, v)


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for resource, count in more.items():
        total[resource] = total.get(resource, 0) + count


def _raise(peak: dict[str, int], level: Mapping[str, int]) -> None:
    for resource, count in level.items():
        peak[resource] = max(peak.get(resource, 0), count)
