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
MAX_SPARES = 8
"""Spares of one P/D group."""
MAX_NODES = 8
"""Pods of one instance."""

OWNED_FLAGS = ("role", "bind", "port", "transfer-port", "slots", "model-name")
_OWNED_FLAG = rf"^--({'|'.join(OWNED_FLAGS)})(=.*)?$"


class ObjectRef(ApiModel):
    """The name of another object in the same place."""

    name: ObjectName
    """Name of the object."""


_BELOW = Text(
    256,
    pattern=r"^([^/.\x00-\x1f][^/\x00-\x1f]*)(/[^/.\x00-\x1f][^/\x00-\x1f]*)*$",
    says="a directory inside it such as models/llama",
)


class ModelClaim(ApiModel):
    """A persistentVolumeClaim that holds weights."""

    name: ObjectName
    """Name of the claim, in the namespace of the instances."""
    sub_path: Annotated[str, _BELOW] | None = None
    """Directory of the claim that is mounted; absent: all of it."""


class ModelImage(ApiModel):
    """A container image (or OCI artifact) whose files are the weights.

    The node pulls it as it pulls the engine's, once for all its pods, with the Secrets of
    `engine.imagePullSecrets` (Kubernetes' image volumes).
    """

    reference: Image
    """The image."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """As of a container; absent: what Kubernetes picks for the image's tag."""
    sub_path: Annotated[str, _BELOW] | None = None
    """Directory of the image that is mounted; absent: all of it."""


class ModelUri(ApiModel):
    """Weights that an init container of each instance downloads and checks."""

    url: Annotated[
        str,
        Text(
            1024,
            pattern=r"^https?://[^/?#@\s\x00-\x1f]+/([^?#\s\x00-\x1f]*/)?"
            r"[A-Za-z0-9][A-Za-z0-9._-]*$",
            says="an http:// or https:// URL that ends with a file's name, without user, query or "
            "fragment (credentials go into the Secret)",
        ),
    ]
    """What is downloaded first."""
    sha256: Annotated[
        str, Text(64, pattern=r"^[0-9a-f]{64}$", says="64 hexadecimal digits in lower case")
    ]
    """SHA-256 of what `url` names. A download with another one is refused."""
    content: Literal["File", "Manifest", "Archive"] = "File"
    """What `url` names. File: one file that the engine loads, such as a GGUF file. Manifest: a list
    as `sha256sum` prints it, of files that lie beside it. Archive: a tar file, compressed or
    not."""
    secret_ref: ObjectRef | None = None
    """Secret of the namespace with what the server asks for: key `token` (Bearer),
    `username` and `password` (Basic), `authorization` (the header's value), `query` (of a
    presigned URL) or `ca.crt`. The author must be allowed to get it."""
    max_gigabytes: Annotated[int, Int(1, 65536)] = 500
    """Most that is written on the node, in units of 10^9 bytes; more is refused."""


class ModelSource(ApiModel):
    """Where the engine finds the weights: at a path, and what is mounted there."""

    rules = (
        Rule(
            "!(has(self.pvc) || has(self.image) || has(self.uri)) || self.path != '/'",
            "must be below / where pvc, image or uri is mounted there",
            lambda v: v.path != "/" or not (v.pvc or v.image or v.uri),
            ".path",
        ),
        Rule(
            "[has(self.pvc), has(self.image), has(self.uri)].filter(x, x).size() <= 1",
            "must have at most one of pvc, image and uri: each is mounted at path",
            lambda v: sum(s is not None for s in (v.pvc, v.image, v.uri)) <= 1,
        ),
    )

    path: Annotated[
        str, Text(256, pattern=r"^/[^\x00-\x1f]*$", says="an absolute path such as /models/llama")
    ]
    """Absolute path inside the engine's container: of the image, of a volume from `template`, or
    where `pvc`, `image` or `uri` is mounted, read-only."""
    pvc: ModelClaim | None = None
    """A persistentVolumeClaim with the weights."""
    image: ModelImage | None = None
    """An image with the weights, pulled by the node."""
    uri: ModelUri | None = None
    """Weights that are downloaded before the engine starts."""


ProfilePreset = Literal["llama2-70b-h100x8", "llama2-70b-a100x8"]
"""Published measurements of one instance (`ratio.presets`)."""


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
    """What one instance takes on its node, or on each of its nodes."""

    devices_per_node: Annotated[int, Int(1, 64)]
    """Devices of `resource` that each of its pods requests."""
    nodes: Annotated[int, Int(1, MAX_NODES)] = 1
    """Pods that serve together as one instance, in one leaf of the fabric; all else here, and
    `template`, is of each of them. One for each node that the engine is to run on; two may
    share a node that has devices for both."""
    resource: ResourceName
    """Extended resource that counts the devices."""

    @property
    def devices(self) -> int:
        """Of all pods of one instance."""
        return self.devices_per_node * self.nodes


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
    """An instance that is not ready this long after its pod was bound counts as faulty. While
    weights are downloaded (`model.source.uri`), this time does not run."""
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
