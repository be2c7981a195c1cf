"""What P/D answers through the gateway is what one aggregated instance answers, token for token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from tests.support import scenarios as s
from tests.support.installed import NAMESPACE, SERVICE, Installed, image
from tests.support.traffic import MODEL, client

pytestmark = pytest.mark.cluster

PROMPTS = (
    "The",
    "Once upon a time",
    "What is the sea?",
    "Write a line about ships and the wind over the water.",
    "one two three four five six seven",
    "Die Straße, naïve café, Ωμέγα; 北京 🙂",
    "   leading spaces\n\nand two empty lines",
    "def add(a, b):\n    return",
    "A long prompt of many words, said again and again. " * 12,
    "What is the sea? What is the sea? What is the sea?",
    '{"json": [1, 2, 3]}',
    "The end",
)
GREEDY = {"temperature": 0}
SEEDED = {"temperature": 0.9, "top_p": 0.95, "seed": 7}


@pytest.fixture(scope="module")
def aggregated(installed: Installed, shop_service: Mapping[str, float]) -> Iterator[OpenAI]:
    """One engine pod of role `both` in the same cluster."""
    cluster = installed.cluster
    args = ["--role", "both", "--slots", "8", "--model-name", MODEL]
    probe = {"httpGet": {"path": "/readyz", "port": 8000}, "periodSeconds": 1}
    container = {
        "name": "engine", "image": image("engine"),
        "args": args, "readinessProbe": probe,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "aggregated"},
            "spec": spec,
        },
        namespace=NAMESPACE,
    )
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/aggregated"
    s.until("the aggregated engine ready", lambda: s.is_ready(cluster.get(path)))
    yield client(cluster.url(cluster.get(path) or {}))
    cluster.kubectl("delete", "pod", "aggregated", "-n", NAMESPACE, "--wait=false")


def complete(
    api: OpenAI, prompt: str, chat: bool, stream: bool, **sampling: Any
) -> tuple[str, str]:
    """Text and finish reason of one request."""
    request: dict[str, Any] = {"model": MODEL, "max_tokens": 20, "stream": stream, **sampling}
    if chat:
        request["messages"] = [{"role": "user", "content": prompt}]
        answer = api.chat.completions.create(**request)
    else:
        answer = api.completions.create(prompt=prompt, **request)
    text, finish = "", ""
    for part in answer if stream else [answer]:
        for choice in part.choices:
            message = (choice.delta if stream else choice.message) if chat else None
            piece = message.content if message is not None else choice.text
            text += piece or ""
            finish = choice.finish_reason or finish
    return text, finish


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completions"])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_output_equals_an_aggregated_engine(
    installed: Installed, aggregated: OpenAI, sampling: dict[str, Any], chat: bool
) -> None:
    cluster = installed.cluster
    through = [client(cluster.url(g)) for g in s.wait_gateways(cluster, NAMESPACE, SERVICE, 2)]

    def answers(case: tuple[int, str]) -> tuple[tuple[str, str], ...]:
        number, prompt = case
        gateway = through[number % len(through)]
        return (
            complete(aggregated, prompt, chat, stream=False, **sampling),
            complete(gateway, prompt, chat, stream=False, **sampling),
            complete(gateway, prompt, chat, stream=True, **sampling),
        )

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(answers, enumerate(PROMPTS)))
    for prompt, (expected, whole, streamed) in zip(PROMPTS, results, strict=True):
        assert whole == expected, prompt
        assert streamed == expected, prompt
    texts = [expected[0] for expected, _, _ in results]
    assert len(set(texts)) >= len(PROMPTS) // 2, "prompts must matter"
    assert all(finish in ("stop", "length") for _, finish in (r[0] for r in results))
