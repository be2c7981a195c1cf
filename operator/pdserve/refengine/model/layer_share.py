"""Which layers of a model one member of an instance computes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerShare:
    """The contiguous layers [first, end) of a model.

    The share that begins with layer 0 is the leader's: it also has the embedding and the head.
    """

    first: int
    end: int

    @property
    def leads(self) -> bool:
        """Whether it is the leader's."""
        return self.first == 0

    @property
    def count(self) -> int:
        """How many layers it has."""
        return self.end - self.first

    @property
    def layers(self) -> range:
        """Their indices in the model."""
        return range(self.first, self.end)


def layer_shares(layers: int, members: int) -> tuple[LayerShare, ...]:
    """The shares of all members in the order of the layers; they differ by one layer at most.

    The first ones have fewer: the leader computes embedding and head too.

    Raises:
        ValueError: there are more members than layers.
    """
    if not 1 <= members <= layers:
        raise ValueError(
            f"{members} members cannot share {layers} layers: each computes one or more"
        )
    cuts = [index * layers // members for index in range(members + 1)]
    return tuple(LayerShare(a, b) for a, b in itertools.pairwise(cuts))
