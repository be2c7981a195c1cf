"""The demo's judgement of a window by clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster.demo import window
from localcluster.demo.watch import Sight, Watch
from localcluster.demo.window import DECODE, PREFILL, Opening, opening_line
from pdserve.api import PDService

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "demo-pdservice.yaml"


def seen(wanted: float = 15.0, ready: float = 20.0, reason: str = "TidalWindow") -> Opening:
    def sight(at: float) -> Sight:
        p, d = (PREFILL, DECODE) if at >= wanted else (2, 1)
        return Sight(at, p, d, *((PREFILL, DECODE) if at >= ready else (2, 1)))

    watch = Watch(0.0, [sight(n / 2) for n in range(70)])
    watch.decisions = [{"outcome": "Applied", "reason": reason}, {"outcome": "Held", "reason": "x"}]
    return Opening(watch, set_at=1.0, opened_at=32.0)


@pytest.mark.parametrize(
    ("how", "ok"),
    [
        ({}, True),
        ({"ready": 32.0}, True),
        ({"ready": 32.5}, False),
        ({"ready": 99.0}, False),
        ({"wanted": 0.0, "ready": 0.0}, False),
        ({"reason": "ModelFloor"}, False),
    ],
    ids=["ahead", "just in time", "late", "never", "there before it was set", "for another reason"],
)
def test_the_claim_holds_only_if_the_window_made_it_so(how: dict[str, Any], ok: bool) -> None:
    assert opening_line(seen(**how)).ok is ok


def test_the_line_says_by_how_much_ahead() -> None:
    assert opening_line(seen()).measured == (
        "2 prefill + 1 decode -> 3 prefill + 2 decode: wanted 17.0 s ahead, ready 12.0 s ahead"
    )


@pytest.mark.parametrize("opens", [0.0, 86_399.0, 43_200.0])
def test_the_schedule_is_one_that_the_demos_service_takes(opens: float) -> None:
    value = yaml.safe_load(EXAMPLE.read_text())
    value["spec"]["scenarios"][0]["schedule"] = window.schedule(opens)
    parsed = PDService.parse(value)
    assert parsed.spec.scenarios[0].schedule[0].least is not None
    assert f"demo-{parsed.spec.scenarios[0].name}" == window.SEARCH
