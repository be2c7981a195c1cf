"""An OpenTelemetry collector at the network boundary: takes OTLP/HTTP and keeps the spans."""

from __future__ import annotations

import asyncio

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer


class CollectorStub:
    """Answers `status` to each export; `gate`, when set, is waited for before."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, object]] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.paths: list[str] = []
        self.status = 200
        self.gate: asyncio.Event | None = None
        self.exports = 0
        self.port = 0
        self._server = HttpServer(self._handle, ClientLimits(), self._report)

    async def start(self) -> CollectorStub:
        self.port = await self._server.start("127.0.0.1", self.port)
        return self

    async def stop(self) -> None:
        await self._server.stop(0)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[Span]:
        """Spans of this name, the first to begin first."""
        return sorted(
            (s for s in self.spans if s.name == name), key=lambda s: s.start_time_unix_nano
        )

    async def _handle(self, request: HttpRequest, reply: Reply) -> None:
        self.exports += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.status == 200:
            export = ExportTraceServiceRequest.FromString(request.body)
            for resource in export.resource_spans:
                self.resources.append(values(resource.resource.attributes))
                for scope in resource.scope_spans:
                    self.spans += scope.spans
            self.headers.append(request.headers)
            self.paths.append(request.path)
        reply.send(self.status, b"", "application/x-protobuf")

    def _report(self, error: Exception) -> None:
        raise error


def values(attributes: object) -> dict[str, object]:
    """Attributes by name."""
    found: dict[str, object] = {}
    for pair in attributes:  # type: ignore[attr-defined]  # a repeated field of protobuf
        assert isinstance(pair, KeyValue)
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        found[pair.key] = getattr(pair.value, kind)
    return found
