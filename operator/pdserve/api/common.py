"""Parts that a PDService and its ScenarioGroups share: model, engine, roles, fabric, recovery."""

from __future__ import annotations

from typing import Annotated, Literal

from pdserve.api.base import ApiModel, Int, Items, Preserved, Rule, Text
from pdserve.api.strings import EngineType, Image, LevelName, ModelName, ObjectName, ResourceName
from pdserve.terms.json import JsonObject

MAX_GROUPS = 64
"""P/D groups of one scenario."""
MAX_INSTANCES = 64
"""Instances of one role in one P/D group."""

OWNED_FLAGS = ("role", "bind", "port", "transfer-port", "slots", "model-name")
_OWNED_FLAG = rf"^--({'|'.join(OWNED_FLAGS)})(=.*)?$"


class ObjectRef(ApiModel):
    """The name of another object in the same place."""

    name: ObjectName
    """Name of the object."""


class ModelClaim(ApiModel):
    """A persistentVolumeClaim that holds weights."""

    name: ObjectName
    """Name of the claim, in the namespace of the instances."""
    sub_path: (
        Annotated[
            str,
            Text(
                256,
                pattern=r"^([^/.\x00-\x1f][^/\x00-\x1f]*)(/[^/.\x00-\x1f][^/\x00-\x1f]*)*$",
                says="a directory inside the claim such as models/llama",
            ),
        ]
        | None
    ) = None
    """Directory of the claim that is mounted; absent: all of it."""


class ModelSource(ApiModel):
    """Where the engine finds the weights."""

    rules = (
        Rule(
            "!has(self.pvc) || self.path != '/'",
            "pvc needs a path below /: it is mounted there",
            lambda v: v.pvc is None or v.path != "/",
            ".path",
        ),
    )

    path: Annotated[
        str, Text(256, pattern=r"^/[^\x00-\x1f]*$", says="an absolute path such as /models/llama")
    ]
    """Absolute path inside the engine's container: of the image, of a volume from `template`, or
    where `pvc` is mounted."""
    pvc: ModelClaim | None = None
    """The persistentVolumeClaim to mount at `path`, read-only, in every instance; absent: none."""


class ModelSpec(ApiModel):
    """The model that is served."""

    name: ModelName
    """What clients put into the OpenAI field `model`, and what `/v1/models` lists."""
    source: ModelSource | None = None
    """Weights; absent: the engine's own default model."""


class EngineSpec(ApiModel):
    """The inference engine that every instance runs."""

    type: EngineType
    """Which adapter renders, links and calls the instances. The operator's image has some and may
    be given others (docs/engines.md); a name that it does not know makes condition
    TemplateValid, with the names that it knows."""
    image: Image
    """Container image of the engine."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """As in a pod; absent: what Kubernetes picks for the image's tag."""
    image_pull_secrets: Annotated[tuple[ObjectRef, ...], Items(8, keys=("name",))] = ()
    """Secrets of the namespace that hold registry credentials."""


class InstanceShape(ApiModel):
    """What one instance takes on its node."""

    devices_per_node: Annotated[int, Int(1, 64)]
    """Devices of `resource` that the instance requests."""
    resource: ResourceName
    """Extended resource that counts the devices."""


class EnvVar(ApiModel):
    """An environment variable of the engine's container."""

    rules = (
        Rule(
            "!self.name.startsWith('PDSERVE_')",
            "must not begin with PDSERVE_: the operator sets those; use another name",
            lambda v: not v.name.startswith("PDSERVE_"),
            ".name",
        ),
    )

    name: Annotated[
        str,
        Text(
            128,
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            says="letters, digits and '_', not starting with a digit",
        ),
    ]
    """Name of the variable."""
    value: Annotated[str, Text(4096, min=0)] = ""
    """Its value, taken literally."""


class PodPatch(ApiModel):
    """A strategic merge patch over the pod that the engine adapter renders.

    For what the adapter does not know: tolerations, nodeSelector, priorityClassName, volumes.
    The result is checked by a dry-run create, not by this schema.
    """

    metadata: Annotated[JsonObject, Preserved()] | None = None
    """Labels and annotations to add; those of pdserve win."""
    spec: Annotated[JsonObject, Preserved()] | None = None
    """Pod spec fields; containers are merged by name (`engine` is the adapter's)."""


class RoleTemplate(ApiModel):
    """How the instances of one role (prefill or decode) are made."""

    rules = (
        Rule(
            f"!has(self.args) || self.args.all(a, !a.matches('{_OWNED_FLAG}'))",
            "must not set --role, --bind, --port, --transfer-port, --slots or --model-name: the "
            "operator sets them (use maxConcurrency for slots, model.name for the model's name)",
            lambda r: (
                not any(
                    a == f"--{f}" or a.startswith(f"--{f}=") for a in r.args for f in OWNED_FLAGS
                )
            ),
            ".args",
        ),
    )

    instance: InstanceShape
    """What one instance takes on its node."""
    max_concurrency: Annotated[int, Int(1, 4096)]
    """Requests one instance executes at once: its slots (b_p of prefill, b_d of decode). It
    rejects what comes above, it never queues."""
    args: Annotated[tuple[Annotated[str, Text(1024, min=0)], ...], Items(64)] = ()
    """Further arguments of the engine."""
    env: Annotated[tuple[EnvVar, ...], Items(64, keys=("name",))] = ()
    """Further environment variables of the engine."""
    startup_deadline_seconds: Annotated[int, Int(1, 86400)] = 900
    """An instance that is not ready this long after its pod was bound counts as faulty."""
    template: PodPatch | None = None
    """Patch over the rendered pod."""


class Locality(ApiModel):
    """How close together the instances of one P/D group are placed."""

    rules = (
        Rule(
            "self.mode != 'Required' || has(self.level)",
            "mode Required needs level: the name of the RoCEDomain level that must hold the group",
            lambda v: v.mode != "Required" or v.level is not None,
        ),
    )

    mode: Literal["Preferred", "Required"] = "Preferred"
    """Preferred places a group elsewhere rather than not at all; Required waits."""
    level: LevelName | None = None
    """RoCEDomain level inside one part of which a group should stay; absent: the innermost that
    fits."""


class FabricSpec(ApiModel):
    """Which fabric the instances run on."""

    domain_ref: ObjectRef
    """The RoCEDomain."""
    locality: Locality = Locality()
    """How close together the instances of one P/D group are placed."""


class Recovery(ApiModel):
    """How patiently instances are given up."""

    drain_seconds: Annotated[int, Int(0, 3600)] = 60
    """Longest time a drained instance may finish its requests before its pod is deleted.

    A stopped gateway gives its streams as long, at least 30 s.
    """
    node_suspect_seconds: Annotated[int, Int(1, 3600)] = 30
    """Time a node may be silent or not ready before its instances count as lost."""
