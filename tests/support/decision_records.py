"""A record of decisions, as the operator's --decisions-log holds it after a simulated while."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pdserve.ratio.records import record
from pdserve.ratio.types import Counts
from pdserve.sim.closed_loop import run
from pdserve.sim.policies.base import PolicyWorld
from pdserve.sim.policies.pdserve import PdserveLoop
from pdserve.sim.shapes import DRAWN

GROWING = replace(
    DRAWN["spike"], name="grows", points=((0, 3), (300, 3), (300, 14), (780, 14)), duration=780.0,
    start=Counts(1, 1, 1),
)  # fmt: skip


def write_record(path: Path) -> None:
    """Thirteen minutes whose traffic grows from 3 to 14 requests/s."""
    made: list[PdserveLoop] = []

    def make(world: PolicyWorld) -> PdserveLoop:
        made.append(PdserveLoop(world))
        return made[0]

    run(GROWING, make, seed=1)
    pairs = zip(made[0].inputs, made[0].decisions, strict=True)
    path.write_text("".join(record(inp, decision) + "\n" for inp, decision in pairs))
