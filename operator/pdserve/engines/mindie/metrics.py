"""Series of the engine in MindIE Motor's image: those of vLLM-Ascend."""

from pdserve.engines.vllm_ascend.metrics import METRICS

__all__ = ["METRICS"]
