"""Pods of SGLang, vLLM-Ascend and MindIE, by their public documentation: none of them was run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.rendered_pod import NEW, engine, env, render

from pdserve.api import PDService
from pdserve.engineproxy.proxy_config import ProxyConfig, parse
from pdserve.engines import registry
from pdserve.engines.pod_parts import InstanceFacts
from pdserve.engines.pod_profile import FIELDS, findings
from pdserve.engines.pods import PROXY_CONTAINER
from pdserve.wire.metrics import ENGINE_SERIES
from pdserve.wire.names import PORT_TRANSFER

ROOT = Path(__file__).resolve().parents[3]
DECODE = replace(NEW, role="decode", name="shop-chat-0-d0-abc123", slot="shop-chat-0-d0")
PAGES = {"SGLang": "sglang", "vLLM-Ascend": "vllm-ascend", "MindIE": "mindie"}


def pod(type_name: str, new: Any = NEW, **edits: Any) -> dict[str, Any]:
    kind = {"spec.engine.type": type_name, "spec.engine.image": "r/engine:1"}
    return render({**kind, **edits}, new)


def options(args: list[str]) -> dict[str, str]:
    """Flags with what follows them, the last of each."""
    return {w: args[i + 1] if i + 1 < len(args) else "" for i, w in enumerate(args)}


def proxy(made: dict[str, Any], role: str) -> ProxyConfig:
    (found,) = (c for c in made["spec"]["containers"] if c["name"] == PROXY_CONTAINER)
    return parse(found["args"], {"PDSERVE_ROLE": role, "PDSERVE_CONTROL_TOKEN_FILE": "/x"})


@pytest.mark.parametrize("new", [NEW, DECODE], ids=["prefill", "decode"])
def test_sglangs_command_line(new: Any) -> None:
    made = pod("SGLang", new, **{
        f"spec.{new.role}.instance.devicesPerNode": 4,
        f"spec.{new.role}.maxConcurrency": 8,
        f"spec.{new.role}.args": ["--disaggregation-transfer-backend", "mooncake"],
        "spec.model": {"name": "qwen", "source": {"path": "/models/qwen"}},
    })  # fmt: skip
    assert engine(made)["command"] == ["python3", "-m", "sglang.launch_server"]
    flags = options(engine(made)["args"])
    assert flags["--model-path"] == "/models/qwen"
    assert flags["--served-model-name"] == "qwen"
    assert flags["--disaggregation-mode"] == new.role
    assert flags["--tp-size"] == "4"
    assert flags["--disaggregation-bootstrap-port"] == str(PORT_TRANSFER)
    assert flags["--disaggregation-transfer-backend"] == "mooncake", "the spec's args win"
    config = proxy(made, new.role)
    assert config.rooms and not config.release_by_refusal
    assert config.engine == f"http://localhost:{flags['--port']}"
    assert config.places < int(flags["--max-running-requests"]), "SGLang queues what is above"
    found = env(made)
    assert found["SGLANG_HOST_IP"] == "$(PDSERVE_POD_IP)"
    lease = registry.flow("SGLang").lease_seconds
    for side in ("BOOTSTRAP", "WAITING"):
        assert float(found[f"SGLANG_DISAGGREGATION_{side}_TIMEOUT"]) == lease


@pytest.mark.parametrize("type_name", ["vLLM-Ascend", "MindIE"])
@pytest.mark.parametrize("new", [NEW, DECODE], ids=["prefill", "decode"])
def test_the_mooncake_connectors_parameters(type_name: str, new: Any) -> None:
    made = pod(type_name, new, **{
        "spec.prefill.instance.devicesPerNode": 8,
        "spec.decode.instance.devicesPerNode": 4,
    })  # fmt: skip
    flags = options(engine(made)["args"])
    assert json.loads(flags["--kv-transfer-config"]) == {
        "kv_connector": "MooncakeConnectorV1",
        "kv_role": {"prefill": "kv_producer", "decode": "kv_consumer"}[new.role],
        "kv_port": str(PORT_TRANSFER),
        "kv_connector_extra_config": {
            "prefill": {"dp_size": 1, "tp_size": 8}, "decode": {"dp_size": 1, "tp_size": 4},
        },
    }  # fmt: skip
    assert flags["--tensor-parallel-size"] == {"prefill": "8", "decode": "4"}[new.role]
    # The vLLM below may not have these yet, and would not start.
    assert not {"--max-num-queued-reqs", "--shutdown-timeout"} & set(flags)
    found = env(made)
    assert found["HCCL_IF_IP"] == found["VLLM_HOST_IP"] == "$(PDSERVE_POD_IP)"
    assert not any("NIXL" in name for name in found)
    lease = registry.flow(type_name).lease_seconds
    assert float(found["VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT"]) == lease
    config = proxy(made, new.role)
    assert config.lease_seconds == lease
    assert not config.release_by_refusal and not config.rooms


def test_an_adapter_without_the_other_roles_size_takes_its_own() -> None:
    """As where it is asked for parts outside a group."""
    args = list(registry.pod("vLLM-Ascend").parts(InstanceFacts("decode", 4, 2, "m", "")).args)
    config = json.loads(options(args)["--kv-transfer-config"])["kv_connector_extra_config"]
    assert config["prefill"] == config["decode"] == {"dp_size": 1, "tp_size": 2}


@pytest.mark.parametrize("type_name", PAGES)
def test_the_example_is_a_service_that_runs_and_the_page_shows_it(type_name: str) -> None:
    example = (ROOT / "examples" / f"{PAGES[type_name]}-pdservice.yaml").read_text()
    page = (ROOT / "docs" / "engines" / f"{PAGES[type_name]}.md").read_text()
    lines = [line for line in example.splitlines() if not line.startswith("# ")]
    [shown] = re.findall(r"```yaml\n(.*?)\n```", page, re.DOTALL)
    assert shown.splitlines() == lines
    service = PDService.parse(yaml.safe_load(example))
    assert service.spec.engine.type == type_name
    spec = service.spec.to_dict()
    edits = {f"spec.{part}": spec[part] for part in ("model", "engine", "prefill", "decode")}
    for new in (NEW, DECODE):
        made = render(edits, new)
        assert "/models/Qwen3-32B" in engine(made)["args"]
        mounts = {mount["mountPath"] for mount in engine(made)["volumeMounts"]}
        assert {"/models/Qwen3-32B", "/cache", "/dev/shm", "/tmp"} <= mounts
        assert [f.field for f in findings(made) if FIELDS[f.field] == "profile"] == []
        assert env(made)["HOME"] in mounts


@pytest.mark.parametrize("type_name", PAGES)
def test_the_page_says_that_it_was_never_run(type_name: str) -> None:
    page = (ROOT / "docs" / "engines" / f"{PAGES[type_name]}.md").read_text()
    assert "**Never run here:" in page and "stub" in page


def test_sglangs_series_leave_out_what_is_not_counted() -> None:
    absent = set(ENGINE_SERIES) - set(registry.metrics("SGLang").names)
    assert absent == {"batches", "steps", "kv_wait_seconds", "kv_transfer_seconds", "kv_transfers"}
