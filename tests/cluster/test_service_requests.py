"""Requests a gateway cannot serve are answered with what would be right; the next one is served."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import openai
import pytest
from tests.support import scenarios as s
from tests.support.installed import NAMESPACE, SERVICE, Installed
from tests.support.traffic import KEY, MODEL, client

pytestmark = pytest.mark.cluster


@pytest.fixture
def gateway(installed: Installed, shop_service: Mapping[str, float]) -> Iterator[str]:
    """URL of a gateway, which must still serve afterwards."""
    cluster = installed.cluster
    url = cluster.url(s.wait_gateways(cluster, NAMESPACE, SERVICE, 2)[0])
    yield url
    answer = client(url).completions.create(model=MODEL, prompt="Still there?", max_tokens=2)
    assert answer.choices[0].finish_reason in ("length", "stop")


def post(url: str, body: bytes, key: str = KEY) -> tuple[int, Any]:
    """Status and JSON body of a POST to the completions endpoint."""
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=body,
        headers={"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_unknown_model_names_the_known_ones(gateway: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client(gateway).completions.create(model="gpt-9", prompt="x", max_tokens=1)
    message = str(caught.value)
    assert "'gpt-9'" in message
    assert "search" in message and "chat" in message and MODEL in message


def test_unknown_scenario_of_a_service_that_takes_only_named_ones(
    installed: Installed, gateway: str
) -> None:
    """A header that no scenario has is not an error here: `chat` takes every other request."""
    answer = client(gateway, {"x-scenario": "no-such"}).completions.create(
        model=MODEL, prompt="x", max_tokens=1
    )
    assert answer.choices


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b'{"model": "pdserve-tiny", "prompt": ', 400, "invalid_json", "not JSON"),
        (b"[1, 2]", 400, "invalid_value", "must be a JSON object"),
        (b'{"prompt": "x"}', 400, "invalid_value", "model must be a non-empty string"),
        (b'{"model": "pdserve-tiny"}', 400, "invalid_value", "prompt must be a string"),
        (
            b'{"model": "pdserve-tiny", "prompt": "x", "max_tokens": 0}',
            400, "invalid_value", "max_tokens must be an integer >= 1",
        ),
        (
            b'{"model": "pdserve-tiny", "prompt": "' + b"x" * (9 << 20) + b'"}',
            413, "too_large", "larger than the limit of",
        ),
    ],
    ids=["cut", "list", "no-model", "no-prompt", "zero-tokens", "oversized"],
)  # fmt: skip
def test_bad_bodies(gateway: str, body: bytes, status: int, code: str, says: str) -> None:
    got, answer = post(gateway, body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert says in answer["error"]["message"]


@pytest.mark.parametrize("key", ["wrong", "", "test-key-1x"])
def test_wrong_key(gateway: str, key: str) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1}).encode()
    got, answer = post(gateway, body, key)
    assert (got, answer["error"]["code"]) == (401, "invalid_api_key")


def test_an_instance_takes_no_control_from_unknown_clients(
    installed: Installed, gateway: str, shop_service: Mapping[str, float]
) -> None:
    """Drain without the service's token is refused, and the instance stays in service."""
    cluster = installed.cluster
    pod = s.pods(cluster, NAMESPACE, role="decode")[0]
    request = urllib.request.Request(f"{cluster.url(pod)}/pdserve/v1/drain", data=b"")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code in (401, 403)
    assert s.name_of(pod) in s.routed(cluster, NAMESPACE, SERVICE)
