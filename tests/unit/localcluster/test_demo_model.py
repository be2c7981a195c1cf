"""The real model of the demo: asked for by name, served by a PDService, compared, reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from localcluster.demo.real_model import (
    aggregated_manifest,
    answered,
    claim,
    service_manifest,
)
from localcluster.demo.report import Answer, Report
from pdserve.api import PDService
from pdserve.cli.load import Sample
from pdserve.cli.main import main
from pdserve.models.store import StoredModel
from pdserve.refengine.config import parse

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = yaml.safe_load((ROOT / "examples/smollm2-135m/pdservice.yaml").read_text())
MODEL = StoredModel("team/llama@v1", Path("/cache/team--llama@v1"), "hub team/llama@abc", 270_000)


def sample(text: str | None = "Paris.", **changed: object) -> Sample:
    made = Sample(0, "", "m", 0.0, status=200, ttft=0.5, tpot=0.1, prompt_tokens=9)
    made.text, made.output_tokens = text, 3
    for name, value in changed.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama-9", "no model 'llama-9'; known are smollm2-135m"),
        ("smollm2-135m", "the package index is not reached: NewConnectionError("),
    ],
    ids=["unknown", "no network"],
)
def test_a_model_that_cannot_be_had_starts_nothing(
    name: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PDSERVE_MODELS", str(tmp_path / "models"))
    for variable, value in (("INDEX_URL", "http://127.0.0.1:9/simple"), ("RETRIES", "1"),
                            ("CONFIG_FILE", "/dev/null")):  # fmt: skip
        monkeypatch.setenv(f"PIP_{variable}", value)
    running = tmp_path / "out" / "cluster" / "of an earlier demo"
    running.mkdir(parents=True)
    assert main(["demo", "--model", name, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert list((tmp_path / "out").rglob("*")) == [running.parent, running], "KEEP=1 left it up"
    assert not list(tmp_path.glob("models/*")), "nothing half-done"


def test_the_service_is_the_example_with_that_model_in_that_domain() -> None:
    made = service_manifest(EXAMPLE, MODEL, "demo")
    service = PDService.parse(made)
    assert (service.metadata.name, service.spec.fabric.domain_ref.name) == ("real-model", "demo")
    assert service.spec.model.name == "team/llama@v1"
    assert service.spec.model.source is not None
    assert service.spec.model.source.path == "/models/team--llama@v1"
    want = PDService.parse(EXAMPLE).spec
    assert service.spec == want.model_copy(
        update={"model": service.spec.model, "fabric": service.spec.fabric}
    )
    assert "--paced" not in str(made), "speeds are this machine's"


def test_the_engine_beside_it_has_the_same_weights_and_arguments() -> None:
    service = service_manifest(EXAMPLE, MODEL, "demo")
    [container] = aggregated_manifest(service)["spec"]["containers"]
    config = parse(container["args"], {})
    assert (config.role, config.model_name) == ("both", MODEL.name)
    assert (str(config.weights), config.slots) == ("/models/team--llama@v1", 4)
    assert (config.max_model_len, config.kv_tokens) == (2048, 8192)
    assert container["image"] == service["spec"]["engine"]["image"]


@pytest.mark.parametrize(
    ("split", "whole", "equal", "text"),
    [
        (sample(), sample(), True, "Paris."),
        (sample(" Paris.\n"), sample(" Paris.\n"), True, "Paris."),
        (sample(), sample("Rome."), False, "Paris."),
        (sample(), sample("Paris"), False, "Paris."),
        (sample(""), sample(""), False, ""),
        (sample(None, status=503, error="overloaded"), sample(), False, "503 overloaded"),
        (sample(), sample(None, status=0, error="timeout"), False, "Paris."),
        (sample("Par", error="stream_error"), sample("Par"), False, "Par"),
    ],
)
def test_an_answer_counts_when_both_are_whole_and_alike(
    split: Sample, whole: Sample, equal: bool, text: str
) -> None:
    got = answered("Which city?", split, whole)
    assert (got.equal, got.text) == (equal, text)
    assert claim("m", [got]).ok == equal


ANSWER = Answer("Which <city>?", "Paris & more", 9, 3, 0.5, 0.1, True)


def test_the_claim_needs_every_answer() -> None:
    assert not claim("m", []).ok
    assert not claim("m", [ANSWER, replace(ANSWER, equal=False)]).ok
    good = claim("m", [ANSWER, replace(ANSWER, each_token=0.0)])
    assert good.ok
    assert good.measured.startswith("2 of 2 answers of m equal; 10.0 tokens/s")
    assert "no speed" in claim("m", [replace(ANSWER, each_token=0.0)]).measured


def test_the_report_shows_questions_and_answers() -> None:
    report = Report({}, {}, [claim("m", [ANSWER])])
    assert "real model" not in report.to_html()
    report.answers.append(ANSWER)
    page = report.to_html()
    assert "What a real model answers" in page
    assert "Which &lt;city&gt;?" in page
    assert "Paris &amp; more" in page
    assert "9 + 3 tokens, first token after 0.5 s, then 10.0 tokens/s; equal to" in page
    assert report.to_json()["answers"][0]["text"] == "Paris & more"
    assert "NOT equal to" in replace(ANSWER, equal=False).figures
