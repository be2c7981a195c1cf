"""Series of vLLM, as its proxy exposes them: pdserve's names.

The proxy counts what passes through it; engine steps are vLLM's own counter (`STEPS`), which the
proxy exposes under pdserve's names. vLLM's exposition as it is stands under `/metrics/engine`.
"""

from typing import Final

from pdserve.engines.series import EngineSeries
from pdserve.wire.metrics import ENGINE_SERIES

STEPS: Final = "vllm:iteration_tokens_total_count"
"""Steps that computed at least one token (vLLM 0.32)."""

METRICS = EngineSeries({quantity: (name,) for quantity, name in ENGINE_SERIES.items()})
