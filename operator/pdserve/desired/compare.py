"""Is a live object what we want? Compares only the fields we set, so server defaults do not count.

Used to write on difference only: an unchanged object costs no request. Lists are compared entry
by entry, because the API server keeps the order of the lists that we write.
"""

from __future__ import annotations

from pdserve.terms.json import JsonMap


def covers(live: object, wanted: object) -> bool:
    """True when every field of `wanted` is in `live` with the same value."""
    if live is wanted:
        return True
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None
        # Loops, and no call for a scalar: this runs for every field of every object that we write.
        for key, value in wanted.items():
            held = live.get(key)
            if held is value:
                continue
            if isinstance(value, dict | list):
                if not covers(held, value):
                    return False
            elif held != value:
                return False
        return True
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return not wanted and live is None
        return len(live) == len(wanted) and all(map(covers, live, wanted))
    return bool(live == wanted)


def controller_uid(obj: JsonMap) -> str | None:
    """Uid of the object's controller owner, or None."""
    for ref in obj.get("metadata", {}).get("ownerReferences") or ():
        if ref.get("controller"):
            return str(ref["uid"])
    return None
