"""`kubectl pdserve explain` shows up to which length decodes compute prompts, by each gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.ask_cluster import PODS, Cluster, gateway, service
from tests.support.fake_apiserver import status

from pdserve.api import PDService
from pdserve.cli import kubectl, view_local
from pdserve.exposition import Registry
from pdserve.gateway.metrics import GatewayMetrics, ScenarioMetrics
from pdserve.terms import Slo

METRICS = f"{PODS}/demo-gateway-{{}}:8000/proxy/metrics"


def with_local(**local: Any) -> Any:
    """The example's service, whose scenario chat lets decodes compute prompts."""
    value = service()
    for scenario in value["spec"]["scenarios"]:
        if scenario["name"] == "chat":
            scenario["routing"] = {"localPrefill": local}
    return value


def exposition(crossover: int) -> list[str]:
    """Of a gateway with two scenarios; it was asked for three prompts in `chat`."""
    families = GatewayMetrics()
    slo = Slo(1.0, 1.0, 1.0, 0.9)
    chat = ScenarioMetrics(families, "demo", "chat", slo)
    ScenarioMetrics(families, "demo", "search", slo).local_crossover(7)
    chat.local_crossover(crossover)
    for result in ("served", "served", "refused"):
        chat.local_prefill(result)  # type: ignore[arg-type]  # a str of a tuple
    registry: Registry = families.registry
    return registry.render().splitlines()


def explain(cluster: Cluster, folder: Path, *options: str) -> int:
    where = ["-n", "prod", "--kubeconfig", str(cluster.kubeconfig(folder))]
    return kubectl.main(["explain", *where, "demo", *options])


def test_each_ready_gateway_says_its_crossover(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = with_local(mode="Auto")
    pods = [gateway(f"demo-gateway-{n}", labels={}) for n in "abc"]
    cluster.has(value, *pods, gateway("late", ready=False, labels={}))
    cluster.logs[METRICS.format("a")] = [*exposition(321)]
    cluster.logs[METRICS.format("b")] = ["# of an older version"]
    cluster.refused[METRICS.format("c")] = status(403, "Forbidden", "pods/proxy is forbidden")
    assert explain(cluster, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "Prompts that decodes compute themselves, scenario chat: Auto" in shown
    assert (
        "demo-gateway-a: crossover 321 tokens now; since its start 2 served, 1 refused, 0 failed"
        in shown
    )
    assert "demo-gateway-b: not shown: it is of a version without them" in shown
    assert "demo-gateway-c: not shown:" in shown
    assert "pods/proxy is forbidden" in shown
    assert "late" not in shown.partition("Prompts that")[2]
    assert "scenario search" not in shown


def test_gateways_are_not_asked_where_no_decode_computes_prompts(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.has(service(), gateway("demo-gateway-a", labels={}))
    assert explain(cluster, tmp_path) == 0
    cluster.has(with_local(mode="Auto"), gateway("demo-gateway-a", labels={}))
    assert explain(cluster, tmp_path, "search") == 0
    assert "Prompts that decodes" not in capsys.readouterr().out


def test_fixed_says_its_length_and_that_no_gateway_is_ready() -> None:
    made = PDService.parse(with_local(mode="Fixed", maxTokens=64))
    assert view_local.wanted(made, None)
    assert view_local.render(made, "chat", {}).splitlines()[1:] == [
        "  up to 64 tokens",
        "  no gateway is ready",
    ]
