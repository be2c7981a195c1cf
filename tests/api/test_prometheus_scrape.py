"""The example's scrape job gives every series the labels the queries group by.

Real discovery: a real Prometheus watches pods of a real API server. The pods are objects only;
expositions of this test listen where their status says.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.prometheus import Exposition, eventually, exposition, running_prometheus
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.engines import registry
from pdserve.ratio.types import Quantity, ScenarioSample
from pdserve.telemetry.prometheus import PrometheusSettings, PrometheusSource
from pdserve.telemetry.promql import GATEWAY_SHORTEST, WINDOWED
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import metrics, names

EXAMPLE = Path(__file__).parents[2] / "examples" / "local" / "prometheus.yaml"

pytestmark = pytest.mark.api


def scrape_jobs(kubeconfig: Path, *namespaces: str) -> list[dict[str, Any]]:
    """The example's jobs, for a Prometheus that runs outside the cluster and scrapes often."""
    (text,) = (
        obj["data"]["prometheus.yml"]
        for obj in yaml.safe_load_all(EXAMPLE.read_text())
        if obj["kind"] == "ConfigMap"
    )
    jobs: list[dict[str, Any]] = yaml.safe_load(text)["scrape_configs"]
    for job in jobs:
        job.update(scrape_interval="250ms", scrape_timeout="250ms")
        for discovery in job["kubernetes_sd_configs"]:
            discovery["kubeconfig_file"] = str(kubeconfig)
            discovery["namespaces"] = {"names": list(namespaces)}
    return jobs


def gateway_page() -> Callable[[], str]:
    own = 'service="shop",scenario="chat"'
    series = [*WINDOWED.values(), metrics.GATEWAY_WAITING]
    texts = [f"{metric}{{{own}}}" for metric in series]
    for metric, extra in GATEWAY_SHORTEST.values():
        labels = ",".join([own, *(f'{k}="{v}"' for k, v in extra.items())])
        texts.append(f"{metric}{{{labels}}}")
    inflight = f'{metrics.GATEWAY_INFLIGHT}{{{own},leg="prefill",instance="shop-chat-0-p0"}}'
    return _growing([*texts, inflight])


def engine_page(quantities: dict[str, str]) -> Callable[[], str]:
    return _growing([*quantities.values(), f'{metrics.SLOTS}{{state="total"}}'])


def _growing(texts: list[str]) -> Callable[[], str]:
    scraped = [0]

    def page() -> str:
        scraped[0] += 1
        return exposition(dict.fromkeys(texts, scraped[0]))

    return page


def pod(name: str, port: int, labels: dict[str, str]) -> dict[str, Any]:
    annotations = {
        names.ANNOTATION_METRICS_SCRAPE: "true",
        names.ANNOTATION_METRICS_PORT: str(port),
    }
    ports = [{"name": "http", "containerPort": 8000}, {"name": "transfer", "containerPort": 5600}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {
            "containers": [{"name": "c", "image": "none", "ports": ports}],
            "automountServiceAccountToken": False,
        },
    }


def new_namespace(rest: Rest) -> str:
    name = f"scrape-{uuid.uuid4().hex[:8]}"
    answer = rest.create(
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
    )
    assert answer.code == 201, answer.body
    return name


@pytest.fixture
def namespace(rest: Rest) -> str:
    return new_namespace(rest)


@pytest.fixture
def running(rest: Rest, namespace: str) -> Iterator[Callable[..., None]]:
    """Makes a pod that looks running, with an exposition behind its address."""
    with ExitStack() as stack:

        def make(
            name: str,
            page: Callable[[], str],
            phase: str = "Running",
            elsewhere: str = "",
            **labels: str,
        ) -> None:
            served = stack.enter_context(closing(Exposition(page)))
            where = f"/api/v1/namespaces/{elsewhere or namespace}/pods"
            keys = {
                "service": names.LABEL_SERVICE,
                "scenario": names.LABEL_SCENARIO,
                "role": names.LABEL_ROLE,
            }
            made = rest.create(
                where, pod(name, served.port, {keys[k]: v for k, v in labels.items()})
            )
            assert made.code == 201, made.body
            status = {"phase": phase, "podIP": served.host, "podIPs": [{"ip": served.host}]}
            patched = rest.patch(f"{where}/{name}/status", {"status": status})
            assert patched.code == 200, patched.body

        yield make


async def test_discovered_pods_give_a_whole_sample(
    control_plane: ControlPlane, namespace: str, running: Callable[..., None], tmp_path: Path
) -> None:
    running("gw-1", gateway_page(), service="shop")
    running("gw-2", gateway_page(), service="shop")
    for role, quantities in (
        ("prefill", metrics.PREFILL_SERIES),
        ("decode", metrics.DECODE_SERIES),
    ):
        running(
            f"shop-chat-0-{role[0]}0", engine_page(quantities),
            service="shop", scenario="chat", role=role,
        )  # fmt: skip
    running("gw-done", gateway_page(), phase="Succeeded", service="shop")
    key = ScenarioKey(namespace, "shop", "chat")
    live = LiveInstances(
        frozenset({"gw-1", "gw-2"}), frozenset({"shop-chat-0-p0"}), frozenset({"shop-chat-0-d0"})
    )
    with running_prometheus(tmp_path, scrape_jobs(control_plane.kubeconfig, namespace)) as server:
        series = registry.series()
        source = PrometheusSource(
            PrometheusSettings(server.url, series, window=4.0, stale_after=3.0)
        )

        def whole(sample: object) -> bool:
            return (
                isinstance(sample, ScenarioSample)
                and sample.missing_count == 0
                and more(8, sample.windows[0].offered)
                and more(0, sample.prefill.compute_seconds)
                and more(0, sample.decode.step_context)
            )

        def more(than: float, quantity: Quantity) -> bool:
            return isinstance(quantity, float) and quantity > than

        async def ask(live: LiveInstances) -> object:
            return (await source.sample({key: live}))[key]

        got = await eventually(lambda: ask(live), whole)
        assert isinstance(got, ScenarioSample)
        assert got.windows[0].met == got.windows[0].offered

        def done_is_missing(sample: object) -> bool:
            """A pod that does not run is not scraped."""
            return isinstance(sample, ScenarioSample) and sample.missing == ("gw-done",)

        everything = replace(live, gateways=live.gateways | {"gw-done"})
        await eventually(lambda: ask(everything), done_is_missing)
        await source.close()


async def test_a_pod_that_claims_to_be_anothers_writes_only_its_own_series(
    control_plane: ControlPlane,
    rest: Rest,
    namespace: str,
    running: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Labels that a pod exposes never replace those of the scrape target."""
    foreign = new_namespace(rest)
    claim = f'{{namespace="{namespace}",pod="gw-1",service="shop",scenario="chat"}}'
    running("gw-1", gateway_page(), service="shop")
    rogue = {f"{metric}{claim}": 1e6 for metric in WINDOWED.values()}
    running("rogue", lambda: exposition(rogue), elsewhere=foreign, service="shop")
    jobs = scrape_jobs(control_plane.kubeconfig, namespace, foreign)
    with running_prometheus(tmp_path, jobs) as server:

        async def rows() -> dict[tuple[str, str], float]:
            url = f"{server.url}/api/v1/query?query={metrics.GATEWAY_OFFERED}"
            answer = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
            found = json.loads(answer)["data"]["result"]
            return {
                (r["metric"]["namespace"], r["metric"]["pod"]): float(r["value"][1]) for r in found
            }

        got = await eventually(rows, lambda found: len(found) >= 2)
        assert got.keys() == {(namespace, "gw-1"), (foreign, "rogue")}
        assert got[foreign, "rogue"] == 1e6
        assert got[namespace, "gw-1"] < 1e5
