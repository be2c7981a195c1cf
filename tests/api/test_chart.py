"""The chart's objects: rights, kinds, flags, and how operators come, stand by and go."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from tests.support.chart import CHART, NAMESPACE, Json, helm, only, render, template

from pdserve import __version__
from pdserve.controllers import rbac
from pdserve.controllers.app import ENV_POD_UID
from pdserve.controllers.options import OperatorOptions, parse_options

ROOT = CHART.parents[1]
NAME = "pdserve-operator"
CLUSTERWIDE = f"{NAMESPACE}:{NAME}"
Rights = dict[tuple[str, str], set[str]]


def rights(role: Json) -> Rights:
    found: Rights = defaultdict(set)
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found[group, resource] |= set(rule["verbs"])
    return found


def as_sets(rules: rbac.Rules) -> Rights:
    return {key: set(verbs) for key, verbs in rules.items()}


def container(documents: list[Json]) -> Json:
    (found,) = only(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


# --- rights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("watched", "kind", "name"), [("", "ClusterRole", CLUSTERWIDE), ("team-a", "Role", NAME)]
)
def test_grants_exactly_what_the_operator_uses(watched: str, kind: str, name: str) -> None:
    documents = render(operator={"watchNamespace": watched})
    role = only(documents, kind, name)
    assert rights(role) == as_sets(rbac.NAMESPACED)
    assert role["metadata"].get("namespace", "") == watched
    assert rights(only(documents, "ClusterRole", f"{CLUSTERWIDE}-fabric")) == as_sets(rbac.CLUSTER)
    assert rights(only(documents, "Role", f"{NAME}-lease")) == as_sets(rbac.LEASE)


def test_every_role_is_bound_to_the_account_and_to_no_other() -> None:
    documents = render(operator={"watchNamespace": "team-a"})
    account = only(documents, "ServiceAccount")["metadata"]
    roles = {
        (d["kind"], d["metadata"]["name"])
        for d in documents
        if d["kind"].endswith("Role") and "aggregate-to" not in str(d["metadata"]["labels"])
    }
    bindings = [d for d in documents if d["kind"].endswith("RoleBinding")]
    assert {(b["roleRef"]["kind"], b["roleRef"]["name"]) for b in bindings} == roles
    for binding in bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": NAMESPACE}
        ]


def test_no_wildcards_and_nothing_that_raises_rights() -> None:
    for document in render():
        for rule in document.get("rules", []):
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not words & {"*", "escalate", "bind", "impersonate"}, document["metadata"]


def test_the_lease_is_written_by_name_and_goes_with_the_release() -> None:
    documents = render()
    lease = only(documents, "Lease")["metadata"]
    assert f"--lease-name={lease['name']}" in container(documents)["args"]
    (by_name, create) = only(documents, "Role", f"{NAME}-lease")["rules"]
    assert by_name["resourceNames"] == [lease["name"]]
    assert create["verbs"] == ["create"]


# --- the operator's pods -----------------------------------------------------------------------


def test_a_rollout_never_has_fewer_ready_operators_than_wanted() -> None:
    spec = only(render(), "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }


def test_operators_stand_on_different_nodes_and_leave_one_at_a_time() -> None:
    documents = render()
    labels = only(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    (spread,) = pod["topologySpreadConstraints"]
    budget = only(documents, "PodDisruptionBudget")["spec"]
    assert spread["labelSelector"] == budget["selector"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1
    alone = render(operator={"replicas": 1})
    assert not [d for d in alone if d["kind"] == "PodDisruptionBudget"], "it would guard nothing"


def test_operator_flags_and_variables_are_ones_the_operator_knows() -> None:
    documents = render(
        prometheus={"url": "http://prometheus:9090"},
        operator={"watchNamespace": "team-a", "extraArgs": ["--workers=8", "--resync=300"]},
    )
    known = {"POD_NAMESPACE": "x"}
    args = [re.sub(r"\$\((\w+)\)", lambda m: known[m[1]], a) for a in container(documents)["args"]]
    options = parse_options(args, {})
    assert options.prometheus_url == "http://prometheus:9090"
    assert options.namespace == "team-a"
    assert options.gateway_image == f"pdserve/gateway:{__version__}"
    assert (options.workers, options.resync) == (8, 300.0)
    assert (options.lease_name, options.lease_namespace) == (NAME, "x")
    assert {e["name"] for e in container(documents)["env"]} == {*known, ENV_POD_UID}


def test_the_chart_knows_every_flag_of_the_operator() -> None:
    """K7.12.

    An unknown one is refused by the chart, not by a container that starts again and again."""
    refused = template(operator={"extraArgs": ["--no-such-flag=1"]})
    assert refused.returncode != 0
    known = set(re.findall(r"--[a-z-]+", refused.stderr.partition("known: ")[2]))
    options = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(OperatorOptions)}
    set_by_chart = set()
    for flag in sorted(options - known):
        done = template(operator={"extraArgs": [flag]})
        if "is the chart's to set" in done.stderr:
            set_by_chart.add(flag)
    assert options - known - set_by_chart == {
        "--leader-election", "--rights", "--prometheus-access",
    }  # fmt: skip
    for flag in ("--no-leader-election", "--allowed-pod-fields", "--authors-checked"):
        assert "is the chart's to set" in template(operator={"extraArgs": [flag]}).stderr


def test_everything_is_named_after_the_release_and_says_where_it_is() -> None:
    for document in render():
        meta = document["metadata"]
        if document["kind"] != "CustomResourceDefinition":
            assert NAME.removesuffix("-operator") in meta["name"]
            assert meta["labels"]["app.kubernetes.io/instance"] == "pdserve"
        if not document["kind"].startswith(("Cluster", "Custom", "ValidatingAdmission")):
            assert meta["namespace"] == NAMESPACE, "`helm template | kubectl apply` needs it"


def test_releases_of_one_name_in_two_namespaces_do_not_meet() -> None:
    names = []
    for namespace in ("team-a", "team-b"):
        done = helm(
            "template", "pdserve", CHART, "-n", namespace, "--set",
             f"operator.watchNamespace={namespace},crds.install=false",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        documents = [d for d in yaml.safe_load_all(done.stdout) if d]
        names.append({d["metadata"]["name"] for d in documents if d["kind"].startswith("Cluster")})
    assert names[0]
    assert not names[0] & names[1]


# --- kinds, lint, archive ----------------------------------------------------------------------


def test_every_crd_is_installed_and_kept_on_uninstall() -> None:
    crds = [d for d in render() if d["kind"] == "CustomResourceDefinition"]
    assert {d["spec"]["names"]["kind"] for d in crds} == {
        "PDService",
        "ScenarioGroup",
        "RoCEDomain",
    }
    for crd in crds:
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        source = yaml.safe_load((ROOT / "crds" / f"{crd['metadata']['name']}.yaml").read_text())
        assert crd["spec"] == source["spec"]


def test_lint_strict() -> None:
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


def test_the_archive_renders_as_the_folder_does(tmp_path: Path) -> None:
    """`helm package` leaves nothing out that the chart needs, and complains of nothing."""
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (archive,) = tmp_path.iterdir()
    assert archive.name == f"pdserve-{__version__}.tgz"
    assert template(chart=archive).stdout == template().stdout


def test_the_chart_is_of_the_packages_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__
