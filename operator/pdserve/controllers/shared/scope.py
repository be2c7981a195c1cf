"""Which of the objects it sees this operator leaves to others.

An operator of all namespaces leaves a namespace to the operator that claims it there; an operator
of one namespace leaves RoCEDomains to one of all namespaces. `kube.claim` finds these claims;
reconcilers, the ratio loop, gauges and Events ask this module. Objects that are left alone are
still read: their pods hold devices.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Scope:
    """Changed while this process leads. One event loop."""

    def __init__(self) -> None:
        self._left: Mapping[str, str] = {}
        self.changes = 0
        """How often namespaces changed hands."""

    def leaves(self, namespace: str) -> bool:
        """Whether the objects of `namespace` ("": those of none) are another operator's."""
        return namespace in self._left

    def leave(self, left: Mapping[str, str]) -> frozenset[str]:
        """Leave these namespaces to their operators (by name); returns those that changed hands."""
        for namespace in sorted(left.keys() - self._left.keys()):
            log.warning(
                "The objects of %s belong to operator %r: left alone",
                _named(namespace), left[namespace],
            )  # fmt: skip
        for namespace in sorted(self._left.keys() - left.keys()):
            log.info("The objects of %s are this operator's now", _named(namespace))
        changed = frozenset(left.keys() ^ self._left.keys())
        self._left = dict(left)
        self.changes += bool(changed)
        return changed


def _named(namespace: str) -> str:
    return f"namespace {namespace}" if namespace else "no namespace (RoCEDomains)"
