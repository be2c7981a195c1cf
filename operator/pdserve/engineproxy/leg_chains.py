"""Which blocks of vLLM hold the prompt of which leg, by what vLLM publishes of its blocks.

A leg that names its prompt's blocks goes to vLLM with a session id of its own, and asks for a full
report: then each event about blocks that it stored or found carries that id. The events of a leg
make a chain of blocks from the prompt's beginning. vLLM answers a leg and publishes its events on
different ways, so a chain may be complete a moment after the reply; one that is not within
`SECONDS` counts as far as it came.

Bounds: `MOST` legs, each with `MOST_BLOCKS` blocks. Pure; the clock is an argument.
Neighbours: `events_reader` brings the events, `prefill_leg` the legs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import orjson

from pdserve.engineproxy.kv_events import BlockHash, BlocksRemoved, BlocksStored, KvEvent
from pdserve.engines.cached_digests import CachedDigests
from pdserve.terms.json import JsonMap
from pdserve.wire.prefixes import PromptBlocks

SECONDS: Final = 2.0
"""From a leg's reply until its chain counts as it is."""
MOST: Final = 1024
MOST_BLOCKS: Final = 1 << 17
"""Of one leg: a prompt of two million tokens."""
SESSION: Final = "session_id"
REPORT: Final = {"kv_cache_report_mode": "full"}
"""Fields of vLLM's request body: whose the events are, and that blocks found are reported too."""


@dataclass(slots=True)
class _Chain:
    named: PromptBlocks
    blocks: dict[BlockHash, bool] = field(default_factory=dict)
    """From the prompt's beginning on, and whether each is cached."""
    size: int = 0
    """Tokens of a block; 0: no event came."""
    tokens: int = 0
    """Of the prompt; 0: the reply did not come."""
    until: float = 0.0

    @property
    def complete(self) -> bool:
        return bool(self.tokens and self.size) and len(self.blocks) >= self.tokens // self.size


class LegChains:
    """The legs whose blocks are awaited, and the digests that are cached."""

    def __init__(self, arguments: str) -> None:
        """`arguments`: the body's field that has the engine's own arguments, `REPORT` among them;
        empty: it has none.
        """
        self._arguments = arguments
        self.cached: CachedDigests[BlockHash] = CachedDigests()
        self._chains: dict[str, _Chain] = {}

    def begin(self, leg: str, named: PromptBlocks, body: JsonMap) -> bytes:
        """Await the blocks of a leg; the body to send, with which vLLM reports them.

        `leg`: its name, unique. `body`: a checked leg's.
        """
        if len(self._chains) >= MOST:
            del self._chains[next(iter(self._chains))]
        self._chains[leg] = _Chain(named)
        sent = {**body, SESSION: leg}
        if self._arguments:
            given = body.get(self._arguments)
            sent[self._arguments] = {**given, **REPORT} if isinstance(given, dict) else REPORT
        return orjson.dumps(sent)

    def drop(self, leg: str) -> None:
        """Note that a leg ended without a prefill."""
        self._chains.pop(leg, None)

    def answered(self, leg: str, tokens: int, now: float) -> None:
        """Note that a leg's prompt of so many tokens is computed."""
        chain = self._chains.get(leg)
        if chain is not None and tokens <= 0:
            self.drop(leg)
        elif chain is not None:
            chain.tokens, chain.until = tokens, now + SECONDS
            self._settle(leg, chain)

    def take(self, events: Iterable[KvEvent]) -> None:
        """Follow what vLLM published."""
        for event in events:
            if isinstance(event, BlocksStored):
                self._stored(event)
            elif isinstance(event, BlocksRemoved):
                for block in event.blocks:
                    self._removed(block)
            else:
                self.cleared()

    def cleared(self) -> None:
        """Note that nothing is cached any more, or that it is not known what is."""
        self.cached.cleared()
        for chain in self._chains.values():
            chain.blocks = dict.fromkeys(chain.blocks, False)

    def expire(self, now: float) -> None:
        """Let chains count that were awaited for too long."""
        for leg, chain in list(self._chains.items()):
            if chain.tokens and chain.until <= now:
                self._count(leg, chain)

    def _stored(self, event: BlocksStored) -> None:
        chain = self._chains.get(event.session)
        if chain is None:
            return
        if event.parent is None:
            chain.blocks.clear()
        elif event.parent not in chain.blocks:
            return  # what is between was not reported
        while chain.blocks and next(reversed(chain.blocks)) != event.parent:
            chain.blocks.popitem()
        if len(chain.blocks) + len(event.blocks) > MOST_BLOCKS:
            self.drop(event.session)
            return
        chain.blocks |= dict.fromkeys(event.blocks, True)
        chain.size = event.size
        self._settle(event.session, chain)

    def _removed(self, block: BlockHash) -> None:
        self.cached.removed(block)
        for chain in self._chains.values():
            if block in chain.blocks:
                chain.blocks[block] = False

    def _settle(self, leg: str, chain: _Chain) -> None:
        if chain.complete:
            self._count(leg, chain)

    def _count(self, leg: str, chain: _Chain) -> None:
        del self._chains[leg]
        if chain.size:
            full = list(chain.blocks)[: chain.tokens // chain.size]
            held = {block for block in full if chain.blocks[block]}
            self.cached.computed(chain.named, full, chain.tokens, chain.size, held)
