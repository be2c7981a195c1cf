"""Pods of vLLM-Ascend: those of vLLM, with the Mooncake connector and HCCL's variables.

Facts: the public documentation of vLLM-Ascend 0.18 to 0.23. Each rank listens at the KV port plus
its number. Prefill and decode must know each other's tensor parallel size.
"""

from typing import Final

from pdserve.engines.pod_parts import InstanceFacts
from pdserve.engines.vllm.flow import LEASE_SECONDS
from pdserve.engines.vllm.pod import VllmPod, VllmVariant
from pdserve.terms.json import JsonMap
from pdserve.wire import names


def mooncake(facts: InstanceFacts) -> JsonMap:
    """The Mooncake connector of vLLM-Ascend, whose decode pulls blocks."""
    other = facts.peer_devices or facts.all_devices
    own = {"dp_size": 1, "tp_size": facts.all_devices}
    peer = {"dp_size": 1, "tp_size": other}
    sizes = {"prefill": own, "decode": peer}
    if facts.role == "decode":
        sizes = {"prefill": peer, "decode": own}
    return {
        "kv_connector": "MooncakeConnectorV1",
        "kv_port": str(names.PORT_TRANSFER),
        "kv_connector_extra_config": sizes,
    }


ASCEND: Final = VllmVariant(
    mooncake,
    {
        "HCCL_IF_IP": "$(PDSERVE_POD_IP)",
        "HCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "TP_SOCKET_IFNAME": "eth0",
        "OMP_PROC_BIND": "false",
        "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": str(LEASE_SECONDS),
    },
    limits=False,
    refusal_frees=False,
    events=False,
)

POD = VllmPod(ASCEND)
