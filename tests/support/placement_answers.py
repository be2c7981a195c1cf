"""Placements and refusals of a group on a drawn fabric, for tests of what they say."""

from __future__ import annotations

from tests.support.builders import fabric

from pdserve.placement import (
    GroupRequest,
    NoFit,
    Placement,
    place,
)


def placed(drawing: str, asked: GroupRequest) -> Placement:
    found = place(fabric(drawing), asked)
    assert isinstance(found, Placement), found
    return found


def refused(drawing: str, asked: GroupRequest) -> str:
    found = place(fabric(drawing), asked)
    assert isinstance(found, NoFit), found
    return found.message
