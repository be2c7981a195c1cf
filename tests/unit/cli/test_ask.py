"""`kubectl pdserve ask` from its command line to its output, against a fake API server."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.cli.fake_apiserver import FakeApiServer, Json, Reply, Seen, delta, events, status

from pdserve.api import PDService
from pdserve.cli import ask, kubectl
from pdserve.cli.ask_target import AskError, address, gateways
from pdserve.desired.objects import gateway_labels
from pdserve.wire import names

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SERVICES = "/apis/pdserve.io/v1alpha1/namespaces/prod/pdservices"
PODS = "/api/v1/namespaces/prod/pods"
SECRET = "/api/v1/namespaces/prod/secrets/keys"
READY = {"type": "Ready", "status": "True", "reason": "Serving", "message": ""}
WAIT = 20.0
"""Seconds within which anything waited for must have happened."""


def service(**spec: Any) -> Json:
    """examples/demo-pdservice.yaml (search by header, chat takes the rest), Ready, in `prod`."""
    value = yaml.safe_load((EXAMPLES / "demo-pdservice.yaml").read_text())
    value["metadata"] |= {"namespace": "prod", "generation": 1}
    value["spec"] |= spec
    value["status"] = {"conditions": [condition(READY)]}
    return value


def condition(given: Json) -> Json:
    return {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1, **given}


def gateway(name: str, ready: bool = True, **meta: Any) -> Json:
    return {
        "metadata": {"name": name, "namespace": "prod", **meta},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def pods(*items: Json) -> Json:
    return {"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": list(items)}


class Cluster(FakeApiServer):
    """One PDService `demo` with a gateway pod, and a way to ask it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__()
        self.folder = folder
        self._capsys = capsys
        self.has(service(), gateway("demo-gateway-a"))

    def has(self, value: Json, *gateways: Json) -> None:
        self.objects[f"{SERVICES}/demo"] = value
        self.objects[SERVICES] = pods(value)
        self.objects["/apis/pdserve.io/v1alpha1/namespaces/prod/scenariogroups"] = pods()
        self.objects[PODS] = pods(*gateways)

    def ask(self, *options: str, prompt: str = "Hi", name: str = "demo") -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        done = kubectl.main(self.command(*options, prompt=prompt, name=name))
        shown = self._capsys.readouterr()
        return done, shown.out, shown.err

    def command(self, *options: str, prompt: str = "Hi", name: str = "demo") -> list[str]:
        where = ["-n", "prod", "--kubeconfig", str(self.kubeconfig(self.folder))]
        return ["ask", *where, *options, name, *prompt.split(" ")]


@pytest.fixture
def cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    monkeypatch.delenv("PDSERVE_API_KEY", raising=False)
    with Cluster(tmp_path, capsys) as made:
        yield made


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[bytes]]:
    """A whole stream whose tokens leave one after the other was shown."""
    shown = threading.Semaphore(0)
    show = ask._Screen.show

    def counted(screen: ask._Screen, text: str) -> None:
        show(screen, text)
        shown.release()

    monkeypatch.setattr(ask._Screen, "show", counted)

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
    assert seen.body["stream"] is True
    assert seen.headers["authorization"] == "Bearer user-token"
    assert "x-api-key" not in seen.headers


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


def asking(cluster: Cluster) -> subprocess.Popen[bytes]:
    """The command in a process of its own, its output read as it comes."""
    program = "import sys; from pdserve.cli.kubectl import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *cluster.command()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


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


def test_a_scenario_gets_the_headers_it_asks_for(cluster: Cluster) -> None:
    done, _, err = cluster.ask("--scenario", "search")
    assert done == 0 and "scenario search" in err
    assert cluster.seen[0].headers["x-scenario"] == "search"


def test_an_unknown_scenario(cluster: Cluster) -> None:
    done, out, err = cluster.ask("--scenario", "serach")
    assert (done, out, cluster.seen) == (1, "", [])
    assert "no scenario 'serach'; there: search, chat" in err


# --- which request reaches which scenario --------------------------------------------------


def scenarios(*given: tuple[str, Json | None]) -> PDService:
    value = service()
    pattern = value["spec"]["scenarios"][1]
    value["spec"]["scenarios"] = [
        {**pattern, "name": name, **({"match": match} if match else {})} for name, match in given
    ]
    return PDService.parse(value)


def test_a_scenario_with_a_model_name_of_its_own() -> None:
    found = address(scenarios(("fast", {"models": ["tiny-fast"]}), ("chat", None)), "fast")
    assert (found.model, found.headers) == ("tiny-fast", {})


def test_the_model_that_no_earlier_scenario_takes() -> None:
    of = scenarios(("a", {"models": ["m1"]}), ("b", {"models": ["m1", "m2"]}))
    assert address(of, "b").model == "m2"


def test_a_shadowed_scenario_says_by_which() -> None:
    of = scenarios(("a", {"models": ["m1"]}), ("b", {"models": ["m1"], "headers": {"x-b": "1"}}))
    with pytest.raises(AskError, match="'b' gets no request that matches it: 'a' stands before"):
        address(of, "b")


def test_without_scenario_the_last_takes_it_or_one_must_be_chosen() -> None:
    assert address(scenarios(("a", {"headers": {"x-a": "1"}}), ("b", None)), None).scenario == "b"
    closed = scenarios(("a", {"headers": {"x-a": "1"}}), ("b", {"headers": {"x-a": "2"}}))
    with pytest.raises(AskError, match=r"--scenario \(a, b\)"):
        address(closed, None)


# --- keys ----------------------------------------------------------------------------------


def locked(cluster: Cluster, **data: str) -> None:
    """The gateway wants a key; `data` is the Secret's."""
    auth = {"replicas": 1, "auth": {"secretRef": {"name": "keys"}}}
    cluster.has(service(gateway=auth), gateway("demo-gateway-a"))
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    cluster.objects[SECRET] = {"kind": "Secret", "metadata": {"name": "keys"}, "data": encoded}


def test_the_key_is_read_from_the_secret(cluster: Cluster) -> None:
    locked(cluster, b="second", a="\n first \nother")
    assert cluster.ask()[0] == 0
    assert cluster.seen[0].headers["x-api-key"] == "first"


def test_a_key_of_the_environment_comes_first(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked(cluster)
    monkeypatch.setenv("PDSERVE_API_KEY", "mine")
    assert cluster.ask()[0] == 0
    assert cluster.seen[0].headers["x-api-key"] == "mine"


def forbidden(what: str) -> Json:
    return status(403, "Forbidden", f'{what} is forbidden: User "eve" cannot do that')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c.objects.pop(SECRET), "does not exist: `kubectl create secret generic keys"),
        (lambda c: c.refused.update({SECRET: forbidden("secrets")}), "set PDSERVE_API_KEY"),
        (lambda c: c.objects[SECRET].update(data={"a": "IA=="}), "'keys' holds none"),
    ],
    ids=["absent", "forbidden", "empty"],
)
def test_no_key_to_be_had(cluster: Cluster, spoil: Callable[[Cluster], Any], says: str) -> None:
    locked(cluster, a="key")
    spoil(cluster)
    done, _, err = cluster.ask()
    assert (done, cluster.seen) == (1, [])
    assert says in err


def test_a_refused_key_says_where_it_was_from(cluster: Cluster) -> None:
    locked(cluster, a="old")
    cluster.reply = lambda seen: Reply(401, refusal("invalid_api_key", "incorrect API key"))
    done, _, err = cluster.ask()
    assert done == 1
    assert "401 invalid_api_key: incorrect API key" in err
    assert "from Secret 'keys'" in err
    assert "port-forward -n prod svc/demo-gateway 8080:80" in err


# --- what can be wrong ---------------------------------------------------------------------


def refusal(code: str, message: str) -> Json:
    return {"error": {"message": message, "type": "t", "param": None, "code": code}}


def unready(reason: str, message: str) -> Json:
    value = service()
    given = {"type": "Ready", "status": "False", "reason": reason, "message": message}
    value["status"]["conditions"] = [condition(given)]
    return value


def test_a_service_that_is_not_there(cluster: Cluster) -> None:
    done, _, err = cluster.ask(name="dmo")
    assert done == 1
    assert "PDService 'dmo' is not in namespace 'prod'; there: demo" in err


def test_a_cluster_without_pdserve(cluster: Cluster) -> None:
    cluster.objects.clear()
    done, _, err = cluster.ask()
    assert (done, err.count("\n")) == (1, 1)
    assert "install the chart first" in err


@pytest.mark.parametrize(
    ("pods_there", "says"),
    [
        ([], "it has no gateway pod"),
        ([gateway("g", ready=False)], "no gateway pod of it is ready"),
        ([gateway("g", deletionTimestamp="2026-01-01T00:00:00Z")], "no gateway pod of it is ready"),
    ],
    ids=["none", "not-ready", "leaving"],
)
def test_no_gateway_tells_what_the_service_says(
    cluster: Cluster, pods_there: list[Json], says: str
) -> None:
    cluster.has(unready("NotPlaced", "chat: 4 devices are free, 8 are needed"), *pods_there)
    done, _, err = cluster.ask()
    assert (done, cluster.seen) == (1, [])
    assert says in err
    assert "Ready=False NotPlaced: chat: 4 devices are free, 8 are needed" in err
    assert "kubectl wait pds/demo -n prod --for=condition=Ready" in err


def test_a_service_the_operator_never_saw(cluster: Cluster) -> None:
    value = service()
    del value["status"]
    cluster.has(value)
    assert "the operator has not seen it yet" in cluster.ask()[2]


def test_not_ready_is_asked_all_the_same(cluster: Cluster) -> None:
    cluster.has(unready("Degraded", "chat: 1/2 decode"), gateway("demo-gateway-a"))
    done, out, err = cluster.ask()
    assert (done, out) == (0, "Hello there\n")
    assert "is not Ready (Ready=False Degraded: chat: 1/2 decode); asking all the same" in err


def test_a_503_tells_why_the_service_is_not_ready(cluster: Cluster) -> None:
    cluster.has(unready("Starting", "chat: instances start"), gateway("demo-gateway-a"))
    cluster.reply = lambda seen: Reply(503, refusal("deadline_exceeded", "no free slot"))
    done, out, err = cluster.ask()
    assert (done, out) == (1, "")
    assert "503 deadline_exceeded: no free slot" in err
    assert "not Ready: Ready=False Starting" in err
    assert "kubectl pdserve explain demo -n prod" in err


def test_rbac_refuses_the_proxy(cluster: Cluster) -> None:
    said = 'pods "g:8000" is forbidden: User "eve" cannot create resource "pods/proxy"'
    cluster.reply = lambda seen: Reply(403, status(403, "Forbidden", said))
    done, _, err = cluster.ask()
    assert done == 1
    assert said in err
    assert "resources: [pods/proxy], verbs: [create]" in err
    assert "kubectl port-forward -n prod svc/demo-gateway 8080:80" in err


def test_the_next_gateway_is_asked_when_one_cannot_be_reached(cluster: Cluster) -> None:
    cluster.has(service(), gateway("demo-gateway-a"), gateway("demo-gateway-b"))

    def reply(seen: Seen) -> Reply:
        if "gateway-a" in seen.path:
            return Reply(503, status(503, "ServiceUnavailable", "connection refused"))
        return Reply(200, events("Hi"))

    cluster.reply = reply
    assert cluster.ask()[:2] == (0, "Hi\n")
    assert [seen.path.split("/")[6] for seen in cluster.seen] == [
        "demo-gateway-a:8000",
        "demo-gateway-b:8000",
    ]


def test_no_gateway_can_be_reached(cluster: Cluster) -> None:
    cluster.reply = lambda seen: Reply(503, status(503, "ServiceUnavailable", "connection refused"))
    done, _, err = cluster.ask()
    assert done == 1
    assert "demo-gateway-a: connection refused" in err
    assert "port-forward" in err


def test_no_api_server(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # nothing listens at its port, nor can
        taken.bind(("127.0.0.1", 0))
        nowhere = cluster.kubeconfig(tmp_path, port=taken.getsockname()[1])
        assert kubectl.main(["ask", "-n", "prod", "--kubeconfig", str(nowhere), "demo", "Hi"]) == 1
    assert "the API server does not answer" in capsys.readouterr().err


def broken_off(seen: Seen) -> Reply:
    return Reply(200, [delta("Once "), delta("upon ")], cut=True)


def error_event(seen: Seen) -> Reply:
    error = b'data: {"error": {"message": "decode d0 was lost", "code": "upstream_error"}}\n\n'
    return Reply(200, [delta("Once "), delta("upon "), error])


def no_last_event(seen: Seen) -> Reply:
    return Reply(200, [delta("Once "), delta("upon ")])


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (broken_off, "connection_lost"),
        (error_event, "upstream_error: decode d0 was lost"),
        (no_last_event, "the stream ended without its last event"),
    ],
)
def test_an_answer_that_breaks_off(
    cluster: Cluster, reply: Callable[[Seen], Reply], says: str
) -> None:
    cluster.reply = reply
    done, out, err = cluster.ask()
    assert (done, out) == (1, "Once upon \n")
    assert f"the answer broke off: {says}" in err
    done, out, err = cluster.ask("-o", "json")
    value = json.loads(out)
    assert (done, value["text"], value["complete"]) == (1, "Once upon ", False)


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.3.9", True), ("::1", True), ("10.244.1.7", False), ("fd00::7", False), ("", False)],
)
def test_pods_of_process_nodes_are_asked_directly(address: str, here: bool) -> None:
    pod = gateway("g")
    pod["status"]["podIP"] = address
    assert [p.is_here for p in gateways([pod])] == [here]


@pytest.mark.parametrize("given", ["0", "-1", "many"])
def test_max_tokens_must_be_a_number(cluster: Cluster, given: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cluster.ask("--max-tokens", given)
    assert ended.value.code == 2


def test_slow_answers_are_announced(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdserve.cli.ask.PATIENCE_SECONDS", 0.01)
    announced = threading.Event()
    monkeypatch.setattr("pdserve.cli.ask._note", lambda text: announced.set())

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
