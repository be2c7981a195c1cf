"""All policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pdserve.sim.policies.aibrix import Apa, Kpa
from pdserve.sim.policies.base import Policy, PolicyWorld
from pdserve.sim.policies.dynamo import Dynamo, Throughput
from pdserve.sim.policies.fixed import at_start, for_mean, for_peak
from pdserve.sim.policies.hpa import Hpa
from pdserve.sim.policies.kthena import Kthena
from pdserve.sim.policies.llm_d import SloAware, TokenAware
from pdserve.sim.policies.pdserve import PdserveLoop
from pdserve.sim.policies.planners import Dopd, Mm1, TokenScale
from pdserve.sim.policies.square_root import SquareRoot

Maker = Callable[[PolicyWorld], Policy]

POLICIES: Mapping[str, Maker] = {
    "pdserve": PdserveLoop,
    "square-root": SquareRoot,
    "hpa": Hpa,
    "llm-d-slo": SloAware,
    "llm-d-tokens": TokenAware,
    "aibrix-apa": Apa,
    "aibrix-kpa": Kpa,
    "kthena": Kthena,
    "dynamo": Dynamo,
    "dynamo-throughput": Throughput,
    "dopd": Dopd,
    "tokenscale": TokenScale,
    "mm1": Mm1,
    "fixed-start": at_start,
    "fixed-mean": for_mean,
    "fixed-peak": for_peak,
}
