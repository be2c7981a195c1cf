"""Route table: what a gateway needs to know of one PDService.

One ConfigMap per PDService, version inside, written by the operator and watched by the
gateways. It lists only instances that are linked, ready and not draining, so a gateway never
has to judge an instance's life (architecture invariant 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pdserve.wire.peers import ROLES, Role, WireError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RouteInstance:
    """One routable instance; `slots` is its b_p (prefill) or b_d (decode)."""

    id: str
    role: Role
    endpoint: str
    slots: int
    domains: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouteGroup:
    """One P/D group: requests stay inside it from prefill to decode."""

    index: int
    revision: str
    instances: tuple[RouteInstance, ...]

    def of_role(self, role: Role) -> tuple[RouteInstance, ...]:
        """Instances of one role, in table order."""
        return tuple(i for i in self.instances if i.role == role)


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets of a scenario; times in seconds, attainment as a fraction in (0, 1]."""

    ttft: float
    handoff: float
    tpot: float
    attainment: float


@dataclass(frozen=True, slots=True)
class RouteScenario:
    """One scenario: which requests it takes (first match in table order wins) and its groups.

    A request matches when its `model` is in `models` (if any are named) and every header in
    `headers` (lower-case names) is equal. `prefill_seconds` predicts T_p as
    `a + b * promptTokens` (None until known).
    """

    name: str
    slo: Slo
    groups: tuple[RouteGroup, ...]
    models: tuple[str, ...] = ()
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefill_seconds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything a gateway serves, at one version (versions only rise)."""

    service: str
    version: int
    model: str
    engine: str
    scenarios: tuple[RouteScenario, ...]
    tier_costs: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys in camelCase as on the wire."""
        return {
            "schemaVersion": SCHEMA_VERSION,
            "service": self.service,
            "version": self.version,
            "model": self.model,
            "engine": self.engine,
            "tierCosts": dict(self.tier_costs),
            "scenarios": [_scenario_json(s) for s in self.scenarios],
        }

    @staticmethod
    def from_json(value: Any) -> RouteTable:
        """Parse `to_json`'s value.

        Raises:
            WireError: the value is not a route table of schema version 1.
        """
        try:
            if value["schemaVersion"] != SCHEMA_VERSION:
                raise WireError(
                    f"route table: schemaVersion {value['schemaVersion']!r}, "
                    f"this process reads {SCHEMA_VERSION}"
                )
            return RouteTable(
                service=str(value["service"]),
                version=int(value["version"]),
                model=str(value["model"]),
                engine=str(value["engine"]),
                tier_costs={str(k): int(v) for k, v in value.get("tierCosts", {}).items()},
                scenarios=tuple(_scenario(s) for s in value["scenarios"]),
            )
        except WireError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WireError(f"route table: {type(error).__name__}: {error}") from error


def _scenario_json(s: RouteScenario) -> dict[str, Any]:
    return {
        "name": s.name,
        "match": {"models": list(s.models), "headers": dict(s.headers)},
        "slo": {
            "ttft": s.slo.ttft,
            "handoff": s.slo.handoff,
            "tpot": s.slo.tpot,
            "attainment": s.slo.attainment,
        },
        "prefillSeconds": list(s.prefill_seconds) if s.prefill_seconds else None,
        "groups": [
            {
                "index": g.index,
                "revision": g.revision,
                "instances": [
                    {
                        "id": i.id,
                        "role": i.role,
                        "endpoint": i.endpoint,
                        "slots": i.slots,
                        "domains": dict(i.domains),
                    }
                    for i in g.instances
                ],
            }
            for g in s.groups
        ],
    }


def _scenario(value: Any) -> RouteScenario:
    match = value.get("match", {})
    slo = value["slo"]
    predicted = value.get("prefillSeconds")
    return RouteScenario(
        name=str(value["name"]),
        slo=Slo(
            float(slo["ttft"]), float(slo["handoff"]), float(slo["tpot"]), float(slo["attainment"])
        ),
        groups=tuple(_group(g) for g in value["groups"]),
        models=tuple(str(m) for m in match.get("models", [])),
        headers={str(k).lower(): str(v) for k, v in match.get("headers", {}).items()},
        prefill_seconds=(float(predicted[0]), float(predicted[1])) if predicted else None,
    )


def _group(value: Any) -> RouteGroup:
    return RouteGroup(
        index=int(value["index"]),
        revision=str(value.get("revision", "")),
        instances=tuple(_instance(i) for i in value["instances"]),
    )


def _instance(value: Any) -> RouteInstance:
    if value["role"] not in ROLES:
        raise WireError(f"route table: instance {value.get('id')!r} has role {value['role']!r}")
    return RouteInstance(
        id=str(value["id"]),
        role=value["role"],
        endpoint=str(value["endpoint"]).rstrip("/"),
        slots=int(value["slots"]),
        domains={str(k): str(v) for k, v in value.get("domains", {}).items()},
    )
