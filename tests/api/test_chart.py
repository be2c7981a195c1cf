"""The chart, rendered by the real Helm."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdserve.controllers import rbac
from pdserve.local import binaries

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "pdserve"


@pytest.fixture(scope="session")
def helm() -> Path:
    return binaries.helm()


def render(helm: Path, *sets: str) -> list[dict[str, Any]]:
    command = [str(helm), "template", "pdserve", str(CHART), "--namespace", "pdserve-system"]
    # A Helm built from source takes the cluster for Kubernetes 1.20 unless told.
    command += ["--kube-version", binaries.KUBERNETES_VERSION]
    for value in sets:
        command += ["--set", value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def granted(documents: list[dict[str, Any]], *kinds_and_names: str) -> dict[tuple[str, str], set]:
    rights: dict[tuple[str, str], set] = defaultdict(set)
    for document in documents:
        if f"{document['kind']}/{document['metadata']['name']}" in kinds_and_names:
            for rule in document["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        rights[group, resource] |= set(rule["verbs"])
    return rights


def as_sets(rules: rbac.Rules) -> dict[tuple[str, str], set]:
    return {key: set(verbs) for key, verbs in rules.items()}


def test_lint_strict(helm: Path) -> None:
    done = subprocess.run(
        [str(helm), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("sets", "kind"), [((), "ClusterRole"), (("operator.watchNamespace=team-a",), "Role")]
)
def test_grants_exactly_what_the_operator_uses(
    helm: Path, sets: tuple[str, ...], kind: str
) -> None:
    documents = render(helm, *sets)
    name = "pdserve-operator"
    assert granted(documents, f"{kind}/{name}") == as_sets(rbac.NAMESPACED)
    assert granted(documents, f"ClusterRole/{name}-fabric") == as_sets(rbac.CLUSTER)
    assert granted(documents, f"Role/{name}-lease") == as_sets(rbac.LEASE)


def test_no_wildcards_and_nothing_that_raises_rights(helm: Path) -> None:
    for document in render(helm):
        for rule in document.get("rules", []):
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not words & {"*", "escalate", "bind", "impersonate"}, document["metadata"]


def test_every_crd_is_installed_and_kept_on_uninstall(helm: Path) -> None:
    crds = [d for d in render(helm) if d["kind"] == "CustomResourceDefinition"]
    assert {d["spec"]["names"]["kind"] for d in crds} == {
        "PDService",
        "ScenarioGroup",
        "RoCEDomain",
    }
    for crd in crds:
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not [
        d for d in render(helm, "crds.install=false") if d["kind"] == "CustomResourceDefinition"
    ]


def test_operator_flags_are_ones_the_operator_knows(helm: Path) -> None:
    from pdserve.controllers.options import parse_options

    documents = render(
        helm, "prometheus.url=http://prometheus:9090", "operator.watchNamespace=team-a"
    )
    deployment = next(d for d in documents if d["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    args = [
        a.replace("$(POD_IP)", "127.0.0.1").replace("$(POD_NAMESPACE)", "x")
        for a in container["args"]
    ]
    options = parse_options(args, {})
    assert options.prometheus_url == "http://prometheus:9090"
    assert options.namespace == "team-a"
    assert options.gateway_image == "pdserve/gateway:0.1.0"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("operator.replicas=0", "replicas"),
        ("prometheus.url=prometheus:9090", "url"),
        ("operater.replicas=1", "operater"),
        ("ratio.controlPeriodSeconds=0", "controlPeriodSeconds"),
        ("images.pullPolicy=Sometimes", "pullPolicy"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Path, value: str, says: str) -> None:
    done = subprocess.run(
        [str(helm), "template", "pdserve", str(CHART), "--set", value],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert says in done.stderr
