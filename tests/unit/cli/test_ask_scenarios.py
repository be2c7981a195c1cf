"""Which request reaches a scenario, and with which API key `kubectl pdserve ask` sends it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.ask_cluster import SECRET, Cluster, gateway, refusal, service
from tests.support.fake_apiserver import Json, Reply, status

from pdserve.api import PDService
from pdserve.cli.ask_target import AskError, address


def test_a_scenario_gets_the_headers_it_asks_for(cluster: Cluster) -> None:
    done, _, err = cluster.ask("--scenario", "search")
    assert done == 0 and "scenario search" in err
    assert cluster.seen[0].headers["x-scenario"] == "search"


def test_an_unknown_scenario(cluster: Cluster) -> None:
    done, out, err = cluster.ask("--scenario", "serach")
    assert (done, out, cluster.seen) == (1, "", [])
    assert "no scenario 'serach'; there: search, chat" in err


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
