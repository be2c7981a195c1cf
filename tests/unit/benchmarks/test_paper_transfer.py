"""The bench of the paper's figures: block-free KV transfer beside block-fixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import paper
from benchmarks.parts import paper_transfer
from benchmarks.parts.paper_transfer import (
    LAYOUTS,
    MODELS,
    Setting,
    Transfer,
    alpha_for,
    saving,
    transfer,
)

GQA, MHA = MODELS
SETTING = Setting(GQA, LAYOUTS[0], 16, 25e9, 1000.0, 1e-6)


def test_without_a_descriptors_cost_only_the_copy_differs() -> None:
    assert saving(Transfer(wire=1.0, copy=0.0, pieces=100), 0.0) == 0
    assert saving(Transfer(wire=1.0, copy=0.1, pieces=100), 0.0) == pytest.approx(-10)


def test_a_saving_by_hand() -> None:
    """100 descriptors of 10 ms beside 1 s of bytes: 2 s; block-free has two, 1.02 s."""
    assert saving(Transfer(wire=1.0, copy=0.0, pieces=100), 0.01) == pytest.approx(49)


@pytest.mark.parametrize("percent", [10.0, 46.0, 90.0])
def test_the_descriptors_cost_that_saves_so_much_saves_so_much(percent: float) -> None:
    found = transfer(SETTING, seed=1)
    assert saving(found, alpha_for(found, percent)) == pytest.approx(percent)


def test_three_pieces_cannot_save_half_whatever_a_descriptor_costs() -> None:
    assert alpha_for(Transfer(wire=1.0, copy=0.0, pieces=3), 46.0) == float("inf")


def test_pieces_count_layers_and_blocks() -> None:
    layered, whole = transfer(SETTING, 1), transfer(replace(SETTING, layout=LAYOUTS[1]), 1)
    assert layered.pieces == 160 * whole.pieces, "K and V of 80 layers"
    assert whole.pieces == pytest.approx(1000 / 16 + 0.5, rel=0.1)
    assert layered.wire == pytest.approx(1000 * 80 * 512 / 25e9, rel=0.1)


def test_more_bytes_a_token_hide_more_of_a_descriptors_cost() -> None:
    assert saving(transfer(replace(SETTING, model=MHA), 1), 1e-6) < saving(
        transfer(SETTING, 1), 1e-6
    )


def test_a_tiny_run_measures_our_own_transport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_transfer, "ROUNDS", 1)
    settings = {"transfer": [SETTING, replace(SETTING, alpha=1e-4)]}
    (claim,), rows = paper.measured(["transfer"], 2, 1, settings, tmp_path)
    assert claim.high.assumed.endswith("alpha 100 us")
    assert claim.low.mean < claim.high.mean < 100
    (needed,) = (row for row in rows if row.what.startswith("alpha that saves"))
    assert needed.value > 0
    assert needed.reference > 0, "nothing was measured"
