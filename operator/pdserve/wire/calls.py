"""HTTP calls between gateway, operator and engines: paths, headers, and reasons of a refusal.

`http1` is the layer that carries them; this module holds only what both ends must spell alike.
Slot hints travel on every prefill and decode reply, so that a gateway learns who is free
without polling (P/D-Serve section 3.5: the instance alone decides; hints never authorise).
"""

# OpenAI API.
PATH_COMPLETIONS = "/v1/completions"
PATH_CHAT = "/v1/chat/completions"
PATH_MODELS = "/v1/models"

# Health: `/health` the process is up; `/readyz` this process verified a peer table that names it
# and does not drain (an aggregated instance is ready once loaded).
PATH_HEALTH = "/health"
PATH_READY = "/readyz"
PATH_METRICS = "/metrics"

# Control (Bearer token of the service, `wire.names.token_secret_name`).
PATH_INFO = "/pdserve/v1/info"
PATH_PEERS = "/pdserve/v1/peers"
PATH_LINKS = "/pdserve/v1/links"
PATH_DRAIN = "/pdserve/v1/drain"
PATH_RELEASE = "/pdserve/v1/release"
PATH_LIMITS = "/pdserve/v1/limits"
"""Of gateways, for each other."""

HEADER_REQUEST_ID = "x-request-id"
HEADER_LIMITS = "x-pdserve-limits"
"""On a gateway's report about limits to another one: `wire.credentials.limits_token`."""
HEADER_API_KEY = "x-api-key"
"""An API key, where `Authorization` does not arrive (the API server's pod proxy keeps it)."""
HEADER_SCENARIO = "x-pdserve-scenario"
"""On a gateway's replies: the scenario that took the request."""
HEADER_PREFILL = "x-pdserve-prefill"
HEADER_DECODE = "x-pdserve-decode"
"""On a gateway's answers: the instances (pod names) that computed it; no decode where token 1
ended it."""
HEADER_DEADLINE_MS = "x-pdserve-deadline-ms"
"""Milliseconds left for this leg when it was sent; an instance rejects what cannot start."""
HEADER_EARLY_HEAD = "x-pdserve-early-head"
"""`1` on a decode leg whose reply is not streamed: say `102 Processing` once the KV is pulled."""
HEADER_EVENT_IDS = "x-pdserve-event-ids"
"""`1` on a decode leg whose reply is streamed: each event ends with a line `id: ` and the ids, with
commas between, of the tokens chosen since the event before it."""
HEADER_LOCAL_PREFILL = "x-pdserve-local-prefill"
"""`1` on a decode leg without P/D parameters: the decode computes the prompt itself."""
HEADER_TPOT_MS = "x-pdserve-tpot-ms"
"""On such a leg: milliseconds per token that the answers already running there may take on average;
a decode that could not keep them within it refuses with `tpot`."""
HEADER_PROMPT_TOKENS = "x-pdserve-prompt-tokens"
HEADER_CACHED_TOKENS = "x-pdserve-cached-tokens"
HEADER_SEED = "x-pdserve-seed"
"""On a decode's answer to such a leg: tokens of its prompt, how many of them were in its prefix
cache, and the seed of the sampler, with which another decode can go on."""
HEADER_SLOTS = "x-pdserve-slots"
"""`free/total`, e.g. `1/4`: slots on prefill, credits (slots + prefetch) on decode."""
HEADER_FREE_IN_MS = "x-pdserve-free-in-ms"
"""Expected milliseconds until a slot frees; 0 when one is free now."""
HEADER_EPOCH = "x-pdserve-epoch"
"""Integer, grows with every change of the hint within one process; stale hints lose."""
HEADER_REJECT = "x-pdserve-reject"
"""Reason of a 503: one of the REJECT_* values."""
HEADER_NEEDED_MS = "x-pdserve-needed-ms"
HEADER_LEFT_MS = "x-pdserve-left-ms"
"""With a 503: the milliseconds to token 1 that the request needed, and those that were left; of an
instance, with `deadline`: those that the leg is predicted to take, and those that were left."""

REJECT_FULL = "full"
REJECT_DRAINING = "draining"
REJECT_NOT_READY = "not_ready"
REJECT_DEADLINE = "deadline"
REJECT_DECODE_FULL = "decode_full"
REJECT_TPOT = "tpot"
"""From a decode that was to compute a prompt itself: running answers would become too slow."""
REJECT_KV_FAILED = "kv_failed"
"""With 502 from decode: it could not pull the KV; another decode of the group may try."""
REJECT_KV_CORRUPT = "kv_corrupt"
"""With 502 from decode: what it pulled was not the KV that was asked for; as `kv_failed`."""

PARAM_KV = "kv_transfer_params"
"""Body field of vLLM's P/D contract; opaque to the gateway."""
