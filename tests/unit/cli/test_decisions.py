"""`kubectl pdserve decisions`, and what `explain` says other counts would attain."""

from __future__ import annotations

from tests.unit.cli.test_views import DECISION, group, service

from pdserve.cli.snapshot import Snapshot
from pdserve.cli.view_counts import render_counts
from pdserve.cli.view_decisions import decisions_json, render_decisions
from pdserve.ratio.presets import preset
from pdserve.terms import Slo

FIGURES = {
    "rateAhead": "20.000", "promptTokens": "1200", "uncachedTokens": "1200",
    "outputTokens": "200", "pressureDecode": "1.10",
}  # fmt: skip
HELD = DECISION | {
    "time": "2026-01-01T00:09:00Z", "from": DECISION["to"], "outcome": "Held", "reason": "Steady",
    "message": "all is well", "inputs": FIGURES,
}  # fmt: skip
PROFILE = preset("llama2-70b-h100x8", 4, 64)
SLO = Slo(1.0, 0.3, 0.05, 0.99)


def test_decisions_are_listed_newest_first_by_scenario() -> None:
    of = service()
    found = [Snapshot(of, (group(of, "search"), group(of, "chat", decisions=[DECISION, HELD])), ())]
    lines = render_decisions(found, None).splitlines()
    assert lines[0].split() == ["TIME", "SCENARIO", "FROM", "TO", "OUTCOME", "REASON", "MESSAGE"]
    assert [line.split("   ")[0] for line in lines[1:]] == [HELD["time"], DECISION["time"]]
    assert "1 x 1P2D   1 x 2P2D   Applied   GrowPrefill" in lines[2]
    assert render_decisions(found, "search") == "no decision yet"
    assert render_decisions(found, "chart") == "no scenario 'chart'; scenarios: chat, search"
    newest, oldest = decisions_json(found, "chat")
    assert (newest["reason"], oldest["from"]["decode"]) == ("Steady", 2)
    assert newest["scenario"] == "chat" and newest["namespace"] == "prod"


def test_explain_says_what_one_instance_more_or_less_would_attain() -> None:
    text = render_counts(group(service(), "chat", decisions=[DECISION, HELD]), SLO, PROFILE)
    shares = {
        line.split(":")[0].removeprefix("  at "): float(line.split(": ")[1].split("%")[0])
        for line in text.splitlines()[1:]
    }
    assert text.startswith("What other counts would attain, at 20.00 requests/s of 1200 + 200")
    assert shares["1 x 1P1D"] < shares["1 x 1P2D"] < shares["1 x 1P3D"]
    assert shares["1 x 1P2D"] < shares["1 x 2P2D"]
    assert "1 x 0P3D" not in shares and len(shares) == 5


def test_explain_says_why_it_knows_no_other_counts() -> None:
    bare = group(service(), "chat", decisions=[DECISION])
    assert "no profile is learned" in render_counts(bare, SLO, None)
    assert "no decision has figures" in render_counts(bare, SLO, PROFILE)
    for bad in ("x", "nan", "-1", "", "1e300"):
        wrong = HELD | {"inputs": FIGURES | {"rateAhead": bad}}
        text = render_counts(group(service(), "chat", decisions=[wrong]), SLO, PROFILE)
        assert "no decision has figures" in text
