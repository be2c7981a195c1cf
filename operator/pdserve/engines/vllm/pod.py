"""Pods of vLLM: its command line, where it may write, and the proxy before it.

vLLM listens on the loopback address; the proxy answers where an instance does. Its NIXL connector
hands KV over at the instance's KV port. Restricted pods have a read-only root and a user without
an entry in the image's passwd: `HOME` and caches are a volume, and `USER` is set, because parts of
PyTorch look the name up.
"""

from __future__ import annotations

import json
from typing import Final

from pdserve.engines.pod_parts import InstanceFacts, PodParts, text_flag
from pdserve.engines.vllm.flow import LEASE_SECONDS
from pdserve.engines.vllm.metrics import STEPS
from pdserve.terms.json import JsonMap
from pdserve.wire import metrics, names

PORT: Final = 8001
PREFETCH: Final = 2
"""Requests that a decode takes in while all slots run: vLLM pulls their KV meanwhile."""
SLACK: Final = 4
"""Requests in flight beyond the proxy's places: what was aborted takes vLLM a moment to end."""
CACHE: Final = "/cache"
ROLES: Final = {"prefill": "kv_producer", "decode": "kv_consumer"}
VOLUMES: Final[tuple[JsonMap, ...]] = (
    {"name": "pdserve-cache", "emptyDir": {}},
    {"name": "pdserve-shm", "emptyDir": {"medium": "Memory"}},
)
MOUNTS: Final[tuple[JsonMap, ...]] = (
    {"name": "pdserve-cache", "mountPath": CACHE},
    {"name": "pdserve-shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own
)
ENV: Final = {
    "HOME": CACHE,
    "USER": "vllm",
    "HF_HOME": f"{CACHE}/huggingface",
    "XDG_CACHE_HOME": f"{CACHE}/xdg",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
    "VLLM_CONFIG_ROOT": f"{CACHE}/config",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "$(PDSERVE_POD_IP)",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "$(PDSERVE_POD_IP)",
    "VLLM_NIXL_SIDE_CHANNEL_PORT": str(names.PORT_TRANSFER),
}


class VllmPod:
    """`EnginePod` of vLLM."""

    def parts(self, facts: InstanceFacts) -> PodParts:
        """See the module's text."""
        return PodParts(
            command=("vllm", "serve"),
            args=vllm_args(facts),
            env=ENV,
            mounts=MOUNTS,
            volumes=VOLUMES,
            proxy=proxy_args(facts),
        )


def vllm_args(facts: InstanceFacts) -> tuple[str, ...]:
    """What follows `vllm serve`; `args` of the role come after it and win."""
    source = (facts.weights or facts.model).replace("$", "$$")
    places = facts.slots + _prefetch(facts)
    return (
        # Never a flag, and nothing in it is expanded.
        f"./{source}" if source.startswith("-") else source,
        *text_flag("--served-model-name", facts.model),
        "--host", "127.0.0.1",
        "--port", str(PORT),
        "--tensor-parallel-size", str(facts.devices),
        "--max-num-seqs", str(facts.slots),
        "--max-num-queued-reqs", str(places + SLACK),
        "--shutdown-timeout", "$(PDSERVE_DRAIN_SECONDS)",
        "--kv-transfer-config", json.dumps(transfer_config(facts), separators=(",", ":")),
    )  # fmt: skip


def transfer_config(facts: InstanceFacts) -> JsonMap:
    """`--kv-transfer-config` of a role."""
    return {
        "kv_connector": "NixlConnector",
        "kv_role": ROLES[facts.role],
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"kv_lease_duration": LEASE_SECONDS},
    }


def proxy_args(facts: InstanceFacts) -> tuple[str, ...]:
    """Of `pdserve-engine-proxy`."""
    steps = metrics.PREFILL_BATCHES if facts.role == "prefill" else metrics.DECODE_STEPS
    return (
        "--engine", f"http://127.0.0.1:{PORT}",
        "--slots", str(facts.slots),
        "--prefetch", str(_prefetch(facts)),
        "--lease-seconds", str(LEASE_SECONDS),
        "--series", f"{steps}={STEPS}",
        "--release-by-refusal",
    )  # fmt: skip


def _prefetch(facts: InstanceFacts) -> int:
    return PREFETCH if facts.role == "decode" else 0


POD = VllmPod()
