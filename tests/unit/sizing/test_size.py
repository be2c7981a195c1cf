"""`pdserve size`: the rules of a size, what is printed, and what bad input says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.cli.main import main
from pdserve.ratio.presets import preset
from pdserve.ratio.types import Demand
from pdserve.sizing.size import SizeError, SizeQuestion, size
from pdserve.terms import Slo

QUESTION = SizeQuestion(
    Slo(1.0, 0.3, 0.05, 0.99), Demand(20.0, 1200.0, 1200.0, 1200.0**2 * 1.25, 200.0),
    preset("llama2-70b-h100x8", 4, 64),
)  # fmt: skip
FIGURES = ["--ttft", "1000", "--tpot", "50", "--prompt", "1200", "--output", "200", "--rate", "20"]


def _at(rate: float) -> SizeQuestion:
    return replace(QUESTION, demand=replace(QUESTION.demand, rate=rate))


def test_more_traffic_or_a_tighter_target_never_takes_fewer_devices() -> None:
    devices = [size(_at(rate)).split.devices for rate in (0.1, 1, 3, 10, 20, 40, 100, 300)]
    assert devices == sorted(devices)
    assert devices[0] == 16
    tighter = replace(QUESTION, slo=replace(QUESTION.slo, tpot=0.04))
    assert size(tighter).split.devices >= size(QUESTION).split.devices


def test_what_a_size_carries_is_at_least_what_was_asked_and_needs_no_more() -> None:
    answer = size(QUESTION)
    assert answer.carried >= 20.0
    assert size(_at(answer.carried)).split.devices == answer.split.devices
    assert size(_at(answer.carried * 1.02)).split.devices > answer.split.devices


def test_one_instance_less_is_predicted_to_miss_the_target() -> None:
    answer = size(QUESTION)
    kept = {v.name: v.kept for v in answer.variations}
    assert answer.split.attainment >= 0.99
    assert max(kept["one prefill less"], kept["one decode less"]) < 0.99
    assert kept["traffic +20 %"] < answer.split.attainment


def test_groups_keep_to_their_most_instances() -> None:
    answer = size(replace(QUESTION, group_instances=3))
    counts = answer.split.counts
    assert counts.prefill + counts.decode <= 3
    assert counts.total("prefill") >= 3 and counts.total("decode") >= 6


def test_too_few_devices_give_the_best_use_of_them() -> None:
    answer = size(replace(QUESTION, available=40))
    assert not answer.enough
    assert answer.split.devices <= 40
    assert 0.3 < answer.split.attainment < 0.99
    assert 5.0 < answer.carried < 20.0
    with pytest.raises(SizeError, match="at least 16"):
        size(replace(QUESTION, available=15))


def test_long_prompts_are_split_and_short_ones_at_little_traffic_are_not() -> None:
    lax = replace(_at(1.0), slo=Slo(2.0, 0.3, 0.1, 0.99))
    answer = size(lax)
    assert answer.unsplit == 8 and answer.split.devices == 16
    assert answer.crossover is None or answer.crossover > 1200
    much = size(_at(40.0))
    assert much.crossover is not None and much.crossover < 1200
    assert much.unsplit is not None and much.unsplit >= much.split.devices


def test_the_text_has_the_size_and_the_json_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", *FIGURES]) == 0
    text = capsys.readouterr().out
    assert main(["size", *FIGURES, "-o", "json"]) == 0
    body = json.loads(capsys.readouterr().out)
    counts = body["size"]
    assert f"{counts['prefill']} prefill and {counts['decode']} decode" in text
    assert body["enough"] is True and len(body["variations"]) == 6
    assert "one decode less" in text and "whole" in text and "unsplit" in text


def test_a_trace_a_model_and_a_check_reach_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d}.0000000,900,30" for i in range(600)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows))
    traced = ["size", "--ttft", "2000", "--tpot", "60", "--azure", str(trace), "-o", "json"]
    assert main(traced) == 0
    demand = json.loads(capsys.readouterr().out)["demand"]
    assert demand == {
        "requestsPerSecond": pytest.approx(1.0, rel=0.01), "promptTokens": 900.0,
        "uncachedTokens": 900.0, "outputTokens": 30.0,
    }  # fmt: skip
    assert main([*traced, "--check", "--rate", "2"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["simulated"]["attainment"] >= 0.99
    assert checked["simulated"]["requests"] > 1000
    assert checked["demand"]["requestsPerSecond"] == 2.0


BAD_LINES = [
    (["--ttft", "1000", "--tpot", "50"], 2, "--prompt is missing"),
    ([*FIGURES, "--preset", "tpu"], 2, "want one of llama2-70b-a100x8"),
    ([*FIGURES, "--model", "x.json"], 2, "wants both --model"),
    ([*FIGURES, "--profile", "/no/such"], 2, "No such file"),
    ([*FIGURES, "--devices", "40"], 1, ""),
    ([*FIGURES, "--devices", "8"], 1, "at least 16"),
    (["--ttft", "20", *FIGURES[2:]], 1, "TTFT 20 ms cannot be met"),
    (["--ttft", "1000", "--tpot", "10", *FIGURES[4:]], 1, "TPOT 10 ms cannot be met"),
    (["--ttft", "1000", "--tpot", "50", "--azure", "/no/such"], 2, "No such file"),
]


@pytest.mark.parametrize(("line", "status", "says"), BAD_LINES)
def test_bad_input_has_its_message_and_exit_status(
    line: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["size", *line]) == status
    assert says in capsys.readouterr().err


BAD_FIGURES = [
    ["--rate", "nan"], ["--rate", "-1"], ["--hit", "1"], ["--attainment", "2"],
    ["--devices", "0"], ["--ttft", "inf"],
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FIGURES)
def test_figures_out_of_range_are_refused(
    bad: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["size", *FIGURES, *bad])
    assert ended.value.code == 2
    assert bad[0] in capsys.readouterr().err
