"""Requests of SGLang: both legs at once, meeting in a room of the prefill's bootstrap server.

Its prefill samples token 1 and sends it with the KV. `LEASE_SECONDS` bounds how long one side waits
for the other; the pod sets SGLang's timeouts to it.
"""

from typing import Final

from pdserve.engines.room_flow import RoomFlow

LEASE_SECONDS: Final = 30
WITHHELD: Final = frozenset((
    "rid", "data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank",
    "bootstrap_pair_key", "session_params",
))  # fmt: skip
"""Fields of SGLang that name requests, sessions and workers of others."""

FLOW = RoomFlow(lease_seconds=float(LEASE_SECONDS), withheld=WITHHELD)
