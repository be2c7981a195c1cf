"""The inner loop gives equal results as machine code and as Python, to the last bit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

RUN = """
import hashlib
from dataclasses import replace
from pdserve.sim.closed_loop import run
from pdserve.sim.kernel.compiled import COMPILED
from pdserve.sim.policies.registry import POLICIES
from pdserve.sim.shapes import DRAWN, Fault
shape = replace(DRAWN["step_x2"], points=((0, 9), (200, 9), (200, 24), (500, 24)), duration=500.0,
                faults=(Fault(300.0, "decode"), Fault(350.0, "prefill", slow=1.5)))
done = run(shape, POLICIES["hpa"], 4)
found = (done.plant.minutes().tolist(), done.plant.gateway(), done.plant.instance_seconds,
         [(c.time, c.counts) for c in done.changes])
print(COMPILED, len(done.changes), hashlib.sha256(repr(found).encode()).hexdigest())
"""


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs the extra `sim`")
def test_machine_code_and_python_agree_to_the_last_bit() -> None:
    found = {}
    for pure in ("", "1"):
        environment = {
            **os.environ,
            "PDSERVE_SIM_PURE": pure,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=True
        )
        compiled, changes, digest = done.stdout.split()
        found[compiled] = digest
        assert int(changes) > 2
    assert set(found) == {"True", "False"}
    assert found["True"] == found["False"]
