"""Makes one engine of an instance's members: the leader's model computes with theirs.

`members` has the parts; this module joins them with the engine, which must drop what it knows of KV
when a member is lost, and takes requests only while all are there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from pdserve.engines.trust import Trust
from pdserve.refengine.config import EngineConfig
from pdserve.refengine.members.handshake import MemberIdentity
from pdserve.refengine.members.links import MemberLinks
from pdserve.refengine.members.split import SplitPass
from pdserve.refengine.model.layer_share import layer_shares
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.peer_links import Links
from pdserve.refengine.runtime.engine import Engine

log = logging.getLogger(__name__)


def member_identity(config: EngineConfig, model: LoadedModel) -> MemberIdentity:
    """Who this process is among the members of its instance."""
    return MemberIdentity(
        config.instance, config.member, config.members, model.fingerprint, model.numerics
    )


class Leading:
    """The leader's part of an instance of several members."""

    def __init__(self, config: EngineConfig, model: LoadedModel, trust: Trust) -> None:
        """`model` has the leader's share of the layers."""
        assert model.staged is not None  # noqa: S101 - `config` refuses other back-ends
        shares = layer_shares(model.config.layers, config.members)
        self.links = MemberLinks(member_identity(config, model), shares, trust.member_proofs)
        split = SplitPass(model.staged, self.links)
        self.model = dataclasses.replace(model, llama=split, mirror=split, staged=None)
        self._engine: Engine | None = None
        self._warm: asyncio.Task[None] | None = None
        self._warmed = False

    def attach(self, engine: Engine, links: Links) -> None:
        """Give the members to the engine, and what the operator says of them to the members."""
        links.members, links.members_missing, links.closing = self.links, self.missing, self.close
        self._engine = engine
        self.links.blocks = engine.blocks
        self.links.lost = engine.forget_kv
        self.links.completed = self._completed
        engine.members_missing = self.missing

    def missing(self) -> str | None:
        """Why no request can be computed now; None when one can."""
        return self.links.missing or (None if self._warmed else "it computes its first prompts")

    def close(self) -> None:
        """Give the members up."""
        if self._warm is not None:
            self._warm.cancel()
        self.links.close()

    def _completed(self) -> None:
        if not self._warmed and self._warm is None:
            self._warm = asyncio.get_running_loop().create_task(self._warm_up())

    async def _warm_up(self) -> None:
        """The first prompts, beside the event loop; nothing else is computed meanwhile."""
        try:
            if self._engine is not None:
                await asyncio.to_thread(self._engine.warm_up)
            self._warmed = True
        except Exception as error:  # a member was lost: again when all are there
            log.warning("the first prompts could not be computed: %s", error)
        finally:
            self._warm = None
