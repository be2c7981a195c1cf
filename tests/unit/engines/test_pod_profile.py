"""What a template may not ask for by itself: each field once, its path, and who may allow it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.support.api_objects import edited, scenariogroup
from tests.support.escapes import ESCAPES, Escape

from pdserve.api import ScenarioGroup
from pdserve.engines.pod_profile import FIELDS, Allowed, Rights, findings
from pdserve.engines.pods import render_pod
from pdserve.engines.template_errors import NotAllowedError
from pdserve.groups.types import NewPod

OWNER = {"apiVersion": "pdserve.io/v1alpha1", "kind": "ScenarioGroup", "name": "shop-chat",
         "uid": "u1", "controller": True}  # fmt: skip
NEW = NewPod(name="p", slot="p", role="prefill", group_index=0, revision="r1", node="n7")


def render(template: dict[str, Any] | None, rights: Rights | None = None) -> dict[str, Any]:
    edits = {"metadata.namespace": "prod", "spec.prefill.template": template}
    group = ScenarioGroup.parse(edited(scenariogroup(), edits))
    return render_pod(group, NEW, OWNER, rights or Rights())


def every(escape: Escape, **more: Any) -> Rights:
    return Rights(tuple(Allowed(f, **more) for f in escape.fields))


@pytest.mark.invariant(15)
@pytest.mark.parametrize("escape", ESCAPES, ids=lambda e: e.name)
def test_a_template_gets_nothing_that_was_not_allowed(escape: Escape) -> None:
    with pytest.raises(NotAllowedError) as refused:
        render(escape.template)
    assert refused.value.path == f"template.{escape.path}"
    assert "security.allowedPodFields" in str(refused.value)


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda e: e.name)
def test_an_administrator_can_allow_each_by_its_name(escape: Escape) -> None:
    pod = render(escape.template, every(escape))
    assert {f.field for f in findings(pod)} >= set(escape.fields)


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda e: e.name)
def test_an_entry_for_one_namespace_is_for_no_other(escape: Escape) -> None:
    render(escape.template, every(escape, namespace="prod"))
    with pytest.raises(NotAllowedError):
        render(escape.template, every(escape, namespace="dev"))


def test_an_entry_with_a_value_is_for_no_other() -> None:
    template = {"spec": {"volumes": [{"name": "d", "hostPath": {"path": "/dev/infiniband"}}]}}
    render(template, Rights((Allowed.parse("spec.volumes[*].hostPath=/dev/infiniband"),)))
    with pytest.raises(NotAllowedError):
        render(template, Rights((Allowed.parse("spec.volumes[*].hostPath=/dev"),)))


def test_names_are_the_api_servers_to_check_where_it_does_and_the_profile_is_not() -> None:
    checked = Rights(authors_checked=True)
    for escape in ESCAPES:
        if {FIELDS[f] for f in escape.fields} == {"names"}:
            render(escape.template, checked)
        else:
            with pytest.raises(NotAllowedError):
                render(escape.template, checked)


@pytest.mark.parametrize(
    "spec",
    [
        {"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
         "containers": [{"name": "engine",
                         "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}]},
        {"volumes": [{"name": "w", "persistentVolumeClaim": {"claimName": "weights"}}]},
        {"volumes": [{"name": "c", "configMap": {"name": "c"}},
                     {"name": "d", "downwardAPI": {"items": []}},
                     {"name": "p", "projected": {"sources": [{"configMap": {"name": "c"}}]}}]},
        {"priorityClassName": "llm", "runtimeClassName": "npu", "schedulerName": "s"},
        {"tolerations": [{"operator": "Exists"}]},
        {"securityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
        {"securityContext": {"runAsUser": 1000, "supplementalGroups": [44]}},
        {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a"}}},
        {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}},
        {"securityContext": {"seLinuxOptions": {"type": "container_t", "level": "s0:c1"}}},
        {"containers": [{"name": "side", "image": "side:1"}]},
        {"initContainers": [{"name": "fetch", "image": "fetch:1"}]},
        {"containers": [{"name": "side", "image": "side:1",
                         "securityContext": {"capabilities": {"add": ["NET_BIND_SERVICE"]}}}]},
        {"containers": [{"name": "engine", "resources": {"limits": {"rdma/hca": 1}}}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_the_restricted_profile_takes_needs_no_right(spec: dict[str, Any]) -> None:
    render({"spec": spec})


def test_the_engine_has_its_own_token_and_pull_secrets_by_right() -> None:
    edits = {"metadata.namespace": "prod", "spec.engine.imagePullSecrets": [{"name": "registry"}],
             "spec.prefill.template": {"spec": {"priorityClassName": "x"}}}  # fmt: skip
    group = ScenarioGroup.parse(edited(scenariogroup(), edits))
    assert {f.value for f in findings(render_pod(group, NEW, OWNER))} == {"shop-token", "registry"}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("spec.hostPid", "no such field"),
        ("spec.containers[0].securityContext.privileged", "no such field"),
        ("", "must be"),
        ("Prod:spec.hostPID", "must be"),
        ("spec.hostPID:true", "must be"),
    ],
)
def test_an_entry_that_allows_nothing_is_refused(entry: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Allowed.parse(entry)


def test_odd_values_are_findings_or_the_api_servers_and_never_an_error() -> None:
    pod = render(None)
    for path in ("hostPID", "securityContext", "volumes", "containers", "imagePullSecrets"):
        values: tuple[object, ...] = (5, "x", [5], {"a": 5}, [[]], [None], 1e308, True)
        for value in values:
            odd = copy.deepcopy(pod)
            odd["spec"][path] = value
            findings(odd)
    for path in ("securityContext", "env", "envFrom", "ports", "livenessProbe", "lifecycle"):
        for value in (5, "x", [5], {"a": 5, "httpGet": 5, "preStop": 5}, [[]], [None]):
            odd = copy.deepcopy(pod)
            odd["spec"]["containers"][0][path] = value
            findings(odd)
