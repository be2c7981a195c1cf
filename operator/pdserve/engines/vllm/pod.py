"""Pods of vLLM: its command line, where it may write, and the proxy before it.

vLLM listens on the loopback address; the proxy answers where an instance does. Its connector hands
KV over at the instance's KV port. What differs between builds of vLLM is a `VllmVariant`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pdserve.engines import torch_pod as shared
from pdserve.engines.pod_parts import InstanceFacts, PodParts, text_flag
from pdserve.engines.vllm.flow import LEASE_SECONDS
from pdserve.engines.vllm.metrics import STEPS
from pdserve.terms.json import JsonMap
from pdserve.wire import metrics, names

SLACK: Final = 4
"""Requests in flight beyond the proxy's places: what was aborted takes vLLM a moment to end."""
ROLES: Final = {"prefill": "kv_producer", "decode": "kv_consumer"}
EVENTS: Final = "tcp://127.0.0.1:5557"
REPLAY: Final = "tcp://127.0.0.1:5558"
"""Of KV events, on loopback: they have the prompts' tokens. The proxy listens at the first; vLLM
connects to an address without a wildcard."""
EVENTS_CONFIG: Final = {
    "enable_kv_cache_events": True,
    "publisher": "zmq",
    "endpoint": EVENTS,
    "replay_endpoint": REPLAY,
}
ENV: Final = {
    **shared.cache_env("vllm"),
    "VLLM_CACHE_ROOT": f"{shared.CACHE}/vllm",
    "VLLM_CONFIG_ROOT": f"{shared.CACHE}/config",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "$(PDSERVE_POD_IP)",
}


@dataclass(frozen=True, slots=True)
class VllmVariant:
    """What is particular to one build of vLLM and its KV connector.

    `connector`: `--kv-transfer-config` beside the role. `env`: variables beside `ENV`. `limits`: it
    has the flags by which vLLM 0.29 and later bounds its queue and its shutdown. `refusal_frees`: a
    decode that refuses a leg frees the KV at the prefill, so releases are done that way. `events`:
    a prefill publishes its KV events as vLLM 0.32 does, with the session of each.
    """

    connector: Callable[[InstanceFacts], JsonMap]
    env: Mapping[str, str]
    limits: bool
    refusal_frees: bool
    events: bool


def nixl(facts: InstanceFacts) -> JsonMap:
    """The NIXL connector; its KV port is set by variables."""
    return {
        "kv_connector": "NixlConnector",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"kv_lease_duration": LEASE_SECONDS},
    }


NIXL: Final = VllmVariant(
    nixl,
    {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "$(PDSERVE_POD_IP)",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(names.PORT_TRANSFER),
    },
    limits=True,
    refusal_frees=True,
    events=True,
)


def member_args(facts: InstanceFacts) -> tuple[str, ...]:
    """VLLM's own way over several nodes, without Ray: one process per node, rank 0 serves."""
    if facts.members == 1:
        return ()
    return (
        "--distributed-executor-backend", "mp",
        "--nnodes", str(facts.members),
        "--node-rank", str(facts.member),
        "--master-addr", shared.leader_of(facts),
        "--master-port", str(shared.RENDEZVOUS_PORT),
        *(("--headless",) if facts.member else ()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class VllmPod:
    """`EnginePod` of vLLM, and of what is built on it."""

    variant: VllmVariant

    def parts(self, facts: InstanceFacts) -> PodParts:
        """See the module's text."""
        parts = PodParts(
            command=("vllm", "serve"),
            args=self._args(facts),
            env={**ENV, **self.variant.env},
            mounts=shared.MOUNTS,
            volumes=shared.VOLUMES,
            proxy=self._proxy_args(facts),
        )
        if facts.member == 0:
            return parts
        return dataclasses.replace(parts, health_path="", proxy=(), awaits_leader=True)

    def transfer_config(self, facts: InstanceFacts) -> JsonMap:
        """`--kv-transfer-config` of a role."""
        return {"kv_role": ROLES[facts.role], **self.variant.connector(facts)}

    def _args(self, facts: InstanceFacts) -> tuple[str, ...]:
        """What follows `vllm serve`; `args` of the role come after it and win."""
        places = facts.slots + shared.prefetch(facts)
        limits = (
            "--max-num-queued-reqs", str(places + SLACK),
            "--shutdown-timeout", "$(PDSERVE_DRAIN_SECONDS)",
        )  # fmt: skip
        return (
            shared.weights_of(facts),
            *text_flag("--served-model-name", facts.model),
            "--host", "127.0.0.1",
            "--port", str(shared.ENGINE_PORT),
            "--tensor-parallel-size", str(facts.all_devices),
            *member_args(facts),
            "--max-num-seqs", str(facts.slots),
            *(limits if self.variant.limits else ()),
            "--kv-transfer-config", json.dumps(self.transfer_config(facts), separators=(",", ":")),
            *(("--kv-events-config", json.dumps(EVENTS_CONFIG, separators=(",", ":")))
              if self._publishes(facts) else ()),
        )  # fmt: skip

    def _publishes(self, facts: InstanceFacts) -> bool:
        return self.variant.events and facts.role == "prefill"

    def _proxy_args(self, facts: InstanceFacts) -> tuple[str, ...]:
        """Of `pdserve-engine-proxy`."""
        steps = metrics.PREFILL_BATCHES if facts.role == "prefill" else metrics.DECODE_STEPS
        return (
            "--engine", f"http://127.0.0.1:{shared.ENGINE_PORT}",
            "--slots", str(facts.slots),
            "--prefetch", str(shared.prefetch(facts)),
            "--lease-seconds", str(LEASE_SECONDS),
            "--series", f"{steps}={STEPS}",
            *(("--release-by-refusal",) if self.variant.refusal_frees else ()),
            *(("--kv-events", EVENTS, "--kv-events-replay", REPLAY,
               "--kv-events-arguments", "vllm_xargs") if self._publishes(facts) else ()),
        )  # fmt: skip


POD = VllmPod(NIXL)
