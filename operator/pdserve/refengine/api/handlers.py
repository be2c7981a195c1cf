"""The routes of the engine: which handler serves which path, and which credential it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import orjson

from pdserve import __version__
from pdserve.engines.instance_answers import StaleTableError
from pdserve.engines.prefix_feed import PrefixFeed
from pdserve.engines.reference.metrics import PATH_VLLM
from pdserve.engines.trust import Trust
from pdserve.exposition import CONTENT_TYPE, Registry
from pdserve.http1.errors import ApiError
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.refengine.api.generate import JSON, MAX_NAME, Generator
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.peer_links import Links
from pdserve.refengine.runtime.engine import Engine
from pdserve.terms import Role
from pdserve.terms.json import JsonObject
from pdserve.wire import calls
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.credentials import CAPABILITY, MAX_PUSH, Grant
from pdserve.wire.links import DrainReport
from pdserve.wire.peers import PeerTable
from pdserve.wire.prefixes import PATH_PREFIXES

Handler = Callable[[HttpRequest, Reply], None]


@dataclass(slots=True)
class Routes:
    """The application: one call per request."""

    config: EngineConfig
    model: LoadedModel
    engine: Engine
    links: Links
    trust: Trust
    generator: Generator
    started: int
    streams: Callable[[], int]
    """Replies of generation requests that are being written now."""
    feed: PrefixFeed[bytes]
    flip: Callable[[Role, PeerTable], None]
    """Makes the process take the role that a table gives it, once nothing runs."""
    _table: dict[str, dict[str, Handler]] = field(init=False)

    def __post_init__(self) -> None:
        self._table = {
            calls.PATH_COMPLETIONS: {"POST": self._completions},
            calls.PATH_CHAT: {"POST": self._chat},
            calls.PATH_MODELS: {"GET": self._models},
            calls.PATH_HEALTH: {"GET": self._health},
            calls.PATH_READY: {"GET": self._ready},
            calls.PATH_METRICS: {"GET": self._metrics},
            PATH_VLLM: {"GET": self._metrics_vllm},
            calls.PATH_INFO: {"GET": self._info},
            calls.PATH_PEERS: {"PUT": self._peers},
            calls.PATH_LINKS: {"GET": self._links},
            calls.PATH_DRAIN: {"POST": self._drain},
            calls.PATH_RELEASE: {"POST": self._release},
            PATH_PREFIXES: {"POST": self._prefixes},
        }

    def __call__(self, request: HttpRequest, reply: Reply) -> None:
        """Answer one request; ApiError becomes its reply."""
        methods = self._table.get(request.path)
        if methods is None and request.path.startswith(calls.PATH_MODELS + "/"):
            methods = {"GET": self._one_model}
        if methods is None:
            raise ApiError(404, f"no such path: {request.path}", code="not_found")
        method = "GET" if request.method == "HEAD" else request.method
        handler = methods.get(method)
        if handler is None:
            allowed = ", ".join(methods)
            raise ApiError(405, f"{request.path} takes {allowed}, not {request.method}")
        handler(request, reply)

    def _completions(self, request: HttpRequest, reply: Reply) -> None:
        self.trust.check_generation(_authorization(request))
        self.generator.handle("completion", request, reply)

    def _chat(self, request: HttpRequest, reply: Reply) -> None:
        self.trust.check_generation(_authorization(request))
        self.generator.handle("chat", request, reply)

    def _model_card(self) -> JsonObject:
        return {
            "id": self.config.model_name,
            "object": "model",
            "created": self.started,
            "owned_by": "pdserve",
            "max_model_len": self.engine.context,
        }

    def _models(self, request: HttpRequest, reply: Reply) -> None:
        _send_json(reply, 200, {"object": "list", "data": [self._model_card()]})

    def _one_model(self, request: HttpRequest, reply: Reply) -> None:
        name = unquote(request.path.removeprefix(calls.PATH_MODELS + "/"))
        if name != self.config.model_name:
            raise ApiError(
                404,
                f"model {name!r} does not exist; this instance serves {self.config.model_name!r}",
                param="model",
                code="model_not_found",
            )
        _send_json(reply, 200, self._model_card())

    def _health(self, request: HttpRequest, reply: Reply) -> None:
        _send_json(reply, 200, {"status": "ok"})

    def _ready(self, request: HttpRequest, reply: Reply) -> None:
        missing = self.links.members_missing()
        why = "draining" if self.engine.draining else "links of no peer table were complete yet"
        why = why if missing is None else f"members are missing: {missing}"
        ready = self.links.ready and not self.engine.draining
        _send_json(reply, 200 if ready else 503, {"ready": ready, "why": "" if ready else why})

    def _metrics(self, request: HttpRequest, reply: Reply) -> None:
        self._expose(self.engine.metrics.registry, reply)

    def _metrics_vllm(self, request: HttpRequest, reply: Reply) -> None:
        self._expose(self.engine.metrics.vllm, reply)

    def _expose(self, registry: Registry, reply: Reply) -> None:
        self.engine.publish_occupancy()
        reply.send(200, registry.render().encode(), CONTENT_TYPE)

    def _info(self, request: HttpRequest, reply: Reply) -> None:
        c, pacer, paths = self.config, self.engine.pacer, self.links.paths
        _send_json(
            reply,
            200,
            {
                "version": __version__,
                "instance": c.instance,
                "role": c.role,
                "service": c.service,
                "scenario": c.scenario,
                "model": c.model_name,
                "fingerprint": self.model.fingerprint,
                "numerics": self.model.numerics,
                "computes": self.model.computes,
                "contextTokens": self.engine.context,
                "maxPromptBytes": self.generator.prompt_bytes,
                "kvBytesPerToken": self.model.config.kv_bytes_per_token,
                "slots": c.slots,
                "prefetch": c.prefetch,
                "leaseSeconds": c.lease_seconds,
                "kvDevices": None if paths is None else paths.listeners.report(),
                "ready": self.links.ready and not self.engine.draining,
                "draining": self.engine.draining,
                "paced": None if pacer is None else pacer.report(),
            },
        )

    def _peers(self, request: HttpRequest, reply: Reply) -> None:
        sender = self.trust.controls(_authorization(request))
        try:
            value = parse_json(request.body, max_bytes=MAX_PUSH)
            table = PeerTable.from_json(value)
            given = value.get("credentials")
            grant = None if given is None else Grant.from_json(given)
        except WireError as error:
            raise ApiError(400, str(error), code="bad_table") from error
        self.trust.take(grant, sender)
        me = table.peer(self.config.instance)
        try:
            self.links.check_age(table)  # an old order is no order to flip
            other = me is not None and me.role != self.config.role
            # What serves does not flip: it was drained first, or has just started.
            if me and other and self.config.flips and (self.engine.draining or not self.links.told):
                # The parts are made anew; the operator tries again and reaches those.
                self.engine.draining = True
                self.flip(me.role, table)
                raise ApiError(503, f"it takes role {me.role} first", code="role_flip")
            self.links.accept(table)
        except StaleTableError as error:
            _send_json(reply, 409, {"version": error.current} | error.value())
            return
        _send_json(reply, 200, {"version": table.version})

    def _links(self, request: HttpRequest, reply: Reply) -> None:
        self.trust.controls(_authorization(request))
        report = dataclasses.replace(
            self.links.report(),
            credentials=CAPABILITY,
            grant=self.trust.revision,
            max_prompt_bytes=self.generator.prompt_bytes,
            max_model_len=self.engine.context,
        )
        _send_json(reply, 200, report.to_json())

    def _drain(self, request: HttpRequest, reply: Reply) -> None:
        self.trust.controls(_authorization(request))
        self.engine.draining = True
        report = DrainReport(self.engine.executing, len(self.engine.handoff), self.streams())
        _send_json(reply, 200, report.to_json())

    def _prefixes(self, request: HttpRequest, reply: Reply) -> None:
        self.trust.check_release(_authorization(request))
        self.feed.subscribe(request, reply)

    def _release(self, request: HttpRequest, reply: Reply) -> None:
        self.trust.check_release(_authorization(request))
        body = _json(request)
        request_id = body.get("request_id") if isinstance(body, dict) else None
        if not isinstance(request_id, str) or len(request_id) > MAX_NAME:
            raise ApiError(
                400, f"request_id: a string of at most {MAX_NAME} is required", param="request_id"
            )
        self.engine.release(request_id)
        reply.send(204, b"", JSON, self.generator.headers())


def _send_json(reply: Reply, status: int, value: object) -> None:
    reply.send(status, orjson.dumps(value), JSON)


def _authorization(request: HttpRequest) -> str:
    return request.header("authorization") or ""


def _json(request: HttpRequest) -> object:
    try:
        return parse_json(request.body)
    except WireError as error:
        raise ApiError(400, f"body is not JSON: {error}", code="invalid_json") from error
