"""Flow of engines whose decode can also compute a prompt: a `LocalPrefillFlow` under `pull_flow`.

The leg is the client's body without P/D parameters, marked by a header. An instance of a version
that has no such legs takes it for a request that lost its parameters: 400 with code `wrong_role`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import orjson

from pdserve.engines.flow import MAX_TOKENS, Endpoint, LegAttempt, LegRequest, LocalAnswer
from pdserve.engines.pull_flow import PullFlow
from pdserve.terms.json import JsonMap
from pdserve.wire import calls
from pdserve.wire.bounds import WireError, parse_json

MAX_ERROR: Final = 64 << 10
SEEDS: Final = range(-(1 << 63), 1 << 64)
"""What a body of JSON can carry as an integer."""
_INTEGER: Final = re.compile(rb"-?[0-9]{1,40}")
_MARK: Final = (calls.HEADER_LOCAL_PREFILL.encode(), b"1")
_TPOT_MS: Final = calls.HEADER_TPOT_MS.encode()
_PROMPT: Final = calls.HEADER_PROMPT_TOKENS.encode()
_CACHED: Final = calls.HEADER_CACHED_TOKENS.encode()
_SEED: Final = calls.HEADER_SEED.encode()


class LocalPullFlow(PullFlow):
    """`LocalPrefillFlow`: a decode pulls the KV, or computes it."""

    def prepare_local(self, endpoint: Endpoint, body: JsonMap) -> bytes:
        """Client body without P/D parameters; asks for usage when streaming."""
        leg = {name: value for name, value in body.items() if name != calls.PARAM_KV}
        if leg.get("stream"):
            leg["stream_options"] = {**(leg.get("stream_options") or {}), "include_usage": True}
        return orjson.dumps(leg)

    def local_leg(self, attempt: LegAttempt, prepared: bytes, tpot: float | None) -> LegRequest:
        """As a decode leg; `tpot` in whole milliseconds, at least one."""
        leg = self.decode_leg(attempt, prepared)
        bound = () if tpot is None else ((_TPOT_MS, b"%d" % max(1, int(tpot * 1000))),)
        return LegRequest(leg.path, leg.body, (*leg.headers, _MARK, *bound))

    def lacks_local(self, error: bytes) -> bool:
        """The error has the code `wrong_role`."""
        try:
            value = parse_json(error, max_bytes=MAX_ERROR)
        except WireError:
            return False
        said = value.get("error") if isinstance(value, dict) else None
        return isinstance(said, dict) and said.get("code") == "wrong_role"

    def read_local(self, headers: Mapping[bytes, bytes]) -> LocalAnswer:
        """Counts of tokens, and the seed with which a stream can go on."""
        prompt = _count(headers.get(_PROMPT))
        cached = min(prompt, _count(headers.get(_CACHED)))
        given = headers.get(_SEED, b"")
        seed = int(given) if _INTEGER.fullmatch(given) else None
        kv = (
            None
            if seed is None or seed not in SEEDS
            else {"pdserve": {"seed": seed, "cached_tokens": cached}}
        )
        return LocalAnswer(prompt, cached, kv)


def _count(value: bytes | None) -> int:
    """A count of tokens in a header; 0 where it is none."""
    found = int(value) if value is not None and _INTEGER.fullmatch(value) else 0
    return found if 0 <= found <= MAX_TOKENS else 0
