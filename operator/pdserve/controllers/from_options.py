"""Parts of the operator made from its options: its claim, the ratio loop's source and times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pdserve.controllers.options import OperatorOptions
from pdserve.controllers.ratio.ratio_loop import NoSource
from pdserve.engines import registry as engine_types
from pdserve.kube.claim import Place, ScopeClaim
from pdserve.kube.client import KubeClient
from pdserve.ratio.types import LoopSettings
from pdserve.telemetry.prometheus import PrometheusSettings, PrometheusSource
from pdserve.telemetry.source import MetricsSource

log = logging.getLogger(__name__)

CLAIM: Final = "pdserve-operator-claim"
"""Name of the ConfigMap that says whose the objects of a scope are."""


def make_claim(
    client: KubeClient, options: OperatorOptions, leave: Callable[[Mapping[str, str]], None]
) -> ScopeClaim:
    """Whose the watched objects are. All operators of one release hold the same claim.

    An operator of one namespace claims there; one of all namespaces where every such operator
    looks. `leave` receives which namespaces' objects among the watched ones are another operator's.
    """
    holder = f"{options.lease_namespace}/{options.lease_name}"
    everything = Place(options.claim_namespace, CLAIM, "all namespaces")
    if options.namespace is None:
        return ScopeClaim(client, everything, holder, narrower=True, on_left=leave)
    place = Place(options.namespace, CLAIM, f"namespace {options.namespace}")
    # Of the same place there is one claim.
    wider = everything if options.namespace != options.claim_namespace else None
    return ScopeClaim(client, place, holder, wider=wider, on_left=leave)


def loop_settings(options: OperatorOptions) -> LoopSettings:
    """The ratio loop's settings: its other times shrink with the control period, as one factor."""
    factor = options.control_period / 60.0
    default = LoopSettings()
    return LoopSettings(
        control_period=options.control_period,
        fast_period=options.fast_period,
        window=options.metrics_window,
        cold_start=default.cold_start * factor,
        grow_dwell=default.grow_dwell * factor,
        shrink_dwell=default.shrink_dwell * factor,
        shrink_step=default.shrink_step * factor,
        evidence_window=options.metrics_window * (default.evidence_window / default.window),
        evidence_seconds=options.metrics_window * (default.evidence_seconds / default.window),
        in_flight_limit=default.in_flight_limit * factor,
        stale_after=default.stale_after * factor,
    )


def metrics_source(options: OperatorOptions) -> MetricsSource:
    """Prometheus, or none."""
    if options.prometheus_url is None:
        log.warning("No --prometheus-url: ratios stay as they are in mode Auto")
        return NoSource()
    return PrometheusSource(
        PrometheusSettings(
            options.prometheus_url,
            engines=engine_types.series(),
            window=options.metrics_window,
            stale_after=loop_settings(options).stale_after,
            access=options.prometheus_access,
        )
    )


def decision_log(options: OperatorOptions) -> Callable[[str], None]:
    """Appends a decision, one JSON line, to the file that the options name; or does nothing.

    A file that cannot be written holds no decision up: a warning says so, once until it can.
    """
    if options.decisions_log is None:
        return lambda _line: None
    path, failed = Path(options.decisions_log), False

    def append(line: str) -> None:
        nonlocal failed
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            if not failed:
                log.warning("Decisions are not logged: --decisions-log=%s: %s", path, error)
            failed = True
        else:
            failed = False

    return append
