"""`pdserve replay`: recorded decisions again, byte for byte, and under other settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.decision_records import write_record

from pdserve.cli.main import main


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the operator's --decisions-log holds after a simulated quarter of an hour."""
    path = tmp_path_factory.mktemp("record") / "decisions.jsonl"
    write_record(path)
    return path


def test_each_recorded_decision_comes_out_again(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(recorded)]) == 0
    text = capsys.readouterr().out
    assert "0 not as recorded" in text and "Applied" in text and "equal" in text
    assert main(["replay", str(recorded), "--all", "-o", "json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["rounds"] == len(recorded.read_text().splitlines()) == len(body["decisions"])
    assert all(d["equal"] and d["whatIf"] is None for d in body["decisions"])


def test_another_target_changes_what_is_decided_and_not_what_was(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["replay", str(recorded), "-o", "json", "--all"]
    assert main([*line, "--set", "slo.tpotMs=40"]) == 0
    tighter = json.loads(capsys.readouterr().out)["decisions"]
    assert main([*line, "--set", "slo.tpotMs=50"]) == 0
    same = json.loads(capsys.readouterr().out)["decisions"]
    assert all(d["equal"] for d in tighter)
    assert [d["whatIf"]["to"] for d in same] == [d["recorded"]["to"] for d in same]
    assert any(d["whatIf"]["to"] > d["recorded"]["to"] for d in tighter)
    assert main(["replay", str(recorded), "--set", "mode=Advise"]) == 0
    text = capsys.readouterr().out
    assert "WHAT IF" in text and "Advised" in text and "come out differently" in text


def test_a_decision_that_was_not_made_so_is_found(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads(recorded.read_text().splitlines()[-1])
    first["decision"]["to"]["decode"] += 1
    changed = tmp_path / "changed.jsonl"
    changed.write_text(json.dumps(first) + "\n")
    assert main(["replay", str(changed)]) == 1
    assert "1 not as recorded" in capsys.readouterr().out


def test_a_line_that_is_being_written_is_left_out(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = recorded.read_text().splitlines(keepends=True)
    partial = tmp_path / "partial.jsonl"
    partial.write_text(lines[0] + lines[1][:100])
    assert main(["replay", str(partial), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 1


BAD_SETTINGS = [
    ("slo.ttftMs", "want FIELD=VALUE"), ("slo.ttftMs=fast", "want a number"),
    ("slo.speed=3", "no such field; here: attainment"), ("nothing.at.all=3", "no such field"),
    ("slo.ttft=-1", "targets above 0"), ("slo.attainment=2", "between 0 and 1"),
    ("bounds.decode.max=100000000", "<= 512"), ("bounds.decode.max=1.5", "bounds.decode.max"),
    ("bounds.prefill.min=9000", "<= 512"), ("mode=Sometimes", "mode"),
    ("slo.tpotMs=1e400", "want a number"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "says"), BAD_SETTINGS)
def test_a_bad_setting_is_refused_with_its_field(
    setting: str, says: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(recorded), "--set", setting]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x\n", "{}\n", '{"input": 1, "decision": 2}\n', "[]\n"])
def test_a_file_that_is_no_record_is_refused_with_its_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    assert main(["replay", str(path)]) == 2
    assert "bad.jsonl, line 1: " in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
