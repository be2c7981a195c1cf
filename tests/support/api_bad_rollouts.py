"""Bad `spec.rollout`: part of the table in `api_bad`."""

from __future__ import annotations

from tests.support.api_case import of_service

_LOW, _HIGH = "greater than or equal to 1", "less than or equal to"
_REVISION = "must be a revision: eight hex digits"
_BAD: tuple[tuple[str, str, object, str], ...] = (
    ("unknown order", "order", "Random", '"Auto", "CreateFirst", "DeleteFirst"'),
    ("no group at once", "maxUnavailableGroups", 0, _LOW),
    ("more groups at once than there may be", "maxUnavailableGroups", 65, f"{_HIGH} 64"),
    ("groups at once as a share", "maxUnavailableGroups", "25%", "must be of type integer"),
    ("a canary of no group", "canaryGroups", 0, _LOW),
    ("a canary larger than a scenario", "canaryGroups", 65, f"{_HIGH} 64"),
    ("a canary as a fraction", "canaryGroups", 0.5, "must be of type int"),
    ("promoted revision in capitals", "promotedRevision", "3F09AB12", _REVISION),
    ("promoted revision that is a path", "promotedRevision", "../../et", _REVISION),
    ("short promoted revision", "promotedRevision", "3f09", "at least 8 chars"),
    ("long promoted revision", "promotedRevision", "3f09ab12ff", "may not be more"),
    ("no time to progress", "progressDeadlineSeconds", 0, _LOW),
    ("more than a day to progress", "progressDeadlineSeconds", 86_401, f"{_HIGH} 86400"),
    ("time to progress with a unit", "progressDeadlineSeconds", "10m", "must be of type integer"),
    ("unknown turn of scenarios", "scenarios", "Random", '"OneByOne", "Together"'),
    ("outage as text", "allowOutage", "yes", "must be of type boolean"),
    ("paused as a number", "paused", 1, "must be of type boolean"),
)
BAD_ROLLOUTS = (
    *(
        of_service(f"rollout: {what}", {"spec.rollout": {field: value}}, f"spec.rollout.{field}",
                   says)
        for what, field, value, says in _BAD
    ),
    of_service("rollout as text", {"spec.rollout": "fast"}, "spec.rollout", "of type object"),
    of_service(
        "misspelt field of rollout", {"spec.rollout": {"pause": True}}, "spec.rollout.pause",
        "unknown field", code=400,
    ),
)  # fmt: skip
