"""Requests of vLLM-Ascend: those of vLLM; the parameters of its connector pass unchanged."""

from pdserve.engines.vllm.flow import FLOW

__all__ = ["FLOW"]
