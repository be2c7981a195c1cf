"""What a request is before anything was done for it, and what all requests of a process use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pdserve.engines.credentials import Credential
from pdserve.engines.flow import Endpoint, EngineFlow
from pdserve.forwarding.deadline import PromptSize
from pdserve.forwarding.fair_turns import NO_CLIENT, Turn
from pdserve.forwarding.request.effects import Settings
from pdserve.forwarding.request.scheduler import ScenarioScheduler
from pdserve.gateway.release import Releaser
from pdserve.gateway.request_trace import RequestTrace
from pdserve.gateway.sent_stream import KeptMemory
from pdserve.http1.errors import Headers
from pdserve.http1.pool import Pool
from pdserve.terms.json import JsonMap


@dataclass(slots=True)
class Job:
    """One request."""

    endpoint: Endpoint
    body: JsonMap
    """Checked, and with the model name the engines serve; little of it is left once the client has
    bytes."""
    leg_name: str
    """Prefix of the request ids that engines see; unique in the service."""
    trace: Headers
    """Headers passed on to both legs (trace context)."""
    size: PromptSize
    """Of its prompt."""
    model: str = ""
    """As its client named it."""
    memory: int = 0
    """About how many bytes `body` takes, also where other choices have the same prompt."""
    turn: Turn = NO_CLIENT
    """Whose it is, and of which class."""
    spans: RequestTrace | None = None
    """Gives each leg its own trace context, in place of `trace`."""

    @property
    def streamed(self) -> bool:
        """The client wants a stream."""
        return bool(self.body.get("stream"))


def _none(scenario: str, model: str) -> tuple[ScenarioScheduler, EngineFlow, str] | None:
    """There is one route table, and it does not change."""
    return None


@dataclass(frozen=True, slots=True)
class Tools:
    """What every request of a process uses."""

    pool: Pool
    releaser: Releaser
    credential: Credential
    settings: Settings
    another: Callable[[str, str], tuple[ScenarioScheduler, EngineFlow, str] | None] = _none
    """See `Service.another`."""
    kept: KeptMemory = field(default_factory=KeptMemory)
    """What open streams keep, so that they can be continued."""
