"""docs/metrics.md has every metric that the code declares, with the same type and labels."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.docs import registries

from pdserve.engines.reference import metrics as vllm
from pdserve.wire import metrics as wire

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def documented() -> dict[str, tuple[str, ...]]:
    """Cells after the name, by name; a name may have one row only."""
    rows: dict[str, tuple[str, ...]] = {}
    for line in PAGE.read_text().splitlines():
        if not line.startswith("| `"):
            continue
        name, *rest = (cell.strip() for cell in line.strip("|\n").split("|"))
        name = name.strip("`")
        assert name not in rows, f"{name} has two rows"
        rows[name] = tuple(rest)
    return rows


def shape(cells: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    return cells[0], tuple(label.strip() for label in cells[1].split(",") if label.strip())


async def test_every_declared_metric_has_its_row_and_no_row_is_stale() -> None:
    declared = {**registries.gateway(), **registries.engine(), **await registries.operator()}
    assert {name: shape(cells) for name, cells in documented().items()} == declared


def test_the_proxy_before_an_engine_exposes_the_engines_own_names() -> None:
    """Alike in kind and labels, so that queries and dashboards hold for both."""
    engine, proxy = registries.engine(), registries.engine_proxy()
    assert {name: engine.get(name) for name in proxy} == proxy


def test_every_name_of_the_contract_is_documented() -> None:
    named = {**vars(wire), **vars(vllm)}
    contract = {v for k, v in named.items() if k.isupper() and isinstance(v, str)}
    contract -= {wire.ALIVE, vllm.PATH_VLLM}
    assert len(contract) > 40
    assert contract <= documented().keys()


def test_every_row_has_unit_and_meaning() -> None:
    for name, cells in documented().items():
        assert len(cells) == 4, f"{name}: want type, labels, unit, meaning, got {cells}"
        assert cells[2], f"{name}: no unit"
        assert len(cells[3]) > 3, f"{name}: no meaning"


def test_units_agree_with_the_names() -> None:
    for name, (_, _, unit, _) in documented().items():
        if re.search(r"_seconds(_total)?$", name):
            assert unit == "seconds", f"{name}: unit {unit!r}"
        if name.endswith("_tokens_total"):
            assert unit == "tokens", f"{name}: unit {unit!r}"


def test_counters_end_in_total_and_nothing_else_does() -> None:
    for name, (kind, *_) in documented().items():
        assert (kind == "counter") is name.endswith("_total"), name
