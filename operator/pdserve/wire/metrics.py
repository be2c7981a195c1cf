"""Metric names that one process exposes and the ratio loop (or a dashboard) reads.

Gateway series carry labels `service` and `scenario`. Engine series get `service`, `scenario`,
`role`, `instance`, `group_index` from pod labels at scrape time. Units are in the names.
Counters below are read as increases over a window, so a restart is handled by Prometheus.
"""

# --- gateway ---------------------------------------------------------------------------------
GATEWAY_OFFERED = "pdserve_gateway_offered_total"
"""Logical requests that count: authenticated, valid, not cancelled before their deadline.
A request is added when its outcome is known, together with exactly one outcome below."""
GATEWAY_ARRIVED = "pdserve_gateway_arrived_total"
"""Requests that an idle prefill could answer in time, counted when they arrive: the demand."""
GATEWAY_ARRIVED_PROMPT_TOKENS = "pdserve_gateway_arrived_prompt_tokens_total"
"""Prompt tokens of those, as the gateway estimates them."""
GATEWAY_INFEASIBLE = "pdserve_gateway_infeasible_total"
"""Offered requests refused at arrival: their prefill alone takes longer than the TTFT target."""
GATEWAY_OUTCOME = "pdserve_gateway_outcome_total"
"""+ label `outcome`: completed, expired, decode_overload, failed, cancelled_late."""
GATEWAY_SLO_MET = "pdserve_gateway_slo_met_total"
"""Offered requests that completed within TTFT, handoff and TPOT targets."""
GATEWAY_TTFT_MET = "pdserve_gateway_ttft_met_total"
GATEWAY_HANDOFF_MET = "pdserve_gateway_handoff_met_total"
GATEWAY_TPOT_MET = "pdserve_gateway_tpot_met_total"
GATEWAY_TTFT = "pdserve_gateway_ttft_seconds"
GATEWAY_HANDOFF = "pdserve_gateway_handoff_seconds"
GATEWAY_TPOT = "pdserve_gateway_tpot_seconds"
GATEWAY_E2E = "pdserve_gateway_e2e_seconds"
GATEWAY_PROMPT_TOKENS = "pdserve_gateway_prompt_tokens_total"
GATEWAY_OUTPUT_TOKENS = "pdserve_gateway_output_tokens_total"
GATEWAY_CACHED_TOKENS = "pdserve_gateway_cached_tokens_total"
GATEWAY_EXPECTED_CACHED_TOKENS = "pdserve_gateway_expected_cached_tokens_total"
GATEWAY_PREFIX_BLOCKS = "pdserve_gateway_prefix_blocks"
GATEWAY_PREFIX_FEEDS = "pdserve_gateway_prefix_feeds"
GATEWAY_PREFIX_FEEDS_BROKEN = "pdserve_gateway_prefix_feeds_broken_total"
GATEWAY_COMPLETED = "pdserve_gateway_completed_total"
"""Completed requests: the denominator of the token counters."""
GATEWAY_REJECTIONS = "pdserve_gateway_rejections_total"
"""+ labels `leg` (prefill, decode) and `reason` (wire.calls.REJECT_*, or connect, status)."""
GATEWAY_ATTEMPTS = "pdserve_gateway_attempts_total"
"""+ label `leg`. Legs tried; attempts - rejections = legs accepted."""
GATEWAY_CONTINUED = "pdserve_gateway_streams_continued_total"
GATEWAY_LOCAL_PREFILLS = "pdserve_gateway_local_prefills_total"
"""+ label `result`: served, refused, failed. Prompts that a decode was asked to compute."""
GATEWAY_LOCAL_CROSSOVER = "pdserve_gateway_local_prefill_crossover_tokens"
GATEWAY_EXPIRED = "pdserve_gateway_expired_total"
"""+ label `stage`: arrival, before_prefill, after_prefill."""
GATEWAY_WAITING = "pdserve_gateway_waiting"
GATEWAY_INFLIGHT = "pdserve_gateway_inflight"
"""+ labels `leg`, `instance`."""
GATEWAY_EJECTED = "pdserve_gateway_ejected"
"""+ label `instance`: 1 while passively ejected."""
GATEWAY_LIMITED = "pdserve_gateway_limited_total"
"""+ labels `scope` (scenario, key) and `reason` (requests, tokens, concurrent). Not offered."""
GATEWAY_BY_SHARE = "pdserve_gateway_limits_by_share"
GATEWAY_SPANS = "pdserve_gateway_spans_total"
"""+ label `result`: exported, queue_full, failed. None while requests are not traced."""
GATEWAY_KEYS = "pdserve_gateway_api_keys"
"""+ label `state`: accepted, refused (their limits cannot be read)."""
GATEWAY_CLIENT_CANCELLED = "pdserve_gateway_client_cancelled_total"
GATEWAY_ROUTE_VERSION = "pdserve_gateway_route_version"

# --- engine ------------------------------------------------------------------------------------
PREFILL_BATCHES = "pdserve_engine_prefill_batches_total"
PREFILL_REQUESTS = "pdserve_engine_prefill_requests_total"
PREFILL_COMPUTE_SECONDS = "pdserve_engine_prefill_compute_seconds_total"
"""Time batches spent computing, by batch (not by request)."""
PREFILL_TOKENS = "pdserve_engine_prefill_tokens_total"
"""Sum over computed requests of uncached prompt tokens L."""
PREFILL_TOKENS_SQUARED = "pdserve_engine_prefill_tokens_squared_total"
"""Sum of L^2, the attention term's regressor."""
KV_WAIT_DECODE_SECONDS = "pdserve_engine_kv_wait_decode_seconds_total"
"""Prefill: time requests held a slot after compute until a decode began to pull. This is decode
pressure: it must not be counted as prefill time."""
KV_TRANSFER_SECONDS = "pdserve_engine_kv_transfer_seconds_total"
KV_TRANSFERS = "pdserve_engine_kv_transfers_total"
KV_TRANSFER_BYTES = "pdserve_engine_kv_transfer_bytes_total"
KV_PULLS = "pdserve_engine_kv_pulls_total"
"""+ labels `path` (device, pod) and `reason` (why not a device; empty where it was one)."""
KV_CORRUPT_PULLS = "pdserve_engine_kv_corrupt_pulls_total"
KV_DEVICE_ADDRESSES = "pdserve_engine_kv_device_addresses"
"""+ label `state`: listening, missing. Of this instance's devices, as its peer table names them."""
DECODE_STEPS = "pdserve_engine_decode_steps_total"
DECODE_STEP_SECONDS = "pdserve_engine_decode_step_seconds_total"
DECODE_STEP_REQUESTS = "pdserve_engine_decode_step_requests_total"
"""Sum over steps of the batch size B."""
DECODE_STEP_CONTEXT = "pdserve_engine_decode_step_context_tokens_total"
"""Sum over steps of the context tokens of the whole batch."""
SLOTS = "pdserve_engine_slots"
"""+ label `state`: total, executing, holding (prefill); total, running, prefetching (decode)."""
REJECTIONS = "pdserve_engine_rejections_total"
"""+ label `reason`."""
PACED_VALID = "pdserve_engine_paced_valid"
"""Paced mode only: 1 while at most 1 % of steps were late, else 0."""
PACED_LATE = "pdserve_engine_paced_late_steps_total"

# --- engine: what the ratio loop reads, by quantity ---------------------------------------------
ALIVE = "alive"
"""Quantity: any series that a running instance always exposes; its age is the instance's."""
PREFILL_SERIES = {
    "batches": PREFILL_BATCHES,
    "requests": PREFILL_REQUESTS,
    "compute_seconds": PREFILL_COMPUTE_SECONDS,
    "tokens": PREFILL_TOKENS,
    "tokens_squared": PREFILL_TOKENS_SQUARED,
    "kv_wait_seconds": KV_WAIT_DECODE_SECONDS,
    "kv_transfer_seconds": KV_TRANSFER_SECONDS,
    "kv_transfers": KV_TRANSFERS,
}
DECODE_SERIES = {
    "steps": DECODE_STEPS,
    "step_seconds": DECODE_STEP_SECONDS,
    "step_requests": DECODE_STEP_REQUESTS,
    "step_context": DECODE_STEP_CONTEXT,
}
PREFILL_QUANTITIES = tuple(PREFILL_SERIES)
DECODE_QUANTITIES = tuple(DECODE_SERIES)
ENGINE_SERIES = {ALIVE: SLOTS, **PREFILL_SERIES, **DECODE_SERIES}
"""pdserve's own name of each quantity; an engine type may have others (`engines.series`)."""
