"""Requests of vLLM: its own P/D bodies, under pdserve's headers, which its proxy understands.

A decode computes token 1 again, so a prefill's reply is no first token. The lease is that of the
connector's `kv_lease_duration`, which the pod sets. A decode computes a prompt that comes without
parameters, as any vLLM does.
"""

from typing import Final

from pdserve.engines.local_flow import LocalPullFlow

LEASE_SECONDS: Final = 30

FLOW = LocalPullFlow(lease_seconds=float(LEASE_SECONDS), first_token="decode")  # noqa: S106 (a model token)
