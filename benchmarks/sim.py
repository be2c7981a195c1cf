"""Requests a second of the simulator on one core, from a dozen instances to 50,000 devices.

    sim.py [--requests N]

Default 2,000,000 requests a size; what 36 million take is printed in any case (`--requests 36e6`
runs them). Traffic is drawn in the same run and counted. The reference of the compiled plant is the
same plant as Python; without numba there is nothing to compare.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from benchmarks.harness import ROOT, Progress, Row, report

from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.closed_loop import plant_profile
from pdserve.sim.kernel import layout
from pdserve.sim.kernel.compiled import COMPILED, WITHOUT_NUMBA
from pdserve.sim.plant import PlantSpec, ScenarioPlant
from pdserve.sim.shapes import SLO

GROUP = Counts(1, 4, 8)
"""Instances of one P/D group; each has 8 devices."""
RATE = 28.0
"""Requests per second of one group: nine in ten of what it can serve."""
DEVICES = 8
SIZES = (1, 10, 100, 520)
"""P/D groups: 96, 960, 9,600 and 49,920 devices."""
LIMIT, MANY = 300.0, 36e6
"""Seconds for so many requests."""
PYTHON_REQUESTS = 30_000


@dataclass(frozen=True)
class Speed:
    """One size's figures."""

    groups: int
    requests: int
    seconds: float
    met: float
    """Share of ended requests that met the SLO."""

    @property
    def rate(self) -> float:
        """Requests per second of CPU time, traffic included."""
        return self.requests / self.seconds


def measured(groups: int, requests: float) -> Speed:
    """Simulate until so many requests have arrived."""
    spec = PlantSpec(plant_profile(), SLO, groups, capacity=8, minutes=2)
    plant = ScenarioPlant(spec, Counts(groups, GROUP.prefill, GROUP.decode))
    plant.run_until(0.001)  # compiles, where that has not been done
    rng = np.random.default_rng(1)
    block, count, end = min(60.0, 200_000 / (RATE * groups)), 0, 0.001
    began = time.process_time()
    while count < requests:
        times = np.sort(rng.uniform(end, end + block, rng.poisson(RATE * groups * block)))
        factors = np.exp(0.5 * rng.standard_normal((2, len(times))) - 0.125)
        tokens = np.stack(
            [
                np.maximum(1, np.rint(1200 * factors[0])),
                np.zeros(len(times)),
                np.maximum(3, np.rint(200 * factors[1])),
            ],
            axis=1,
        )
        end += block
        plant.feed(Arrivals(times, tokens.astype(np.int64)))
        plant.run_until(end)
        count += len(times)
    seconds = time.process_time() - began
    counters = plant.gateway()
    met = counters[layout.G_MET] / max(counters[layout.G_OFFERED], 1.0)
    return Speed(groups, count, seconds, met)


def as_python() -> float:
    """Requests per second without numba, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--requests", str(PYTHON_REQUESTS), "--only-rate"],
        env={**os.environ, WITHOUT_NUMBA: "1", "PYTHONPATH": str(ROOT / "operator")},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> int:
    """The exit status: 1 when a floor fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=float, default=2e6)
    parser.add_argument("--only-rate", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_rate:
        print(measured(1, given.requests).rate)
        return 0
    progress = Progress()
    rows = []
    reference = as_python() if COMPILED else 1.0
    for groups in SIZES:
        speed = measured(groups, given.requests if COMPILED else PYTHON_REQUESTS)
        devices = groups * DEVICES * (GROUP.prefill + GROUP.decode)
        progress(
            f"{devices} devices: {speed.requests} requests in {speed.seconds:.1f} s of CPU time, "
            f"{100 * speed.met:.2f} % met the SLO; 36 million take {MANY / speed.rate:.0f} s"
        )
        if COMPILED:
            rows.append(Row(f"requests/s, {devices} devices", speed.rate, "1/s", "as Python, 96",
                            reference, 3.0, "higher"))  # fmt: skip
        if COMPILED and groups in (SIZES[0], SIZES[-1]):
            rows.append(Row(f"36 million requests, {devices} devices", MANY / speed.rate, "s",
                            "limit", LIMIT, 1.0, "lower"))  # fmt: skip
    if not rows:
        print("numba is not installed: pip install 'pdserve[sim]'")
        return 0
    return report("sim", rows)


if __name__ == "__main__":
    sys.exit(main())
