"""The choices that one client request asks for, and the one answer that is made of them.

A prompt's KV moves once, to one decode, so every choice (`n`) of every prompt is served as a
request of its own: admitted, forwarded and counted by itself. What leaves here is one answer: the
choices in the order of the prompts, usage summed, one stream whose events interleave. Neighbours:
`fan_out` serves the choices, `intake` has checked the body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from pdserve.engines.flow import token_count
from pdserve.gateway.delivery import ClientReply
from pdserve.gateway.errors import overloaded, upstream
from pdserve.gateway.intake import parsed_size, prompts_of
from pdserve.http1.errors import ApiError, Headers
from pdserve.http1.reply import Reply
from pdserve.terms.json import JsonMap, JsonObject

_DONE = b"data: [DONE]\n\n"
_DATA = b"data: "


@dataclass(slots=True, eq=False)
class Choice:
    """One choice of one prompt."""

    index: int
    """Its number in the client's answer."""
    prompt: int
    """Number of its prompt."""
    body: JsonObject
    """Asks an engine for this choice alone."""

    def take_body(self) -> JsonObject:
        """The body, which is not kept here any more."""
        body, self.body = self.body, {}
        return body


def _nothing() -> None:
    """Stands for a call that nothing waits for."""


def choices_of(body: JsonObject) -> list[Choice]:
    """The choices of a checked body, by index; one choice keeps the body as it is.

    With a `seed`, the k-th choice of a prompt (from 0) has the seed + k, as vLLM does it: the same
    seed would give the same text. -1 stays: it is vLLM's word for no seed.
    """
    count, prompts = body.get("n") or 1, prompts_of(body)
    if count * len(prompts) == 1:
        return [Choice(0, 0, body)]
    shared = {k: v for k, v in body.items() if k not in ("n", "best_of", "stream_options")}
    if body.get("stream"):
        shared["stream_options"] = {"include_usage": True}
    seed = body.get("seed")
    found: list[Choice] = []
    for number, prompt in enumerate(prompts):
        for k in range(count):
            own = dict(shared)
            if "prompt" in body:
                own["prompt"] = prompt
            if type(seed) is int and seed != -1:
                own["seed"] = seed + k
            found.append(Choice(len(found), number, own))
    return found


def size_of_all(body: JsonMap, size: int) -> int:
    """About how many bytes the bodies of all choices take, where one of each prompt takes `size`.

    Every choice has its prompt and all other fields.
    """
    count, prompts = body.get("n") or 1, len(prompts_of(body))
    shared = 0
    if prompts > 1:
        shared = parsed_size(orjson.dumps({k: v for k, v in body.items() if k != "prompt"}))
    return count * (size + (prompts - 1) * shared)


def count_choices(reply: Reply, count: int, total: int, counted: int, room: int) -> None:
    """Count the bodies of all `count` choices; sizes in bytes.

    Raises:
        ApiError: 413 or 503, there is no room for them.
    """
    if total > room:
        raise ApiError(
            413, f"the bodies of {count} choices take {total} bytes, of {room}", code="too_large"
        )
    if not reply.grows(total - counted):
        raise overloaded("too_much_at_once", "the bodies in progress fill the memory", 2, 2, 0)


class JoinedReply:
    """The client's answer to a request of several choices.

    Each choice answers to a `ChoiceReply`. Nothing is sent before the first choice has something
    to show, in a stream, or all are complete, in an answer sent whole.
    """

    def __init__(self, reply: ClientReply, choices: Sequence[Choice], body: JsonMap) -> None:
        self._reply = reply
        self._streamed = bool(body.get("stream"))
        self._shows_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._bodies_left = len(choices)
        self._head: JsonObject = {}
        """`id`, `object`, `created` and `model` of the first event: all events have them."""
        self._held = False
        """The client reads too slowly."""
        self._broken: ApiError | None = None
        self.on_broken: Callable[[], None] = _nothing
        """Called when an engine sent what cannot be joined: nothing of use can follow."""
        self.parts = [ChoiceReply(self, choice, reply.headers) for choice in choices]

    def check(self) -> None:
        """Check that what came so far is of use.

        Raises:
            ApiError: 502, an engine ended its part with an error, or sent what cannot be joined.
        """
        if self._broken is not None:
            raise self._broken

    def finish(self) -> None:
        """All choices are complete: send the answer, or the end of the stream.

        Raises:
            ApiError: see `check`.
        """
        self.check()
        if self._streamed:
            end = _event({**self._head, "choices": [], "usage": self._usage()})
            self._send((end if self._shows_usage else b"") + _DONE)
            self._reply.end()
            return
        joined = {**self.parts[0].value, "usage": self._usage()}
        joined["choices"] = [
            {**part.value["choices"][0], "index": part.choice.index} for part in self.parts
        ]
        self._reply.send(200, orjson.dumps(joined), "application/json")

    def pass_on(self, part: ChoiceReply, data: bytes) -> None:
        """Relay whole events of one choice's stream; nothing any more after one that is broken."""
        if self._broken is not None:
            return
        events = data.replace(b"\r\n", b"\n").split(b"\n\n")
        try:
            ready = b"".join(self._event_of(part, event) for event in events)
        except (LookupError, TypeError, ValueError) as error:
            self.broke(f"an engine's event cannot be joined with others: {error!r:.200}")
            self.on_broken()
            return
        if ready:
            self._send(ready)

    def broke(self, message: str) -> None:
        """Note why there can be no whole answer; `check` and `finish` raise it."""
        self._broken = self._broken or upstream(message)

    def body_done(self) -> None:
        """One choice needs its part of the request's body no more."""
        self._bodies_left -= 1
        if not self._bodies_left:
            self._reply.body_done()

    def follow_flow(self, part: ChoiceReply) -> None:
        """Hold this choice's stream, too, while the client reads too slowly."""
        if self._held:
            part.pause()
        self._reply.on_flow(self._pause, self._resume)

    def _pause(self) -> None:
        self._held = True
        for part in self.parts:
            part.pause()

    def _resume(self) -> None:
        self._held = False
        for part in self.parts:
            part.resume()

    def _event_of(self, part: ChoiceReply, event: bytes) -> bytes:
        """One event as the client sees it; empty for one that says nothing to the client yet."""
        if not event.startswith(b"data: {"):
            return b""
        value = orjson.loads(event[len(_DATA) :])
        if value.get("error") is not None or value.get("object") == "error":
            self.broke(f"an engine ended choice {part.choice.index}: {value.get('error')!s:.300}")
            return b""
        usage = value.pop("usage", None)
        if isinstance(usage, dict):
            part.usage = usage
        if not value.get("choices"):
            return b""
        if not self._head:
            self._head = {k: value[k] for k in ("id", "object", "created", "model") if k in value}
        value |= self._head
        for one in value["choices"]:
            one["index"] = part.choice.index
        if self._shows_usage:
            value["usage"] = None
        return _event(value)

    def _send(self, data: bytes) -> None:
        if self._reply.started:
            self._reply.write(data)
        else:
            self._reply.start(200, "text/event-stream; charset=utf-8", data)

    def _usage(self) -> JsonObject:
        """What the request took: each prompt counts once, as it was sent once."""
        first = {part.choice.prompt: part.usage for part in reversed(self.parts)}
        prompt = sum(_count(usage, "prompt_tokens") for usage in first.values())
        completion = sum(_count(part.usage, "completion_tokens") for part in self.parts)
        made: JsonObject = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        details = [
            d for u in first.values() if isinstance(d := u.get("prompt_tokens_details"), dict)
        ]
        if details:
            cached = sum(_count(d, "cached_tokens") for d in details)
            made["prompt_tokens_details"] = {"cached_tokens": cached}
        return made


@dataclass(slots=True, eq=False)
class ChoiceReply:
    """What one choice answers to, in place of the client's `http1.reply.Reply`."""

    joined: JoinedReply
    choice: Choice
    headers: Headers
    """Set by its driver, and not sent: choices have different instances."""
    started: bool = False
    value: JsonObject = field(default_factory=dict)
    """Its whole reply, when it is not streamed."""
    usage: JsonObject = field(default_factory=dict)
    pause: Callable[[], None] = _nothing
    """Holds its engine's stream, while there is one."""
    resume: Callable[[], None] = _nothing

    def start(
        self, status: int, content_type: str, first: bytes, headers: Headers = (), *,
        ends: bool = False,
    ) -> None:  # fmt: skip
        """Its stream begins; `ends`: and is complete."""
        self.started = True
        if ends:
            self.end(first)
        else:
            self.joined.pass_on(self, first)

    def write(self, data: bytes) -> None:
        """Its stream goes on."""
        self.joined.pass_on(self, data)

    def end(self, data: bytes = b"") -> None:
        """Its stream is complete."""
        self.joined.pass_on(self, data)
        self.pause = self.resume = _nothing  # the connection may serve another request now

    def send(self, status: int, body: bytes, content_type: str, headers: Headers = ()) -> None:
        """Its whole reply."""
        self.started = True
        try:
            self.value = orjson.loads(body)
            self.usage = self.value.get("usage") or {}
            dict(self.value["choices"][0])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self.joined.broke(f"an engine's reply cannot be joined with others: {error!r:.200}")

    def body_done(self) -> None:
        """Nothing of its body is kept any more."""
        self.joined.body_done()

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """What holds its engine's stream, and lets it go on."""
        self.pause, self.resume = pause, resume
        self.joined.follow_flow(self)


def _event(value: JsonMap) -> bytes:
    return b"%b%b\n\n" % (_DATA, orjson.dumps(value))


def _count(usage: JsonMap, name: str) -> int:
    """A count of an engine's usage; 0 for one that is none."""
    try:
        return token_count(usage.get(name))
    except ValueError:
        return 0
