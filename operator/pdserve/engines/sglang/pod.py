"""Pods of SGLang: its command line, where it may write, and the proxy before it.

A prefill's bootstrap server stands at the instance's KV port and listens where SGLang does, so
SGLang listens on all addresses: docs/engines/sglang.md says what that means. SGLang ignores
`--max-queued-requests` with prefill and decode apart: the proxy refuses before it queues.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from pdserve.engines import torch_pod as shared
from pdserve.engines.pod_parts import InstanceFacts, PodParts, text_flag
from pdserve.engines.sglang.flow import LEASE_SECONDS
from pdserve.wire import names

SLACK: Final = 4
"""Requests beyond the proxy's places: what was aborted takes SGLang a moment to end."""
ENV: Final = {
    **shared.cache_env("sglang"),
    "SGLANG_HOST_IP": "$(PDSERVE_POD_IP)",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": str(LEASE_SECONDS),
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": str(LEASE_SECONDS),
}


class SglangPod:
    """`EnginePod` of SGLang."""

    def parts(self, facts: InstanceFacts) -> PodParts:
        """See the module's text."""
        parts = PodParts(
            command=("python3", "-m", "sglang.launch_server"),
            args=sglang_args(facts),
            env=ENV,
            mounts=shared.MOUNTS,
            volumes=shared.VOLUMES,
            proxy=proxy_args(facts),
        )
        if facts.member == 0:
            return parts
        return dataclasses.replace(parts, health_path="", proxy=(), awaits_leader=True)


def sglang_args(facts: InstanceFacts) -> tuple[str, ...]:
    """What follows `sglang.launch_server`; `args` of the role come after it and win."""
    places = facts.slots + shared.prefetch(facts)
    return (
        "--model-path", shared.weights_of(facts),
        *text_flag("--served-model-name", facts.model),
        "--host", "0.0.0.0",  # noqa: S104 - the bootstrap server listens there too
        "--port", str(shared.ENGINE_PORT),
        "--tp-size", str(facts.all_devices),
        *member_args(facts),
        "--max-running-requests", str(places + SLACK),
        "--disaggregation-mode", facts.role,
        "--disaggregation-transfer-backend", "nixl",
        "--disaggregation-bootstrap-port", str(names.PORT_TRANSFER),
        "--enable-metrics",
        "--enable-cache-report",
    )  # fmt: skip


def member_args(facts: InstanceFacts) -> tuple[str, ...]:
    """How engines of several nodes find each other; rank 0 serves."""
    if facts.members == 1:
        return ()
    return (
        "--nnodes", str(facts.members),
        "--node-rank", str(facts.member),
        "--dist-init-addr", f"{shared.leader_of(facts)}:{shared.RENDEZVOUS_PORT}",
    )  # fmt: skip


def proxy_args(facts: InstanceFacts) -> tuple[str, ...]:
    """Of `pdserve-engine-proxy`."""
    return (
        "--engine", f"http://localhost:{shared.ENGINE_PORT}",
        "--slots", str(facts.slots),
        "--prefetch", str(shared.prefetch(facts)),
        "--lease-seconds", str(LEASE_SECONDS),
        "--rooms",
    )  # fmt: skip


POD = SglangPod()
