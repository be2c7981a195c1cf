"""The pod of an instance: what others rely on is there, what the user may change is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.support.api_objects import edited, scenariogroup

from pdserve.api import ScenarioGroup
from pdserve.engines.pod_profile import Rights
from pdserve.engines.pods import GRACE_AFTER_DRAIN, render_pod
from pdserve.engines.pods_template import TemplateError, apply_template, check_template
from pdserve.groups.observe import instance_obs
from pdserve.groups.types import NewPod
from pdserve.refengine.config import parser
from pdserve.topology import pod_devices
from pdserve.topology.affinity import demanded, terms_of
from pdserve.wire import names
from pdserve.wire.pin import pinned_node

NPU = "huawei.com/Ascend910"
OWNER = {"apiVersion": "pdserve.io/v1alpha1", "kind": "ScenarioGroup", "name": "shop-chat",
         "uid": "u1", "controller": True}  # fmt: skip
CONTROL = "sha256:" + "0" * 64
NEW = NewPod(
    name="shop-chat-0-p0-abc123",
    slot="shop-chat-0-p0",
    role="prefill",
    group_index=0,
    revision="r1",
    node="n7",
    domains={"leaf": "a", "node": "n7"},
)


def group(**edits: Any) -> ScenarioGroup:
    base = edited(scenariogroup(), {"metadata.namespace": "prod"} | edits)
    return ScenarioGroup.parse(base)


def render(edits: Mapping[str, Any] | None = None, new: NewPod = NEW) -> dict[str, Any]:
    return render_pod(group(**(edits or {})), new, OWNER, control=CONTROL)


def engine(pod: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["containers"] if c["name"] == "engine")


def env(pod: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in engine(pod)["env"]}


def test_it_is_pinned_labelled_and_gated() -> None:
    pod = render()
    assert pinned_node(pod) == "n7"
    assert pod["metadata"]["labels"] == {
        "app.kubernetes.io/name": "pdserve",
        "app.kubernetes.io/component": "instance",
        "app.kubernetes.io/managed-by": "pdserve",
        "pdserve.io/service": "shop",
        "pdserve.io/scenario": "chat",
        "pdserve.io/group-index": "0",
        "pdserve.io/role": "prefill",
        "pdserve.io/instance": "shop-chat-0-p0-abc123",
        "pdserve.io/revision": "r1",
        "topology.pdserve.io/leaf": "a",
        "topology.pdserve.io/node": "n7",
    }
    assert pod["spec"]["readinessGates"] == [{"conditionType": names.CONDITION_LINKED}]
    assert pod["metadata"]["ownerReferences"] == [OWNER]
    assert pod["metadata"]["namespace"] == "prod"
    assert pod_devices(pod) == {NPU: 1}


def test_the_operator_not_the_taint_manager_decides_when_it_is_lost() -> None:
    tolerations = render()["spec"]["tolerations"]
    assert {t["key"] for t in tolerations} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
    assert all(t["effect"] == "NoExecute" and "tolerationSeconds" not in t for t in tolerations)


def test_scale_unit_and_replaced_pod_are_marked() -> None:
    pod = render(new=replace(NEW, scale_unit=True, replaces="uid-of-the-dead"))
    assert pod["metadata"]["labels"][names.LABEL_SCALE_UNIT] == "true"
    assert pod["metadata"]["annotations"][names.ANNOTATION_REPLACES] == "uid-of-the-dead"
    assert names.LABEL_SCALE_UNIT not in render()["metadata"]["labels"]


def test_the_engine_gets_its_arguments_and_environment() -> None:
    pod = render({
        "spec.prefill.args": ["--paced", "x"],
        "spec.prefill.env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "spec.model.source": {"path": "/models/x"},
    })  # fmt: skip
    assert engine(pod)["args"] == [
        "--role", "prefill", "--port", "8000", "--transfer-port", "5600", "--slots", "4",
        "--model-name", "llama-3-70b", "--weights", "/models/x", "--paced", "x",
    ]  # fmt: skip
    found = env(pod)
    assert found["PDSERVE_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert found["PDSERVE_INSTANCE"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    token = {"name": "shop-token", "key": "token", "optional": True}
    assert found["PDSERVE_TOKEN"] == {"secretKeyRef": token}
    file = found["PDSERVE_CONTROL_TOKEN_FILE"]
    assert any(file == f"{m['mountPath']}/control" for m in engine(pod)["volumeMounts"])
    control = {"fieldPath": "metadata.annotations['pdserve.io/control']"}
    items = [{"path": "control", "fieldRef": control}]
    assert {"name": "pdserve-control", "downwardAPI": {"items": items}} in pod["spec"]["volumes"]
    assert pod["metadata"]["annotations"]["pdserve.io/control"] == CONTROL
    assert (found["PDSERVE_SERVICE"], found["PDSERVE_SCENARIO"]) == ("shop", "chat")
    # It drains as long as the pod is given, and the pod ends later.
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert 0 < int(found["PDSERVE_DRAIN_SECONDS"]) == grace - GRACE_AFTER_DRAIN
    assert found["OMP_NUM_THREADS"] == "1"
    assert "command" not in engine(pod)


def test_the_arguments_are_ones_the_reference_engine_takes() -> None:
    from pdserve.refengine.config import parse

    args = engine(render())["args"]
    assert set(env(render())) >= {"PDSERVE_POD_IP", "PDSERVE_INSTANCE", "PDSERVE_TOKEN"}
    given = {"PDSERVE_POD_IP": "10.1.2.3", "PDSERVE_INSTANCE": "x", "PDSERVE_TOKEN": "t"}
    config = parse(args, given | {"PDSERVE_BIND": "0.0.0.0"})
    assert (config.bind, config.advertise) == ("0.0.0.0", "10.1.2.3")
    assert config.role == "prefill"
    assert config.slots == 4


def test_the_startup_probe_covers_the_deadline() -> None:
    probe = engine(render({"spec.prefill.startupDeadlineSeconds": 901}))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 901


def test_termination_leaves_time_for_the_drain() -> None:
    spec = render({"spec.recovery": {"drainSeconds": 100}})["spec"]
    assert spec["terminationGracePeriodSeconds"] > 100


def test_an_engine_writes_to_tmp_and_nowhere_else() -> None:
    pod = render()
    assert engine(pod)["securityContext"]["readOnlyRootFilesystem"] is True
    (mount,) = (m for m in engine(pod)["volumeMounts"] if not m.get("readOnly"))
    assert mount["mountPath"] == "/tmp"
    assert {"name": mount["name"], "emptyDir": {}} in pod["spec"]["volumes"]


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


def test_same_input_same_bytes() -> None:
    import json

    assert json.dumps(render()) == json.dumps(render())


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


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Qwen/Qwen3-8B@v2", ["--model-name", "Qwen/Qwen3-8B@v2"]),
        ("999 NVIDIA", ["--model-name", "999 NVIDIA"]),
        ("$(HOME)$$x", ["--model-name", "$$(HOME)$$$$x"]),  # Kubernetes makes one of two
        ("-x", ["--model-name=-x"]),
    ],
)
def test_any_model_name_reaches_the_engine_as_it_is(name: str, args: list[str]) -> None:
    given = render({"spec.model.name": name})["spec"]["containers"][0]["args"]
    at = next(i for i, a in enumerate(given) if a.startswith("--model-name"))
    assert given[at : at + len(args)] == args
    read = parser().parse_args(["--role", "prefill", *(a.replace("$$", "$") for a in args)])
    assert read.model_name == name


def test_members_of_one_instance_know_it_and_each_other() -> None:
    leader = render(new=replace(NEW, members=2))
    other = render(new=replace(NEW, name=f"{NEW.name}-m1", members=2, member=1, leader_uid="u7"))
    for pod, member in ((leader, "0"), (other, "1")):
        labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
        assert labels["pdserve.io/instance"] == NEW.name
        assert labels["pdserve.io/member"] == member
        assert annotations["pdserve.io/members"] == "2"
    assert "pdserve.io/leader" not in leader["metadata"]["annotations"]
    assert other["metadata"]["annotations"]["pdserve.io/leader"] == "u7"
    assert env(leader)["PDSERVE_INSTANCE"]["fieldRef"]["fieldPath"] == "metadata.name"
    path = "metadata.labels['pdserve.io/instance']"
    assert env(other)["PDSERVE_INSTANCE"]["fieldRef"]["fieldPath"] == path
    (first, second), size = (instance_obs(p, None, 0.0) for p in (leader, other)), 2
    assert (first.name, first.size) == (second.name, second.size) == (NEW.name, size)
    assert (second.uid, second.members[0].index) == ("u7", 1)


def test_a_pod_of_one_member_shows_nothing_of_members() -> None:
    shown = str(render()["metadata"])
    assert "pdserve.io/member" not in shown and "pdserve.io/leader" not in shown
