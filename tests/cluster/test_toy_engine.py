"""An engine type of another package serves: its adapter is in the images, and nowhere else.

The toy engine (tests/toy_engine, an entry point and four faces) has paths, headers and series of
its own. Images with it are made as docs/engines.md says: its package and its metadata lie beside
pdserve.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support import scenarios as s
from tests.support.cluster import running_cluster
from tests.support.following import Following
from tests.support.installed import (
    Installed,
    fetch,
    fixed,
    install,
    make_namespace,
    pdservice,
    scenario,
)
from tests.support.process_cluster import ProcessCluster
from tests.support.traffic import MODEL, client

from localcluster.agent.images import ENV_RELEASES
from pdserve.engines import registry
from pdserve.wire import calls, names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "toy_engine"
TAG = "with-toy"
NAMESPACE = "toys"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
DRAIN_SECONDS = 300
"""A drain that is waited out would end the test: an instance says itself that it is idle."""
ENGINE = {"type": "Toy", "image": f"pdserve/engine:{TAG}"}


@dataclass(frozen=True)
class Site:
    cluster: ProcessCluster
    prometheus: str

    def apply(self, *counts: int, engine: dict[str, str] = ENGINE) -> None:
        document = pdservice(
            NAMESPACE, NAMESPACE, scenario("chat", fixed(*counts)), engine=engine,
            recovery={"drainSeconds": DRAIN_SECONDS, "nodeSuspectSeconds": 30},
        )  # fmt: skip
        self.cluster.apply(document, namespace=NAMESPACE)

    def gateway(self) -> str:
        (pod,) = s.wait_gateways(self.cluster, NAMESPACE, NAMESPACE, 1)
        return self.cluster.url(pod)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Rows of a Prometheus query."""
        text = urllib.parse.quote(query)
        answer = json.loads(fetch(f"{self.prometheus}/api/v1/query?query={text}"))
        rows: list[dict[str, Any]] = answer["data"]["result"]
        return rows


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A cluster whose operator, gateways and engines have the toy beside pdserve; 1x(2P2D)."""
    base = tmp_path_factory.mktemp("toy")
    image = base / "releases" / TAG / "operator"
    image.mkdir(parents=True)
    for path in (ROOT / "operator" / "pdserve", *TOY.iterdir()):
        (image / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_RELEASES, str(base / "releases"))
        with running_cluster(base / "state", name="toy") as access:
            cluster = ProcessCluster(access)
            made: Installed = install(cluster, {"images.tag": TAG})
            make_namespace(cluster, NAMESPACE)
            site = Site(cluster, made.prometheus)
            site.apply(1, 2, 2)
            s.wait_service(cluster, NAMESPACE, NAMESPACE)
            yield site


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_it_serves_prefill_and_decode_apart(site: Site, stream: bool) -> None:
    api = client(site.gateway())
    raw = api.completions.with_raw_response.create(
        model=MODEL, prompt="Once upon a time", max_tokens=12, temperature=0, stream=stream
    )
    answer = raw.parse()
    assert isinstance(answer, openai.Stream) == stream
    parts = answer if isinstance(answer, openai.Stream) else [answer]
    assert "".join(part.choices[0].text for part in parts if part.choices).strip()
    roles = {
        role: {s.name_of(p) for p in s.pods(site.cluster, NAMESPACE, role=role)}
        for role in ("prefill", "decode")
    }
    assert raw.headers[calls.HEADER_PREFILL] in roles["prefill"]
    assert raw.headers[calls.HEADER_DECODE] in roles["decode"]


def test_it_answers_under_its_own_names_only(site: Site) -> None:
    """What is served above went over these paths, headers and series, and no others."""
    (pod, *_) = s.pods(site.cluster, NAMESPACE, role="prefill")
    url = site.cluster.url(pod)
    assert "toy_slots" in fetch(f"{url}/toy/metrics")
    assert "pdserve_engine_" not in fetch(f"{url}/toy/metrics")
    for path in (calls.PATH_HEALTH, calls.PATH_METRICS, calls.PATH_READY):
        with pytest.raises(OSError, match="404"):
            fetch(url + path)
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "toy_engine"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/toy/readyz"


def test_its_series_reach_prometheus_under_its_pods_labels(site: Site) -> None:
    rows = s.until(
        "series of four instances",
        lambda: len(found := site.ask('toy_slots{state="total"}')) == 4 and found,
    )
    labels = {(r["metric"]["service"], r["metric"]["scenario"], r["metric"]["role"]) for r in rows}
    assert labels == {(NAMESPACE, "chat", "prefill"), (NAMESPACE, "chat", "decode")}


def test_a_lost_instance_is_replaced_and_linked(site: Site) -> None:
    cluster = site.cluster
    before = s.identities(cluster, NAMESPACE)
    victim = s.name_of(s.pods(cluster, NAMESPACE, role="decode")[0])
    cluster.kubectl("delete", "pod", victim, "-n", NAMESPACE, "--wait=false")
    (fresh,) = s.wait_substituted(cluster, NAMESPACE, GROUP, before, {victim}, 120)
    s.until("it is routed", lambda: fresh in s.routed(cluster, NAMESPACE, NAMESPACE))


def test_an_instance_that_is_given_up_says_when_it_is_idle(site: Site) -> None:
    site.apply(1, 2, 1)
    s.until("one decode is left", lambda: s.counts(site.cluster, NAMESPACE, GROUP) == (1, 2, 1))
    s.wait_settled(site.cluster, NAMESPACE, GROUP, DRAIN_SECONDS / 3)


def test_an_unknown_type_is_reported_and_changes_nothing(site: Site) -> None:
    cluster = site.cluster
    before = s.identities(cluster, NAMESPACE)
    site.apply(1, 2, 1, engine={**ENGINE, "type": "Unheard-of"})

    def told() -> str:
        found = s.condition(s.service(cluster, NAMESPACE, NAMESPACE), "TemplateValid")
        return str(found.get("message", "")) if found.get("reason") == "UnknownEngine" else ""

    known = ", ".join(sorted({*registry.known(), "Toy"}))
    assert f"(known: {known})" in s.until("the unknown type is reported", told)
    with Following(cluster, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(5)
    assert traffic.errors == []
    assert s.difference(before, s.identities(cluster, NAMESPACE)) == s.Difference(
        set(), set(), set()
    )


def test_another_type_is_rolled_out_without_a_failed_request(site: Site) -> None:
    """While it is, a gateway speaks to the instances of each type as that type has it."""
    cluster = site.cluster
    site.apply(2, 1, 1)
    s.wait_settled(cluster, NAMESPACE, GROUP, 120)

    def commands() -> list[object]:
        pods = s.pods(cluster, NAMESPACE)
        return [p["spec"]["containers"][0].get("command") for p in pods if not s.leaving(p)]

    with Following(cluster, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(5)
        site.apply(2, 1, 1, engine={**ENGINE, "type": "Reference"})
        s.until("no instance of the toy is left", lambda: commands() == [None] * 4, 240)
        s.wait_service(cluster, NAMESPACE, NAMESPACE, 120)
        traffic.wait_more(10)
    assert traffic.errors == []
