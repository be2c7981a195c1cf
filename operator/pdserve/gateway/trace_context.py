"""W3C trace context: reading a client's, making a leg's; and whether a trace is sampled.

A malformed `traceparent` counts as none, and `tracestate` goes with a good one only, at most
MAX_STATE bytes of it or none (W3C Trace Context, 2.3 and 3.3). Samplers are those of the
OpenTelemetry SDKs. Neighbours: `tracing` decides for each request, `trace_settings` reads which
sampler.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pdserve.http1.errors import Headers

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
MAX_STATE: Final = 512
SAMPLED: Final = 1
_PARENT: Final = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]{0,200})?"
)
_STATE: Final = re.compile(rb"[\x20-\x7e\t]*")


class TraceContext(NamedTuple):
    """A place in a trace: its id, the span that is the parent of what follows, and more."""

    trace_id: bytes
    """16 bytes."""
    span_id: bytes
    """8 bytes."""
    sampled: bool
    state: bytes = b""
    """`tracestate`, passed on as it came."""

    def headers(self) -> Headers:
        """What carries it."""
        found = ((
            TRACEPARENT,
            b"00-%b-%b-%02x"
            % (self.trace_id.hex().encode(), self.span_id.hex().encode(), self.sampled),
        ),)  # fmt: skip
        return (*found, (TRACESTATE, self.state)) if self.state else found


def read_context(headers: Mapping[bytes, bytes]) -> TraceContext | None:
    """The context that a request came with; None: none, or one that is malformed."""
    given = headers.get(TRACEPARENT)
    if given is None:
        return None
    found = _PARENT.fullmatch(given.strip())
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace_id, span_id = bytes.fromhex(found[2].decode()), bytes.fromhex(found[3].decode())
    if not any(trace_id) or not any(span_id):
        return None
    state = headers.get(TRACESTATE, b"").strip()
    if len(state) > MAX_STATE or _STATE.fullmatch(state) is None:
        state = b""
    return TraceContext(trace_id, span_id, bool(int(found[4], 16) & SAMPLED), state)


ROOTS: Final = ("always_on", "always_off", "traceidratio")
_BY_PARENT: Final = "parentbased_"


class Sampler:
    """Whether a trace is recorded here, by its id and the client's context."""

    __slots__ = ("_bound", "_by_parent")

    def __init__(self, name: str, share: float) -> None:
        """The sampler of `OTEL_TRACES_SAMPLER`; `share`: 0 to 1, of those that take a ratio.

        Raises:
            ValueError: there is no such sampler; the message lists them.
        """
        root = name.removeprefix(_BY_PARENT)
        if root not in ROOTS:
            known = ", ".join((*ROOTS, *(_BY_PARENT + r for r in ROOTS)))
            raise ValueError(f"OTEL_TRACES_SAMPLER: {name!r:.100} is none of {known}")
        self._by_parent = root != name
        shares = {"always_on": 1.0, "always_off": 0.0}
        self._bound = round(shares.get(root, share) * (1 << 64))

    def keeps(self, trace_id: bytes, parent: TraceContext | None) -> bool:
        """Whether to record; `trace_id`: 16 bytes, of which the last 8 count."""
        if self._by_parent and parent is not None:
            return parent.sampled
        return int.from_bytes(trace_id[8:]) < self._bound
