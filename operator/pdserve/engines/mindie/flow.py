"""Requests of the engine in MindIE Motor's image: those of vLLM-Ascend."""

from pdserve.engines.vllm_ascend.flow import FLOW

__all__ = ["FLOW"]
