"""The operator's own metrics, under controller-runtime's names where it has one.

The same names let known dashboards and alerts work. The work queue, caches, client and Lease
declare theirs in `kube`; the names of what gateways and engines expose are in `wire.metrics`.
"""

from __future__ import annotations

from typing import Literal

from pdserve import __version__
from pdserve.exposition import Registry
from pdserve.exposition.process_metrics import tell_process

Result = Literal["success", "requeue", "error"]


class OperatorMetrics:
    """Counters and histograms of the reconcilers and of the ratio loop."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        tell_process(registry, "operator", __version__)
        self.reconciles = registry.counter(
            "controller_runtime_reconcile_total",
            "Reconciliations by controller and result (success, requeue, error).",
            ("controller", "result"),
        )
        self.errors = registry.counter(
            "controller_runtime_reconcile_errors_total",
            "Reconciliations that failed.",
            ("controller",),
        )
        self.seconds = registry.histogram(
            "controller_runtime_reconcile_time_seconds",
            "Duration of one reconciliation.",
            ("controller",),
        )
        self.workers = registry.gauge(
            "controller_runtime_max_concurrent_reconciles",
            "Objects of one namespace reconciled at once.",
            ("controller",),
        )
        self.actions = registry.counter(
            "pdserve_operator_actions_total",
            "Actions of group plans carried out, by kind.",
            ("action",),
        )
        self.faults = registry.counter(
            "pdserve_operator_substitutions_total",
            "Instances replaced because of a fault.",
            ("service", "scenario"),
        )
        self.decisions = registry.counter(
            "pdserve_operator_ratio_decisions_total",
            "Ratio decisions by outcome and reason.",
            ("service", "scenario", "outcome", "reason"),
        )
        self.refusals = registry.counter(
            "pdserve_operator_refused_objects_total",
            "Objects not taken over because another owner controls them.",
            ("kind",),
        )

        self.skipped = registry.counter(
            "pdserve_operator_skipped_objects_total",
            "Objects left out because they could not be read, by kind and by where: filter, index, "
            "observe, fabric, reconcile, ratio, link.",
            ("kind", "where"),
        )

    def reconciled(self, controller: str, result: Result, seconds: float) -> None:
        """Count one reconciliation."""
        self.reconciles.labels(controller, result).inc()
        self.seconds.labels(controller).observe(seconds)
        if result == "error":
            self.errors.labels(controller).inc()
