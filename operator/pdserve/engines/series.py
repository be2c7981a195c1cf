"""Under which names instances of one engine type expose what the ratio loop reads.

One name or more per quantity (`wire.metrics.PREFILL_QUANTITIES`, `DECODE_QUANTITIES`), all
counters but `alive`, which is any series that a running instance always exposes. A quantity may be
missing: the ratio loop then says that it is unknown, and changes nothing on its account. Units
are those of `wire.metrics`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pdserve.wire.metrics import ALIVE, DECODE_QUANTITIES, PREFILL_QUANTITIES

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,127}")
_KNOWN = {ALIVE, *PREFILL_QUANTITIES, *DECODE_QUANTITIES}


@dataclass(frozen=True, slots=True)
class EngineSeries:
    """Names by quantity; of several the first that an instance exposes counts."""

    names: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Raises ValueError for a quantity that there is not, or what is no name of a series."""
        for quantity, series in self.names.items():
            if quantity not in _KNOWN:
                raise ValueError(f"no quantity is called {quantity!r}")
            wrong = next((n for n in series if not _NAME.fullmatch(n)), None)
            if wrong is not None:
                raise ValueError(f"{quantity}: {wrong!r} is no name of a series")
