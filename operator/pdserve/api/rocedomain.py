"""RoCEDomain: what the platform engineer writes once per fabric. Levels, costs, exceptions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import StrictBool

from pdserve.api.base import ApiModel, Entries, Int, Items, Observed, Rule
from pdserve.api.custom_resource import Column, CustomResource, KindInfo
from pdserve.api.meta import Condition, Generation
from pdserve.api.strings import (
    LABEL_KEY,
    LABEL_VALUE,
    ConditionType,
    LabelKey,
    LabelValue,
    LevelName,
    Line,
    ResourceName,
    Short,
)
from pdserve.api.units import Bandwidth

MAX_LEVELS = 8
HOSTNAME = "kubernetes.io/hostname"


class NodeSelector(ApiModel):
    """Which nodes belong to the fabric."""

    match_labels: Annotated[dict[str, str], Entries(16, key=LABEL_KEY, value=LABEL_VALUE, min=1)]
    """Labels that a node must all have."""


class Uplink(ApiModel):
    """The links from one part of a level to the level above it."""

    bandwidth: Bandwidth
    """Their sum, in one direction."""


class Level(ApiModel):
    """One level of the network's tree, named by a node label."""

    name: LevelName
    """Name, e.g. `leaf`; pods get the label `topology.pdserve.io/<name>`."""
    node_label: LabelKey
    """Node label whose value says in which part of this level a node is."""
    hop_cost: Annotated[int, Int(0, 1_000_000)]
    """Relative cost of a byte between nodes in different parts of this level (it leaves one by
    its uplink)."""
    uplink: Uplink | None = None
    """Links of each part to the level above; absent: never a bottleneck."""


class Override(ApiModel):
    """An exception for one part of a level."""

    level: LevelName
    """Name of the level."""
    value: LabelValue
    """Value of the level's node label that names the part."""
    cordoned: StrictBool
    """True: nothing new is placed there; what runs stays."""


class EndNotice(ApiModel):
    """What announces that a node ends soon: a taint or a condition."""

    rules = (
        Rule(
            "has(self.taint) != has(self.condition)",
            "must name either a taint or a condition",
            lambda v: (v.taint is None) != (v.condition is None),
        ),
    )

    taint: LabelKey | None = None
    """Key of a taint, with any effect."""
    condition: ConditionType | None = None
    """Type of a condition of the Node that is True."""
    seconds: Annotated[int, Int(1, 86_400)]
    """From the notice to the end of the node."""


class RoCEDomainSpec(ApiModel):
    """A fabric as a tree of levels over labelled nodes."""

    rules = (
        Rule(
            "self.levels.all(l, self.levels.exists_one(o, o.nodeLabel == l.nodeLabel))",
            "every level needs a nodeLabel of its own",
            lambda v: len({x.node_label for x in v.levels}) == len(v.levels),
            ".levels",
        ),
        Rule(
            f"self.levels.all(l, l.nodeLabel != '{HOSTNAME}'"
            " || l.name == self.levels[self.levels.size() - 1].name)",
            f"nodeLabel {HOSTNAME} is a single node and must be the last (innermost) level",
            lambda v: all(x.node_label != HOSTNAME for x in v.levels[:-1]),
            ".levels",
        ),
        Rule(
            "self.levels.map(l, -l.hopCost).isSorted()",
            "hopCost must not grow from one level to the next: levels are listed from the outermost"
            " to the innermost, and near is cheaper than far",
            lambda v: all(
                a.hop_cost >= b.hop_cost for a, b in zip(v.levels, v.levels[1:], strict=False)
            ),
            ".levels",
        ),
        Rule(
            "!has(self.overrides) || self.overrides.all(o,"
            " self.levels.exists(l, l.name == o.level))",
            "level must be the name of one of spec.levels",
            lambda v: {o.level for o in v.overrides} <= {x.name for x in v.levels},
            ".overrides",
        ),
    )

    node_selector: NodeSelector
    """Which nodes belong to the fabric; a node belongs to one RoCEDomain."""
    levels: Annotated[tuple[Level, ...], Items(MAX_LEVELS, min=1, keys=("name",))]
    """From the outermost to the innermost."""
    overrides: Annotated[tuple[Override, ...], Items(256, keys=("level", "value"))] = ()
    """Exceptions for single parts."""
    missing_label_policy: Literal["Exclude", "UnknownDomain"] = "Exclude"
    """What to do with a node that lacks a level's label: leave it out, or use it as a part of
    its own, as far from every other as can be."""
    end_notices: Annotated[tuple[EndNotice, ...], Items(32)] | None = None
    """What announces the end of a node: instances there get a successor at once, and drain before
    it. Absent: notices of AWS, GKE and AKS (docs/drains.md); empty: none but the annotation
    `pdserve.io/ends-at`."""
    degraded_conditions: Annotated[tuple[ConditionType, ...], Items(32)] | None = None
    """Conditions of a Node with which it takes no new instance; what runs there stays. Absent:
    those of node-problem-detector (docs/drains.md)."""
    address_source: Literal["NodeAnnotation"] = "NodeAnnotation"
    """Where RoCE addresses of devices come from: annotation `pdserve.io/roce-devices`."""


class NodeCounts(Observed):
    """Nodes of the fabric."""

    total: Annotated[int, Int(0, 1 << 20)] = 0
    """Nodes that the selector matches."""
    ready: Annotated[int, Int(0, 1 << 20)] = 0
    """Of these, in use: labelled, ready and schedulable."""
    excluded: Annotated[int, Int(0, 1 << 20)] = 0
    """Left out for a missing or contradictory label."""
    unhealthy_devices: Annotated[int, Int(0, 1 << 24)] = 0
    """Devices reported unhealthy."""


class LevelStatus(Observed):
    """One level as found."""

    name: LevelName
    """Its name."""
    domains: Annotated[int, Int(0, 1 << 20)]
    """Parts found."""


class FreeDevices(Observed):
    """What is left of one resource."""

    resource: ResourceName
    """Extended resource."""
    devices: Annotated[int, Int(0, 1 << 24)]
    """Healthy devices that no pod holds."""
    largest_group: Short | None = None
    """The largest P/D group that still fits, e.g. `4P4D`, of instances as the first ScenarioGroup
    here has them; of one device each where the operator serves one namespace."""


class WorstPart(Observed):
    """A part of the fabric that needs attention."""

    level: LevelName
    """Its level."""
    value: LabelValue
    """Its label value."""
    message: Line
    """What is wrong."""


class RoCEDomainStatus(Observed):
    """What was observed."""

    observed_generation: Generation = 0
    """The `metadata.generation` this status was found for."""
    topology_version: Short | None = None
    """Hash of the tree; changes when the tree does."""
    nodes: NodeCounts = NodeCounts()
    """Nodes of the fabric."""
    levels: Annotated[tuple[LevelStatus, ...], Items(MAX_LEVELS, keys=("name",))] = ()
    """Each level, from the outermost."""
    free: Annotated[tuple[FreeDevices, ...], Items(16, keys=("resource",))] = ()
    """Free devices per resource."""
    worst: Annotated[tuple[WorstPart, ...], Items(10)] = ()
    """At most ten parts, the worst first."""
    conditions: Annotated[tuple[Condition, ...], Items(16, keys=("type",))] = ()
    """LabelsComplete, TreeConsistent, Ready."""


class RoCEDomain(CustomResource):
    """A RoCE fabric: which nodes belong to it and how far apart they are."""

    info: ClassVar[KindInfo] = KindInfo(
        name="RoCEDomain",
        plural="rocedomains",
        short="rdom",
        scope="Cluster",
        columns=(
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Nodes", ".status.nodes.total", "integer"),
            Column("Nodes-Ready", ".status.nodes.ready", "integer"),
            Column("Free", ".status.free[0].devices", "integer", "Devices of the first resource"),
            Column("Largest-Free", ".status.free[0].largestGroup", description="P/D group"),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', wide=True),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    kind: Literal["RoCEDomain"] = "RoCEDomain"
    spec: RoCEDomainSpec
    status: RoCEDomainStatus = RoCEDomainStatus()
