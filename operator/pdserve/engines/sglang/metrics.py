"""Series of SGLang, as its proxy exposes them: pdserve's names.

SGLang documents no counter of engine steps, and a decode pulls nothing that the proxy would see:
`batches`, `steps` and the times of KV transfers are absent, so the ratio loop says Unknown where it
needs them. SGLang's exposition as it is stands under `/metrics/engine`.
"""

from typing import Final

from pdserve.engines.series import EngineSeries
from pdserve.wire.metrics import ENGINE_SERIES

ABSENT: Final = frozenset(
    ("batches", "steps", "kv_wait_seconds", "kv_transfer_seconds", "kv_transfers")
)

METRICS = EngineSeries(
    {quantity: (name,) for quantity, name in ENGINE_SERIES.items() if quantity not in ABSENT}
)
