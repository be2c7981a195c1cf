"""Traffic that follows a service's gateways as they come and go, where no Service routes it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from tests.support import scenarios as s
from tests.support.traffic import MODEL, Outcome, client, stream
from urllib3.exceptions import HTTPError

PAUSE_SECONDS = 0.02
"""Between two requests of one client: what is under test has the CPU meanwhile."""


class Following:
    """Clients that use the gateways that are ready, as a Service's endpoints would have them."""

    def __init__(
        self,
        cluster: s.Cluster,
        namespace: str,
        service: str,
        *,
        workers: int = 2,
        tokens: int = 8,
        model: str = MODEL,
    ) -> None:
        """`workers` clients, each one stream of `tokens` after the other.

        `model` may be changed: requests that begin later ask for it.
        """
        self._cluster, self.workers = cluster, workers
        self._of = namespace, service
        self._tokens = tokens
        self.model = model
        self._over = threading.Event()
        self.outcomes: list[Outcome] = []
        self.urls: tuple[str, ...] = ()

    def __enter__(self) -> Following:
        self._look()
        jobs = [self._watch, *[self._work] * self.workers]
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120.0)
            assert not thread.is_alive(), "a request neither ended nor failed"

    @property
    def completed(self) -> int:
        """Requests that ended well so far."""
        return sum(1 for o in self.outcomes if o.ended is not None and not o.error)

    @property
    def errors(self) -> list[str]:
        """What became of requests that failed, before their stream or in it."""
        return [o.error for o in self.outcomes if o.error]

    def wait_more(self, count: int) -> None:
        """Until so many more requests than now ended well."""
        before = self.completed
        s.until(f"{count} more requests", lambda: self.completed >= before + count)

    def _look(self) -> None:
        found = s.gateways(self._cluster, *self._of)
        self.urls = tuple(self._cluster.url(p) for p in found) or self.urls

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            with suppress(HTTPError, AssertionError):  # the API server may be what a test stops
                self._look()

    def _work(self) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            url = self.urls[turn % len(self.urls)]
            outcome = Outcome(time.monotonic(), url=url)
            self.outcomes.append(outcome)
            prompt = f"Tell me about the sea {turn}"
            with client(url) as api:
                stream(api, prompt, self._tokens, outcome, model=self.model, to_the_end=True)
            self._over.wait(PAUSE_SECONDS)
