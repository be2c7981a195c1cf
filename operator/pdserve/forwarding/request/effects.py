"""What a request asks of its driver, and what it hears of it: no sockets here, and no clock.

A driver carries out `Effects` and calls the `on_` methods of `Request`. It may call these from
within `read` and `deliver`, where all of a reply has come, and from nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from pdserve.forwarding.instance import Instance
from pdserve.forwarding.request.measure import LocalResult, Outcome, Stage, Timeline
from pdserve.terms import Role
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteScenario

if TYPE_CHECKING:
    from pdserve.forwarding.request.leg import Leg

HeadKind = Literal["accepted", "refused", "kv_failed", "client_error", "failed"]


class CannotGoOnError(ValueError):
    """A stream cannot be continued; the message says why."""


class Head(NamedTuple):
    """What the head of a reply says; see `engines.flow.EngineAnswer`."""

    kind: HeadKind
    reason: str
    status: int
    hint: Hint | None
    prompt_tokens: int = 0
    """Of a prompt that a decode computed itself; 0: not said."""
    cached_tokens: int = 0


class Prefilled(NamedTuple):
    """What the reply of a prefill says; see `engines.flow.PrefillOutcome`."""

    finished: bool
    holds_kv: bool
    release_id: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int = 0
    """Of a finished one."""


class Refused(NamedTuple):
    """503: valid, but not servable in time; see `gateway.errors.overloaded`."""

    code: str
    message: str
    retry: float
    needed: float
    left: float


class Unserved(NamedTuple):
    """404, as for one that comes now: nothing serves its model any more."""

    message: str


class Failed(NamedTuple):
    """502, or an error as the last event of a stream: instances failed the request."""

    message: str


class ClientMistake:
    """An engine found the request wrong: the client gets what it said."""


class FirstTokenAnswer:
    """The client gets what was made of the prefill's reply: its first token ended the request."""


class Bug:
    """500: something of ours raised."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


Ending = Refused | Unserved | Failed | ClientMistake | Bug | FirstTokenAnswer | None
"""What the client still has to get; None: nothing but the end of its reply."""


class Effects(Protocol):
    """What a driver does for one request."""

    def send(self, leg: Leg) -> None:
        """Send it; `on_head` or `on_lost` follows within `leg.patience` seconds."""

    def read(self, leg: Leg, silence: float) -> None:
        """Read all of its reply: `on_prefilled`, `on_unreadable`, `on_read` or `on_lost` follows.

        `silence`: seconds without a byte after which the instance is taken for dead.
        """

    def deliver(self, leg: Leg, silence: float) -> None:
        """Pass its reply on to the client: `on_delivered` or `on_lost` follows, `on_begun` before.

        `silence`: as in `read`.
        """

    def drop(self, leg: Leg) -> bool:
        """Nothing more is read from it: its connection is kept if the reply is complete.

        False: the instance never got it.
        """

    def release(self, prefill: Instance, name: str) -> None:
        """Tell a prefill to free what it holds under this name."""

    def complete_stream(self) -> bool:
        """Make the end of a stream whose client has all tokens; False: tokens are missing.

        It is written when the request has ended.

        Raises:
            CannotGoOnError: nothing can be made of what the client has.
        """

    def go_on(self) -> int:
        """Make the legs' bodies anew such that they go on after what the client has.

        Returns how many tokens that is.

        Raises:
            CannotGoOnError: this request cannot be continued.
        """

    def ended(self, ending: Ending) -> None:
        """Tell the client; nothing follows."""


class ScenarioReport(Protocol):
    """What is counted of a scenario's requests (`gateway.metrics`)."""

    def arrived(self, tokens: float) -> None:
        """A request that a prefill could answer in time came, with so many prompt tokens."""

    def infeasible(self) -> None:
        """The prefill of a request alone takes longer than its TTFT target."""

    def attempted(self, leg: Role) -> None:
        """A leg goes out."""

    def rejected(self, leg: Role, reason: str) -> None:
        """An instance did not take a leg."""

    def waiting(self, requests: int) -> None:
        """So many wait for a prefill."""

    def expired(self, stage: Stage) -> None:
        """A deadline passed at this stage."""

    def continued(self) -> None:
        """A stream lost its decode and is about to go on from another."""

    def local_prefill(self, result: LocalResult) -> None:
        """A decode was asked to compute a prompt."""

    def client_cancelled(self) -> None:
        """A client left in time: not offered."""

    def finish(
        self, timeline: Timeline, outcome: Outcome, now: float, scenario: RouteScenario
    ) -> None:
        """An offered request ended at `now`, on the timeline's clock."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of one request, in seconds."""

    stream_silence: float = 60.0
    """A reply that has begun and brings no byte for this long is taken for dead."""
    whole_reply: float = 600.0
    """Wait for the head of a reply that is not streamed."""


class FlowTraits(NamedTuple):
    """What a request must know of its engine type; see `engines.flow`."""

    together: bool
    """Both legs are sent at once."""
    prefill_samples: bool
    """The prefill samples token 1."""
    lease_seconds: float
    computes_prompts: bool
    """A decode can compute a prompt itself."""
    continues: bool
    """A stream can go on from another decode."""
