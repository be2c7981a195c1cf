"""Decode steps by the reference engine's torch back-end, for `decode_steps.py`.

    python torch_steps.py FOLDER DTYPE

Runs in an environment that has torch, and speaks as `transformers_steps.py` does: `BATCH CONTEXT`
makes random KV of that size, `step` computes one token for each member. One thread, on the CPU.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "operator"))

from pdserve.refengine.model.arithmetic import Arithmetic
from pdserve.refengine.model.model_config import BLOCK_TOKENS, load_config
from pdserve.refengine.model.plan import Rows, new_pool
from pdserve.refengine.model.tensors import read_safetensors


def main(folder: Path, dtype: Any) -> int:
    """Serve until standard input ends; the exit status."""
    module: Any = importlib.import_module("pdserve.refengine.model.torch_llama")
    torch: Any = importlib.import_module("torch")
    c = load_config(folder / "config.json")
    tensors = read_safetensors(folder / "model.safetensors")
    model = module.TorchLlama(c, tensors, Arithmetic("fast", "torch", dtype, "cpu"))
    _say(f"torch {torch.__version__}")
    rng = np.random.default_rng(0)
    members: list[Rows] = []
    pool = new_pool(c, 1)
    for line in sys.stdin:
        if line.strip() != "step":
            batch, context = (int(word) for word in line.split())
            blocks = context // BLOCK_TOKENS + 1
            pool = new_pool(c, batch * blocks + 1)
            pool[:] = rng.standard_normal(pool.shape[1:], dtype=np.float32)
            tables = rng.permutation(np.arange(1, batch * blocks + 1)).reshape(batch, blocks)
            token = np.asarray([5], np.int32)
            members = [Rows(token, context, table, logits=True) for table in tables]
            _say("ready")
            continue
        begin = time.perf_counter()
        model.step(members, pool)
        _say(str(1000 * (time.perf_counter() - begin)))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
