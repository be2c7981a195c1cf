"""A light stream of OpenAI requests, and what became of each, as a client sees it."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from openai import DefaultHttpxClient, OpenAI

MODEL = "pdserve-tiny"
SEARCH = {"x-scenario": "search"}
KEY = "test-key-1"
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP. A client that reads the certificates of all authorities takes 20 ms of CPU."""


def client(url: str, headers: Mapping[str, str] | None = None, key: str = KEY) -> OpenAI:
    """The OpenAI SDK against a gateway or an engine, by plain HTTP; it does not retry."""
    return OpenAI(
        base_url=f"{url}/v1",
        api_key=key,
        max_retries=0,
        timeout=60.0,
        default_headers=headers,
        http_client=DefaultHttpxClient(verify=_NO_TLS),
    )


@dataclass
class Outcome:
    """One streamed request; times are monotonic seconds."""

    began: float
    first: float | None = None
    """When its first chunk came."""
    ended: float | None = None
    tokens: int = 0
    error: str = ""
    url: str = ""
    """The gateway it was sent to, where that is recorded."""

    @property
    def failed_before_stream(self) -> bool:
        """Lost although nothing of its answer had been sent: what must never happen."""
        return bool(self.error) and self.first is None


@dataclass
class Traffic:
    """Runs `workers` clients, each one request after the other, until the block ends."""

    urls: Sequence[str]
    headers: Mapping[str, str] = field(default_factory=dict)
    workers: int = 2
    max_tokens: int = 12
    prompt: str = "Tell me about the sea and the ships. "
    to_the_end: bool = False
    """Every request generates all of `max_tokens`."""
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(180.0)
            assert not thread.is_alive(), "a request neither ended nor failed"

    @property
    def completed(self) -> int:
        """Requests that ended well so far."""
        return sum(1 for o in self.outcomes if o.ended is not None and not o.error)

    @property
    def lost(self) -> list[Outcome]:
        """Requests that failed before anything of their answer came."""
        return [o for o in self.outcomes if o.failed_before_stream]

    def _work(self, number: int) -> None:
        clients = [client(url, self.headers) for url in self.urls]
        turn = number
        while not self._over.is_set():
            outcome = Outcome(time.monotonic())
            self.outcomes.append(outcome)
            turn += 1
            api, prompt = clients[turn % len(clients)], f"{self.prompt}{turn}"
            stream(api, prompt, self.max_tokens, outcome, to_the_end=self.to_the_end)


def stream(
    api: OpenAI,
    prompt: str,
    max_tokens: int,
    outcome: Outcome,
    *,
    to_the_end: bool = False,
    model: str = MODEL,
) -> None:
    """One streamed completion, recorded in `outcome`; `to_the_end`: all of `max_tokens`."""
    try:
        chunks = api.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=max_tokens,
            stream=True,
            temperature=0,
            extra_body={"ignore_eos": to_the_end},
        )
        for chunk in chunks:
            if outcome.first is None:
                outcome.first = time.monotonic()
            outcome.tokens += sum(1 for choice in chunk.choices if choice.text)
    except Exception as error:  # the SDK's own, or its HTTP library's when a stream is cut
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.ended = time.monotonic()
