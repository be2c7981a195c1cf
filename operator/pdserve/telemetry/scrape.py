"""The Prometheus scrape configuration whose labels `promql` relies on.

One job discovers every annotated pod; relabelling puts the pod's own labels on its series:
`namespace`, `instance` (pod name), and for engines `service`, `scenario`, `role`, `group_index`.
Gateways state service and scenario themselves, one series per scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdserve.wire import names


def scrape_config(
    interval: float = 15.0,
    namespaces: Sequence[str] = (),
    kubeconfig: str | None = None,
    job: str = "pdserve",
) -> dict[str, Any]:
    """One element of `scrape_configs`. All namespaces when none is named.

    `interval` in seconds. `kubeconfig`: path for a Prometheus outside the cluster; None inside.
    """
    discovery: dict[str, Any] = {"role": "pod"}
    if namespaces:
        discovery["namespaces"] = {"names": list(namespaces)}
    if kubeconfig is not None:
        discovery["kubeconfig_file"] = kubeconfig
    milliseconds = max(1, round(interval * 1000))
    return {
        "job_name": job,
        "scrape_interval": f"{milliseconds}ms",
        "scrape_timeout": f"{milliseconds}ms",
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": _relabelling(),
    }


def _relabelling() -> list[dict[str, Any]]:
    engine = f"{_label(names.LABEL_ROLE)}"
    rules: list[dict[str, Any]] = [
        {
            "action": "keep",
            "source_labels": [_annotation(names.ANNOTATION_METRICS_SCRAPE)],
            "regex": "true",
        },
        {
            "action": "drop",
            "source_labels": ["__meta_kubernetes_pod_phase"],
            "regex": "Pending|Succeeded|Failed|Unknown",
        },
        {
            # Discovery lists a pod once per declared port; the annotation chooses one of them.
            "action": "replace",
            "source_labels": [
                "__meta_kubernetes_pod_ip",
                _annotation(names.ANNOTATION_METRICS_PORT),
            ],
            "separator": ":",
            "regex": "(.+:.+)",
            "target_label": "__address__",
        },
        _copy("__meta_kubernetes_namespace", "namespace"),
        _copy("__meta_kubernetes_pod_name", "instance"),
        _copy(_label(names.LABEL_COMPONENT), "component"),
    ]
    for source, target in (
        (names.LABEL_SERVICE, "service"),
        (names.LABEL_SCENARIO, "scenario"),
        (names.LABEL_GROUP_INDEX, "group_index"),
    ):
        rules.append(
            {
                "action": "replace",
                "source_labels": [engine, _label(source)],
                "separator": ";",
                "regex": "(?:prefill|decode);(.+)",
                "replacement": "$1",
                "target_label": target,
            }
        )
    return [*rules, _copy(engine, "role")]


def _copy(source: str, target: str) -> dict[str, Any]:
    return {"action": "replace", "source_labels": [source], "target_label": target}


def _label(name: str) -> str:
    return f"__meta_kubernetes_pod_label_{_meta(name)}"


def _annotation(name: str) -> str:
    return f"__meta_kubernetes_pod_annotation_{_meta(name)}"


def _meta(name: str) -> str:
    """Prometheus replaces every character that no label name may have."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
