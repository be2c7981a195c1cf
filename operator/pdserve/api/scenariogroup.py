"""ScenarioGroup: the P/D groups of one scenario. Made from a PDService, or written by hand."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pdserve.api.base import MAX_INT64, ApiModel, Entries, Int, Items, Number, Observed, Rule, Text
from pdserve.api.common import (
    MAX_GROUPS,
    MAX_INSTANCES,
    MAX_SPARES,
    EngineSpec,
    FabricSpec,
    ModelSpec,
    ProfilePreset,
    Recovery,
    RoleTemplate,
)
from pdserve.api.custom_resource import Column, CustomResource, KindInfo, Scale
from pdserve.api.meta import Condition, Generation
from pdserve.api.rollout import Rollout, RolloutStatus
from pdserve.api.strings import (
    GROUP_NAME,
    LabelValue,
    Line,
    ObjectName,
    Paragraph,
    Reason,
    ResourceName,
    ScenarioName,
    ServiceName,
    Time,
    name_rule,
)
from pdserve.terms import Role

MAX_BESIDE = 24
"""Resources that a claim names beside its devices."""
MAX_FABRIC = 1 << 16
"""Characters of a RoCEDomain's spec as JSON: more than the largest one has."""


class GroupRole(RoleTemplate):
    """A role of every P/D group: how its instances are made, and how many there are."""

    replicas: Annotated[int, Int(1, MAX_INSTANCES)] | None = None
    """Instances of this role in each P/D group. No default: only the owner of the counts
    writes it."""


class ScenarioGroupSpec(ApiModel):
    """The wanted P/D groups of one scenario."""

    rules = (
        Rule(
            "self.service == oldSelf.service",
            "is immutable: delete this ScenarioGroup and create one for the other service",
            None,
            ".service",
        ),
        Rule(
            "self.scenario == oldSelf.scenario",
            "is immutable: delete this ScenarioGroup and create one for the other scenario",
            None,
            ".scenario",
        ),
    )

    service: ServiceName
    """PDService whose gateways route to these groups. Immutable."""
    scenario: ScenarioName
    """Scenario of that PDService. Immutable."""
    model: ModelSpec
    """The model that is served."""
    engine: EngineSpec
    """The inference engine that every instance runs."""
    replicas: Annotated[int, Int(0, MAX_GROUPS)] | None = None
    """P/D groups; also `/scale`. No default: only the owner of the counts writes it."""
    prefill: GroupRole
    """Prefill instances."""
    decode: GroupRole
    """Decode instances."""
    fabric: FabricSpec
    """Which fabric the instances run on."""
    recovery: Recovery = Recovery()
    """How patiently instances are given up."""
    profile: ProfilePreset | None = None
    """Published measurements to start learning from; absent: nothing is known at first."""
    spares: Annotated[int, Int(0, MAX_SPARES)] = 0
    """Decodes that each P/D group keeps beyond its count; they get no requests."""
    rollout: Rollout = Rollout()
    """How a new revision replaces the P/D groups of the one before it."""


class RoleCount(Observed):
    """Instances of one role."""

    desired: Annotated[int, Int(0, 1 << 20)] = 0
    """Wanted."""
    ready: Annotated[int, Int(0, 1 << 20)] = 0
    """Linked, ready and not draining."""


class GroupStatus(Observed):
    """One P/D group."""

    index: Annotated[int, Int(0, 1 << 20)]
    """Its index (label `pdserve.io/group-index`)."""
    revision: Annotated[str, Text(63, min=0)] = ""
    """Revision of its instances."""
    prefill: RoleCount = RoleCount()
    """Prefill instances."""
    decode: RoleCount = RoleCount()
    """Without spares."""
    spares: RoleCount = RoleCount()
    """Decode instances."""
    cells: Annotated[tuple[Line, ...], Items(64)] = ()
    """Where they run, e.g. `leaf-a: 2P1D`."""
    cross_leaf_percent: Annotated[int, Int(0, 100)] = 0
    """Share of the KV traffic that leaves its leaf, from the placement."""
    table_version: Annotated[int, Int(0, MAX_INT64, bits=64)] = 0
    """Version of its newest peer table."""


class DecisionCounts(Observed):
    """The three counts that one decision sets together."""

    groups: Annotated[int, Int(0, MAX_GROUPS)]
    """P/D groups."""
    prefill: Annotated[int, Int(0, MAX_INSTANCES)]
    """Prefill instances in each."""
    decode: Annotated[int, Int(0, MAX_INSTANCES)]
    """Decode instances in each."""


class DecisionRecord(Observed):
    """What the ratio loop decided, and why."""

    time: Time
    """When."""
    from_: Annotated[DecisionCounts, Field(alias="from")]
    """Counts before."""
    to: DecisionCounts
    """Counts decided."""
    outcome: Literal["Applied", "Advised", "Proposed", "Blocked", "Held"]
    """What became of it: Held changes nothing, Advised and Blocked did not act, Proposed waits for
    a person."""
    reason: Reason
    """Why, as one CamelCase word."""
    message: Paragraph = ""
    """Why, for people."""
    inputs: Annotated[
        dict[str, str],
        Entries(
            24,
            key=Text(63, pattern=r"^[A-Za-z][A-Za-z0-9]*$", says="a camelCase word"),
            value=Text(64, min=0),
        ),
    ] = Field(default_factory=dict)
    """The rounded numbers it rests on."""


class ProposalStatus(Observed):
    """A change that waits for a person (mode Approve), or that a person rejected a while ago."""

    id: Annotated[str, Text(8)]
    """What an answer names."""
    time: Time
    """When it was made."""
    expires: Time
    """When it is withdrawn; of a rejected one, until when it is not made again."""
    from_: Annotated[DecisionCounts, Field(alias="from")]
    """Counts now."""
    to: DecisionCounts
    """Counts proposed."""
    reason: Reason
    """Why, as one CamelCase word."""
    message: Paragraph = ""
    """Why, for people."""
    attainment_percent: Annotated[float, Number(0, 100)] | None = None
    """Share of offered requests that are predicted to meet the SLO with them."""
    rejected: bool = False
    """A person rejected it."""


class SuspectNode(Observed):
    """A node that failed a slot lately."""

    node: ObjectName
    """Its name."""
    time: Time
    """Of the newest fault there."""
    fault: Annotated[str, Text(64, min=0)] = ""
    """That fault, e.g. `Unschedulable`."""


class RepairStatus(Observed):
    """A slot's history of faults, so that a restart of the operator keeps its patience."""

    slot: LabelValue
    """Durable place in a P/D group, e.g. `shop-chat-0-p1`."""
    failures: Annotated[int, Int(0, 1 << 20)]
    """Faults in a row."""
    last_failure_time: Time
    """When the newest was seen."""
    suspect_node: ObjectName | None = None
    """Node to avoid: the newest of `suspects`."""
    suspects: Annotated[tuple[SuspectNode, ...], Items(16)] = ()
    """Nodes to avoid, each for a while after its newest fault; the newest last."""
    not_before_time: Time | None = None
    """No new pod in this slot before."""
    last_uid: Annotated[str, Text(64)] | None = None
    """Uid of the pod counted last, so that one fault is counted once."""
    fault: Annotated[str, Text(64, min=0)] = ""
    """Its fault, e.g. `CrashLoop`."""
    message: Paragraph = ""
    """What was seen of it, e.g. the scheduler's own words."""


class TakenAmount(Observed):
    """How much of one resource a pod took on its node."""

    resource: Annotated[str, Text(128)]
    """E.g. `memory`, or `hostport:9000:TCP` for a port of the node."""
    amount: Annotated[int, Int(0, MAX_INT64, bits=64)]
    """CPU in thousandths of a core, memory in bytes, anything else in whole units."""


class ClaimStatus(Observed):
    """Devices that a lost instance left to its ScenarioGroup, until they are used or given up."""

    slot: LabelValue
    """Durable place in a P/D group, e.g. `shop-chat-0-p1`, for which they are kept."""
    pod: ObjectName
    """The pod that held them."""
    uid: Annotated[str, Text(253, min=0)] = ""
    """Uid of that pod, as far as it is known."""
    group_index: Annotated[int, Int(0, 1 << 20)]
    """Index of the P/D group."""
    role: Role
    """Role of the instance."""
    node: ObjectName
    """Where the devices are."""
    resource: ResourceName
    """Extended resource that counts the devices; where the pod took several, the first by name."""
    devices: Annotated[int, Int(0, 1 << 20)]
    """How many."""
    beside: Annotated[tuple[TakenAmount, ...], Items(MAX_BESIDE, keys=("resource",))] = ()
    """What else the pod took there."""


class KnownFabric(Observed):
    """A RoCEDomain as it was last read."""

    domain: ObjectName
    """Its name."""
    spec: Annotated[str, Text(MAX_FABRIC)]
    """Its spec, as JSON."""


class ScenarioGroupStatus(Observed):
    """What was observed."""

    observed_generation: Generation = 0
    """The `metadata.generation` this status was found for."""
    replicas: Annotated[int, Int(0, 1 << 20)] = 0
    """P/D groups that have pods."""
    ready_replicas: Annotated[int, Int(0, 1 << 20)] = 0
    """P/D groups that serve with all their instances."""
    selector: Annotated[str, Text(1024, min=0)] = ""
    """Matches exactly one pod per P/D group, so that an autoscaler on `/scale` counts groups."""
    groups: Annotated[tuple[GroupStatus, ...], Items(128, keys=("index",))] = ()
    """Each P/D group, draining ones included."""
    decisions: Annotated[tuple[DecisionRecord, ...], Items(10)] = ()
    """The last ten, oldest first."""
    proposal: ProposalStatus | None = None
    """What waits for a person (mode Approve)."""
    repairs: Annotated[tuple[RepairStatus, ...], Items(1024, keys=("slot",))] = ()
    """Slots that had faults lately."""
    claims: Annotated[tuple[ClaimStatus, ...], Items(1024)] = ()
    """Devices kept for instances to be replaced: other P/D groups do not get them meanwhile."""
    fabric: KnownFabric | None = None
    """The RoCEDomain: when it is deleted, instances are replaced in it as it was."""
    rollout: RolloutStatus | None = None
    """The rollout of the revision that is wanted."""
    conditions: Annotated[tuple[Condition, ...], Items(16, keys=("type",))] = ()
    """Ready, Linked, Progressing, Placed, RatioInBounds, TemplateValid; Degraded once an object
    around the instances was refused."""


class ScenarioGroup(CustomResource):
    """The P/D groups of one scenario: `replicas` groups of prefill and decode instances.

    Where it was made from a PDService, field manager `pdserve` owns the spec, except the three
    counts (`replicas`, `prefill.replicas`, `decode.replicas`): in ratio modes Auto, Advise,
    Approve and Fixed field manager `pdserve-counts` owns them and undoes other edits, in External
    the last writer does. A change of mode keeps the counts as they are.
    """

    rules = (name_rule(GROUP_NAME),)
    info: ClassVar[KindInfo] = KindInfo(
        name="ScenarioGroup",
        plural="scenariogroups",
        short="psg",
        scope="Namespaced",
        scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
        columns=(
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Groups", ".spec.replicas", "integer", "P/D groups wanted"),
            Column("Groups-Ready", ".status.readyReplicas", "integer", "P/D groups serving"),
            Column("Prefill", ".spec.prefill.replicas", "integer", "Prefill instances per group"),
            Column("Decode", ".spec.decode.replicas", "integer", "Decode instances per group"),
            Column("Placed", '.status.conditions[?(@.type=="Placed")].status'),
            Column("Linked", '.status.conditions[?(@.type=="Linked")].status', wide=True),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', wide=True),
            Column("Service", ".spec.service", wide=True),
            Column("Scenario", ".spec.scenario", wide=True),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    kind: Literal["ScenarioGroup"] = "ScenarioGroup"
    spec: ScenarioGroupSpec
    status: ScenarioGroupStatus = ScenarioGroupStatus()
