"""Pods with MindIE Motor's image: its engine is started as vLLM-Ascend is."""

from pdserve.engines.vllm_ascend.pod import POD

__all__ = ["POD"]
