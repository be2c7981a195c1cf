"""Environment, command line and downward API of a container, against the kubelet's rules."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from localcluster.agent.environment import (
    ConfigError,
    PodFacts,
    Sources,
    build_argv,
    build_env,
    env_sources,
    expand,
)
from localcluster.agent.fields import FieldError, field_value, resource_value

POD = {
    "metadata": {
        "name": "p",
        "namespace": "ns",
        "uid": "u-1",
        "labels": {"b": 'quo"te', "a": "line\nbreak"},
        "annotations": {"note": "yes"},
    },
    "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": []},
}
FACTS = PodFacts(POD, "127.77.1.32", "127.77.1.1", {"cpu": "8", "memory": "1024Ki"})
SOURCES: Sources = {
    ("ConfigMap", "cm"): {"kind": "ConfigMap", "data": {"k": "v", "1bad": "x", "other": "o"}},
    ("Secret", "s"): {"kind": "Secret", "data": {"t": base64.b64encode(b"hush").decode()}},
    ("Secret", "gone"): None,
}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)y$(B)z", "x1y2z"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$(A)$(A)", "11"),
    ],
)
def test_expansion(text: str, want: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == want


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u-1"),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "sa"),
        ("status.podIP", "127.77.1.32"),
        ("status.hostIP", "127.77.1.1"),
        ("metadata.labels['b']", 'quo"te'),
        ("metadata.annotations['note']", "yes"),
        ("metadata.annotations['none']", ""),
        ("metadata.labels", 'a="line\\nbreak"\nb="quo\\"te"'),
    ],
)
def test_fields(path: str, want: str) -> None:
    assert field_value(POD, FACTS.pod_ip, FACTS.node_ip, path) == want


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(FieldError, match=r"'status.phase' is not available"):
        field_value(POD, "", "", "status.phase")


@pytest.mark.parametrize(
    ("resource", "divisor", "want"),
    [
        ("limits.cpu", "", "2"),
        ("limits.cpu", "1m", "1500"),
        ("requests.cpu", "", "0"),
        ("limits.memory", "1Ki", "1024"),
        ("limits.huawei.com/Ascend910", "", "4"),
        ("requests.memory", "1Mi", "64"),
    ],
)
def test_resources_round_up_and_fall_back_to_the_node(
    resource: str, divisor: str, want: str
) -> None:
    container = {
        "resources": {
            "limits": {"cpu": "1500m", "huawei.com/Ascend910": "4"},
            "requests": {"memory": "64Mi"},
        }
    }
    ref = {"resource": resource, "divisor": divisor}
    assert resource_value(container, FACTS.allocatable, ref) == want


@pytest.mark.parametrize("text", ["", "1x", "Mi", "1e", "1 Mi"])
def test_bad_quantities(text: str) -> None:
    container = {"resources": {"limits": {"cpu": text}}}
    with pytest.raises(FieldError, match=r"limits\.cpu: want a quantity"):
        resource_value(container, FACTS.allocatable, {"resource": "limits.cpu"})


def env_of(*env: Any, env_from: Any = ()) -> dict[str, str]:
    return build_env({"env": list(env), "envFrom": list(env_from)}, FACTS, SOURCES, {"BASE": "b"})


def test_order_of_sources_and_expansion() -> None:
    env = env_of(
        {"name": "ONE", "value": "$(BASE)-$(pre_k)"},
        {"name": "TWO", "value": "$(ONE)-$(THREE)"},
        {"name": "THREE", "value": "late"},
        {"name": "BASE", "value": "replaced"},
        {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "t"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "EMPTY"},
        env_from=[{"prefix": "pre_", "configMapRef": {"name": "cm"}}],
    )
    assert env["ONE"] == "b-v"
    assert env["TWO"] == "b-v-$(THREE)"
    assert env["BASE"] == "replaced"
    assert (env["T"], env["IP"], env["EMPTY"]) == ("hush", "127.77.1.32", "")
    # With the prefix the name is allowed.
    assert env["pre_1bad"] == "x"


def test_names_that_no_environment_can_hold_are_left_out() -> None:
    env = env_of(env_from=[{"configMapRef": {"name": "cm"}}])
    assert env == {"BASE": "b", "k": "v", "other": "o"}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"secretKeyRef": {"name": "gone", "key": "t"}}, 'secret "gone" not found'),
        ({"configMapKeyRef": {"name": "cm", "key": "z"}}, "couldn't find key z in ConfigMap ns/cm"),
        ({"fieldRef": {"fieldPath": "spec.secret"}}, "env X: fieldPath: 'spec.secret'"),
        ({"somethingNew": {}}, r"env X: valueFrom \['somethingNew'\] is not supported"),
    ],
)
def test_what_is_missing_is_an_error(item: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        env_of({"name": "X", "valueFrom": item})


def test_what_is_optional_may_be_missing() -> None:
    optional = {"name": "gone", "optional": True}
    env = env_of(
        {"name": "X", "valueFrom": {"secretKeyRef": {**optional, "key": "t"}}},
        {
            "name": "Y",
            "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "z", "optional": True}},
        },
        env_from=[{"secretRef": optional}],
    )
    assert env == {"BASE": "b"}
    with pytest.raises(ConfigError, match='secret "gone" not found'):
        env_of(env_from=[{"secretRef": {"name": "gone"}}])


def test_sources_are_found() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
        "env": [
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "d", "key": "k"}}},
            {"name": "Z", "value": "v"},
        ],
    }
    assert set(env_sources(container)) == {
        ("ConfigMap", "a"), ("Secret", "b"), ("ConfigMap", "c"), ("Secret", "d"),
    }  # fmt: skip


def test_command_replaces_the_entrypoint_and_args_follow() -> None:
    env, entry = {"P": "80"}, ("python", "-m", "x")
    assert build_argv({}, entry, env) == ["python", "-m", "x"]
    assert build_argv({"args": ["--port=$(P)"]}, entry, env) == [*entry, "--port=80"]
    assert build_argv({"command": ["sh"], "args": ["$(P)"]}, entry, env) == ["sh", "80"]
