"""What one request's trace needs while it runs: its own span's id, and one for each leg.

Spans themselves are made when the request has ended, from what is noted of it anyway (`spans`).
So a leg costs its header, and a request that is not traced nothing.
"""

from __future__ import annotations

import os

from pdserve.forwarding.request.leg import Leg
from pdserve.gateway.trace_context import TraceContext
from pdserve.http1.errors import Headers
from pdserve.terms.json import JsonMap

_PARAMETERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}
"""Fields of a body that are attributes where they are numbers, by the conventions for GenAI."""


class RequestTrace:
    """One request in a trace."""

    __slots__ = ("context", "legs", "parameters", "parent")

    def __init__(self, context: TraceContext, parent: TraceContext | None) -> None:
        """`context`: the request's own span, where it is recorded; `parent`: the client's."""
        self.context = context
        self.parent = parent
        self.legs: dict[Leg, bytes] = {}
        """Ids of the spans of legs."""
        self.parameters: dict[str, int | float | str] = {}
        """Attributes of the request's span that its body has."""

    def describe(self, body: JsonMap) -> None:
        """Note what attributes need of the body, which is not kept."""
        if not self.context.sampled:
            return
        found = self.parameters
        found["gen_ai.request.model"] = str(body.get("model"))[:256]
        for name, attribute in _PARAMETERS.items():
            value = body.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[attribute] = value

    def leg_headers(self, leg: Leg) -> Headers:
        """The context that an engine gets with a leg: what it records is a child of the leg."""
        context = self.context
        if not context.sampled:
            return context.headers()
        span = self.legs[leg] = os.urandom(8)
        return context._replace(span_id=span).headers()
