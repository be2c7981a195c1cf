"""The revisions of a PDService: what is stored of them, and what differs between two. Pure.

The operator keeps the template of each as a ControllerRevision per scenario
(`controllers.shared.revisions`). Scenarios of one PDService have one template, so equal hashes are
one revision here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

from pdserve.api import InvalidObjectError, PDService, ScenarioGroup, revision_of
from pdserve.api.scenariogroup import ScenarioGroupSpec
from pdserve.desired.templates import sample_group
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

PARTS: Final = ("model", "engine", "prefill", "decode", "fabric")
"""Of a PDService's spec, what the revision depends on; of `fabric` its `domainRef` alone."""
_NOT_OF_THE_POD: Final = ("replicas", "startupDeadlineSeconds")
ABSENT: Final = "(absent)"


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """One revision that a PDService has, or can go back to."""

    revision: str
    time: str
    """When it was last asked for, RFC 3339; empty for one that is not stored yet."""
    template: JsonObject
    """The `PARTS` of the spec, as JSON with all defaults."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs between two templates."""

    path: tuple[str, ...]
    before: object
    after: object

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {_text(self.before)} -> {_text(self.after)}"


class UnknownRevisionError(Exception):
    """No stored revision fits what was asked for; the message names those that are there."""


def present_of(service: PDService) -> StoredRevision:
    """The revision that the PDService asks for now."""
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": service.kind,
        "name": service.metadata.name,
        "uid": service.metadata.uid,
    }
    spec = sample_group(service, service.spec.scenarios[0], owner).spec
    return StoredRevision(revision_of(spec), "", _template(spec))


def history_of(
    service: PDService, groups: Iterable[ScenarioGroup], stored: Iterable[JsonMap]
) -> tuple[StoredRevision, ...]:
    """All revisions, the newest first; the first one is what the PDService asks for now.

    Args:
        service: the PDService.
        groups: its ScenarioGroups.
        stored: ControllerRevisions of its namespace. What is not owned by one of its
            ScenarioGroups, or has not the hash in its name, is left out.
    """
    owners = {g.metadata.uid: g for g in groups}
    found: dict[str, StoredRevision] = {}
    for obj in stored:
        group = owners.get(_controller(obj))
        read = None if group is None else _read(obj, group)
        if read is not None and read.time >= found.get(read.revision, read).time:
            found[read.revision] = read
    present = present_of(service)
    known = found.pop(present.revision, None)
    first = present if known is None else StoredRevision(*_renewed(present, known))
    return first, *sorted(found.values(), key=lambda r: (r.time, r.revision), reverse=True)


def choose(history: tuple[StoredRevision, ...], asked: str | None) -> StoredRevision:
    """The revision to go back to: the one that begins with `asked`, or the one before the present.

    Raises:
        UnknownRevisionError: there is none, or several begin so.
    """
    earlier = history[1:]
    if asked is None:
        if not earlier:
            raise UnknownRevisionError("there is no earlier revision to go back to")
        return earlier[0]
    fits = [r for r in history if asked and r.revision.startswith(asked)]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(r.revision for r in history)
    what = "several revisions begin" if fits else "no revision begins"
    raise UnknownRevisionError(f"{what} with {asked!r}; there: {there}")


def changes(before: JsonMap, after: JsonMap) -> tuple[FieldChange, ...]:
    """What differs, by path; lists are compared as a whole."""
    return tuple(_changes(before, after, ()))


def spec_after(spec: JsonMap, to: Iterable[FieldChange]) -> JsonObject:
    """The parts of a PDService's spec that change, whole, with these changes made."""
    made: JsonObject = {}
    for change in to:
        part = change.path[0]
        if part not in made:
            made[part] = deepcopy(spec.get(part) or {})
        holder: JsonObject = made[part]
        for key in change.path[1:-1]:
            holder = holder.setdefault(key, {})
        if change.after is None:
            holder.pop(change.path[-1], None)
        else:
            holder[change.path[-1]] = change.after
    return made


def _changes(before: object, after: object, path: tuple[str, ...]) -> Iterator[FieldChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _changes(before.get(key), after.get(key), (*path, key))
    elif before != after:
        yield FieldChange(path, before, after)


def _template(spec: ScenarioGroupSpec) -> JsonObject:
    whole = spec.to_dict()
    made = {part: whole[part] for part in PARTS}
    for role in ("prefill", "decode"):
        made[role] = {k: v for k, v in whole[role].items() if k not in _NOT_OF_THE_POD}
    made["fabric"] = {"domainRef": whole["fabric"]["domainRef"]}
    return made


def _read(obj: JsonMap, group: ScenarioGroup) -> StoredRevision | None:
    try:
        spec = ScenarioGroupSpec.parse(obj.get("data") or {})
    except InvalidObjectError:
        return None
    revision, meta = revision_of(spec), obj["metadata"]
    if names.revision_name(group.metadata.name, revision) != meta["name"]:
        return None
    return StoredRevision(revision, meta.get("creationTimestamp") or "", _template(spec))


def _renewed(present: StoredRevision, known: StoredRevision) -> tuple[str, str, JsonObject]:
    return present.revision, known.time, present.template


def _controller(obj: JsonMap) -> str:
    refs = obj["metadata"].get("ownerReferences") or ()
    return next((str(r["uid"]) for r in refs if r.get("controller")), "")


def _text(value: object) -> str:
    return ABSENT if value is None else json.dumps(value, sort_keys=True)
