"""Route table: what a gateway needs to know of one PDService.

One ConfigMap per PDService, version inside, written by the operator and watched by the
gateways. It lists only instances that are linked, ready and not draining, so a gateway never
has to judge an instance's life (architecture invariant 1).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pdserve.terms import ROLES, Role, Slo
from pdserve.terms.json import JsonObject
from pdserve.terms.limits import NO_LIMITS, UsageLimits
from pdserve.wire import bounds
from pdserve.wire.bounds import Fields, WireError
from pdserve.wire.limit_exchange import MAX_TEXT
from pdserve.wire.limits import read_limits

SCHEMA_VERSION = 1
LocalPrefillMode = Literal["Off", "Auto", "Fixed"]
MAX_GATEWAYS = 128
"""Of one table: 64 replicas, and those that come and go in a rollout."""


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
    """One P/D group: requests stay inside it from prefill to decode.

    The last three say what its revision serves where that differs from the table's own (`served`):
    while a new model is rolled out, the groups of the former one go on under their own names.
    """

    index: int
    revision: str
    instances: tuple[RouteInstance, ...]
    models: tuple[str, ...] = ()
    """Names that clients use for it."""
    model: str = ""
    """Name that its engines know."""
    flow: str = ""
    """Engine type."""

    def of_role(self, role: Role) -> tuple[RouteInstance, ...]:
        """Instances of one role, in table order."""
        return tuple(i for i in self.instances if i.role == role)


@dataclass(frozen=True, slots=True)
class RouteScenario:
    """One scenario: which requests it takes (first match in table order wins) and its groups.

    A request matches when its `model` is among the names that its groups serve (`models`, or the
    table's model where none are named; see `served`) and every header in
    `headers` (lower-case names) is equal. `prefill_seconds` predicts T_p as
    `a + b * promptTokens` (None until known). `max_prompt_bytes`: prompts with more bytes of text
    fit into no engine's context and can be refused unread. `max_model_len`: tokens of prompt and
    answer together that every engine takes. Either is 0 while it is unknown.
    `limits` hold over all gateways.
    """

    name: str
    slo: Slo
    groups: tuple[RouteGroup, ...]
    models: tuple[str, ...] = ()
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefill_seconds: tuple[float, float] | None = None
    max_prompt_bytes: int = 0
    max_model_len: int = 0
    prefix_affinity: bool = False
    local_prefill: LocalPrefillMode = "Off"
    """Whether a decode may compute a prompt itself; see `forwarding.local_prefill`."""
    local_prefill_tokens: int = 0
    """Longest such prompt in mode Fixed."""
    decode_batch: int = 0
    """Requests on one decode above which its answers miss TPOT; 0: as many as it has slots."""
    limits: UsageLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class RouteGateway:
    """One gateway of the service; others reach it at `endpoint`."""

    id: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything a gateway serves, at one version (versions only rise).

    `gateways`: those of the service that are ready, the oldest first, where there may be several;
    the first decides about limits for all.
    """

    service: str
    version: int
    model: str
    engine: str
    scenarios: tuple[RouteScenario, ...]
    tier_costs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    gateways: tuple[RouteGateway, ...] = ()

    def to_json(self) -> JsonObject:
        """Plain JSON value, keys in camelCase as on the wire."""
        return {
            "schemaVersion": SCHEMA_VERSION,
            "service": self.service,
            "version": self.version,
            "model": self.model,
            "engine": self.engine,
            "tierCosts": dict(self.tier_costs),
            "scenarios": [_scenario_json(s) for s in self.scenarios],
            **(
                {"gateways": [dataclasses.asdict(g) for g in self.gateways]}
                if self.gateways
                else {}
            ),
        }

    @staticmethod
    def from_json(value: object) -> RouteTable:
        """Parse `to_json`'s value; fields of newer versions are ignored.

        Raises:
            WireError: the value is not a route table of schema version 1; the message has the path.
        """
        table = Fields(value, "route table")
        table.schema(SCHEMA_VERSION)
        return RouteTable(
            service=table.text("service"),
            version=table.integer("version", high=bounds.MAX_VERSION),
            model=table.text("model"),
            engine=table.text("engine"),
            tier_costs=table.integer_map("tierCosts", {}),
            scenarios=tuple(_scenario(s) for s in table.objects("scenarios")),
            gateways=tuple(
                RouteGateway(g.text("id", most=MAX_TEXT), g.endpoint("endpoint"))
                for g in table.objects("gateways", [], most=MAX_GATEWAYS)
            ),
        )


FULL_BYTES = 900_000
"""A table of up to this many bytes says where its instances are in the fabric's own words."""


def encoded(table: RouteTable) -> str:
    """The table as it is stored: one line of JSON in UTF-8, the same for equal tables."""
    value = table.to_json()
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def fitted(table: RouteTable) -> RouteTable:
    """The table, with levels and places numbered where their names would not fit a ConfigMap.

    Gateways compare places and add costs, they show neither: numbers serve as well. At the API's
    bounds (2,048 instances, 8 levels, names of any allowed length) the result is below 1 MiB.
    """
    # Below this many instances not even the longest names come near.
    if sum(len(g.instances) for s in table.scenarios for g in s.groups) <= FULL_BYTES >> 12:
        return table
    if len(encoded(table).encode()) <= FULL_BYTES:
        return table
    levels = {level: str(i) for i, level in enumerate(sorted(table.tier_costs))}
    numbers: dict[tuple[str, str], str] = {}

    def short(instance: RouteInstance) -> RouteInstance:
        domains = {
            levels[level]: numbers.setdefault((level, place), str(len(numbers)))
            for level, place in sorted(instance.domains.items())
            if level in levels
        }
        return dataclasses.replace(instance, domains=domains)

    scenarios = tuple(
        dataclasses.replace(
            s,
            groups=tuple(
                dataclasses.replace(g, instances=tuple(map(short, g.instances))) for g in s.groups
            ),
        )
        for s in table.scenarios
    )
    costs = {levels[level]: cost for level, cost in table.tier_costs.items()}
    return dataclasses.replace(table, scenarios=scenarios, tier_costs=costs)


@dataclass(frozen=True, slots=True)
class Served:
    """What a P/D group serves: `names` are the clients', `model` is the engines'."""

    names: tuple[str, ...]
    model: str
    flow: str


def served(table: RouteTable, scenario: RouteScenario, group: RouteGroup | None = None) -> Served:
    """What one group of a scenario serves; without a group, what a new one would."""
    names = scenario.models or (table.model,)
    if group is None:
        return Served(names, table.model, table.engine)
    return Served(group.models or names, group.model or table.model, group.flow or table.engine)


def _scenario_json(s: RouteScenario) -> JsonObject:
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
        **({"maxPromptBytes": s.max_prompt_bytes} if s.max_prompt_bytes else {}),
        **({"maxModelLen": s.max_model_len} if s.max_model_len else {}),
        **({"prefixAffinity": "Auto"} if s.prefix_affinity else {}),
        **({"localPrefill": s.local_prefill} if s.local_prefill != "Off" else {}),
        **({"localPrefillTokens": s.local_prefill_tokens} if s.local_prefill_tokens else {}),
        **({"decodeBatch": s.decode_batch} if s.decode_batch else {}),
        **({"limits": s.limits.to_json()} if s.limits else {}),
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
                **_own(g),
            }
            for g in s.groups
        ],
    }


def _own(group: RouteGroup) -> JsonObject:
    """The optional fields of a group; left out where the table's own values hold."""
    own: JsonObject = {
        "models": list(group.models), "model": group.model, "flow": group.flow
    }  # fmt: skip
    return {key: value for key, value in own.items() if value}


def _scenario(scenario: Fields) -> RouteScenario:
    match = scenario.object("match", {})
    slo = scenario.object("slo")
    return RouteScenario(
        name=scenario.text("name"),
        slo=Slo(
            ttft=slo.number("ttft"),
            handoff=slo.number("handoff"),
            tpot=slo.number("tpot"),
            attainment=slo.number("attainment", high=1.0),
        ),
        groups=tuple(_group(g) for g in scenario.objects("groups")),
        models=tuple(match.texts("models", [])),
        headers={k.lower(): v for k, v in match.text_map("headers", {}).items()},
        prefill_seconds=_line(scenario, "prefillSeconds"),
        max_prompt_bytes=scenario.integer("maxPromptBytes", 0),
        max_model_len=scenario.integer("maxModelLen", 0),
        prefix_affinity=scenario.text("prefixAffinity", "Off") == "Auto",
        local_prefill=_LOCAL_PREFILL.get(scenario.text("localPrefill", "Off"), "Off"),
        local_prefill_tokens=scenario.integer("localPrefillTokens", 0),
        decode_batch=scenario.integer("decodeBatch", 0),
        limits=read_limits(scenario.object("limits", {})),
    )


_LOCAL_PREFILL: Mapping[str, LocalPrefillMode] = {"Auto": "Auto", "Fixed": "Fixed"}


def _line(scenario: Fields, key: str) -> tuple[float, float] | None:
    found = scenario.items(key, [], most=2)
    if not found:
        return None
    path = f"{scenario.path}.{key}"
    if len(found) != 2:
        raise WireError(f"{path}: want two numbers, got {len(found)}")
    return bounds.number(found[0], path), bounds.number(found[1], path)


def _group(group: Fields) -> RouteGroup:
    return RouteGroup(
        index=group.integer("index"),
        revision=group.text("revision", ""),
        instances=tuple(_instance(i) for i in group.objects("instances")),
        models=tuple(group.texts("models", [])),
        model=group.text("model", ""),
        flow=group.text("flow", ""),
    )


def _instance(instance: Fields) -> RouteInstance:
    return RouteInstance(
        id=instance.text("id"),
        role=instance.choice("role", ROLES),
        endpoint=instance.endpoint("endpoint"),
        slots=instance.integer("slots"),
        domains=instance.text_map("domains", {}),
    )
