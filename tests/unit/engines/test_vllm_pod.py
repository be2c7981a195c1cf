"""Pods of type vLLM: its command line, what it may write, and the proxy before it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.rendered_pod import CONTROL, NEW, OWNER, engine, env, group, render

from pdserve.api import PDService
from pdserve.engineproxy.proxy_config import parse
from pdserve.engines.pod_parts import InstanceFacts, PodSettings
from pdserve.engines.pod_profile import FIELDS, findings
from pdserve.engines.pods import DEFAULTS, PROXY_CONTAINER, render_pod
from pdserve.engines.template_errors import TemplateError
from pdserve.engines.vllm.flow import FLOW
from pdserve.engines.vllm.metrics import METRICS
from pdserve.engines.vllm.pod import POD
from pdserve.terms import Role
from pdserve.wire.metrics import DECODE_STEPS, PREFILL_BATCHES
from pdserve.wire.names import PORT_HTTP, PORT_TRANSFER

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "engines" / "vllm.md"
VLLM = {"spec.engine.type": "vLLM", "spec.engine.image": "vllm/vllm-openai:v0.32.0"}
DECODE = replace(NEW, role="decode", name="shop-chat-0-d0-abc123", slot="shop-chat-0-d0")


def pod(new: Any = NEW, **edits: Any) -> dict[str, Any]:
    return render({**VLLM, **edits}, new)


def options(args: list[str]) -> dict[str, str]:
    """Flags with a value, the last of each: as argparse reads them."""
    found = {}
    for i, word in enumerate(args):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else args[i + 1] if i + 1 < len(args) else ""
    return found


def proxy(made: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in made["spec"]["containers"] if c["name"] == PROXY_CONTAINER)


@pytest.mark.parametrize(
    ("new", "role", "places"), [(NEW, "kv_producer", 0), (DECODE, "kv_consumer", 2)]
)
def test_the_command_line(new: Any, role: str, places: int) -> None:
    made = pod(new, **{
        f"spec.{new.role}.instance.devicesPerNode": 4,
        f"spec.{new.role}.maxConcurrency": 8,
        "spec.model": {"name": "qwen", "source": {"path": "/models/qwen"}},
    })  # fmt: skip
    container = engine(made)
    assert container["command"] == ["vllm", "serve"]
    assert container["args"][0] == "/models/qwen"
    flags = options(container["args"])
    assert flags["--served-model-name"] == "qwen"
    assert (flags["--host"], flags["--port"]) == ("127.0.0.1", "8001")
    assert flags["--tensor-parallel-size"] == "4"
    assert container["resources"]["limits"]["huawei.com/Ascend910"] == "4"
    assert flags["--max-num-seqs"] == "8"
    # 0 would refuse everything; fewer than the proxy lets through would cost KV.
    assert int(flags["--max-num-queued-reqs"]) > 8 + places
    transfer = json.loads(flags["--kv-transfer-config"])
    assert (transfer["kv_connector"], transfer["kv_role"]) == ("NixlConnector", role)
    assert transfer["kv_connector_extra_config"]["kv_lease_duration"] == FLOW.lease_seconds


def test_a_prefill_publishes_its_events_to_its_own_proxy_alone() -> None:
    made = pod()
    config = json.loads(options(engine(made)["args"])["--kv-events-config"])
    assert config["enable_kv_cache_events"] is True
    words = proxy(made)["args"]
    read = parse(["--role", "prefill", *words[words.index("--engine") :]], {"PDSERVE_TOKEN": "x"})
    assert (read.kv_events, read.kv_events_replay) == (
        config["endpoint"], config["replay_endpoint"],
    )  # fmt: skip
    # They have the prompts' tokens. vLLM listens on all addresses where there is a wildcard.
    for address in (read.kv_events, read.kv_events_replay):
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", address)
    decode = pod(DECODE)
    assert "--kv-events-config" not in engine(decode)["args"]
    assert "--kv-events" not in proxy(decode)["args"]


def test_kv_is_handed_over_at_the_instances_port() -> None:
    found = env(pod())
    assert found["VLLM_NIXL_SIDE_CHANNEL_PORT"] == str(PORT_TRANSFER)
    assert found["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "$(PDSERVE_POD_IP)"
    names = [entry["name"] for entry in engine(pod())["env"]]
    assert names.index("PDSERVE_POD_IP") < names.index("VLLM_NIXL_SIDE_CHANNEL_HOST")


def test_args_and_env_of_the_role_come_last_and_win() -> None:
    made = pod(**{
        "spec.prefill.args": ["--max-model-len", "4096", "--max-num-seqs=64"],
        "spec.prefill.env": [{"name": "UCX_TLS", "value": "rc,cuda"}],
    })  # fmt: skip
    flags = options(engine(made)["args"])
    assert (flags["--max-model-len"], flags["--max-num-seqs"]) == ("4096", "64")
    assert list(env(made))[-1] == "UCX_TLS"


@pytest.mark.parametrize(
    ("model", "first"),
    [("org/m", "org/m"), ("-m", "./-m"), ("$(PDSERVE_TOKEN)", "$$(PDSERVE_TOKEN)")],
)
def test_a_model_without_weights_is_a_name_of_a_hub(model: str, first: str) -> None:
    args = POD.parts(InstanceFacts("prefill", 4, 1, model, "")).args
    assert args[0] == first


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_proxy_understands_its_arguments(role: Role) -> None:
    made = proxy(
        pod(
            NEW if role == "prefill" else DECODE,
            **{"spec.prefill.maxConcurrency": 4, "spec.decode.maxConcurrency": 16},
        )
    )
    assert made["command"][-1] == "pdserve.engineproxy"
    given = {"PDSERVE_ROLE": role, "PDSERVE_CONTROL_TOKEN_FILE": "/x", "PDSERVE_INSTANCE": "i"}
    assert given.keys() <= {entry["name"] for entry in made["env"]}
    config = parse(made["args"], given)
    slots = {"prefill": 4, "decode": 16}[role]
    assert (config.role, config.slots, config.port) == (role, slots, PORT_HTTP)
    assert config.prefetch == {"prefill": 0, "decode": 2}[role]
    assert config.lease_seconds == FLOW.lease_seconds
    assert config.release_by_refusal
    steps = {"prefill": PREFILL_BATCHES, "decode": DECODE_STEPS}[role]
    assert config.series == {steps: "vllm:iteration_tokens_total_count"}
    assert steps in {name for names in METRICS.names.values() for name in names}
    assert config.engine.endswith(":" + options(engine(pod())["args"])["--port"])


def test_probes_ask_the_proxy_which_asks_the_engine() -> None:
    made = pod()
    for probe, path in (
        ("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/readyz"),
    ):  # fmt: skip
        assert engine(made)[probe]["httpGet"] == {"path": path, "port": PORT_HTTP}
    # A proxy is not started anew because its engine is loading.
    assert proxy(made)["livenessProbe"]["httpGet"] == {"path": "/livez", "port": PORT_HTTP}
    assert "readinessProbe" not in proxy(made)


@pytest.mark.parametrize("new", [NEW, DECODE])
def test_it_keeps_to_the_restricted_profile_and_can_write_where_it_must(new: Any) -> None:
    made = pod(new)
    assert [f.field for f in findings(made) if FIELDS[f.field] == "profile"] == []
    context = made["spec"]["securityContext"]
    assert context["runAsNonRoot"] is True
    for container in made["spec"]["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {v["name"]: v for v in made["spec"]["volumes"]}
    mounts = {m["mountPath"]: volumes[m["name"]] for m in engine(made)["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
    writable = [path for path, volume in mounts.items() if "emptyDir" in volume]
    found = env(made)
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT",
                 "TORCHINDUCTOR_CACHE_DIR", "VLLM_CONFIG_ROOT"):  # fmt: skip
        assert any(found[name].startswith(path) for path in writable), name
    assert found["USER"], "no entry in passwd for the user's id"


def test_the_model_cache_can_be_a_claim() -> None:
    claim = {"name": "pdserve-cache", "emptyDir": None, "persistentVolumeClaim": {"claimName": "c"}}
    made = pod(**{"spec.prefill.template": {"spec": {"volumes": [claim]}}})
    (volume,) = (v for v in made["spec"]["volumes"] if v["name"] == "pdserve-cache")
    assert volume == {"name": "pdserve-cache", "persistentVolumeClaim": {"claimName": "c"}}


def test_the_proxys_image_is_the_operators_gateway_image() -> None:
    assert proxy(pod())["image"] == DEFAULTS.own_image
    made = render_pod(
        group(**VLLM), NEW, OWNER, control=CONTROL, settings=PodSettings("r/gateway:7")
    )
    assert proxy(made)["image"] == "r/gateway:7"
    assert engine(made)["image"] == VLLM["spec.engine.image"]


def test_the_example_is_a_service_that_runs_and_the_page_shows_it() -> None:
    example = (ROOT / "examples" / "vllm-pdservice.yaml").read_text()
    lines = [line for line in example.splitlines() if not line.startswith("# ")]
    [shown] = re.findall(r"```yaml\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert shown.splitlines() == lines
    service = PDService.parse(yaml.safe_load(example))
    for new in (NEW, DECODE):
        spec = service.spec.to_dict()
        edits = {f"spec.{part}": spec[part] for part in ("model", "engine", "prefill", "decode")}
        made = pod(new, **edits)
        assert engine(made)["args"][0] == "/models/Qwen3-32B"
        assert engine(made)["resources"]["limits"]["nvidia.com/gpu"] == "2"
        mounts = {mount["mountPath"] for mount in engine(made)["volumeMounts"]}
        assert {"/models/Qwen3-32B", "/cache", "/dev/shm", "/tmp"} <= mounts
        assert [f.field for f in findings(made) if FIELDS[f.field] == "profile"] == []


def test_an_engine_with_the_contract_has_no_proxy() -> None:
    assert [c["name"] for c in render()["spec"]["containers"]] == ["engine"]


def test_the_flows_decode_samples_the_first_token() -> None:
    assert FLOW.first_token == "decode"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"args": ["--slots", "999"]}, "args"),
        ({"command": ["sh"]}, "command"),
        ({"env": [{"name": "PDSERVE_INSTANCE", "value": "other"}]}, "env[PDSERVE_INSTANCE]"),
        ({"$patch": "delete"}, "$patch"),
        ({"readinessProbe": None}, "readinessProbe"),
        ({"lifecycle": {}}, "lifecycle"),
    ],
)
def test_a_template_leaves_the_proxy_what_makes_it_one(change: dict[str, Any], where: str) -> None:
    """Without it, or under another name, the engine is no instance."""
    template = {"spec": {"containers": [{"name": PROXY_CONTAINER, **change}]}}
    with pytest.raises(TemplateError) as refused:
        pod(**{"spec.prefill.template": template})
    assert refused.value.path == f"template.spec.containers[0].{where}"


def test_a_template_sets_the_proxys_image_and_resources() -> None:
    change = {"image": "mirror/gateway:1", "resources": {"limits": {"memory": "1Gi"}},
              "env": [{"name": "TZ", "value": "UTC"}]}  # fmt: skip
    template = {"spec": {"containers": [{"name": PROXY_CONTAINER, **change}]}}
    made = proxy(pod(**{"spec.prefill.template": template}))
    assert (made["image"], made["resources"]["limits"]) == ("mirror/gateway:1", {"memory": "1Gi"})
    assert {"name": "TZ", "value": "UTC"} in made["env"]
