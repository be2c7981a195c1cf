"""Series of vLLM-Ascend, as its proxy exposes them: those of vLLM."""

from pdserve.engines.vllm.metrics import METRICS

__all__ = ["METRICS"]
