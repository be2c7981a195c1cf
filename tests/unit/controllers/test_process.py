"""The operator as a process, and its flags."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.engines import fresh_host

from pdserve.controllers.from_options import loop_settings
from pdserve.controllers.options import parse_options

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: away
contexts: [{name: away, context: {cluster: away, user: me}}]
clusters: [{name: away, cluster: {server: "http://127.0.0.1:%d"}}]
users: [{name: me, user: {token: none}}]
"""


def page(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


@pytest.fixture
def refused() -> Iterator[int]:
    """A port at which nothing listens, nor can while the test runs: it is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_an_unreachable_api_server_is_said_and_waited_for(tmp_path: Path, refused: int) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG % refused)
    host, log = fresh_host(), tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "pdserve.controllers", f"--kubeconfig={kubeconfig}",
                f"--bind={host}", "--metrics-port=8000", "--log-format=json",
            ],
            stderr=stderr,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        # Not the first warning, which may come before the first answer.
        while "pods (0 Unreachable" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        status, text = page(f"http://{host}:8000/readyz")
        assert status == 503
        assert "pods (0 Unreachable" in text
        assert page(f"http://{host}:8000/healthz")[0] == 200
        metrics = page(f"http://{host}:8000/metrics")[1]
        assert 'pdserve_cache_synced{resource="pods"} 0' in metrics
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        said = [line["message"] for line in lines if "pods (0 Unreachable" in line["message"]]
        assert said[0].startswith("The API server does not answer")
        foreign = [line for line in lines if not line["logger"].startswith("pdserve.")]
        assert foreign == [], "kopf speaks of errors before there is anything to watch"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def test_no_configuration_of_a_cluster_is_a_clear_error(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pdserve.controllers", "--kubeconfig", str(tmp_path / "none")],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not a file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flag_wins_over_its_variable_and_a_variable_over_the_default() -> None:
    env = {"PDSERVE_CONTROL_PERIOD": "30", "PDSERVE_WORKERS": "9", "PDSERVE_NAMESPACE": "prod"}
    options = parse_options(["--workers", "2"], env)
    assert (options.control_period, options.workers, options.namespace) == (30.0, 2, "prod")
    assert (options.fast_period, options.metrics_port, options.resync) == (5.0, 9090, 600.0)
    assert options.leader_election
    assert not parse_options([], {"PDSERVE_NO_LEADER_ELECTION": "true"}).leader_election


@pytest.mark.parametrize(
    "argv",
    [
        ["--control-period", "0"],
        ["--control-period", "nan"],
        ["--workers", "0"],
        ["--workers", "many"],
        ["--api-rate", "0"],
        ["--api-rate", "nan"],
        ["--api-burst", "0"],
        ["--metrics-port", "70000"],
        ["--log-format", "xml"],
        ["--allowed-pod-fields", "spec.hostPid"],
    ],
)
def test_bad_flags_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse_options(argv, {})
    assert refused.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_a_bad_variable_is_refused_like_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options([], {"PDSERVE_FAST_PERIOD": "-1"})
    assert "--fast-period" in capsys.readouterr().err


def test_a_shorter_control_period_shortens_the_loops_other_times() -> None:
    settings = loop_settings(parse_options(["--control-period", "6"], {}))
    assert settings.shrink_dwell == 30.0
    assert settings.grow_dwell == 6.0
