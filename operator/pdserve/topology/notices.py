"""What taints and conditions of a Node announce: its end, or that it is not quite well.

Clouds say some time before that they take a node back (spot instances, maintenance), by a taint or
by a condition; node-problem-detector reports troubles as conditions. A RoCEDomain may list others
than the defaults below. Neighbours: `nodes` reads signals, `fabric` keeps new instances away,
`groups.ending` moves those that are there.

Sources of the defaults: documentation of the AWS Node Termination Handler, of GKE (graceful node
shutdown), of AKS (node auto-drain, scheduled events) and of node-problem-detector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pdserve.terms.json import JsonMap
from pdserve.terms.raw import text
from pdserve.terms.times import timestamp

SignalKind = Literal["taint", "condition"]
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Taint by which a person says that the node is shut down for sure."""
MAX_SIGNALS = 32
"""Read of one node; the others count as not there."""
_KUBERNETES_TAINTS = "node.kubernetes.io/"
_KUBELET_CONDITIONS = frozenset(
    {"Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"}
)


@dataclass(frozen=True, slots=True, order=True)
class Signal:
    """A taint, or a condition that is True; Kubernetes' own ones are left out."""

    kind: SignalKind
    name: str
    """Key of the taint, type of the condition."""
    since: float | None
    """Seconds since the epoch, by the clock of who wrote it; None where it is not said."""


@dataclass(frozen=True, slots=True)
class EndSignal:
    """A signal that announces a node's end."""

    kind: SignalKind
    name: str
    seconds: float
    """From the signal to the end."""


@dataclass(frozen=True, slots=True)
class NodeEnd:
    """The announced end of one node."""

    node: str
    text: str
    """Who says so, e.g. `taint cloud.google.com/impending-node-termination`."""
    signal: str
    """Name of the signal; "" where an annotation says when."""
    since: float | None
    seconds: float
    at: float | None
    """As an annotation says: seconds since the epoch."""

    def when(self, first_seen: float) -> tuple[float, float]:
        """When it was announced and when the node ends, in seconds since the epoch.

        `first_seen`: when the reader saw the signal first. It counts where the signal has no time,
        and where that is later.
        """
        begun = first_seen if self.since is None else min(self.since, first_seen)
        return begun, self.at if self.at is not None else begun + self.seconds


END_NOTICES = (
    EndSignal("taint", "aws-node-termination-handler/spot-itn", 120),
    EndSignal("taint", "aws-node-termination-handler/scheduled-maintenance", 120),
    EndSignal("taint", "aws-node-termination-handler/asg-lifecycle-termination", 120),
    EndSignal("taint", "cloud.google.com/impending-node-termination", 30),
    EndSignal("condition", "PreemptScheduled", 30),
    EndSignal("condition", "TerminateScheduled", 300),
    EndSignal("condition", "RedeployScheduled", 600),
    EndSignal("condition", "RebootScheduled", 900),
)
"""What announces an end where the RoCEDomain says nothing else."""
DEGRADED = frozenset(
    {
        "KernelDeadlock",
        "ReadonlyFilesystem",
        "FrequentKubeletRestart",
        "FrequentContainerdRestart",
        "FrequentUnregisterNetDevice",
    }
)
"""Conditions of node-problem-detector with which a node takes no new instance."""


def signals_of(taints: Iterable[JsonMap], conditions: Iterable[JsonMap]) -> tuple[Signal, ...]:
    """Signals of a Node's `spec.taints` and `status.conditions`, in order."""
    found = {
        Signal("taint", text(t, "key"), timestamp(t.get("timeAdded")))
        for t in taints
        if text(t, "key") and not text(t, "key").startswith(_KUBERNETES_TAINTS)
    }
    found |= {
        Signal("condition", text(c, "type"), timestamp(c.get("lastTransitionTime")))
        for c in conditions
        if c.get("status") == "True" and text(c, "type") not in ("", *_KUBELET_CONDITIONS)
    }
    order = sorted(found, key=lambda s: (s.kind, s.name, s.since or 0.0))
    return tuple(order[:MAX_SIGNALS])


def announced_end(
    node: str, signals: Iterable[Signal], ends_at: float | None, notices: Iterable[EndSignal]
) -> NodeEnd | None:
    """The end that a node's signals announce, the soonest by their usual length; None without any.

    `ends_at`: what its annotation says, which counts before all others.
    """
    by_name = {(n.kind, n.name): n for n in notices}
    told = [
        NodeEnd(node, f"{s.kind} {s.name}", s.name, s.since, notice.seconds, ends_at)
        for s in signals
        if (notice := by_name.get((s.kind, s.name))) is not None
    ]
    if told:
        return min(told, key=lambda end: (end.seconds, end.signal))
    if ends_at is not None:
        return NodeEnd(node, "annotation", "", None, 0.0, ends_at)
    return None
