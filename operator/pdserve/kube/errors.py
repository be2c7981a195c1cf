"""The one exception of cluster access, with what a caller decides by.

Made by the transports from an HTTP answer (or its absence) and never caught below the caller:
retrying is the work queue's business. It stops at telling the cases apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.kube.resource import Object

UNREACHABLE = "Unreachable"
"""Reason when no answer came: refused, reset, timed out. The request may have been carried out."""
SILENT = "Silent"
"""Reason when a watch that was open carried nothing for longer than its bookmarks allow."""
UNREADABLE = "Unreadable"
"""Reason when an answer came that no API server gives: HTML, another shape, half a document."""
TEST_FAILED = "TestFailed"
"""Reason given by `KubeClient.patch_json` when a `test` (the uid, usually) did not hold."""


MAX_AFTER = 3600
"""Seconds; a longer wait that a server asks for counts as this."""


class KubeError(Exception):
    """The API server refused a request, or gave no answer.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: `metav1.Status.reason` (`NotFound`, `AlreadyExists`, ...), or one of this module.
        message: what the server said, for people.
        retry_after: seconds the server asked to wait, or None.
        causes: `details.causes` of a 422, each with `field` and `message`.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        causes: tuple[Mapping[str, object], ...] = (),
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.causes = causes

    @classmethod
    def from_status(cls, code: int, body: Object, *, retry_after: float | None = None) -> KubeError:
        """From a `metav1.Status` object (an answer's body, or the object of an ERROR event)."""
        details = _mapping(body.get("details"))
        after = details.get("retryAfterSeconds")
        if retry_after is None and isinstance(after, int) and after > 0:
            retry_after = float(min(after, MAX_AFTER))
        said, causes = body.get("code"), details.get("causes")
        return cls(
            said if isinstance(said, int) and 400 <= said <= 599 else code,
            str(body.get("reason") or "Unknown"),
            str(body.get("message") or ""),
            retry_after=retry_after,
            causes=tuple(map(_mapping, causes)) if isinstance(causes, list) else (),
        )

    @property
    def is_not_found(self) -> bool:
        """The object (or the kind) is not there."""
        return self.status == 404

    @property
    def is_already_exists(self) -> bool:
        """A POST met an object of that name."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_conflict(self) -> bool:
        """A precondition (uid, resourceVersion, field owner, JSON-patch test) did not hold.

        What was written on was not what the caller had seen: look again, then decide again.
        """
        conflict = self.status == 409 and not self.is_already_exists
        return conflict or self.reason == TEST_FAILED

    @property
    def is_gone(self) -> bool:
        """410: the resourceVersion or continue token is too old; list again."""
        return self.status == 410

    @property
    def is_invalid(self) -> bool:
        """422: the object as sent can never be accepted; retrying the same is useless."""
        return self.status == 422 and self.reason != TEST_FAILED

    @property
    def is_forbidden(self) -> bool:
        """403: RBAC, quota or admission said no."""
        return self.status == 403

    @property
    def is_unreachable(self) -> bool:
        """No answer that can be read; whether the request was carried out is unknown."""
        return self.status == 0


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
