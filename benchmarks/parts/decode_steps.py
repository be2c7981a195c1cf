"""Decode steps of a model of SmolLM2-135M's shape, in fast arithmetic beside what it could cost.

Weights and KV are random numbers: they take as long as true ones. Everything runs in one thread.
The steps that are compared are taken in turn, so that a drift of the machine hits all alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.harness import OUT, Progress, Row
from benchmarks.parts.client_tools import Environment
from safetensors.numpy import save_file

from pdserve.refengine.model.fast import FastLlama
from pdserve.refengine.model.llama import Llama
from pdserve.refengine.model.model_config import BLOCK_TOKENS, LlamaConfig, load_config
from pdserve.refengine.model.plan import Rows, new_pool
from pdserve.refengine.model.tensors import Array

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip
"""`config.json` of SmolLM2-135M."""
BATCHES = (1, 4, 16, 64)
CONTEXTS = (64, 256)
"""Tokens that each sequence has in its KV cache."""
TRANSFORMERS = Environment(
    "transformers",
    ("torch==2.15.0", "transformers==5.24.0"),
    "transformers",
)
LOG = OUT / "engine-torch.log"
Step = Callable[[], float]
"""Computes one decode step; its milliseconds."""


def random_tensors(c: LlamaConfig) -> dict[str, Array]:
    """Weights by their names in Hugging Face's form."""
    rng = np.random.default_rng(0)
    query, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (c.vocab, c.hidden), "norm": (c.hidden,)}
    for layer in range(c.layers):
        own = {
            "self_attn.q_proj": (query, c.hidden), "self_attn.k_proj": (kv, c.hidden),
            "self_attn.v_proj": (kv, c.hidden), "self_attn.o_proj": (c.hidden, query),
            "mlp.gate_proj": (c.ffn, c.hidden), "mlp.up_proj": (c.ffn, c.hidden),
            "mlp.down_proj": (c.hidden, c.ffn), "input_layernorm": (c.hidden,),
            "post_attention_layernorm": (c.hidden,),
        }  # fmt: skip
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in own.items()}
    return {
        f"model.{name}.weight": rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        for name, shape in shapes.items()
    }


def decode_batch(c: LlamaConfig, batch: int, context: int) -> tuple[list[Rows], Array]:
    """One new token each of so many sequences, whose blocks lie anywhere in the pool."""
    blocks = context // BLOCK_TOKENS + 1
    rng = np.random.default_rng(batch)
    pool = new_pool(c, batch * blocks + 1)
    pool[:] = rng.standard_normal(pool.shape[1:], dtype=np.float32)
    tables = rng.permutation(np.arange(1, batch * blocks + 1)).reshape(batch, blocks)
    token = np.asarray([5], np.int32)
    return [Rows(token, context, table, logits=True) for table in tables], pool


def products(model: FastLlama, batch: int) -> Step:
    """A step's matrix products alone: the same matrices, as many rows."""
    matrices = model.matrices()
    rng = np.random.default_rng(0)
    inputs = {
        size: rng.standard_normal((batch, size), dtype=np.float32)
        for size in {len(matrix) for matrix in matrices}
    }

    def multiply() -> None:
        for matrix in matrices:
            inputs[len(matrix)] @ matrix

    return _timed(multiply)


def _timed(work: Callable[[], object]) -> Step:
    def step() -> float:
        begin = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - begin)

    return step


class TorchProcess:
    """A process with torch that decodes: with `transformers`, or with our own back-end."""

    def __init__(self, script: str, *args: str) -> None:
        LOG.parent.mkdir(parents=True, exist_ok=True)
        path = Path(__file__).with_name(script)
        self._process = subprocess.Popen(
            [str(TRANSFORMERS.home / "bin" / "python"), str(path), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=LOG.open("ab"),
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.name = self._line()

    def prepare(self, batch: int, context: int) -> None:
        """Make the KV of the steps that follow."""
        self._say(f"{batch} {context}")
        self._line()

    def step(self) -> float:
        """One decode step; its milliseconds."""
        self._say("step")
        return float(self._line())

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, f"a process with torch stopped: see {LOG}"
        return line


@dataclass(frozen=True)
class TorchProcesses:
    """One of each kind."""

    transformers: TorchProcess
    float32: TorchProcess
    bfloat16: TorchProcess

    def __iter__(self) -> Iterator[TorchProcess]:
        return iter((self.transformers, self.float32, self.bfloat16))


@contextmanager
def torch_on(tensors: dict[str, Array], say: Progress) -> Iterator[TorchProcesses | None]:
    """Processes with these weights inside the block; None where torch cannot be installed."""
    reason = TRANSFORMERS.install()
    if reason:
        say(f"without torch and transformers: {reason}")
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE))
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
        started: list[TorchProcess] = []
        try:
            for script, *args in (
                ("transformers_steps.py",),
                ("torch_steps.py", "float32"),
                ("torch_steps.py", "bfloat16"),
            ):
                started.append(TorchProcess(script, folder, *args))
            yield TorchProcesses(*started)
        finally:
            for process in started:
                process.stop()


def in_turn(steps: Sequence[Step], count: int) -> list[list[float]]:
    """Milliseconds of each of several steps, one after the other, `count` times."""
    for step in steps:
        step()  # Brings code and weights into memory.
    rounds = [[step() for step in steps] for _ in range(count)]
    return [list(times) for times in zip(*rounds, strict=True)]


def _config() -> LlamaConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(SHAPE))
        return load_config(path)


BY_PRODUCTS = 1.5
MORE_KV = {(16, 256): 1.75, (64, 256): 2.1}
"""By batch and context, where KV costs more: docs/decisions/033-fast-arithmetic-beside-exact.md"""
BY_EXACT, BY_TRANSFORMERS = 0.95, 1.1
BY_NUMPY = {1: 1.8, 4: 1.25, 16: 1.25, 64: 1.5}
"""By batch: bfloat16 in torch beside float32 in numpy, one thread each."""


def decode_rows(count: int, say: Progress) -> list[Row]:
    """Each batch and context in fast arithmetic beside products, exact mode and transformers."""
    c = _config()
    tensors = random_tensors(c)
    fast, exact = FastLlama(c, tensors), Llama(c, tensors)
    rows: list[Row] = []
    with torch_on(tensors, say) as others:
        tensors.clear()
        for context in CONTEXTS:
            for batch in BATCHES:
                members, pool = decode_batch(c, batch, context)
                steps = [
                    _timed(lambda m=members, p=pool: fast.step(m, p)),
                    products(fast, batch),
                    _timed(lambda m=members, p=pool: exact.step(m, p)),
                ]
                for other in others or ():
                    other.prepare(batch, context)
                    steps.append(other.step)
                found = in_turn(steps, count)
                rows += _rows(batch, context, found[:4], others.transformers.name if others else "")
                rows += _torch_rows(batch, context, found)
                say(", ".join(f"{statistics.median(times):.1f} ms" for times in found))
    return rows


def _rows(batch: int, context: int, found: Sequence[Sequence[float]], other: str) -> list[Row]:
    mine = found[0]
    value, spread = statistics.median(mine), max(mine) - min(mine)
    what = f"decode, fast: {batch} x {context} tokens"
    rivals = [
        ("its matrix products alone", MORE_KV.get((batch, context), BY_PRODUCTS)),
        ("exact mode", BY_EXACT),
        (f"{other}, float32", BY_TRANSFORMERS),
    ]
    return [
        Row(what, value, "ms", name, statistics.median(times), floor, "lower", len(mine), spread)
        for (name, floor), times in zip(rivals, found[1:], strict=False)
    ]


def _torch_rows(batch: int, context: int, found: Sequence[Sequence[float]]) -> list[Row]:
    """`found`: fast, products, exact, transformers, torch float32, torch bfloat16."""
    if len(found) < 6:
        return []
    fast, transformers, wide, narrow = (found[n] for n in (0, 3, 4, 5))
    pairs = (
        ("float32", wide, "transformers, float32", transformers, BY_TRANSFORMERS),
        ("bfloat16", narrow, "numpy, fast", fast, BY_NUMPY[batch]),
    )
    return [
        Row(f"decode, torch, {dtype}: {batch} x {context} tokens", statistics.median(mine), "ms",
            name, statistics.median(other), floor, "lower", len(mine), max(mine) - min(mine))
        for dtype, mine, name, other, floor in pairs
    ]  # fmt: skip
