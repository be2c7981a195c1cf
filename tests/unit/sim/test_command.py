"""`pdserve sim`: what people and scripts read, and what bad input says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.cli.main import main
from pdserve.ratio.types import Counts
from pdserve.sim import command, experiments
from pdserve.sim.shapes import DRAWN

TINY = replace(DRAWN["spike"], name="tiny", points=((0, 3), (300, 3)), duration=300.0)

GROWS = replace(
    TINY, name="grows", points=((0, 3), (120, 3), (120, 12), (420, 12)), duration=420.0,
    start=Counts(1, 1, 1),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "DRAWN", {**DRAWN, "tiny": TINY, "grows": GROWS})


def test_the_list_names_experiments_and_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "list"]) == 0
    printed = capsys.readouterr().out
    assert "table" in printed
    assert "slow_cold_ramp   ramp, cold start 300 s" in printed
    assert "dynamo-throughput" in printed


def test_a_run_prints_a_line_for_each_policy(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sim", "run", "tiny", "--policy", "hpa", "--policy", "fixed-start"]
    assert main([*arguments, "--no-references"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["shape", "policy", "seed", "device-h"]
    assert [line.split()[1] for line in lines[1:3]] == ["hpa", "fixed-start"]
    assert lines[4].endswith("longer")
    assert lines[5].split()[:2] == ["tiny", "hpa"]


def test_json_and_pages_have_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out.html"
    arguments = ["sim", "run", "tiny", "--policy", "kthena", "--seed", "5", "-o", "json"]
    assert main([*arguments, "--html", str(page)]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [run["policy"] for run in body["runs"]] == ["kthena", "clairvoyant"]
    assert body["runs"][1]["device_hours"] > body["fluid"]["tiny"] > 0
    assert body["runs"][0]["seed"] == 5
    assert len(body["runs"][0]["series"]["rate"]) == 5
    text = page.read_text()
    assert "<script" not in text
    assert "http" not in text
    assert text.count("<svg") == 4
    assert text.count("viewBox='0 0 512 166'") == 4, "they shrink with a narrow window"
    assert "color-scheme:light dark" in text
    assert f"{body['runs'][0]['device_hours']:.1f}" in text


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nosuch"], "experiment 'nosuch': want table, constant"),
        (["tiny", "--policy", "best"], "policy 'best': want one of pdserve"),
        (["azure_x5"], "experiment 'azure_x5': want"),
        (["azure_x5", "--azure", "absent.csv"], "absent.csv: "),
        (["tiny", "--policy", "hpa", "--no-references", "--html", "no/such/dir/x.html"], "no/such"),
    ],
)
def test_bad_input_says_what_is_wrong(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "run", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pdserve sim: ")
    assert why in printed.err


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_a_file_that_cannot_be_written_is_refused_before_any_run(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else minutes of runs end in an error, and their figures are nowhere."""
    runs: list[object] = []
    monkeypatch.setattr(command, "run_policy", lambda *_: runs.append(_))
    assert main(["sim", "run", "tiny", option, "no/such/dir/x"]) == 2
    assert "no/such" in capsys.readouterr().err
    assert not runs


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--seed", "-1"], "must be 0 or more"),
        (["--seed", "one"], "invalid"),
        (["--cold-start", "-1"], "must be 0 to 3600"),
        (["--cold-start", "nan"], "must be 0 to 3600"),
        (["--cold-start", "1e9"], "must be 0 to 3600"),
    ],
)
def test_values_out_of_range_are_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sim", "run", "tiny", *arguments])
    assert why in capsys.readouterr().err


def test_a_slower_start_costs_attainment(capsys: pytest.CaptureFixture[str]) -> None:
    attained = []
    for seconds in ("0", "240"):
        arguments = ["sim", "run", "grows", "--policy", "hpa", "--no-references", "-o", "json"]
        assert main([*arguments, "--cold-start", seconds]) == 0
        attained.append(json.loads(capsys.readouterr().out)["runs"][0]["attainment"])
    assert attained[0] > attained[1] + 0.1


def test_without_numpy_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pdserve.sim.command", None)
    assert main(["sim", "list"]) == 1
    assert "pip install 'pdserve[sim]'" in capsys.readouterr().err
