"""Series of the Reference engine: pdserve's own names, and vLLM's on a path of their own."""

from pdserve.engines.series import EngineSeries
from pdserve.wire.metrics import ENGINE_SERIES

# vLLM's names, same meaning (vLLM 0.32), for dashboards made for vLLM.
PATH_VLLM = "/metrics/vllm"
VLLM_RUNNING = "vllm:num_requests_running"
VLLM_WAITING = "vllm:num_requests_waiting"
VLLM_KV_USAGE = "vllm:kv_cache_usage_perc"
VLLM_PROMPT_TOKENS = "vllm:prompt_tokens_total"
VLLM_GENERATION_TOKENS = "vllm:generation_tokens_total"
VLLM_SUCCESS = "vllm:request_success_total"
VLLM_TTFT = "vllm:time_to_first_token_seconds"
VLLM_ITL = "vllm:inter_token_latency_seconds"
VLLM_E2E = "vllm:e2e_request_latency_seconds"
VLLM_REJECTIONS = "vllm:admission_rejections_total"


def former_name(series: str) -> str:
    """The name under which engines of older versions expose a series.

    A colon in a name is for recording rules (promlint).
    """
    return f"pdserve:{series.removeprefix('pdserve_engine_')}"


METRICS = EngineSeries(
    {quantity: (name, former_name(name)) for quantity, name in ENGINE_SERIES.items()}
)
