"""Requests of vLLM-Ascend: those of vLLM; the parameters of its connector pass unchanged.

That its decodes compute prompts as vLLM's do is not known from what is public: they are not asked.
"""

from pdserve.engines.pull_flow import PullFlow
from pdserve.engines.vllm.flow import LEASE_SECONDS

FLOW = PullFlow(lease_seconds=float(LEASE_SECONDS), first_token="decode")  # noqa: S106 (a model token)
