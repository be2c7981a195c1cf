"""From a generation request to its answer: admit it, listen to it, write what it says."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from pdserve.http.errors import ApiError
from pdserve.http.receive import Request as HttpRequest
from pdserve.refengine.api import openai
from pdserve.refengine.api.handover import Sender, reply_params
from pdserve.refengine.api.http import Responder
from pdserve.refengine.api.replies import ReplyWriter
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.model.load import LoadedModel
from pdserve.refengine.runtime.engine import Engine
from pdserve.refengine.runtime.request import Finish, TokenEvent
from pdserve.refengine.runtime.sequence import Sequence
from pdserve.wire import http

EVENT_STREAM = "text/event-stream; charset=utf-8"
MAX_ID = 128


class Generator:
    """The two generation endpoints of one instance."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        engine: Engine,
        sender: Sender,
        ready: Callable[[], bool],
    ) -> None:
        self._config, self._model, self._engine = config, model, engine
        self._sender, self._ready = sender, ready
        self.open_replies = 0
        """Accepted generation requests whose answer is not complete."""
        self._limits = openai.Limits(config.role, config.model_name, engine.context)

    def handle(self, kind: openai.Kind, http_request: HttpRequest, responder: Responder) -> None:
        """Answer now (rejections, errors) or when the engine has something to say."""
        try:
            self._handle(kind, http_request, responder)
        except ApiError as error:
            responder.send_error(error, self.headers(error))

    def headers(self, error: ApiError | None = None) -> dict[str, str]:
        """Slot hints, and the reason when it is a rejection."""
        headers = self._engine.hint().headers()
        reason = getattr(error, "reason", None)
        if reason is not None:
            headers |= {http.HEADER_REJECT: reason, "retry-after": "0"}
        return headers

    def _handle(self, kind: openai.Kind, incoming: HttpRequest, responder: Responder) -> None:
        # Before anything is parsed: a rejection must cost as little as possible.
        reason = self._engine.refusal() or (None if self._ready() else http.REJECT_NOT_READY)
        if reason is not None:
            raise self._engine.reject(reason, f"instance: {reason.replace('_', ' ')}")
        budget = _budget(incoming)
        if budget is not None and budget <= 0:
            raise self._engine.reject(http.REJECT_DEADLINE, "no time is left")
        request, options = openai.parse(
            kind, incoming.body, self._request_id(incoming), budget, self._model, self._limits
        )
        writer = ReplyWriter(request, options, self._config.model_name, self._model.tokenizer)
        listener: _Listener
        if options.stream and not request.hand_over:
            listener = _Stream(self, responder, writer)
        else:
            listener = _Whole(self, responder, writer)
        sequence = self._engine.admit(request, listener)
        self.open_replies += 1
        responder.on_disconnect = lambda: self._gone(sequence)

    def _gone(self, sequence: Sequence) -> None:
        self.open_replies -= 1
        self._engine.cancel(sequence)

    def closed(self) -> None:
        """A listener wrote the last of its answer."""
        self.open_replies -= 1

    def _request_id(self, incoming: HttpRequest) -> str:
        """The client's id; made unique where it is in use already."""
        given = incoming.header(http.HEADER_REQUEST_ID) or ""
        if len(given) > MAX_ID or not given.isprintable():
            raise ApiError(400, f"{http.HEADER_REQUEST_ID}: at most {MAX_ID} printable characters")
        fresh = given or uuid.uuid4().hex
        return f"{fresh}-{uuid.uuid4().hex[:8]}" if self._engine.knows(fresh) else fresh

    def kv_params(self, sequence: Sequence, event: TokenEvent) -> dict[str, object] | None:
        """For a prefill's reply: where the KV is, None when nothing is held."""
        if event.finish is Finish.STOP:
            return None
        return reply_params(
            sequence.request,
            event.sampled,
            sequence.cached,
            self._config.lease_seconds,
            self._sender,
        )


class _Listener:
    """Common part of both ways to answer."""

    def __init__(self, owner: Generator, responder: Responder, writer: ReplyWriter) -> None:
        self._owner, self._responder, self._writer = owner, responder, writer

    def token(self, sequence: Sequence, event: TokenEvent) -> None:
        raise NotImplementedError

    def failed(self, sequence: Sequence, error: ApiError) -> None:
        self._owner.closed()
        self._responder.send_error(error, self._reply_headers(sequence, error))

    def _reply_headers(self, sequence: Sequence, error: ApiError | None = None) -> dict[str, str]:
        return self._owner.headers(error) | {http.HEADER_REQUEST_ID: sequence.request.id}


class _Whole(_Listener):
    """Answer at the end."""

    def __init__(self, owner: Generator, responder: Responder, writer: ReplyWriter) -> None:
        super().__init__(owner, responder, writer)
        self._events: list[TokenEvent] = []

    def token(self, sequence: Sequence, event: TokenEvent) -> None:
        self._events.append(event)
        if event.finish is None:
            return
        if sequence.request.remote is None:
            self._writer.cached = sequence.cached
        body = self._writer.whole(self._events)
        if sequence.request.hand_over:
            body[http.PARAM_KV] = self._owner.kv_params(sequence, event)
        self._owner.closed()
        self._responder.send_json(200, body, self._reply_headers(sequence))


class _Stream(_Listener):
    """Answer token by token; the head goes out with the first."""

    _started = False

    def token(self, sequence: Sequence, event: TokenEvent) -> None:
        if sequence.request.remote is None:
            self._writer.cached = sequence.cached
        data = self._writer.chunk(event) or b""
        if event.finish is not None:
            data += self._writer.tail()
        if not self._started:
            self._started = True
            headers = self._reply_headers(sequence) | {"cache-control": "no-cache"}
            self._responder.start(headers, EVENT_STREAM, data)
            data = b""
        if event.finish is not None:
            self._owner.closed()
            self._responder.end(data)
        elif data:
            self._responder.write(data)

    def failed(self, sequence: Sequence, error: ApiError) -> None:
        if not self._started:
            super().failed(sequence, error)
        else:
            self._owner.closed()
            self._responder.end(error.event())


def _budget(incoming: HttpRequest) -> float | None:
    value = incoming.header(http.HEADER_DEADLINE_MS)
    if value is None:
        return None
    try:
        return float(int(value)) / 1000
    except ValueError as error:
        raise ApiError(
            400, f"{http.HEADER_DEADLINE_MS}: {value!r} is not an integer of milliseconds"
        ) from error
