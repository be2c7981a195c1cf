"""Which counter of the plant is published under which metric name."""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.sim.kernel import layout
from pdserve.terms import Role
from pdserve.wire import metrics


def _outcome(name: str) -> str:
    return f'{metrics.GATEWAY_OUTCOME}{{outcome="{name}"}}'


def bucket(metric: str, index: int) -> str:
    """Name of a histogram's bucket; each is a tenth of the target wide, the last has the rest."""
    return f"{metric}_bucket[{index}]"


ARRIVED, ARRIVED_PROMPT = "sim_arrived_total", "sim_arrived_prompt_tokens_total"
"""Counted at arrival, as the routers of others do; what our own gateways count then has names in
`wire.metrics`."""
GATEWAY_COUNTERS: Mapping[str, int] = {
    ARRIVED: layout.G_ARRIVED,
    ARRIVED_PROMPT: layout.G_ARRIVED_PROMPT,
    metrics.GATEWAY_ARRIVED: layout.G_ARRIVED,
    metrics.GATEWAY_ARRIVED_PROMPT_TOKENS: layout.G_ARRIVED_PROMPT,
    metrics.GATEWAY_INFEASIBLE: layout.G_INFEASIBLE,
    metrics.GATEWAY_OFFERED: layout.G_OFFERED,
    metrics.GATEWAY_SLO_MET: layout.G_MET,
    metrics.GATEWAY_TTFT_MET: layout.G_TTFT_MET,
    metrics.GATEWAY_HANDOFF_MET: layout.G_HANDOFF_MET,
    metrics.GATEWAY_TPOT_MET: layout.G_TPOT_MET,
    metrics.GATEWAY_COMPLETED: layout.G_COMPLETED,
    metrics.GATEWAY_PROMPT_TOKENS: layout.G_PROMPT,
    metrics.GATEWAY_OUTPUT_TOKENS: layout.G_OUTPUT,
    metrics.GATEWAY_CACHED_TOKENS: layout.G_CACHED,
    _outcome("completed"): layout.G_COMPLETED,
    _outcome("decode_overload"): layout.G_OVERLOAD,
    _outcome("expired"): layout.G_EXPIRED,
    _outcome("failed"): layout.G_FAILED,
    f"{metrics.GATEWAY_TTFT}_sum": layout.G_TTFT,
    f"{metrics.GATEWAY_TTFT}_count": layout.G_TTFT_COUNT,
    **{bucket(metrics.GATEWAY_TTFT, k): layout.G_TTFT_BUCKETS + k for k in range(layout.BUCKETS)},
    **{bucket(metrics.GATEWAY_TPOT, k): layout.G_TPOT_BUCKETS + k for k in range(layout.BUCKETS)},
}
WAITING = metrics.GATEWAY_WAITING
LOAD, RUNNING = "sim_load", "sim_running"
"""Gauges of an instance: requests that hold a place in it, and those in its batch."""
ROLE_COUNTERS: Mapping[Role, Mapping[str, int]] = {
    "prefill": {
        metrics.PREFILL_BATCHES: layout.E_BATCHES,
        metrics.PREFILL_REQUESTS: layout.E_REQUESTS,
        metrics.PREFILL_COMPUTE_SECONDS: layout.E_COMPUTE,
        metrics.PREFILL_TOKENS: layout.E_TOKENS,
        metrics.PREFILL_TOKENS_SQUARED: layout.E_SQUARED,
        metrics.KV_WAIT_DECODE_SECONDS: layout.E_WAIT,
        metrics.KV_TRANSFER_SECONDS: layout.E_TRANSFER,
        metrics.KV_TRANSFERS: layout.E_TRANSFERS,
    },
    "decode": {
        metrics.DECODE_STEPS: layout.E_STEPS,
        metrics.DECODE_STEP_SECONDS: layout.E_STEP_SECONDS,
        metrics.DECODE_STEP_REQUESTS: layout.E_STEP_REQUESTS,
        metrics.DECODE_STEP_CONTEXT: layout.E_STEP_CONTEXT,
    },
}
