"""How the bench of load tools calls them and reads what they wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks.clients import compared, tokenizer_folder
from benchmarks.parts.client_tools import TOOLS, Medians, Tool, Traffic

from pdserve.refengine.model.tokenizer import Tokenizer

WRITTEN = {
    "aiperf": (
        "artifacts/profile_export_aiperf.json",
        {"time_to_first_token": {"p50": 351.5}, "inter_token_latency": {"p50": 40.25}},
    ),
    "guidellm": (
        "found.json",
        {
            "benchmarks": [
                {
                    "metrics": {
                        "time_to_first_token_ms": {"successful": {"median": 351.5}},
                        "inter_token_latency_ms": {"successful": {"median": 40.25}},
                    }
                }
            ]
        },
    ),
    "evalscope": (
        "found/1/reference/parallel_4_number_8/benchmark_percentile.json",
        [
            {"Percentiles": "10%", "TTFT (ms)": 1.0, "TPOT (ms)": 1.0},
            {"Percentiles": "50%", "TTFT (ms)": 351.5, "TPOT (ms)": 40.25},
        ],
    ),
}


def traffic(tokenizer: Path) -> Traffic:
    return Traffic(8080, "reference", tokenizer, 100, 48, 4, 40)


def fake(tool: Tool, home: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of this tool's name where the bench looks for it."""
    program = home / tool.name / "bin" / tool.program
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PDSERVE_BENCH_TOOLS", str(home))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_medians_are_read_from_what_a_tool_writes(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, document = WRITTEN[tool.name]
    script = (
        f"path = pathlib.Path({path!r}); path.parent.mkdir(parents=True, exist_ok=True)\n"
        f"path.write_text({json.dumps(document)!r})\n"
        "pathlib.Path('arguments').write_text(' '.join(sys.argv[1:]))"
    )
    fake(tool, tmp_path / "tools", script, monkeypatch)
    assert tool.install() == ""
    assert tool.run(traffic(tmp_path / "tok"), tmp_path / "out") == Medians(351.5, 40.25)
    said = (tmp_path / "out" / "arguments").read_text()
    for wanted in ("127.0.0.1:8080", "reference", str(tmp_path / "tok"), "100", "48", "4", "40"):
        assert wanted in said


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("print('no such option'); sys.exit(2)", "exited with 2"),
        ("pass", "was written"),
        ("pathlib.Path('found.json').write_text('{}')", "benchmarks"),
        ("pathlib.Path('found.json').write_text('{')", "JSONDecodeError"),
    ],
)
def test_a_tool_that_fails_is_named(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = next(t for t in TOOLS if t.name == "guidellm")
    fake(tool, tmp_path / "tools", script, monkeypatch)
    with pytest.raises(AssertionError, match=f"guidellm.*{why}"):
        tool.run(traffic(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(("found", "agrees"), [(100.0, True), (105.0, True), (95.3, True),
                                               (106.0, False), (94.0, False)])  # fmt: skip
def test_medians_agree_within_five_percent_either_way(found: float, agrees: bool) -> None:
    assert compared("tool", "time", found, 100.0, 40).ok is agrees


def test_the_tokenizer_of_the_engine_is_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = Tokenizer(folder / "tokenizer.json", None, vocabulary).encode("a word")
    assert ids
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert "messages" in settings["chat_template"]
