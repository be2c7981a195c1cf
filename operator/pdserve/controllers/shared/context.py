"""What every reconciler is given, made once per process.

Nothing here is a source of truth: whatever it remembers (promises, verified tokens, the newest
attainment) can be lost at any moment and is read again from the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pdserve.controllers.shared.caches import Caches
from pdserve.controllers.shared.clock import Clock, NodeSilence
from pdserve.controllers.shared.device_claims import Claims
from pdserve.controllers.shared.linker import Linker
from pdserve.controllers.shared.metrics import OperatorMetrics
from pdserve.controllers.shared.node_changes import NodeChanges
from pdserve.controllers.shared.promises import Promises
from pdserve.controllers.shared.scope import Scope
from pdserve.controllers.shared.shapes_in_use import ShapesInUse
from pdserve.controllers.shared.skipped import Skipped
from pdserve.controllers.shared.taken import Taken
from pdserve.controllers.shared.tokens import Tokens
from pdserve.controllers.shared.unsettled import Unsettled
from pdserve.controllers.shared.volumes import Volumes
from pdserve.desired.service_status import Attainment
from pdserve.engines.pod_parts import PodSettings
from pdserve.engines.pod_profile import Rights
from pdserve.kube.client import KubeClient
from pdserve.kube.events import EventRecorder
from pdserve.kube.resource import ObjectKey
from pdserve.kube.workqueue import WorkQueue


@dataclass(frozen=True, slots=True)
class OperatorContext:
    """Tools of the reconcilers."""

    client: KubeClient
    caches: Caches
    taken: Taken
    """What is free in each RoCEDomain's fabric."""
    shapes: ShapesInUse
    """Of the instances in each RoCEDomain."""
    unsettled: Unsettled
    """Which ScenarioGroups a change of any node may concern."""
    queue: WorkQueue
    events: EventRecorder
    linker: Linker
    tokens: Tokens
    metrics: OperatorMetrics
    gateway_image: str
    pod_settings: PodSettings
    operator_namespace: str
    """Where operators run."""
    rights: Rights
    """What pod templates may ask for beyond the restricted Pod Security profile."""
    clock: Clock
    """Never steps; see the module."""
    silence: NodeSilence
    node_changes: NodeChanges
    """Which nodes may take now what they refused."""
    volumes: Volumes
    """Where the volumes of instances are."""
    skips: Skipped
    """Counts and reports objects that could not be read."""
    scope: Scope
    """Which objects are left to other operators."""
    claims: Claims
    """Devices kept for lost instances, and who waits for devices."""
    promises: Promises
    """Devices of pods that are being created."""
    attainment: dict[ObjectKey, Attainment] = field(default_factory=dict)
    """Per ScenarioGroup."""

    def now(self) -> float:
        """Seconds since the epoch, on the clock that never steps."""
        return self.clock.now()

    def skipped(self, obj: object, where: str, error: Exception) -> None:
        """Tell that `obj` was left out in `where` (a metric's label) because of `error`."""
        self.skips(obj, where, error)
