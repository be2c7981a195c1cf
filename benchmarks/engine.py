"""Reference engine: what exactness, batching, P/D and rejection cost on this machine.

Every row has its own yardstick from the same minute, because CPU, load and BLAS differ between
machines. Decode steps in fast arithmetic are those of a model of SmolLM2-135M's shape
(`parts/decode_steps.py`), by numpy, by torch, and by `transformers`; `--only-decode` measures
nothing else. The first run installs `transformers` with torch, gigabytes, below build/bench/tools;
PDSERVE_BENCH_TOOLS names another folder, and where they cannot be installed there are no rows with
them. Run by `make bench-engine`; one BLAS thread, as in the engine.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import uvloop
from benchmarks.harness import Progress, Row, report
from benchmarks.parts.decode_steps import decode_rows
from tests.support.engines import Client, EngineProcess, Group, until

from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.model.loader import LoadedModel, load_model
from pdserve.refengine.model.plan import Rows, new_pool

PATH = "/v1/completions"


def best(action: Callable[[], object], repeats: int = 15) -> float:
    """Shortest of several runs, in milliseconds: the least disturbed one."""
    action()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times) * 1000


def plain_products(model: LoadedModel, rows: int) -> Callable[[], object]:
    """The same matrix products as one prefill, whole matrices, no tiles, no attention."""
    c = model.config
    rng = np.random.default_rng(0)
    shapes = [
        (c.hidden, (c.heads + 2 * c.kv_heads) * c.head_dim),
        (c.heads * c.head_dim, c.hidden),
        (c.hidden, c.ffn),
        (c.hidden, c.ffn),
        (c.ffn, c.hidden),
    ]
    pairs = [
        (rng.standard_normal((rows, k), dtype=np.float32), rng.standard_normal((k, n), np.float32))
        for k, n in shapes
    ]
    return lambda: [x @ w for _ in range(c.layers) for x, w in pairs]


def compute_rows(model: LoadedModel) -> list[Row]:
    pool = new_pool(model.config, 200)
    tokens = np.arange(5, 261, dtype=np.int32)
    tables = [np.arange(1 + 16 * i, 17 + 16 * i) for i in range(8)]
    prefill = best(lambda: model.llama.step([Rows(tokens, 0, tables[0], True)], pool))
    for table in tables:
        model.llama.step([Rows(tokens, 0, table, False)], pool)
    singles = [Rows(tokens[:1], 256, t, True) for t in tables]
    batch = best(lambda: model.llama.step(singles, pool))
    one_by_one = best(lambda: [model.llama.step([r], pool) for r in singles])
    products = best(plain_products(model, 256))
    return [
        Row(
            "prefill 256 tokens, exact",
            prefill,
            "ms",
            "its products alone, untiled",
            products,
            6,
            "lower",
        ),
        Row(
            "decode step, 8 requests at 256",
            batch,
            "ms",
            "8 steps of one",
            one_by_one,
            0.6,
            "lower",
        ),
    ]


async def timed(count: int, *calls: Callable[[], Any]) -> list[float]:
    """Lower quartile in milliseconds of each of several calls, made in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(count):
        for call, kept in zip(calls, times, strict=True):
            begin = time.perf_counter()
            await call()
            kept.append(time.perf_counter() - begin)
    return [sorted(kept)[count // 4] * 1000 for kept in times]


def import_ms() -> float:
    """A process that only imports what the engine imports."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy, uvloop, tokenizers"], check=True)
    return (time.perf_counter() - begin) * 1000


async def server_rows() -> list[Row]:
    client = Client()
    prefill, decode = EngineProcess("prefill", ("--slots", "1")), EngineProcess("decode")
    plain = EngineProcess("both")
    begin = time.perf_counter()
    prefill.start()
    await until(lambda: client.up(prefill), "prefill listens")
    start_ms = (time.perf_counter() - begin) * 1000
    imports_ms = import_ms()
    try:
        for engine in (decode, plain):
            engine.start()
            await until(partial(client.up, engine), f"{engine.name} listens")
        group = Group(client, [prefill], [decode])
        await group.push()
        prompt = [5 + i % 2000 for i in range(256)]
        body = {"model": "reference", "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
        both_legs, aggregated = await timed(
            60,
            lambda: group.generate(PATH, body),
            lambda: client.call("POST", plain.url + PATH, body),
        )
        await group.prefill(PATH, body)  # Takes the only slot.
        rejection, health = await timed(
            300,
            lambda: group.prefill(PATH, body),
            lambda: client.call("GET", prefill.url + "/health"),
        )
        # fmt: off
        return [
            Row("process start to listening",
                start_ms, "ms", "its imports alone", imports_ms, 5, "lower"),
            Row("2 tokens through P/D, cached prompt",
                both_legs, "ms", "aggregated", aggregated, 6, "lower"),
            Row("rejection with a 256-token body",
                rejection, "ms", "GET /health", health, 2, "lower"),
        ]
        # fmt: on
    finally:
        for engine in (prefill, decode, plain):
            engine.kill()
        await client.close()


async def built_in_rows() -> list[Row]:
    """What is measured with the built-in model.

    Raises:
        AssertionError: the engine's KV blocks have another size than the tables assume.
    """
    model = load_model(None)
    if blocks_for(256) != 8:
        raise AssertionError("the tables above assume blocks of 32 tokens")
    return [*compute_rows(model), *await server_rows()]


def main() -> int:
    """Measure all; the exit status."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rounds", type=int, default=9, help="decode steps of each kind")
    p.add_argument("--only-decode", action="store_true", help="only steps in fast arithmetic")
    a = p.parse_args()
    rows = [] if a.only_decode else uvloop.run(built_in_rows())
    return report("engine", [*rows, *decode_rows(a.rounds, Progress())])


if __name__ == "__main__":
    sys.exit(main())
