"""What `kubectl pdserve ask` says without a service, a gateway, a right or a whole answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.ask_cluster import Cluster, condition, gateway, refusal, service
from tests.support.fake_apiserver import Json, Reply, Seen, delta, events, status

from pdserve.cli import kubectl


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


@pytest.mark.parametrize("given", ["0", "-1", "many"])
def test_max_tokens_must_be_a_number(cluster: Cluster, given: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cluster.ask("--max-tokens", given)
    assert ended.value.code == 2


@pytest.mark.parametrize("given", ["-0.1", "2.1", "nan", "inf", "warm", ""])
def test_a_temperature_must_be_one(
    cluster: Cluster, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cluster.ask(f"--temperature={given}")
    assert ended.value.code == 2
    assert f"must be a number from 0 to 2, not {given!r}" in capsys.readouterr().err
