"""Pod Security `restricted` takes every pod of the product: asked of a real API server.

Admission is the API server's, so a dry run says what a cluster with kubelets would.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.support.api_objects import edited, pdservice, scenariogroup
from tests.support.chart import Json, only, render
from tests.support.rest import Answer, Rest

from pdserve.api import PDService, ScenarioGroup
from pdserve.desired.objects import gateway_objects
from pdserve.engines.pod_parts import PodSettings
from pdserve.engines.pods import DEFAULTS, render_pod
from pdserve.groups.types import NewPod
from pdserve.terms import ROLES, Role

pytestmark = pytest.mark.api

NAMESPACE = "restricted"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OWNER = {"apiVersion": "pdserve.io/v1alpha1", "kind": "PDService", "name": "shop", "uid": "u",
         "controller": True}  # fmt: skip


ENGINES = ("mindie", "sglang", "vllm", "vllm-ascend")


def of_deployment(documents: list[Json]) -> Json:
    template = only(documents, "Deployment")["spec"]["template"]
    return {"metadata": template["metadata"], "spec": template["spec"]}


def gateway(**edits: object) -> Json:
    service = PDService.parse(edited(pdservice(), {"metadata.namespace": NAMESPACE} | edits))
    return of_deployment(list(gateway_objects(service, "pdserve/gateway:test", OWNER, "f1")))


def instance(role: Role, settings: PodSettings = DEFAULTS, **edits: object) -> Json:
    group = ScenarioGroup.parse(edited(scenariogroup(), {"metadata.namespace": NAMESPACE} | edits))
    new = NewPod(
        name=f"shop-chat-0-{role[0]}0-abc123", slot=f"shop-chat-0-{role[0]}0",
        role=role, group_index=0, revision="r1", node="n",
    )  # fmt: skip
    return render_pod(group, new, OWNER, settings=settings)


def of_example(role: Role, engine: str) -> Json:
    """A pod of the service in an engine's example, as its author would get it."""
    service = yaml.safe_load((EXAMPLES / f"{engine}-pdservice.yaml").read_text())
    parts = ("model", "engine", "prefill", "decode")
    return instance(role, DEFAULTS, **{f"spec.{part}": service["spec"][part] for part in parts})


def prometheus() -> Json:
    text = (EXAMPLES / "local" / "prometheus.yaml").read_text()
    return of_deployment(list(yaml.safe_load_all(text)))


SOURCES: dict[str, Json] = {
    "a claim": {"pvc": {"name": "w", "subPath": "llama"}},
    "an image": {"image": {"reference": "w:1", "pullPolicy": "Always", "subPath": "llama"}},
    "a URI": {"uri": {"url": "https://h/m.gguf", "sha256": "a" * 64}},
}
PODS: dict[str, Callable[[], Json]] = {
    "operator": lambda: of_deployment(render()),
    "gateway": gateway,
    "gateway with keys": lambda: gateway(
        **{"spec.gateway": {"auth": {"secretRef": {"name": "k"}}}}
    ),
    "prefill": lambda: instance("prefill"),
    "decode": lambda: instance("decode"),
    **{
        f"{role} of {engine}": functools.partial(of_example, role, engine)
        for engine in ENGINES
        for role in ROLES
    },
    "prometheus": prometheus,
    **{
        f"weights from {name}": functools.partial(
            instance, "prefill", DEFAULTS, **{"spec.model.source": {"path": "/m", **source}}
        )
        for name, source in SOURCES.items()
    },
}


@pytest.fixture(scope="module")
def ask(rest: Rest) -> Callable[[Json], Answer]:
    """Would the namespace that enforces `restricted` take this pod?"""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"metadata": {"name": NAMESPACE, "labels": labels}}
    assert rest.create("/api/v1/namespaces", namespace).code == 201

    def asked(pod: Json) -> Answer:
        body = copy.deepcopy(pod)
        body["metadata"] = {
            "name": "asked",
            "namespace": NAMESPACE,
            "labels": pod["metadata"].get("labels", {}),
            "annotations": pod["metadata"].get("annotations", {}),
        }
        return rest.create(f"/api/v1/namespaces/{NAMESPACE}/pods", body, dryRun="All")

    return asked


@pytest.mark.parametrize("name", PODS)
def test_restricted_takes_it(ask: Callable[[Json], Answer], name: str) -> None:
    answer = ask(PODS[name]())
    assert answer.code == 201, answer.body["message"]


def test_it_refuses_weights_that_nodes_keep(ask: Callable[[Json], Answer]) -> None:
    """So `modelCache.namespaces` leaves such namespaces out; elsewhere the same pod is right."""
    source = {"path": "/m", **SOURCES["a URI"]}
    kept = PodSettings(model_cache="/var/lib/pdserve/models")
    answer = ask(instance("prefill", kept, **{"spec.model.source": source}))
    assert answer.code == 403
    assert "hostPath" in answer.body["message"]
    others = PodSettings(model_cache="/var/m", cached_namespaces=frozenset({"research"}))
    assert ask(instance("prefill", others, **{"spec.model.source": source})).code == 201


@pytest.mark.parametrize("name", PODS)
def test_its_root_file_system_is_read_only(name: str) -> None:
    """More than `restricted` asks; what is written goes to volumes."""
    for container in PODS[name]()["spec"]["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("securityContext.runAsNonRoot", None, "runAsNonRoot"),
        ("securityContext.seccompProfile", None, "seccompProfile"),
        ("containers.0.securityContext.capabilities", None, "capabilities"),
        ("containers.0.securityContext.allowPrivilegeEscalation", True, "PrivilegeEscalation"),
        ("hostNetwork", True, "host namespaces"),
    ],
)
@pytest.mark.parametrize("name", PODS)
def test_it_would_be_refused_for_less(
    ask: Callable[[Json], Answer], name: str, path: str, value: object, says: str
) -> None:
    """So the answers above mean something."""
    pod = copy.deepcopy(PODS[name]())
    *parents, last = path.split(".")
    at = pod["spec"]
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    if path == "hostNetwork":
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", []):
                port["hostPort"] = port["containerPort"]
    answer = ask(pod)
    assert answer.code == 403, answer.body
    assert says in answer.body["message"]
