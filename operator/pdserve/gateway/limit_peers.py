"""Speaks with the gateway that decides about limits for all gateways of the service.

One report is under way at a time; what comes meanwhile goes with the next. Where the gateway that
decides does not answer, requests are decided here for SILENT_SECONDS, then it is asked again. The
header of a report proves the service's request credential without showing it. Neighbours:
`forwarding.limit_exchange` says what is sent, `limits` asks.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping
from functools import partial

import orjson

from pdserve.engines.credentials import Credential
from pdserve.forwarding.limit_book import LimitAsk, LimitBook, Verdict
from pdserve.forwarding.limit_exchange import REPEAT_SECONDS, LimitOutbox, answer
from pdserve.http1.errors import ApiError
from pdserve.http1.listener import UpstreamError
from pdserve.http1.pool import Pool
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.calls import HEADER_LIMITS, PATH_LIMITS
from pdserve.wire.credentials import limits_token
from pdserve.wire.limit_exchange import MAX_REPORT, LimitAnswer, LimitReport
from pdserve.wire.routes import RouteGateway

logger = logging.getLogger(__name__)
SILENT_SECONDS = 1.0
GATHER_SECONDS = 0.02
"""How long what no request waits for is gathered before it is reported."""


class LimitPeers:
    """The gateway that decides, as another gateway sees it."""

    def __init__(
        self, credential: Credential, sender: str, patience: float, clock: Callable[[], float]
    ) -> None:
        """Make one that has no gateway to ask yet.

        Args:
            credential: what this service's gateways send to engines.
            sender: this gateway's own id.
            patience: seconds to wait for an answer.
            clock: monotonic seconds.
        """
        self._patience = patience
        self.outbox = LimitOutbox(sender)
        self._credential = credential
        self._clock = clock
        self._pool = Pool()
        self._decider: RouteGateway | None = None
        self._silent_until = 0.0
        self._complaint = ""
        self._wake = asyncio.Event()

    def follow(self, decider: RouteGateway | None) -> None:
        """Ask this gateway from now on; None: this one decides itself."""
        if decider == self._decider:
            return
        self._decider, self._silent_until, self._complaint = decider, 0.0, ""
        self.outbox.introduce()
        self._pool.keep_only({decider.endpoint} if decider is not None else set())
        self._wake.set()

    async def decide(self, ask: LimitAsk) -> Verdict | None:
        """What the gateway that decides says; None: it does not answer."""
        if self._decider is None or self._clock() < self._silent_until:
            return None
        future: asyncio.Future[Verdict | None] = asyncio.get_running_loop().create_future()
        self.outbox.ask(ask, partial(_resolve, future))
        self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            # Its client may leave between the verdict and the turn of the task that waits for it.
            verdict = future.result() if future.done() and not future.cancelled() else None
            if verdict is not None and verdict.exceeded is None:
                self.outbox.ended(ask.subjects, ask.tokens)
                self.changed()
            raise

    def changed(self) -> None:
        """Report soon what no request waits for."""
        if self._decider is not None and not self._wake.is_set():
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self._wake.set)

    async def run(self) -> None:
        """Report whenever there is something to say, until cancelled."""
        loop = asyncio.get_running_loop()
        repeat_at = loop.time()
        try:
            while True:
                timer = loop.call_later(REPEAT_SECONDS, self._wake.set)
                try:
                    await self._wake.wait()
                finally:
                    timer.cancel()
                self._wake.clear()
                if loop.time() >= repeat_at:
                    repeat_at = loop.time() + REPEAT_SECONDS
                    self._repeat()
                while await self._report():
                    pass
        finally:
            self._pool.close()

    def _repeat(self) -> None:
        if self._decider is None:
            self.outbox.quiet()
        else:
            self.outbox.repeat(self._clock())

    async def _report(self) -> bool:
        """Send what there is to say; False: nothing, or there is no answer."""
        decider = self._decider
        if decider is None or self._clock() < self._silent_until:
            return False
        report = self.outbox.report(self._clock())
        if report is None:
            return False
        try:
            found = await self._exchange(decider, report)
        except (UpstreamError, WireError) as error:
            self._silent_until = self._clock() + SILENT_SECONDS
            self.outbox.failed(report)
            self._complain(f"gateway {decider.id}: {error}; limits are held by shares meanwhile")
            return False
        except BaseException:
            self.outbox.failed(report)
            raise
        if self._complaint:
            logger.info("gateway %s decides about limits again", decider.id)
        self._complaint = ""
        self.outbox.answered(report, found, self._clock())
        if self._decider is not decider:
            self.outbox.introduce()  # what was said went to the one before
        return True

    async def _exchange(self, decider: RouteGateway, report: LimitReport) -> LimitAnswer:
        token = limits_token(self._credential.first, decider.id).encode()
        exchange = await self._pool.post(
            decider.endpoint, PATH_LIMITS, orjson.dumps(report.to_json()),
            ((HEADER_LIMITS.encode(), token),), self._patience,
        )  # fmt: skip
        try:
            body = await exchange.read(self._patience)
        finally:
            self._pool.done(decider.endpoint, exchange)
        if exchange.status != 200:
            raise WireError(f"answered {exchange.status}")
        return LimitAnswer.from_json(parse_json(body), report)

    def _complain(self, message: str) -> None:
        if message != self._complaint:
            self._complaint = message
            logger.warning("%s", message)


def _resolve(future: asyncio.Future[Verdict | None], verdict: Verdict | None) -> bool:
    """Give a request its verdict; False: its client left meanwhile."""
    if future.done():
        return False
    future.set_result(verdict)
    return True


def answer_report(
    book: LimitBook, credential: Credential, own_id: str, headers: Mapping[bytes, bytes],
    body: bytes, now: float,
) -> bytes:  # fmt: skip
    """The body of the answer to another gateway's report.

    Args:
        book: of this gateway, which decides.
        credential: what the service's gateways send to engines.
        own_id: this gateway's id.
        headers: of the request, names in lower case.
        body: of the request.
        now: monotonic seconds.

    Raises:
        ApiError: 401, the sender does not prove the credential; 400, the report is malformed.
    """
    shown = headers.get(HEADER_LIMITS.encode(), b"")
    wanted = (limits_token(value, own_id).encode() for value in credential.sendable)
    if not any(hmac.compare_digest(shown, token) for token in wanted):
        raise ApiError(401, "only gateways of this service may ask", code="unauthorized")
    try:
        report = LimitReport.from_json(parse_json(body, max_bytes=MAX_REPORT))
    except WireError as error:
        raise ApiError(400, str(error), code="invalid_value") from error
    return orjson.dumps(answer(book, report, now).to_json())
