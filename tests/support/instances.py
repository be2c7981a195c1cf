"""Instances as `groups` sees them, of one member unless more are given."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from pdserve.groups.instances import InstanceObs, MemberObs

_OF_MEMBER = {f.name for f in fields(MemberObs)}
_OF_INSTANCE = {f.name for f in fields(InstanceObs)}


def observed(name: str, **values: Any) -> InstanceObs:
    """An instance of one member; values are of either, those that both have go to both."""
    values.setdefault("created", 0.0)
    of_member = {k: v for k, v in values.items() if k in _OF_MEMBER}
    member = MemberObs(name, draining=values.get("drain_started") is not None, **of_member)
    of_instance = {k: v for k, v in values.items() if k in _OF_INSTANCE}
    return InstanceObs(name, members=(member,), **of_instance)


def changed(instance: InstanceObs, **values: Any) -> InstanceObs:
    """The same instance of one member with other values, of either."""
    (member,) = instance.members
    of_member = {k: v for k, v in values.items() if k in _OF_MEMBER}
    of_instance = {k: v for k, v in values.items() if k in _OF_INSTANCE}
    return replace(instance, members=(replace(member, **of_member),), **of_instance)
