"""Pods of instances of several members: who they are, and how their engines find each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.rendered_pod import NEW, engine, env, render

from pdserve.engines.pod_members import AWAIT_CONTAINER, members_answer
from pdserve.engines.pod_profile import FIELDS, findings
from pdserve.engines.pods import PROXY_CONTAINER
from pdserve.engines.template_errors import TemplateError
from pdserve.wire import names

ROOT = Path(__file__).resolve().parents[3]
LEADER = replace(NEW, members=2)
MEMBER = replace(NEW, name=f"{NEW.name}-m1", member=1, members=2, leader_uid="u-leader")
FIELD = f"metadata.annotations['{names.ANNOTATION_LEADER_ADDRESS}']"
EDITS = {
    "spec.prefill.instance": {
        "devicesPerNode": 4, "nodes": 2, "resource": "huawei.com/Ascend910"
    }
}  # fmt: skip
PROBES = {"startupProbe", "livenessProbe", "readinessProbe"}


def pod(type_name: str, new: Any, **edits: Any) -> dict[str, Any]:
    kind = {"spec.engine.type": type_name, "spec.engine.image": "r/engine:1"}
    return render({**kind, **EDITS, **edits}, new)


def after(args: list[str], flag: str) -> str:
    return args[args.index(flag) + 1]


@pytest.mark.parametrize("type_name", ["Reference", "vLLM", "SGLang", "vLLM-Ascend", "MindIE"])
@pytest.mark.parametrize("new", [LEADER, MEMBER], ids=["leader", "member"])
def test_every_pod_says_which_member_it_is(type_name: str, new: Any) -> None:
    made = pod(type_name, new)
    found, meta = env(made), made["metadata"]
    assert (found["PDSERVE_MEMBER"], found["PDSERVE_MEMBERS"]) == (str(new.member), "2")
    assert engine(made)["resources"]["limits"] == {"huawei.com/Ascend910": "4"}
    assert meta["labels"][names.LABEL_MEMBER] == str(new.member)
    assert [f.field for f in findings(made) if FIELDS[f.field] == "profile"] == []
    alone = env(pod(type_name, NEW))
    assert not {"PDSERVE_MEMBER", "PDSERVE_MEMBERS"} & set(alone)


@pytest.mark.parametrize("type_name", ["vLLM", "vLLM-Ascend", "MindIE"])
def test_vllm_runs_as_one_process_per_pod_of_which_the_first_serves(type_name: str) -> None:
    for new in (LEADER, MEMBER):
        args = engine(pod(type_name, new))["args"]
        assert after(args, "--tensor-parallel-size") == "8"
        assert (after(args, "--nnodes"), after(args, "--node-rank")) == ("2", str(new.member))
        assert ("--headless" in args) is bool(new.member)
        where = "PDSERVE_LEADER_ADDRESS" if new.member else "PDSERVE_POD_IP"
        assert after(args, "--master-addr") == f"$({where})"
        assert where in env(pod(type_name, new))
        assert after(args, "--master-port") == "5601"
    assert "--nnodes" not in engine(pod(type_name, NEW))["args"]


def test_both_sizes_of_mooncake_count_all_pods() -> None:
    decode = replace(LEADER, role="decode", name="shop-chat-0-d0-abc123", members=1)
    for new in (LEADER, MEMBER, decode):
        config = json.loads(after(engine(pod("vLLM-Ascend", new))["args"], "--kv-transfer-config"))
        sizes = {role: s["tp_size"] for role, s in config["kv_connector_extra_config"].items()}
        assert sizes == {"prefill": 8, "decode": 1}


def test_sglang_learns_where_the_first_one_waits() -> None:
    for new, where in ((LEADER, "PDSERVE_POD_IP"), (MEMBER, "PDSERVE_LEADER_ADDRESS")):
        args = engine(pod("SGLang", new))["args"]
        assert after(args, "--tp-size") == "8"
        assert (after(args, "--nnodes"), after(args, "--node-rank")) == ("2", str(new.member))
        assert after(args, "--dist-init-addr") == f"$({where}):5601"


@pytest.mark.parametrize("type_name", ["vLLM", "SGLang", "MindIE"])
def test_a_member_waits_for_its_leader_and_answers_nothing(type_name: str) -> None:
    made = pod(type_name, MEMBER)
    spec = made["spec"]
    assert [c["name"] for c in spec["containers"]] == ["engine"]
    assert not PROBES & set(engine(made)), "the leader says whether the instance is ready"
    assert names.ANNOTATION_METRICS_SCRAPE not in made["metadata"]["annotations"]
    (waits,) = spec["initContainers"]
    assert waits["name"] == AWAIT_CONTAINER
    (mount,) = waits["volumeMounts"]
    (volume,) = (v for v in spec["volumes"] if v["name"] == mount["name"])
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == FIELD
    assert waits["args"] == [f"{mount['mountPath']}/{item['path']}"]
    assert env(made)["PDSERVE_LEADER_ADDRESS"] == {"fieldRef": {"fieldPath": FIELD}}
    assert not members_answer(type_name)
    leader = pod(type_name, LEADER)
    assert PROXY_CONTAINER in [c["name"] for c in leader["spec"]["containers"]]
    assert set(engine(leader)) >= PROBES and "initContainers" not in leader["spec"]


def test_a_member_of_the_reference_engine_is_probed_like_its_leader() -> None:
    made = pod("Reference", MEMBER)
    assert set(engine(made)) >= PROBES and "initContainers" not in made["spec"]
    assert engine(made)["args"] == engine(pod("Reference", LEADER))["args"]
    assert members_answer("Reference") and not members_answer("Unheard-of")


def test_a_template_leaves_the_wait_alone() -> None:
    edits = {"spec.prefill.template": {"spec": {"initContainers": [
        {"name": AWAIT_CONTAINER, "command": ["true"]}
    ]}}}  # fmt: skip
    with pytest.raises(TemplateError, match="waits for the leader's address"):
        pod("vLLM", MEMBER, **edits)


def test_the_wait_ends_when_the_address_is_there(tmp_path: Path) -> None:
    file = tmp_path / "address"
    command = [sys.executable, "-m", "pdserve.engineproxy.await_leader", str(file)]
    waits = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT / "operator")}, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert waits.stderr is not None
    assert "waiting" in waits.stderr.readline()
    file.write_text("")
    time.sleep(0.5)
    assert waits.poll() is None, "an empty file is no address"
    file.write_text("10.0.0.7")
    assert waits.wait(30) == 0
    assert "10.0.0.7" in waits.stderr.read()
