"""A user's template in an instance's pod: what is merged, and what is refused with its path."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.rendered_pod import NPU, engine, env, render

from pdserve.engines.pod_profile import Rights
from pdserve.engines.pods_template import apply_template, check_template
from pdserve.engines.template_errors import TemplateError
from pdserve.topology.affinity import demanded, terms_of
from pdserve.wire.pin import pinned_node


def test_an_engine_that_writes_elsewhere_says_so_in_its_template() -> None:
    template = {
        "spec": {
            "volumes": [{"name": "scratch", "emptyDir": {"medium": "Memory"}}],
            "containers": [
                {
                    "name": "engine",
                    "securityContext": {"readOnlyRootFilesystem": False},
                    "volumeMounts": [{"mountPath": "/tmp", "name": "scratch"}],
                }
            ],
        }
    }
    found = engine(render({"spec.prefill.template": template}))
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"mountPath": "/tmp", "name": "scratch"} in found["volumeMounts"]
    assert [m["mountPath"] for m in found["volumeMounts"]].count("/tmp") == 1


def test_a_template_is_merged_by_the_keys_of_strategic_merge() -> None:
    template = {
        "metadata": {"labels": {"team": "search"}, "annotations": {"note": "x"}},
        "spec": {
            "priorityClassName": "devices",
            "tolerations": [{"key": "npu", "operator": "Exists"}],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "securityContext": {"runAsUser": 1000, "fsGroup": None},
            "containers": [
                {
                    "name": "engine",
                    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                    "env": [{"name": "EXTRA", "value": "1"}],
                    "resources": {"limits": {"memory": "1Gi"}},
                },
                {"name": "sidecar", "image": "side:1"},
            ],
        },
    }
    pod = render({"spec.prefill.template": template})
    spec = pod["spec"]
    assert pod["metadata"]["labels"]["team"] == "search"
    assert pod["metadata"]["labels"]["pdserve.io/role"] == "prefill"
    assert spec["priorityClassName"] == "devices"
    assert len(spec["tolerations"]) == 3
    assert [c["name"] for c in spec["containers"]] == ["engine", "sidecar"]
    assert engine(pod)["image"] == "pdserve/engine:0.1.0"
    assert engine(pod)["resources"]["limits"] == {NPU: "1", "memory": "1Gi"}
    assert env(pod)["EXTRA"] == "1"
    assert "PDSERVE_TOKEN" in env(pod)
    assert spec["securityContext"]["runAsUser"] == 1000
    assert "fsGroup" not in spec["securityContext"]
    assert spec["containers"][1]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }, "what the template leaves open is as the engine's"
    assert pinned_node(pod) == "n7"


AFFINITY = "template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
DISK = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
ZONE = {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}


def affine(terms: Any) -> dict[str, Any]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"spec": {"affinity": {"nodeAffinity": required}}}


def test_labels_that_a_template_demands_of_nodes_are_demanded_beside_the_pin() -> None:
    template = affine([DISK, ZONE])
    template["spec"]["nodeSelector"] = {"arch": "arm64"}
    spec = render({"spec.prefill.template": template})["spec"]
    assert spec["nodeSelector"] == {"arch": "arm64"}
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    pin = [{"key": "metadata.name", "operator": "In", "values": ["n7"]}]
    assert required["nodeSelectorTerms"] == [
        {**DISK, "matchFields": pin}, {**ZONE, "matchFields": pin}
    ]  # fmt: skip
    assert pinned_node({"spec": spec}) == "n7"
    assert demanded(spec) == terms_of({"nodeSelectorTerms": [
        {"matchExpressions": [
            {"key": "arch", "operator": "In", "values": ["arm64"]}, *term["matchExpressions"]
        ]}
        for term in (DISK, ZONE)
    ]})  # fmt: skip
    assert demanded(render()["spec"]) is None


REFUSED = [
    ({"spec": {"nodeName": "n1"}}, "template.spec.nodeName", "RoCEDomain"),
    ({"spec": {"nodeSelector": ["a=b"]}}, "template.spec.nodeSelector", "labels and their values"),
    ({"spec": {"nodeSelector": {"a": 5}}}, "template.spec.nodeSelector", "labels and their values"),
    ({"spec": {"affinity": {"nodeAffinity": {}}}}, "template.spec.affinity.nodeAffinity", "pinned"),
    ({"spec": {"affinity": {"nodeAffinity": None}}}, "template.spec.affinity.nodeAffinity",
     "pinned"),
    ({"spec": {"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": []}}}},
     "template.spec.affinity.nodeAffinity", "pinned"),
    (affine(None), AFFINITY, "at least one term"),
    (affine([]), AFFINITY, "at least one term"),
    (affine([{}]), f"{AFFINITY}.nodeSelectorTerms[0]", "matchExpressions alone"),
    (affine([{"matchExpressions": []}]), f"{AFFINITY}.nodeSelectorTerms[0]", "at least one"),
    (affine([DISK, {"matchFields": []}]), f"{AFFINITY}.nodeSelectorTerms[1]", "matchExpressions"),
    (affine([{**DISK, "matchFields": []}]), f"{AFFINITY}.nodeSelectorTerms[0]", "pinned"),
    ({"spec": {"affinity": None}}, "template.spec.affinity", "pinned"),
    ({"spec": {"readinessGates": None}}, "template.spec.readinessGates", "readiness gate"),
    ({"spec": {"restartPolicy": "Never"}}, "template.spec.restartPolicy", "restarts"),
    ({"spec": {"schedulingGates": []}}, "template.spec.schedulingGates", "placed"),
    ({"spec": {"terminationGracePeriodSeconds": 1}},
     "template.spec.terminationGracePeriodSeconds", "drainSeconds"),
    ({"metadata": {"name": "x"}}, "template.metadata.name", "labels and annotations"),
    ({"metadata": {"ownerReferences": []}}, "template.metadata.ownerReferences", "only"),
    ({"metadata": {"labels": {"pdserve.io/role": "decode"}}},
     "template.metadata.labels[pdserve.io/role]", "operator's"),
    ({"metadata": {"labels": {"topology.pdserve.io/leaf": "b"}}},
     "template.metadata.labels[topology.pdserve.io/leaf]", "operator's"),
    ({"metadata": {"annotations": {"pdserve.io/drain-started": "x"}}},
     "template.metadata.annotations[pdserve.io/drain-started]", "operator's"),
    ({"spec": {"containers": [{"name": "engine", "image": "x"}]}},
     "template.spec.containers[0].image", "spec.engine.image"),
    ({"spec": {"containers": [{"name": "engine", "args": []}]}},
     "template.spec.containers[0].args", "args of the role"),
    ({"spec": {"containers": [{"name": "engine", "readinessProbe": None}]}},
     "template.spec.containers[0].readinessProbe", "links"),
    ({"spec": {"containers": [{"name": "engine", "env": [{"name": "PDSERVE_ROLE"}]}]}},
     "template.spec.containers[0].env[PDSERVE_ROLE]", "operator's"),
    ({"spec": {"containers": [{"name": "engine", "resources": {"limits": {NPU: 8}}}]}},
     f"template.spec.containers[0].resources.limits[{NPU}]", "devicesPerNode"),
    ({"spec": {"containers": [{"name": "x", "resources": {"requests": {NPU: 1}}}]}},
     f"template.spec.containers[0].resources.requests[{NPU}]", "devicesPerNode"),
    ({"spec": {"containers": [{"image": "x"}]}}, "template.spec.containers[0]", "needs a name"),
    ({"spec": {"containers": None}}, "template.spec.containers", "must be a list"),
    ({"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}},
     "template.spec.containers[0].$patch", "engine"),
    ({"spec": {"initContainers": [{"name": "x", "resources": {"limits": {NPU: 8}}}]}},
     f"template.spec.initContainers[0].resources.limits[{NPU}]", "devicesPerNode"),
    ({"spec": {"initContainers": [{"name": "engine"}]}}, "template.spec.initContainers[0]",
     "engine's"),
    ({"spec": {"initContainers": {}}}, "template.spec.initContainers", "must be a list"),
    ({"metadata": {"labels": 5}}, "template.metadata.labels", "must be an object"),
    ({"spec": {"$patch": "replace"}}, "template.spec.$patch", "securityContext"),
    ({"spec": {"affinity": {"$patch": "replace"}}}, "template.spec.affinity.$patch", "in an entry"),
    ({"metadata": {"labels": {"$patch": "replace"}}}, "template.metadata.labels.$patch", "entry"),
    ({"spec": {"volumes": [{"$patch": "replace", "name": "v"}]}},
     "template.spec.volumes[0].$patch", "delete in an entry"),
    ({"metadata": {"labels": {"app.kubernetes.io/component": "gateway"}}},
     "template.metadata.labels[app.kubernetes.io/component]", "operator's"),
    ({"spec": []}, "template.spec", "must be an object"),
    ({"status": {}}, "template.status", "metadata and spec"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "path", "why"), REFUSED, ids=[path for _, path, _ in REFUSED])
def test_protected_fields_are_refused_with_their_path(
    template: dict[str, Any], path: str, why: str
) -> None:
    with pytest.raises(TemplateError) as refused:
        check_template(template, NPU)
    assert refused.value.path == path
    assert str(refused.value).startswith(path + ":")
    assert why in str(refused.value)


def test_other_devices_may_be_asked_for() -> None:
    check_template(
        {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"rdma/hca": 1}}}]}},
        NPU,
    )


@pytest.mark.parametrize("resources", [None, {"limits": None}, {"requests": None}], ids=str)
def test_its_devices_cannot_be_taken_away(resources: Any) -> None:
    template = {"spec": {"containers": [{"name": "engine", "resources": resources}]}}
    with pytest.raises(TemplateError, match="devicesPerNode"):
        render({"spec.prefill.template": template})


def test_an_engine_asks_for_cpu_and_memory_and_its_template_for_others() -> None:
    """K7.13: unless it does, a full node evicts it first and quotas refuse it."""
    asked = engine(render())["resources"]
    assert asked == {"requests": {"cpu": "100m", "memory": "256Mi", NPU: "1"}, "limits": {NPU: "1"}}

    def with_resources(**given: Any) -> Any:
        part = {"containers": [{"name": "engine", "resources": given}]}
        return engine(render({"spec.prefill.template": {"spec": part}}))["resources"]

    more = with_resources(requests={"cpu": "8"})
    assert more["requests"] == {"cpu": "8", "memory": "256Mi", NPU: "1"}
    none = with_resources(requests={"cpu": None, "memory": None})
    assert none["requests"] == {NPU: "1"}
    less = with_resources(limits={"memory": "128Mi"})
    assert less["requests"] == {"cpu": "100m", NPU: "1"}, "the API server makes it the limit"


@pytest.mark.parametrize(
    "context",
    [
        {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        {"$patch": "replace", "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    ],
    ids=["null", "replace"],
)
def test_the_user_is_left_to_the_platform_where_asked(context: dict[str, Any]) -> None:
    """K7.5: OpenShift gives each namespace a range of its own. `kubectl apply` keeps no null."""
    pod = render({"spec.prefill.template": {"spec": {"securityContext": context}}})
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_the_rendered_pod_is_not_changed_by_merging() -> None:
    pod = render()
    before = repr(pod)
    apply_template(pod, {"spec": {"containers": [{"name": "engine", "tty": True}]}}, NPU, Rights())
    assert repr(pod) == before
