"""`pdserve compare`: policies on a recorded history, from a record and from a Prometheus."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.support.decision_records import GROWING, write_record

from pdserve.cli.main import main
from pdserve.sim.recorded_history import history_of_record, history_shape

TWO = ["--policy", "pdserve", "--policy", "fixed-start", "--no-references"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "decisions.jsonl"
    write_record(path)
    return path


def test_a_record_gives_the_traffic_back(recorded: Path) -> None:
    history = history_of_record(recorded.read_text().splitlines(), "shop/chat")
    shape = history_shape(history, "mine")
    rates = [rate for at, rate in shape.points if at < 150]
    assert sum(rates) / len(rates) == pytest.approx(3.0, rel=0.25)
    assert shape.points[-1][1] == pytest.approx(14.0, rel=0.15)
    assert shape.mixes[-1].prompt == pytest.approx(1200, rel=0.1)
    assert shape.mixes[-1].output == pytest.approx(200, rel=0.15)
    assert (shape.slo, shape.start) == (GROWING.slo, GROWING.start)
    assert history.instance_hours() > 2 * 600 / 3600
    assert 0.2 < (history.attainment() or 0.0) < 1.0


def test_policies_run_on_it_and_the_page_has_them(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    line = ["compare", "--record", str(recorded), *TWO, "--html", str(page)]
    assert main([*line, "-o", "json"]) == 0
    body = json.loads(capsys.readouterr().out)
    runs = {run["policy"]: run for run in body["runs"]}
    assert runs["pdserve"]["attainment"] > runs["fixed-start"]["attainment"]
    assert runs["pdserve"]["instanceHours"] > runs["fixed-start"]["instanceHours"]
    assert body["recorded"]["instanceHours"] == pytest.approx(
        runs["pdserve"]["instanceHours"], rel=0.35
    )
    text = page.read_text()
    assert "(recorded)" in text and "fixed-start" in text and "<svg" in text


class _Prometheus(BaseHTTPRequestHandler):
    """Answers range queries with constant rates: 4 requests/s of 900 + 40 tokens."""

    def do_GET(self) -> None:
        asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        query, start, end = asked["query"][0], int(asked["start"][0]), int(asked["end"][0])
        assert '{service="shop",scenario="chat"}' in query
        rate = 4.0
        if "tokens" in query:
            rate *= 40.0 if "output" in query else 0.0 if "cached" in query else 900.0
        values = [[at, str(rate)] for at in range(start, end + 1, 60)]
        values[3][1] = "NaN"
        body: object = {"data": {"result": [{"metric": {}, "values": values}]}}
        assert isinstance(self.server, _Server)
        if self.server.answer is not None:
            body = self.server.answer
        sent = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *args: object) -> None:
        """Nothing is logged."""


class _Server(HTTPServer):
    answer: object = None
    """What is sent in place of rates."""


@pytest.fixture
def prometheus() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Prometheus)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_prometheus_gives_a_history_too(
    prometheus: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{prometheus.server_port}"
    line = ["compare", "--prometheus", url, "--hours", "0.3", "--ttft", "2000", *TWO]
    preset = ["--preset", "llama2-70b-h100x8"]
    assert main([*line, "--scenario", "shop/chat", *preset, "-o", "json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {run["policy"] for run in runs} == {"pdserve", "fixed-start"}
    assert runs[0]["offered"] == pytest.approx(4.0 * 0.3 * 3600, rel=0.1)
    for more, says in (
        (["--scenario", "shop/chat"], "name a profile"), (preset, "--scenario SERVICE/NAME"),
    ):  # fmt: skip
        assert main([*line, *more]) == 2
        assert says in capsys.readouterr().err
    for answer, says in (
        ({"data": {"result": []}}, "no pdserve_gateway_arrived_total of shop/chat"),
        ({"data": 3}, "not the answer"), ([], "not the answer"),
    ):  # fmt: skip
        prometheus.answer = answer
        assert main([*line, "--scenario", "shop/chat", *preset]) == 2
        assert says in capsys.readouterr().err


BAD = [
    (["--record", "/no/such"], "No such file"),
    (["--record", "RECORD", "--scenario", "shop/other"], "no decision of shop/other"),
    (["--record", "RECORD", "--policy", "magic"], "want one of pdserve"),
    (["--prometheus", "ftp://x", "--scenario", "a/b"], "want a URL"),
    (["--prometheus", "http://127.0.0.1:1", "--scenario", "a/b"], "refused"),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_bad_input_says_what_is_wrong(
    line: list[str], says: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(recorded) if word == "RECORD" else word for word in line]
    assert main(["compare", *line]) == 2
    assert says in capsys.readouterr().err


def test_a_record_that_is_too_short_is_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(recorded.read_text().splitlines(keepends=True)[:20]))
    assert main(["compare", "--record", str(short), "--preset", "llama2-70b-h100x8"]) == 2
    assert "too little" in capsys.readouterr().err
