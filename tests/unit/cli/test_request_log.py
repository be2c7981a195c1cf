"""K6.7, K6.10: `kubectl pdserve explain --request ID`, from its command line to its output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_apiserver import FakeApiServer, Json, status

from pdserve.cli import kubectl

PODS = "/api/v1/namespaces/prod/pods"
LINE: Json = {
    "time": "2026-01-01T00:00:00Z", "request": "mine", "path": "/v1/completions", "status": 503,
    "ms": 812.0, "code": "deadline_exceeded", "why": "no prefill accepted in time",
    "needed_ms": 900, "left_ms": 0, "retry_after_ms": 300, "scenario": "chat", "streamed": True,
    "outcome": "expired", "promptTokens": 0, "outputTokens": 0, "predictedMs": 120.0,
    "cachedTokens": 96, "expectedCachedTokens": 128,
    "legs": [{"leg": "prefill", "instance": "shop-chat-0-p0", "atMs": 1.0, "ms": 2.0,
              "result": "refused: full"}],
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as made:
        pods = [{"metadata": {"name": f"shop-gateway-{n}", "namespace": "prod"}} for n in "ab"]
        made.objects[PODS] = {
            "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": pods,
        }  # fmt: skip
        other = {**LINE, "request": "mine-too", "why": "mine"}
        made.logs[f"{PODS}/shop-gateway-a/log"] = [other, "not json", {"x": "mine"}]
        made.logs[f"{PODS}/shop-gateway-b/log"] = [LINE]
        yield made


def explain(server: FakeApiServer, folder: Path, *options: str) -> int:
    where = ["-n", "prod", "--kubeconfig", str(server.kubeconfig(folder))]
    return kubectl.main(["explain", *where, *options])


def test_it_finds_the_line_and_tells_it_in_words(
    server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(server, tmp_path, "--request", "mine") == 0
    shown = capsys.readouterr().out
    for part in (
        "request mine: 503 expired", "through gateway shop-gateway-b", "scenario chat, streamed",
        "why: no prefill accepted in time (deadline_exceeded)", "needed 900 ms, left 0 ms",
        "96 prompt tokens were in a prefix cache, 128 were expected there",
        "at 1.0 ms: prefill shop-chat-0-p0, refused: full after 2.0 ms",
    ):  # fmt: skip
        assert part in shown


def test_a_stream_that_went_on_says_so(
    server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    went_on = {**LINE, "request": "again", "status": 200, "outcome": "completed", "continued": 1}
    server.logs[f"{PODS}/shop-gateway-b/log"] = [went_on]
    assert explain(server, tmp_path, "--request", "again") == 0
    assert "went on from another decode after 1 was lost" in capsys.readouterr().out


def test_as_json(server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(server, tmp_path, "shop", "--request", "mine", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"gateway": "shop-gateway-b", **LINE}


def test_an_unknown_request_says_where_it_was_looked_for(
    server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(server, tmp_path, "--request", "nope") == 1
    assert "read in namespace prod: shop-gateway-a, shop-gateway-b" in capsys.readouterr().err


def test_without_the_right_to_logs_it_says_so(
    server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in server.logs:
        server.refused[path] = status(403, "Forbidden", "pods/log is forbidden")
    assert explain(server, tmp_path, "--request", "mine") == 1
    assert "pods/log is forbidden" in capsys.readouterr().err


def test_a_service_or_a_request_must_be_named(
    server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        explain(server, tmp_path)
    assert ended.value.code == 2
    assert "--request ID" in capsys.readouterr().err
