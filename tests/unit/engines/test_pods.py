"""The pod of an instance as it is without a template: what others rely on is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.rendered_pod import CONTROL, NEW, NPU, OWNER, engine, env, render

from pdserve.engines.pods import GRACE_AFTER_DRAIN
from pdserve.groups.observe import instance_obs
from pdserve.refengine.config import parser
from pdserve.topology import pod_view
from pdserve.wire import names
from pdserve.wire.pin import pinned_node


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
    assert pod_view(pod).devices == {NPU: 1}


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


@pytest.mark.parametrize("directory", [None, "models/llama"])
def test_a_claim_of_the_model_is_mounted_at_its_path_for_reading(directory: str | None) -> None:
    claim = {"name": "weights"} | ({"subPath": directory} if directory else {})
    pod = render({"spec.model.source": {"path": "/models/x", "pvc": claim}})
    volume = {"claimName": "weights", "readOnly": True}
    assert {"name": "pdserve-model", "persistentVolumeClaim": volume} in pod["spec"]["volumes"]
    mount = {"name": "pdserve-model", "mountPath": "/models/x", "readOnly": True}
    want = mount | ({"subPath": directory} if directory else {})
    assert want in engine(pod)["volumeMounts"]
    assert engine(pod)["args"].count("/models/x") == 1


def test_without_a_claim_there_is_no_volume_for_the_model() -> None:
    for source in (None, {"path": "/models/x"}):
        pod = render({"spec.model.source": source})
        assert "pdserve-model" not in str(pod)


def test_the_engine_gets_its_arguments_and_environment() -> None:
    pod = render({
        "spec.prefill.args": ["--paced", "x"],
        "spec.prefill.env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "spec.model.source": {"path": "/models/x"},
    })  # fmt: skip
    assert engine(pod)["args"] == [
        "--port", "8000", "--transfer-port", "5600", "--slots", "4",
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
    given = {
        "PDSERVE_POD_IP": "10.1.2.3", "PDSERVE_INSTANCE": "x", "PDSERVE_TOKEN": "t",
        "PDSERVE_ROLE": "prefill",
    }  # fmt: skip
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


def test_same_input_same_bytes() -> None:
    import json

    assert json.dumps(render()) == json.dumps(render())


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
    (first, second), size = (instance_obs(pod_view(p), None, 0.0) for p in (leader, other)), 2
    assert (first.name, first.size) == (second.name, second.size) == (NEW.name, size)
    assert (second.uid, second.members[0].index) == ("u7", 1)


def test_a_pod_of_one_member_shows_nothing_of_members() -> None:
    shown = str(render()["metadata"])
    assert "pdserve.io/member" not in shown and "pdserve.io/leader" not in shown
