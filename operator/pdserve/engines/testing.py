"""The contract of engine types as checks that any adapter must pass, without an engine.

    from pdserve.engines import testing
    assert testing.broken_promises("MyEngine") == []

Each check looks at one promise of `flow`, `pod_parts`, `control` or `series`, also with hostile
input: what a reply or a client's body holds must never end a request by an error that is not the
contract's. Nothing is sent anywhere. What only a running engine can show (refusals before
queueing, KV that is handed over, drains) is looked at by `pdserve engine check`, which also runs
these checks with that engine's reply; docs/engines/own.md has the rules. Uses the operator's models
to render pods, so the gateway must not import it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from pdserve.api import ScenarioGroup
from pdserve.engines import registry
from pdserve.engines.flow import (
    Endpoint,
    EngineAnswer,
    FlowError,
    LegAttempt,
    LegRequest,
    PrefillOutcome,
    SentPart,
    continuing,
)
from pdserve.engines.pod_parts import InstanceFacts
from pdserve.engines.pod_profile import FIELDS, findings
from pdserve.engines.pods import render_pod
from pdserve.engines.pods_template import ENGINE_CONTAINER
from pdserve.terms import ROLES, Role
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import calls
from pdserve.wire.bounds import WireError
from pdserve.wire.metrics import ALIVE
from pdserve.wire.peers import PeerTable
from pdserve.wire.routes import RouteInstance

LEAST_LEASE: Final = 5.0
"""Seconds: a decode is asked until two seconds before the lease ends."""
REASONS: Final = frozenset((
    calls.REJECT_FULL, calls.REJECT_DECODE_FULL, calls.REJECT_DRAINING, calls.REJECT_NOT_READY,
    calls.REJECT_DEADLINE, "status",
))  # fmt: skip
_GATEWAYS_OWN: Final = {b"host", b"content-type", b"content-length", b"authorization"}
_HEADER_NAME: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")
_PATH: Final = re.compile(r"/[!-~]*")
_FORGED: Final = "forged-by-the-client"
_CLIENT: Final[JsonMap] = {
    "model": "m", "max_tokens": 40, "temperature": 0.5, "seed": 7, "stop": ["a"],
}  # fmt: skip
_OPENAI: Final = {"stream", "stream_options", "max_completion_tokens", "min_tokens"}
"""Fields of clients that a leg may have too."""
JUNK: Final[tuple[bytes, ...]] = (
    b"", b"{", b"[]", b"null", b"7", b'"x"', b"{}", b"\xff\xfe", b"[" * 500 + b"]" * 500,
    b'{"choices":[]}', b'{"choices":{}}', b'{"choices":[null]}', b'{"choices":[{}],"usage":[]}',
    b'{"choices":[{}],"usage":{"prompt_tokens":-1}}',
    b'{"choices":[{}],"usage":{"prompt_tokens":1e9}}',
    b'{"choices":[{"finish_reason":"length"}],"kv_transfer_params":[1]}',
    b'{"choices":[{"finish_reason":"length"}],"kv_transfer_params":{"remote_request_id":"a\\r\\nb"}}',
    b'{"version":"x"}', b'{"up":7}', b'{"executing":-1,"holding":null,"streams":[]}',
)  # fmt: skip
"""Answers of no engine."""
SAMPLE_REPLY: Final = orjson.dumps({
    "id": "c", "object": "text_completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "text": "t", "finish_reason": "length", "logprobs": None}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    "kv_transfer_params": {"do_remote_prefill": True, "remote_request_id": "r-1"},
})  # fmt: skip
"""A prefill's reply in vLLM's form, for `broken_promises`."""


class BrokenPromiseError(AssertionError):
    """An adapter does not do what its face promises; the message says which promise."""


@dataclass(frozen=True, slots=True)
class CheckedEngine:
    """The engine type that is looked at, and a reply of its prefill leg to a whole request."""

    type_name: str
    prefill_reply: bytes


def broken_promises(type_name: str, prefill_reply: bytes = SAMPLE_REPLY) -> list[str]:
    """What a type's adapter does not keep, one line a check; empty when it keeps all.

    `prefill_reply`: a real 200 answer to its prefill leg, in whatever form the engine has.
    """
    subject = CheckedEngine(type_name, prefill_reply)
    found = []
    for check in CHECKS:
        try:
            check(subject)
        except Exception as error:  # an adapter may raise anything
            found.append(f"{check.__name__}: {type(error).__name__}: {error}")
    return found


def faces_load(subject: CheckedEngine) -> None:
    """All four faces can be loaded."""
    for load in (registry.flow, registry.pod, registry.control, registry.metrics):
        load(subject.type_name)


def legs_are_requests(subject: CheckedEngine) -> None:
    """Paths, headers and bodies are such as can be sent, and not the gateway's own."""
    flow = registry.flow(subject.type_name)
    for request in _legs(subject):
        _well_formed(request)
    released = flow.release_leg("r-1")
    if released is not None:
        _well_formed(released)


def legs_keep_the_clients_request(subject: CheckedEngine) -> None:
    """What the client asked for reaches the engine that generates; a stream ends with usage."""
    for endpoint in _ENDPOINTS:
        for stream in (False, True):
            body = _body(endpoint, stream=stream)
            leg = orjson.loads(_decode(subject, endpoint, body, _attempt(endpoint)).body)
            for name, value in body.items():
                if name != "stream_options":
                    _expect(leg.get(name) == value, f"decode leg changes {name!r}")
            options = leg.get("stream_options") or {}
            _expect(not stream or options.get("include_usage"), "a streamed leg asks no usage")


def clients_choose_no_kv(subject: CheckedEngine) -> None:
    """What a client writes into the fields that the flow itself adds does not reach an engine."""
    for endpoint in _ENDPOINTS:
        body, attempt = _body(endpoint), _attempt(endpoint)
        legs = (
            _prefill(subject, endpoint, body, attempt),
            _decode(subject, endpoint, body, attempt),
        )
        added = {name for leg in legs for name in orjson.loads(leg.body)} - {*body, *_OPENAI}
        forged = {**body, **dict.fromkeys(added, _FORGED)}
        prefill = _prefill(subject, endpoint, forged, _attempt(endpoint))
        decode = _decode(subject, endpoint, forged, _attempt(endpoint))
        for request in (prefill, decode):
            text = request.body + b"".join(v for _, v in request.headers)
            _expect(_FORGED.encode() not in text, "a client's KV parameters reach an engine")


def attempts_differ(subject: CheckedEngine) -> None:
    """Equal inputs make equal requests; another attempt has another name at the engines."""
    for endpoint in _ENDPOINTS:
        body = _body(endpoint)
        one, again, other = (
            _prefill(subject, endpoint, body, _attempt(endpoint, name)) for name in "aab"
        )
        _expect(one == again, "a flow's answer depends on more than its arguments")
        _expect(one != other, "the engine cannot tell two attempts apart")


def junk_replies_are_flow_errors(subject: CheckedEngine) -> None:
    """A reply off contract is a FlowError, and nothing else, whatever it is."""
    flow = registry.flow(subject.type_name)
    for reply in JUNK:
        try:
            outcome = flow.read_prefill(_body("completions"), reply)
        except FlowError:
            continue
        # Some of them may mean something to some engine. But the id becomes a header.
        name = (outcome.release_id or "").encode()
        _expect(_HEADER_VALUE.fullmatch(name), f"release_id {name!r} would be two headers")


def streams_go_on(subject: CheckedEngine) -> None:
    """A flow that continues streams has one leg after the other, and refuses KV it cannot read."""
    flow = continuing(registry.flow(subject.type_name))
    if flow is None:
        return
    _expect(flow.order == "prefill_first", "a stream goes on from a prefill that answers first")
    body, sent = _body("completions", stream=True), SentPart((11, 12), "c", 1)
    junk: list[JsonObject] = [{}, {"pdserve": 7}, {"pdserve": {"seed": [], "cached_tokens": {}}}]
    for kv in junk:
        try:
            made = flow.continued(body, kv, sent)
        except FlowError:
            continue
        leg = _prefill(subject, "completions", made, _attempt("completions"))
        other = _prefill(subject, "completions", body, _attempt("completions"))
        _expect(leg.body != other.body, "the prefill does not learn what the client has")


def heads_are_classified(subject: CheckedEngine) -> None:
    """Any status and any header has a class; refusals have known reasons."""
    flow = registry.flow(subject.type_name)
    for status in range(200, 600):
        for headers in _HEADERS:
            answer = flow.read_head(status, headers)
            _expect(isinstance(answer, EngineAnswer), f"{status}: {answer!r}")
            _expect((answer.kind == "accepted") is (status == 200), f"{status} is {answer.kind}")
            if answer.kind == "refused" and headers == {}:
                _expect(answer.reason in REASONS, f"{status}: reason {answer.reason!r}")
    for status in (429, 503):
        kind = flow.read_head(status, {}).kind
        _expect(kind == "refused", f"{status} is {kind}: another instance would not be asked")
    for status in (500, 401, 404, 302):
        kind = flow.read_head(status, {}).kind
        _expect(kind == "failed", f"{status} is {kind}: it is the service's fault")


def hints_never_raise(subject: CheckedEngine) -> None:
    """No head makes a hint that raises, and an empty one has none."""
    flow = registry.flow(subject.type_name)
    for headers in _HEADERS:
        flow.read_hint(headers)
    _expect(flow.read_hint({}) is None, "an empty head has a hint")


def constants_make_sense(subject: CheckedEngine) -> None:
    """Order, first token and lease have values that the gateway can go by."""
    flow = registry.flow(subject.type_name)
    _expect(flow.order in ("prefill_first", "together"), f"order {flow.order!r}")
    _expect(flow.first_token in ("prefill", "decode"), f"first_token {flow.first_token!r}")
    lease = flow.lease_seconds
    _expect(math.isfinite(lease) and lease >= LEAST_LEASE, f"lease_seconds {lease!r}")


def pods_are_restricted(subject: CheckedEngine) -> None:
    """Pods of both roles keep to the Pod Security profile restricted, and to pdserve's names."""
    for role in ROLES:
        pod = render_pod(_group(subject.type_name), _Slot(role), {})
        wrong = [f.field for f in findings(pod) if FIELDS[f.field] == "profile"]
        _expect(not wrong, f"{role}: the profile restricted forbids {', '.join(wrong)}")
        spec = pod["spec"]
        for kind in ("containers", "volumes"):
            names = [entry["name"] for entry in spec[kind]]
            _expect(len(names) == len(set(names)), f"{role}: two {kind} of one name: {names}")
        engine = next(c for c in spec["containers"] if c["name"] == ENGINE_CONTAINER)
        env = [entry["name"] for entry in engine["env"]]
        _expect(len(env) == len(set(env)), f"{role}: a variable is set twice: {env}")


def parts_are_plain(subject: CheckedEngine) -> None:
    """Parts depend on facts alone, are text, and expand nothing that a spec's author wrote."""
    pod = registry.pod(subject.type_name)
    for model in ("m", "-m", "--role=decode", "a $(PDSERVE_TOKEN) b", "模型 1"):
        for role in ROLES:
            facts = InstanceFacts(role, 4, 1, model, "/models/m")
            parts = pod.parts(facts)
            _expect(parts == pod.parts(facts), "parts depend on more than the facts")
            texts = (*parts.command, *parts.args, *parts.env, *parts.env.values())
            _expect(all(isinstance(t, str) for t in texts), "an argument is no text")
            expands = [t for t in texts if "$(PDSERVE_TOKEN)" in t.replace("$$", "")]
            _expect(not expands, f"Kubernetes expands a model's name: {expands}")
            _expect(model == "m" or model not in parts.args or not model.startswith("-"),
                    "a model's name is read as a flag")  # fmt: skip
            for path in (parts.health_path, parts.ready_path, parts.metrics_path):
                _expect(bool(_PATH.fullmatch(path)), f"{path!r} is no path")


def control_speaks_json(subject: CheckedEngine) -> None:
    """Control requests can be sent; what they bring is a report, or a WireError."""
    control = registry.control(subject.type_name)
    table = PeerTable("g", 7, ()).to_json()
    push = control.put_peers(table)
    _expect(b'"version":7' in orjson.dumps(push.body), "the table's version is not pushed")
    for request in (push, control.get_links(), control.post_drain()):
        _expect(bool(_PATH.fullmatch(request.path)), f"{request.path!r} is no path")
        _expect(200 in request.accepts, f"{request.path}: 200 is no answer")
        _expect(not request.accepts & {401, 403, 500, 503}, f"{request.path} takes an error")
    for read in (control.read_links, control.read_drain):
        for answer in JUNK:
            try:
                read(answer)
            except WireError:
                continue


def series_tell_who_is_alive(subject: CheckedEngine) -> None:
    """Without a series that is always there, every instance counts as missing."""
    names = registry.metrics(subject.type_name).names
    _expect(bool(names.get(ALIVE)), f"no series for {ALIVE!r}")


CHECKS: Final[tuple[Callable[[CheckedEngine], None], ...]] = (
    faces_load, legs_are_requests, legs_keep_the_clients_request, clients_choose_no_kv,
    attempts_differ, junk_replies_are_flow_errors, streams_go_on, heads_are_classified,
    hints_never_raise, constants_make_sense, pods_are_restricted, parts_are_plain,
    control_speaks_json, series_tell_who_is_alive,
)  # fmt: skip

_ENDPOINTS: Final[tuple[Endpoint, ...]] = ("chat", "completions")
_HEADERS: Final[tuple[Mapping[bytes, bytes], ...]] = (
    {},
    {b"retry-after": b"1"},
    *(
        dict.fromkeys((getattr(calls, n).encode() for n in dir(calls) if n[:7] == "HEADER_"), value)
        for value in (b"", b"1/4", b"4/1", b"-1/4", b"nan", b"\xff" * 9, b"9" * 5000, b"full")
    ),
)  # fmt: skip


def _expect(kept: object, message: str) -> None:
    if not kept:
        raise BrokenPromiseError(message)


def _body(endpoint: Endpoint, *, stream: bool = False) -> JsonObject:
    prompt = (
        {"messages": [{"role": "user", "content": "x"}]} if endpoint == "chat" else {"prompt": "x"}
    )
    return {**_CLIENT, **prompt, **({"stream": True} if stream else {})}


def _attempt(endpoint: Endpoint, request_id: str = "a", *, early_head: bool = False) -> LegAttempt:
    prefill = RouteInstance("p0", "prefill", "http://10.0.0.1:8000", 4)
    decode = RouteInstance("d0", "decode", "http://[fd00::2]:8000", 16)
    trace = ((b"traceparent", b"00-1-2-01"),)
    return LegAttempt(endpoint, request_id, 1, prefill, decode, trace, 250, early_head)


def _prefill(
    subject: CheckedEngine, endpoint: Endpoint, body: JsonMap, attempt: LegAttempt
) -> LegRequest:
    flow = registry.flow(subject.type_name)
    return flow.prefill_leg(attempt, flow.prepare_prefill(endpoint, body))


def _decode(
    subject: CheckedEngine, endpoint: Endpoint, body: JsonMap, attempt: LegAttempt
) -> LegRequest:
    flow = registry.flow(subject.type_name)
    outcome: PrefillOutcome | None = None
    if flow.order == "prefill_first":
        outcome = flow.read_prefill(body, subject.prefill_reply)
    return flow.decode_leg(attempt, flow.prepare_decode(endpoint, body, outcome))


def _legs(subject: CheckedEngine) -> Iterator[LegRequest]:
    for endpoint in _ENDPOINTS:
        for early in (False, True):
            attempt, body = _attempt(endpoint, early_head=early), _body(endpoint)
            yield _prefill(subject, endpoint, body, attempt)
            yield _decode(subject, endpoint, body, attempt)


def _well_formed(request: LegRequest) -> None:
    _expect(isinstance(request.body, bytes), "a body is no bytes")
    _expect(isinstance(orjson.loads(request.body), dict), "a body is no JSON object")
    _expect(bool(_PATH.fullmatch(request.path)), f"{request.path!r} is no path")
    for name, value in request.headers:
        _expect(bool(_HEADER_NAME.fullmatch(name)), f"header {name!r}: want lower case")
        _expect(bool(_HEADER_VALUE.fullmatch(value)), f"header {name!r} has {value!r}")
        _expect(name not in _GATEWAYS_OWN, f"header {name!r} is the gateway's")


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place of a pod (`pods.PodSlot`): an instance of one member."""

    role: Role
    domains: JsonMap = field(default_factory=dict)
    name: str = "kit"
    instance: str = "kit"
    group_index: int = 0
    revision: str = "r"
    node: str = "n"
    replaces: str | None = None
    scale_unit: bool = False
    member: int = 0
    members: int = 1
    leader_uid: str = ""


def _group(type_name: str) -> ScenarioGroup:
    role = {
        "replicas": 1, "maxConcurrency": 4,
        "instance": {"devicesPerNode": 1, "resource": "example.com/device"},
    }  # fmt: skip
    return ScenarioGroup.parse({
        "apiVersion": "pdserve.io/v1alpha1", "kind": "ScenarioGroup",
        "metadata": {"name": "kit", "namespace": "kit"},
        "spec": {
            "service": "kit", "scenario": "kit", "replicas": 1, "model": {"name": "m"},
            "engine": {"type": type_name, "image": "kit/engine:1"},
            "prefill": role, "decode": role, "fabric": {"domainRef": {"name": "kit"}},
        },
    })  # fmt: skip
