"""How the bench of decode steps makes its rows, with a model small enough for a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from benchmarks.harness import Progress
from benchmarks.parts import decode_steps

from pdserve.refengine.model.fast import FastLlama
from pdserve.refengine.model.model_config import LlamaConfig

TINY = {
    **decode_steps.SHAPE,
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
CONFIG = LlamaConfig(96, 48, 80, 2, 6, 2, 8, 64, 1e4, 1e-5, True, None, ())


@pytest.fixture(autouse=True)
def small(monkeypatch: Any) -> None:
    monkeypatch.setattr(decode_steps, "SHAPE", TINY)
    monkeypatch.setattr(decode_steps, "BATCHES", (1, 3))
    monkeypatch.setattr(decode_steps, "CONTEXTS", (32, 64))


def test_products_are_all_those_of_a_step(monkeypatch: Any) -> None:
    model = FastLlama(CONFIG, decode_steps.random_tensors(CONFIG))
    got = [matrix.shape for matrix in model.matrices()]
    layer = [(48, 80), (48, 48), (48, 160), (80, 48)]
    assert got == [*layer, *layer, (48, 96)]
    assert decode_steps.products(model, 3)() > 0


def test_every_sequence_has_blocks_of_its_own() -> None:
    rows, pool = decode_steps.decode_batch(CONFIG, 3, 64)
    blocks = np.concatenate([r.table for r in rows])
    assert sorted(blocks.tolist()) == list(range(1, len(pool)))
    assert {(r.start, len(r.table)) for r in rows} == {(64, 3)}


def test_without_transformers_the_other_rows_remain(monkeypatch: Any, capsys: Any) -> None:
    missing = type("Missing", (), {"install": lambda self: "no network"})()
    monkeypatch.setattr(decode_steps, "TRANSFORMERS", missing)
    rows = decode_steps.decode_rows(7, Progress())
    assert [(r.what, r.vs) for r in rows] == [
        (f"decode, fast: {batch} x {context} tokens", vs)
        for context in (32, 64)
        for batch in (1, 3)
        for vs in ("its matrix products alone", "exact mode")
    ]
    assert {r.n for r in rows} == {7} and all(r.spread > 0 for r in rows)
    assert "without torch and transformers: no network" in capsys.readouterr().err


def test_steps_of_transformers_and_torch_are_rows_too(monkeypatch: Any) -> None:
    asked: list[tuple[str, int, int]] = []

    class Other:
        def __init__(self, name: str, milliseconds: float) -> None:
            self.name, self._milliseconds = name, milliseconds

        def prepare(self, batch: int, context: int) -> None:
            asked.append((self.name, batch, context))

        def step(self) -> float:
            return self._milliseconds

    @contextmanager
    def on(*_: object) -> Iterator[list[Other]]:
        others = Others([Other("transformers 0, torch 0", 1e6), Other("a", 2e3), Other("b", 1e-9)])
        yield others

    class Others(list[Other]):
        @property
        def transformers(self) -> Other:
            return self[0]

    monkeypatch.setattr(decode_steps, "torch_on", on)
    monkeypatch.setattr(decode_steps, "BY_NUMPY", {1: 1.25, 3: 1.25})
    rows = decode_steps.decode_rows(2, Progress())
    sizes = [(1, 32), (3, 32), (1, 64), (3, 64)]
    assert asked == [(n, *s) for s in sizes for n in ("transformers 0, torch 0", "a", "b")]
    theirs = [r for r in rows if r.vs == "transformers 0, torch 0, float32"]
    assert len(theirs) == 4 and all(r.reference == 1e6 and r.ok for r in theirs)
    ours = {r.what.partition(":")[0]: (r.value, r.vs) for r in rows if "torch, " in r.what}
    assert ours == {
        "decode, torch, float32": (2e3, "transformers, float32"),
        "decode, torch, bfloat16": (1e-9, "numpy, fast"),
    }
    assert sum("torch, " in r.what for r in rows) == 8
