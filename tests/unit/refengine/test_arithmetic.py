"""How a model is computed: what can be chosen together, and what is said of the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pdserve.refengine.config import parse
from pdserve.refengine.model.arithmetic import EXACT, FAST, Arithmetic
from pdserve.refengine.model.loader import load_model
from pdserve.refengine.model.tensors import WeightsError


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("", EXACT),
        ("--arithmetic fast", FAST),
        ("--device cpu", Arithmetic(device="cpu")),
        ("--backend torch", Arithmetic("fast", "torch")),
        (
            "--backend torch --arithmetic fast --dtype bfloat16 --device cuda:1 --threads 8",
            Arithmetic("fast", "torch", "bfloat16", "cuda:1", 8),
        ),
    ],
)
def test_the_command_line_chooses(line: str, want: Arithmetic) -> None:
    assert parse(line.split(), {}).arithmetic == want


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--backend torch --arithmetic exact", "exact needs backend numpy"),
        ("--dtype bfloat16", "bfloat16 needs backend torch: numpy has no such products"),
        ("--arithmetic fast --device cuda", "device cuda needs backend torch"),
        ("--threads 2", "more threads than one need backend torch"),
        ("--backend torch --threads 0", "--threads 0: must be from 1 to 1024"),
        ("--backend jax", "invalid choice: 'jax'"),
        ("--dtype float16", "invalid choice: 'float16'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(line.split(), {})
    assert says in capsys.readouterr().err


def test_without_torch_its_back_end_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "pdserve.refengine.model.torch_llama", raising=False)
    monkeypatch.delitem(sys.modules, "pdserve.refengine.model.torch_kv", raising=False)
    with pytest.raises(WeightsError, match=r"pip install 'pdserve\[torch\]'"):
        load_model(None, Arithmetic("fast", "torch"))


def test_bits_are_promised_by_exact_mode_alone() -> None:
    assert load_model(None).numerics not in ("fast", "fast-bfloat16")
    assert Arithmetic("fast", "torch").numerics == FAST.numerics == "fast"
    assert Arithmetic("fast", "torch", "bfloat16").numerics == "fast-bfloat16"


def test_no_entry_of_the_engine_imports_torch() -> None:
    """It takes seconds and is not in the image."""
    source = Path(__file__).resolve().parents[3] / "operator" / "pdserve"
    found = [p.name for p in source.rglob("*.py") if "\nimport torch" in p.read_text()]
    assert sorted(found) == ["torch_kv.py", "torch_llama.py"]
