"""`MetricsSource` over a Prometheus server, through prometheus-api-client.

That client is synchronous and has no deadline of its own, so queries run in a small thread pool,
each with a socket timeout, and the whole round under one deadline. Its retries sleep, so they are
off; `telemetry.breaker` decides when to try again. All queries of a round are evaluated at one
instant of the **server's** clock, so a skewed operator clock changes nothing. The instant is that
of the newest sample at least `SETTLE_SECONDS` old: samples carry the time at which their scrape
began and appear when it ends, so an evaluation at the present moment could see a scrape in some
queries of a round and not in others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from pdserve.ratio.types import ScenarioSample, Unknown
from pdserve.telemetry.access import Access, AccessError, Shown
from pdserve.telemetry.assemble import Answers, assemble
from pdserve.telemetry.breaker import Breaker
from pdserve.telemetry.promql import Query, Rows, Series, SeriesKey, parse, parse_time, queries
from pdserve.telemetry.session import BoundedSession
from pdserve.telemetry.source import LiveInstances, ScenarioKey

T = TypeVar("T")

SETTLE_SECONDS = 1.0
"""Longer than a scrape takes. One tick of a gateway is a quarter of a window of four scrapes."""
WINDOW_STEPS = (1.0, 3.0, 10.0)
"""Windows asked for, as multiples of the shortest."""


class QueryError(Exception):
    """One query failed; the message says how."""


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """How to reach and read one server."""

    url: str
    engines: Series
    """Names of engines' series by quantity."""
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
        self._queries = queries(self._windows, settings.matchers, settings.engines)
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
        answers = await self._ask_all(frozenset(_series(live)))
        if isinstance(answers, Unknown):
            return dict.fromkeys(live, answers)
        return {key: assemble(key, instances, answers) for key, instances in live.items()}

    async def close(self) -> None:
        """Give threads up without waiting; those inside a query end with its timeout."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _ask_all(self, wanted: frozenset[SeriesKey]) -> Answers | Unknown:
        refusal = self._breaker.refusal()
        if refusal is None and self._busy >= self._settings.threads:
            refusal = "queries of an earlier round still hang"
        if refusal is not None:
            return Unknown(f"{self._settings.url}: {refusal}")
        try:
            async with asyncio.timeout(self._settings.round_timeout):
                answers = await self._round(wanted)
        except TimeoutError:
            return self._failed(f"no answer within {self._settings.round_timeout:g} s")
        except QueryError as error:
            return self._failed(str(error))
        self._breaker.succeeded()
        return answers

    def _failed(self, error: str) -> Unknown:
        self._breaker.failed(error)
        return Unknown(f"{self._settings.url}: {error}")

    async def _round(self, wanted: frozenset[SeriesKey]) -> Answers:
        """Ask the time and how old samples are, then everything as of the newest sample.

        Raises QueryError if nothing works.
        """
        at = await self._run("vector(time())", None, parse_time) - SETTLE_SECONDS
        shift = _newest(await self._rows(self._queries[0], at, wanted), self._settings.stale_after)
        at -= shift
        asked = (self._rows(query, at, wanted) for query in self._queries)
        found = await asyncio.gather(*asked)
        rows = {query.name: answer for query, answer in zip(self._queries, found, strict=True)}
        if all(isinstance(answer, Unknown) for answer in found):
            raise QueryError(_first_reason(found))
        lag, stale_after = SETTLE_SECONDS + shift, self._settings.stale_after
        return Answers(at, lag, self._windows, stale_after, rows, shift)

    async def _rows(self, query: Query, at: float, wanted: frozenset[SeriesKey]) -> Rows | Unknown:
        try:
            return await self._run(query.text, at, partial(parse, wanted=wanted))
        except QueryError as error:
            return Unknown(f"query {query.name}: {error}")

    async def _run(self, text: str, at: float | None, read: Callable[[object], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._query, text, at, read)

    def _query(self, text: str, at: float | None, read: Callable[[object], T]) -> T:
        """In a pool thread: what `read` makes of one query's result; failures as QueryError."""
        with self._busy_lock:
            self._busy += 1
        try:
            params = {} if at is None else {"time": f"{at:.3f}"}
            connection, session = self._connection()
            session.read = read
            found: T = connection.custom_query(
                text, params=params, timeout=self._settings.query_timeout
            )
            return found
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

    def _connection(self) -> tuple[PrometheusConnect, BoundedSession]:
        """One client per pool thread, with its session, which is not made for sharing.

        A new one when the files changed: kept connections know the former CA.
        """
        shown = self._settings.access.read()
        known: _Known | None = getattr(self._local, "known", None)
        if known is not None and known.shown == shown:
            return known.connection, known.session
        if known is not None:
            known.session.close()
        session = BoundedSession()
        session.trust_env = False  # proxies and netrc are not meant for the cluster's own server
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
        session.bound(self._settings.url)
        self._local.known = _Known(shown, connection, session)
        return connection, session


@dataclass(frozen=True, slots=True)
class _Known:
    """What one pool thread asks with."""

    shown: Shown
    connection: PrometheusConnect
    session: BoundedSession


def _series(live: Mapping[ScenarioKey, LiveInstances]) -> Iterator[SeriesKey]:
    """Whose rows count."""
    for key, instances in live.items():
        for pod in instances.gateways | instances.prefill | instances.decode:
            yield SeriesKey(*key, pod)


def _newest(ages: Rows | Unknown, stale_after: float) -> float:
    """Age in seconds of the newest sample of any gateway; 0 where it is unknown or too old.

    Samples may come late as a whole (a remote write, a slow scraper). Windows that end at the
    newest one are full, where windows that end now would show a load that falls.
    """
    found = [] if isinstance(ages, Unknown) else list(ages.values())
    youngest = min((age for age in found if age >= 0.0), default=0.0)
    return youngest if youngest <= stale_after else 0.0


def _first_reason(found: Sequence[Rows | Unknown]) -> str:
    return next((answer.reason for answer in found if isinstance(answer, Unknown)), "no answer")
