"""`MetricsSource` over a Prometheus server, through prometheus-api-client.

That client is synchronous and has no deadline of its own, so queries run in a small thread pool,
each with a socket timeout, and the whole round under one deadline. Its retries sleep, so they are
off; `telemetry.breaker` decides when to try again. All queries of a round are evaluated at one
instant of the **server's** clock, so a skewed operator clock changes nothing. The instant lies
`SETTLE_SECONDS` back: samples carry the time at which their scrape began and appear when it ends,
so at the very moment some queries of a round would have a scrape that others have not.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from pdserve.ratio.types import ScenarioSample, Unknown
from pdserve.telemetry.access import Access, AccessError, Shown
from pdserve.telemetry.assemble import Answers, assemble
from pdserve.telemetry.breaker import Breaker
from pdserve.telemetry.promql import Query, Rows, parse, parse_time, queries
from pdserve.telemetry.source import LiveInstances, ScenarioKey

SETTLE_SECONDS = 1.0
"""Longer than a scrape takes. One tick of a gateway is a quarter of a window of four scrapes."""
MAX_ANSWER = 32 << 20
"""Bytes of one query's answer. A row of 10,000 pods takes about 250."""
ANSWER_SECONDS = 30.0
"""Seconds for the body of one query's answer."""
WINDOW_STEPS = (1.0, 3.0, 10.0)
"""Windows asked for, as multiples of the shortest."""


class QueryError(Exception):
    """One query failed; the message says how."""


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """How to reach and read one server."""

    url: str
    window: float = 60.0
    """Shortest window, seconds: at least 4 scrape intervals."""
    stale_after: float = 60.0
    """An instance whose newest sample is older is missing."""
    query_timeout: float = 5.0
    round_timeout: float = 10.0
    threads: int = 4
    matchers: Mapping[str, str] = field(default_factory=dict)
    """Labels every series must have, for a server shared with others (e.g. cluster)."""
    access: Access = field(default_factory=Access)
    """Credentials and CA."""


class PrometheusSource:
    """Samples from one Prometheus; never raises for a server that is away or talks nonsense."""

    def __init__(
        self, settings: PrometheusSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock`: monotonic seconds, for the breaker."""
        self._settings = settings
        self._windows = tuple(settings.window * step for step in WINDOW_STEPS)
        self._queries = queries(self._windows, settings.matchers)
        self._breaker = Breaker(clock)
        self._pool = ThreadPoolExecutor(settings.threads, "pdserve-prometheus")
        self._local = threading.local()
        self._busy = 0
        self._busy_lock = threading.Lock()

    async def sample(
        self, live: Mapping[ScenarioKey, LiveInstances]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        """See `MetricsSource.sample`."""
        if not live:
            return {}
        answers = await self._ask_all()
        if isinstance(answers, Unknown):
            return dict.fromkeys(live, answers)
        return {key: assemble(key, instances, answers) for key, instances in live.items()}

    async def close(self) -> None:
        """Give threads up; those inside a query end with its timeout."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _ask_all(self) -> Answers | Unknown:
        refusal = self._breaker.refusal()
        if refusal is None and self._busy >= self._settings.threads:
            refusal = "queries of an earlier round still hang"
        if refusal is not None:
            return Unknown(f"{self._settings.url}: {refusal}")
        try:
            async with asyncio.timeout(self._settings.round_timeout):
                answers = await self._round()
        except TimeoutError:
            return self._failed(f"no answer within {self._settings.round_timeout:g} s")
        except QueryError as error:
            return self._failed(str(error))
        self._breaker.succeeded()
        return answers

    def _failed(self, error: str) -> Unknown:
        self._breaker.failed(error)
        return Unknown(f"{self._settings.url}: {error}")

    async def _round(self) -> Answers:
        """Ask the time, then everything as of a little before it.

        Raises QueryError if nothing works.
        """
        try:
            at = parse_time(await self._run("vector(time())", None)) - SETTLE_SECONDS
        except ValueError as error:
            raise QueryError(str(error)) from error
        found = await asyncio.gather(*(self._rows(query, at) for query in self._queries))
        rows = {query.name: answer for query, answer in zip(self._queries, found, strict=True)}
        if all(isinstance(answer, Unknown) for answer in found):
            raise QueryError(_first_reason(found))
        return Answers(at, SETTLE_SECONDS, self._windows, self._settings.stale_after, rows)

    async def _rows(self, query: Query, at: float) -> Rows | Unknown:
        try:
            return parse(await self._run(query.text, at))
        except (QueryError, ValueError) as error:
            return Unknown(f"query {query.name}: {error}")

    async def _run(self, text: str, at: float | None) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._query, text, at)

    def _query(self, text: str, at: float | None) -> Any:
        """In a pool thread: one query, its failures as QueryError."""
        with self._busy_lock:
            self._busy += 1
        try:
            params = {} if at is None else {"time": f"{at:.3f}"}
            return self._connection().custom_query(
                text, params=params, timeout=self._settings.query_timeout
            )
        except PrometheusApiClientException as error:
            raise QueryError(f"server refused: {error!s:.200}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:  # of JSON, too
            raise QueryError(f"not a Prometheus answer: {error!s:.120}") from error
        except AccessError as error:
            raise QueryError(str(error)) from error
        except OSError as error:  # those of requests, too
            raise QueryError(f"{type(error).__name__}: {error!s:.200}") from error
        finally:
            with self._busy_lock:
                self._busy -= 1

    def _connection(self) -> PrometheusConnect:
        """One client per pool thread: its session is not made for sharing.

        A new one when the files changed: kept connections know the former CA.
        """
        shown = self._settings.access.read()
        known: tuple[Shown, PrometheusConnect] | None = getattr(self._local, "known", None)
        connection = known[1] if known is not None and known[0] == shown else None
        if connection is None:
            if known is not None:
                known[1]._session.close()
            session = _Session()
            session.trust_env = (
                False  # proxies and netrc are not meant for the cluster's own server
            )
            if self._settings.access.ca_file is not None:
                session.verify = self._settings.access.ca_file
            shows = {} if shown.authorization is None else {"Authorization": shown.authorization}
            connection = PrometheusConnect(
                url=self._settings.url,
                headers=shows,
                session=session,
                retry=Retry(total=0),
                timeout=self._settings.query_timeout,
            )
            self._local.known = shown, connection
        return connection


class _Session(requests.Session):
    """Follows no redirection, accepts no encoding, reads a bounded body.

    What answers at the configured address may be anything; it decides neither whom the operator
    asks next nor how much memory an answer takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.headers["Accept-Encoding"] = "identity"

    def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:
        """As the library's; raises `requests.RequestException` for an answer beyond the bounds."""
        deadline = time.monotonic() + ANSWER_SECONDS
        response = super().send(request, **{**settings, "stream": True, "allow_redirects": False})
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            response.close()
            raise requests.RequestException(f"the answer is encoded as {encoding[:40]!r}")
        body = bytearray()
        # What has come so far, and no wait for more: a server that drips holds no thread for ever.
        while part := response.raw.read1(min(65_536, MAX_ANSWER + 1 - len(body))):
            body += part
            if time.monotonic() > deadline:
                response.close()
                raise requests.RequestException(f"not answered within {ANSWER_SECONDS:g} s")
        if len(body) > MAX_ANSWER:
            response.close()
            raise requests.RequestException(f"an answer of more than {MAX_ANSWER} bytes")
        response._content = bytes(body)
        return response


def _first_reason(found: Sequence[Rows | Unknown]) -> str:
    return next((answer.reason for answer in found if isinstance(answer, Unknown)), "no answer")
