"""Series of its own names."""

from pdserve.engines.series import EngineSeries
from pdserve.wire.metrics import ENGINE_SERIES
from toy_engine import toy_series

METRICS = EngineSeries({quantity: (toy_series(name),) for quantity, name in ENGINE_SERIES.items()})
