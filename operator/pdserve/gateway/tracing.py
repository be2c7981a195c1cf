"""Traces of requests: which are recorded, and their export by OTLP/HTTP (protobuf).

Spans go into a bounded queue, and a thread exports them, so that a collector that is slow, refuses
or is away holds no request: what does not fit is dropped and counted. Neighbours: `request_trace`
is one request, `spans` makes its spans, `trace_settings` says where they go.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from pdserve import __version__
from pdserve.gateway.access_log import Record
from pdserve.gateway.metrics import GatewayMetrics
from pdserve.gateway.request_trace import RequestTrace
from pdserve.gateway.spans import attributes, spans_of
from pdserve.gateway.trace_context import TraceContext, read_context
from pdserve.gateway.trace_settings import TraceSettings

logger = logging.getLogger(__name__)
MAX_QUEUE = 2048
"""Spans that wait for export."""
MAX_BATCH = 512
"""Spans of one export."""
EXPORT_SECONDS = 1.0
"""How long spans gather before they are exported."""
BACKOFF_SECONDS = (1.0, 30.0)
"""Pause after the first export that failed, and the longest."""
STOP_SECONDS = 2.0
"""How long a process that ends waits for its last export."""


class Tracer:
    """Traces of one gateway process; `start` it once."""

    def __init__(self, settings: TraceSettings, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._exported, self._full, self._failed = metrics.spans()
        self._queue: deque[Span] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._complaint = ""
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._worker = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        """Begin to export."""
        self._worker.start()

    async def stop(self) -> None:
        """Export what is left, for STOP_SECONDS at most."""
        self._stopping = True
        self._wake.set()
        timer = self._loop.call_later(STOP_SECONDS, self._ended.set)
        try:
            await self._ended.wait()
        finally:
            timer.cancel()

    def begin(self, headers: Mapping[bytes, bytes]) -> RequestTrace:
        """The trace of a request with these headers: the client's, or one of its own."""
        parent = read_context(headers)
        trace_id = os.urandom(16) if parent is None else parent.trace_id
        sampled = self._settings.sampler.keeps(trace_id, parent)
        if parent is not None and not sampled:
            return RequestTrace(parent._replace(sampled=False), parent)
        state = b"" if parent is None else parent.state
        return RequestTrace(TraceContext(trace_id, os.urandom(8), sampled, state), parent)

    def end(self, record: Record, trace: RequestTrace, status: int) -> None:
        """Queue the spans of a request that has ended; see `spans_of`."""
        if not trace.context.sampled:
            return
        spans = spans_of(record, trace, status, time.perf_counter(), time.time_ns())
        if len(self._queue) + len(spans) > MAX_QUEUE:
            self._full.inc(len(spans))
            return
        self._queue.extend(spans)

    # --- the thread ---

    def _run(self) -> None:
        pause, stopping = 0.0, False
        while not stopping:
            self._wake.wait(EXPORT_SECONDS + pause)
            stopping = self._stopping  # what is queued after this was read waits for the next round
            pause = 0.0 if self._export_all() else self._next_pause(pause)
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._ended.set)

    def _next_pause(self, pause: float) -> float:
        first, most = BACKOFF_SECONDS
        return min(most, max(first, 2 * pause))

    def _export_all(self) -> bool:
        """Export until the queue is empty; False: an export failed."""
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
            try:
                self._post(self._encoded(batch))
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._failed.inc(len(batch))
                self._complain(f"traces are not exported to {self._settings.url}: {error!r:.300}")
                return False
            self._exported.inc(len(batch))
            if self._complaint:
                logger.info("traces are exported again")
            self._complaint = ""
        return True

    def _encoded(self, batch: list[Span]) -> bytes:
        scope = ScopeSpans(spans=batch)
        scope.scope.name, scope.scope.version = "pdserve.gateway", __version__
        resource = ResourceSpans(scope_spans=[scope])
        resource.resource.attributes.extend(attributes(self._settings.resource))
        data: bytes = ExportTraceServiceRequest(resource_spans=[resource]).SerializeToString()
        return data

    def _post(self, body: bytes) -> None:
        """POST one export; raises OSError, HTTPException or ValueError where it fails."""
        parts, timeout = urlsplit(self._settings.url), self._settings.timeout
        host = parts.hostname or ""
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            tls = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=tls)
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"content-type": "application/x-protobuf", **self._settings.headers}
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(65536)
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise ValueError(f"answered {answer.status}")

    def _complain(self, message: str) -> None:
        if message != self._complaint:
            self._complaint = message
            logger.warning("%s", message)
