"""PDService: what the model owner writes. One model, its scenarios, and their bounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pdserve.api.base import ApiModel, Entries, Int, Items, Number, Observed, Rule, Text
from pdserve.api.common import (
    EngineSpec,
    FabricSpec,
    ModelSpec,
    ObjectRef,
    PodPatch,
    ProfilePreset,
    Recovery,
    RoleTemplate,
)
from pdserve.api.custom_resource import Column, CustomResource, KindInfo
from pdserve.api.meta import Condition, Generation
from pdserve.api.network import NetworkIsolation
from pdserve.api.rollout import Rollout
from pdserve.api.scenario import Scenario
from pdserve.api.scenariogroup import DecisionRecord, RoleCount
from pdserve.api.strings import (
    SERVICE_NAME,
    Line,
    ResourceName,
    ScenarioName,
    Short,
    name_rule,
)

MAX_SCENARIOS = 32
MAX_MATCH_TEXT = 16_384
"""Characters in which a PDService may say what its scenarios match: so that its route table fits
one ConfigMap."""
MAX_SERVICE_INSTANCES = 2048
"""Instances a PDService may reach at its bounds, so that its route table fits one ConfigMap."""


class Budget(ApiModel):
    """The most devices of one resource that all scenarios may use together."""

    resource: ResourceName
    """Extended resource; must be the one of a role."""
    devices: Annotated[int, Int(1, 1_000_000)]
    """Most devices."""


class GatewayAuth(ApiModel):
    """Who may call the gateway."""

    secret_ref: ObjectRef
    """Secret whose values are the accepted API keys (Bearer tokens), one per key."""


class GatewayTls(ApiModel):
    """The certificate of the clients' port."""

    secret_ref: ObjectRef
    """Secret of type kubernetes.io/tls (`tls.crt`, `tls.key`). A new certificate is taken up within
    seconds of reaching the pod."""


class GatewayCors(ApiModel):
    """Which web pages may call the gateway from a browser."""

    origins: Annotated[
        tuple[
            Annotated[
                str,
                Text(
                    256,
                    pattern=r"^([*]|https?://[a-zA-Z0-9.-]+(:[0-9]{1,5})?)$",
                    says="* or an origin such as https://chat.example.com",
                ),
            ],
            ...,
        ],
        Items(32, min=1),
    ]
    """Origins that are answered; `*`: all."""


_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"


class GatewayTracing(ApiModel):
    """Where gateways send traces of requests, by OTLP/HTTP."""

    endpoint: Annotated[
        str,
        Text(
            512,
            pattern=rf"^https?://[a-zA-Z0-9._-]+(:{_PORT})?(/[a-zA-Z0-9._~/-]*)?$",
            says="a URL such as http://otel-collector.monitoring:4318",
        ),
    ]
    """A collector; `/v1/traces` is added."""
    sampling_percent: Annotated[float, Number(0, 100)] | None = None
    """Share of the requests that come without a trace of their client's; of the others the client
    decides. Absent: 100."""


_QUANTITIES = Entries(
    16,
    key=Text(
        64,
        pattern=r"^[a-z0-9]([a-z0-9./-]*[a-z0-9])?$",
        says="a resource such as cpu or memory",
    ),
    value=Text(
        32,
        pattern=r"^[0-9]+(\.[0-9]+)?([numkMGTPE]|[KMGTPE]i)?$",
        says="a quantity such as 500m or 256Mi",
    ),
)


class GatewayResources(ApiModel):
    """What one gateway container asks for and is limited to."""

    requests: Annotated[dict[str, str], _QUANTITIES] = Field(default_factory=dict)
    """Over the operator's own, 100m CPU and 128Mi memory."""
    limits: Annotated[dict[str, str], _QUANTITIES] = Field(default_factory=dict)
    """A limit without a request is its request too."""


class Gateway(ApiModel):
    """The OpenAI front door of this service."""

    replicas: Annotated[int, Int(1, 64)] = 1
    """Gateway pods."""
    port: Annotated[int, Int(1, 65535)] = 80
    """Port of the gateway's Service."""
    auth: GatewayAuth | None = None
    """Who may call; absent: any client that can reach it."""
    tls: GatewayTls | None = None
    """Serve HTTPS; absent: HTTP."""
    max_body_bytes: Annotated[int, Int(1024, 64 << 20)] | None = None
    """Largest body of a request; absent: 4 MiB. Engines have a bound of their own."""
    cors: GatewayCors | None = None
    """Which web pages may call; absent: none from a browser."""
    tracing: GatewayTracing | None = None
    """Where traces go; absent: requests are not traced, and a client's trace is passed on."""
    resources: GatewayResources | None = None
    """What one gateway asks for; absent: the operator's choice."""
    template: PodPatch | None = None
    """Patch over the gateways' pods: labels, annotations, and of the spec tolerations,
    nodeSelector, affinity, topologySpreadConstraints, priorityClassName, runtimeClassName,
    schedulerName, securityContext, dnsPolicy, dnsConfig, hostAliases."""


def _match_text(scenario: Scenario) -> int:
    match = scenario.match
    return sum(map(len, match.models)) + sum(len(k) + len(v) for k, v in match.headers.items())


def _smallest(spec: PDServiceSpec, resource: str) -> int:
    return sum(
        s.groups.min * sum(
            bounds.min * role.instance.devices
            for role, bounds in ((spec.prefill, s.ratio.prefill), (spec.decode, s.ratio.decode))
            if role.instance.resource == resource
        )
        for s in spec.scenarios
    )  # fmt: skip


def _distinct(items: Iterable[object]) -> bool:
    listed = list(items)
    return all(a != b for i, a in enumerate(listed) for b in listed[i + 1 :])


class PDServiceSpec(ApiModel):
    """One model, served with prefill and decode on separate instances."""

    rules = (
        Rule(
            "self.scenarios.all(s, s.name == self.scenarios[self.scenarios.size() - 1].name"
            " || (has(s.match) && ((has(s.match.models) && s.match.models.size() > 0)"
            " || (has(s.match.headers) && s.match.headers.size() > 0))))",
            "every scenario but the last needs match.models or match.headers: requests take the "
            "first scenario that matches, and one without a match takes all",
            lambda v: not any(s.match.everything for s in v.scenarios[:-1]),
            ".scenarios",
        ),
        Rule(
            "self.scenarios.all(s, !has(s.match) || self.scenarios.exists_one(o,"
            " has(o.match) && o.match == s.match))",
            "every scenario needs a match of its own: of two equal ones the second gets no request",
            lambda v: _distinct(s.match for s in v.scenarios),
            ".scenarios",
        ),
        Rule(
            "self.scenarios.map(s, s.groups.max * (s.ratio.prefill.max + s.ratio.decode.max)).sum()"
            f" <= {MAX_SERVICE_INSTANCES}",
            "groups.max x (ratio.prefill.max + ratio.decode.max), summed over scenarios, must be "
            f"at most {MAX_SERVICE_INSTANCES} instances; lower a max or split the service",
            lambda v: (
                sum(s.groups.max * (s.ratio.prefill.max + s.ratio.decode.max) for s in v.scenarios)
                <= MAX_SERVICE_INSTANCES
            ),
            ".scenarios",
        ),
        Rule(
            "self.scenarios.map(s, !has(s.match) ? 0 : (has(s.match.models)"
            " ? s.match.models.map(m, m.size()).sum() : 0) + (has(s.match.headers)"
            " ? s.match.headers.map(k, k.size() + s.match.headers[k].size()).sum() : 0)).sum()"
            f" <= {MAX_MATCH_TEXT}",
            f"match of all scenarios together must have at most {MAX_MATCH_TEXT} characters in "
            "models and headers; gateways get all of them in one table",
            lambda v: sum(_match_text(s) for s in v.scenarios) <= MAX_MATCH_TEXT,
            ".scenarios",
        ),
        Rule(
            "!has(self.budget) || self.budget.all(b, b.resource == self.prefill.instance.resource"
            " || b.resource == self.decode.instance.resource)",
            "must name a resource that prefill.instance or decode.instance requests",
            lambda v: all(
                b.resource in (v.prefill.instance.resource, v.decode.instance.resource)
                for b in v.budget
            ),
            ".budget",
        ),
        Rule(
            "!has(self.budget) || self.budget.all(b, self.scenarios.map(s, s.groups.min * ("
            "(self.prefill.instance.resource == b.resource ?"
            " s.ratio.prefill.min * self.prefill.instance.devicesPerNode"
            " * self.prefill.instance.nodes : 0) + "
            "(self.decode.instance.resource == b.resource ?"
            " s.ratio.decode.min * self.decode.instance.devicesPerNode"
            " * self.decode.instance.nodes : 0))).sum() <= b.devices)",
            "devices must be enough for every scenario at its minimum: groups.min x (prefill.min x "
            "prefill devicesPerNode x nodes + decode.min x decode devicesPerNode x nodes), summed "
            "over scenarios",
            lambda v: all(_smallest(v, b.resource) <= b.devices for b in v.budget),
            ".budget",
        ),
    )

    model: ModelSpec
    """The model that is served."""
    engine: EngineSpec
    """The inference engine that every instance runs."""
    prefill: RoleTemplate
    """Prefill instances."""
    decode: RoleTemplate
    """Decode instances."""
    fabric: FabricSpec
    """Which fabric the instances run on."""
    scenarios: Annotated[tuple[Scenario, ...], Items(MAX_SCENARIOS, min=1, keys=("name",))]
    """In order of priority: a request takes the first whose match fits."""
    budget: Annotated[tuple[Budget, ...], Items(8, keys=("resource",))] = ()
    """Most devices per resource; absent: no limit but the bounds."""
    profile: ProfilePreset | None = None
    """Published measurements like those of one instance here. The first counts are sized for
    `scenarios[].expected` with them, and they serve until its own times are learned. Absent: the
    first counts are the lower bounds."""
    recovery: Recovery = Recovery()
    """How patiently instances are given up."""
    rollout: Rollout = Rollout()
    """How a new revision replaces the P/D groups of the one before it."""
    gateway: Gateway = Gateway()
    """The OpenAI front door."""
    network_policy: NetworkIsolation | None = None
    """Who may connect to this service's pods; absent: no NetworkPolicy is made."""


class DeviceUse(Observed):
    """Devices of one resource."""

    resource: ResourceName
    """Extended resource."""
    used: Annotated[int, Int(0, (1 << 31) - 1)]
    """Devices that pods of this service hold."""
    budget: Annotated[int, Int(0, (1 << 31) - 1)] | None = None
    """The limit, where one is set."""


class ScenarioStatus(Observed):
    """One scenario."""

    name: ScenarioName
    """Its name."""
    groups: Annotated[int, Int(0, 1 << 20)] = 0
    """P/D groups that serve."""
    prefill: RoleCount = RoleCount()
    """Prefill instances over all groups."""
    decode: RoleCount = RoleCount()
    """Decode instances over all groups."""
    attainment_percent: Annotated[int, Int(0, 100)] | None = None
    """Share of offered requests that met the SLO, over the ratio loop's window; absent:
    unknown."""
    last_decision: DecisionRecord | None = None
    """The newest decision of the ratio loop."""


class Summary(Observed):
    """One line for `kubectl get`, derived from the other fields."""

    scenarios: Short = "-"
    """Scenarios with a ready prefill and a ready decode instance, of all."""
    prefill: Short = "-"
    """Prefill instances, ready of wanted."""
    decode: Short = "-"
    """Decode instances, ready of wanted."""
    slo: Short = "-"
    """Lowest attainment of a scenario, `-` when none is known."""
    devices: Line = "-"
    """Devices used, with budget where one is set; one entry per resource."""


class PDServiceStatus(Observed):
    """What was observed."""

    observed_generation: Generation = 0
    """The `metadata.generation` this status was found for."""
    conditions: Annotated[tuple[Condition, ...], Items(16, keys=("type",))] = ()
    """Ready, Progressing, Degraded, SLOMet, AdviceAvailable, ApprovalPending, TemplateValid, and
    CredentialsRotated once a rotation was asked for."""
    url: Line | None = None
    """Where clients reach the gateway."""
    devices: Annotated[tuple[DeviceUse, ...], Items(16, keys=("resource",))] = ()
    """Devices in use."""
    scenarios: Annotated[tuple[ScenarioStatus, ...], Items(MAX_SCENARIOS, keys=("name",))] = ()
    """Each scenario, in the order of spec."""
    summary: Summary | None = None
    """What `kubectl get` shows; always derived from the fields above."""

    @model_validator(mode="after")
    def _derive(self) -> PDServiceStatus:
        # Frozen for callers; the derived field is filled while the object is being made.
        object.__setattr__(self, "summary", summarise(self))
        return self


def summarise(status: PDServiceStatus) -> Summary | None:
    """The numbers that `kubectl get` shows, summed over scenarios.

    None before anything was observed.
    """
    if not status.scenarios:
        return None
    serving = sum(1 for s in status.scenarios if s.prefill.ready and s.decode.ready)
    known = [s.attainment_percent for s in status.scenarios if s.attainment_percent is not None]
    return Summary(
        scenarios=f"{serving}/{len(status.scenarios)}",
        prefill=_ready_of([s.prefill for s in status.scenarios]),
        decode=_ready_of([s.decode for s in status.scenarios]),
        slo=f"{min(known)}%" if known else "-",
        devices=_devices(status.devices),
    )


def _ready_of(counts: list[RoleCount]) -> str:
    return f"{sum(c.ready for c in counts)}/{sum(c.desired for c in counts)}"


def _devices(devices: tuple[DeviceUse, ...]) -> str:
    shown = (str(d.used) if d.budget is None else f"{d.used}/{d.budget}" for d in devices)
    return ", ".join(shown) or "0"


class PDService(CustomResource):
    """A model served over the OpenAI API with prefill and decode on separate instances."""

    rules = (name_rule(SERVICE_NAME),)
    info: ClassVar[KindInfo] = KindInfo(
        name="PDService",
        plural="pdservices",
        short="pds",
        scope="Namespaced",
        columns=(
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Scenarios", ".status.summary.scenarios", description="Serving, of all"),
            Column("Prefill", ".status.summary.prefill", description="Instances ready/wanted"),
            Column("Decode", ".status.summary.decode", description="Instances ready/wanted"),
            Column("SLO", ".status.summary.slo", description="Lowest attainment of a scenario"),
            Column("Devices", ".status.summary.devices", description="Used/budget"),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', wide=True),
            Column("URL", ".status.url", wide=True),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    kind: Literal["PDService"] = "PDService"
    spec: PDServiceSpec
    status: PDServiceStatus = PDServiceStatus()
