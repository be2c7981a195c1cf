"""`model.source.uri` on a cluster: downloaded by instances, refused with words, kept by nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import scenarios as s
from tests.support.gguf_files import weights, write_gguf
from tests.support.installed import (
    CACHED_NAMESPACE,
    Installed,
    fixed,
    make_namespace,
    pdservice,
    scenario,
    weights_cache,
)
from tests.support.traffic import client
from tests.support.weights_server import Asked, Reply, WeightsServer, serving

from pdserve.refengine.model.loader import load_model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ALONE, CACHED = "weights-alone", CACHED_NAMESPACE
"""Namespaces: pods download for themselves; nodes keep what they downloaded."""
WAIT = 180.0


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.gguf"
    write_gguf(path, weights())
    return path


@pytest.fixture(scope="module")
def server(gguf: Path) -> Iterator[WeightsServer]:
    """Has the file for those with the right token."""
    data = gguf.read_bytes()

    def script(asked: Asked) -> Reply:
        known = asked.authorization == "Bearer right"
        return Reply(data) if known else Reply(status=401)

    with serving(script) as found:
        yield found


@pytest.fixture
def here(installed: Installed) -> Iterator[s.Cluster]:
    yield installed.cluster
    for namespace in (ALONE, CACHED):
        installed.cluster.kubectl("delete", "namespace", namespace, "--wait=false",
                                  "--ignore-not-found")  # fmt: skip


def secret(namespace: str, token: str) -> s.Json:
    meta = {"name": "hub", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": token}}


def service(namespace: str, server: WeightsServer, gguf: Path) -> s.Json:
    uri = {
        "url": f"{server.url}/{gguf.name}",
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "secretRef": {"name": "hub"},
        "maxGigabytes": 1,
    }
    model = {"name": "tiny", "source": {"path": "/weights", "uri": uri}}
    return pdservice(namespace, namespace, scenario("chat", fixed(1, 1, 1)), model=model)


def answer(cluster: s.Cluster, namespace: str) -> int:
    """Ask the service, and give back how many tokens the prompt has."""
    (gateway,) = s.wait_gateways(cluster, namespace, namespace, 1)
    reply = client(cluster.url(gateway)).completions.create(
        model="tiny", prompt="hello 12", max_tokens=4, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    return reply.usage.prompt_tokens


def wanted_tokens(gguf: Path) -> int:
    return len(load_model(gguf).tokenizer.encode("hello 12"))


def degraded(cluster: s.Cluster, namespace: str) -> str:
    found = s.condition(s.service(cluster, namespace, namespace), "Degraded")
    return f"{found.get('reason')}: {found.get('message')}"


def test_a_refused_download_is_reported_and_goes_on_once_the_secret_is_right(
    here: s.Cluster, server: WeightsServer, gguf: Path
) -> None:
    """In a namespace that takes pods of Pod Security `restricted` alone."""
    make_namespace(here, ALONE)
    here.apply(secret(ALONE, "wr0ng"), service(ALONE, server, gguf), namespace=ALONE)
    want = "the server answers 401: the Secret's credentials are not accepted"
    s.until(
        "the condition has the download's words",
        lambda: want in degraded(here, ALONE),
        WAIT,
        instead=lambda: s.explain(here, ALONE),
    )
    assert degraded(here, ALONE).startswith("ModelDownloadFailed: ")
    assert "wr0ng" not in degraded(here, ALONE)
    here.apply(secret(ALONE, "right"), namespace=ALONE)
    s.wait_service(here, ALONE, ALONE, WAIT)
    assert "ModelDownloadFailed" not in degraded(here, ALONE)
    assert answer(here, ALONE) == wanted_tokens(gguf)


def test_a_node_downloads_once_for_all_pods_of_a_namespace(
    here: s.Cluster, server: WeightsServer, gguf: Path
) -> None:
    """Process nodes share this machine's disk, so that they are one node here."""
    here.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CACHED}})
    before = len(server.asked)
    here.apply(secret(CACHED, "right"), service(CACHED, server, gguf), namespace=CACHED)
    s.wait_service(here, CACHED, CACHED, WAIT)
    assert len(server.asked) == before + 1
    assert answer(here, CACHED) == wanted_tokens(gguf)
    (entry,) = (weights_cache(here) / CACHED).iterdir()
    assert (entry / "files" / gguf.name).read_bytes() == gguf.read_bytes()
