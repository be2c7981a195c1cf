"""`kubectl pdserve ask` from its command line to its output, against a fake API server."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.ask_cluster import PODS, WAIT, Cluster, asking, gateway, service
from tests.support.fake_apiserver import Reply, delta, events

from pdserve.api import PDService
from pdserve.cli import ask, kubectl
from pdserve.cli.ask_target import gateways
from pdserve.desired.objects import gateway_labels
from pdserve.wire import names


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[bytes]]:
    """A whole stream whose tokens leave one after the other was shown."""
    shown = threading.Semaphore(0)
    show = ask.Screen.show

    def counted(screen: ask.Screen, text: str) -> None:
        show(screen, text)
        shown.release()

    monkeypatch.setattr(ask.Screen, "show", counted)

    def stream(*texts: str) -> Iterator[bytes]:
        for number, event in enumerate(events(*texts)):
            if 0 < number < len(texts):
                assert shown.acquire(timeout=WAIT)
            yield event

    return stream


def test_text_goes_to_stdout_and_one_line_about_it_to_stderr(
    cluster: Cluster, one_by_one: Callable[..., Iterator[bytes]]
) -> None:
    cluster.reply = lambda seen: Reply(
        200,
        one_by_one("Hello", " there", "!"),
        {"X-PDServe-Scenario": "chat", "X-PDServe-Prefill": "p0", "X-PDServe-Decode": "d1"},
    )
    done, out, err = cluster.ask(prompt="How are you?")
    assert (done, out) == (0, "Hello there!\n")
    [line] = err.splitlines()
    assert line.startswith("[scenario chat, prefill p0, decode d1, TTFT ")
    assert "TPOT " in line and line.endswith("7 + 3 tokens (length)]")


def test_what_is_sent(cluster: Cluster) -> None:
    cluster.ask("--max-tokens", "5", prompt="How are you?")
    [seen] = cluster.seen
    assert seen.path == f"{PODS}/demo-gateway-a:8000/proxy/v1/chat/completions"
    assert seen.body["messages"] == [{"role": "user", "content": "How are you?"}]
    assert (seen.body["model"], seen.body["max_tokens"]) == ("pdserve-tiny", 5)
    assert "temperature" not in seen.body, "the engine's default"
    assert seen.body["stream"] is True
    assert seen.headers["authorization"] == "Bearer user-token"
    assert "x-api-key" not in seen.headers


def test_a_temperature_is_sent_when_it_is_given(cluster: Cluster) -> None:
    cluster.ask("--temperature", "0")
    [seen] = cluster.seen
    assert seen.body["temperature"] == 0
    assert "max_tokens" in seen.body


def test_without_n_the_contexts_namespace_is_meant(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = ["--kubeconfig", str(cluster.kubeconfig(tmp_path, namespace="prod"))]
    assert kubectl.main(["ask", *connection, "demo", "Hi"]) == 0
    cluster.has(service())
    assert kubectl.main(["status", *connection, "demo"]) == 0
    assert "prod/demo" in capsys.readouterr().out
    assert kubectl.main(["status", *connection, "-n", "test", "demo"]) == 1


def test_a_completion_from_standard_input(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon\na time"))
    cluster.ask("--completion", prompt="-")
    [seen] = cluster.seen
    assert seen.path.endswith("/proxy/v1/completions")
    assert seen.body["prompt"] == "Once upon\na time"


def test_json(cluster: Cluster) -> None:
    done, out, err = cluster.ask("-o", "json")
    value = json.loads(out)
    assert (done, err) == (0, "")
    assert value["text"] == "Hello there"
    assert value["finish_reason"] == "length"
    assert value["usage"] == {"prompt_tokens": 7, "completion_tokens": 2}
    assert 0 < value["ttft_ms"] <= value["e2e_ms"]
    assert value["tpot_ms"] is None, "two tokens have no third"
    assert value["scenario"] == "chat", "by the gateway's rule, where it does not tell"
    assert value["gateway"] == "demo-gateway-a"
    assert value["complete"] is True


def test_tokens_that_come_all_at_once_have_no_tpot(cluster: Cluster) -> None:
    cluster.reply = lambda seen: Reply(200, [b"".join(events(*"abcdef"))])
    _, out, err = cluster.ask()
    assert out == "abcdef\n"
    assert "TTFT" in err and "TPOT" not in err


def test_text_is_there_before_the_answer_ends(cluster: Cluster) -> None:
    rest = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield delta("first ")
        assert rest.wait(WAIT)
        yield from events("second")

    cluster.reply = lambda seen: Reply(200, slowly())
    with asking(cluster) as process:
        assert process.stdout is not None
        got = process.stdout.read(len(b"first "))
        rest.set()
        got += process.stdout.read()
    assert got == b"first second\n"
    assert process.returncode == 0


def test_a_reader_that_has_enough_is_no_error(cluster: Cluster) -> None:
    gone = threading.Event()

    def long() -> Iterator[bytes]:
        yield delta("line\n")
        assert gone.wait(WAIT)
        yield from events(*["more\n"] * 2000)

    cluster.reply = lambda seen: Reply(200, long())
    with asking(cluster) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(5) == b"line\n"
        process.stdout.close()
        gone.set()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.3.9", True), ("::1", True), ("10.244.1.7", False), ("fd00::7", False), ("", False)],
)
def test_pods_of_process_nodes_are_asked_directly(address: str, here: bool) -> None:
    pod = gateway("g")
    pod["status"]["podIP"] = address
    assert [p.is_here for p in gateways([pod])] == [here]


def test_slow_answers_are_announced(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdserve.cli.ask.PATIENCE_SECONDS", 0.01)
    announced = threading.Event()
    monkeypatch.setattr("pdserve.cli.ask.note", lambda text: announced.set())

    def late() -> Iterator[bytes]:
        assert announced.wait(WAIT)
        yield from events("Hi")

    cluster.reply = lambda seen: Reply(200, late())
    assert cluster.ask()[:2] == (0, "Hi\n")


def test_characters_that_cut_lines_elsewhere_do_not_cut_events(cluster: Cluster) -> None:
    text = "a\u2028b\u0085c\n\nd"
    raw = '{"choices": [{"delta": {"content": "a\u2028b\u0085c\\n\\nd"}}]}'.encode()
    cluster.reply = lambda seen: Reply(200, [b"data: " + raw + b"\n\n", *events("!")])
    assert cluster.ask()[1] == f"{text}!\n"


def test_the_gateway_label_is_the_operators(cluster: Cluster) -> None:
    """Pods are selected on the server; the fake does not: the selector is looked at here."""
    labels = gateway_labels(PDService.parse(service()))
    assert labels == {names.LABEL_COMPONENT: ask.COMPONENT, names.LABEL_SERVICE: "demo"}
