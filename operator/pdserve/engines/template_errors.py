"""Why a template, or what a spec names, is refused."""

from __future__ import annotations

from pdserve.engines.pod_profile import FIELDS, Finding


class TemplateError(ValueError):
    """A template asks for something it may not change.

    Attributes:
        path: the field, e.g. `template.spec.nodeName`.
    """

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        super().__init__(f"{path}: may not be set here: {why}")


class NotAllowedError(TemplateError):
    """A template asks for what its author has no right to.

    Attributes:
        finding: the field, and what would be accepted.
    """

    def __init__(self, finding: Finding, path: str = "") -> None:
        """`path`: of the field in the spec; default: where it is in the template."""
        self.finding = finding
        what = f"{finding.right} (Pod Security profile restricted)"
        if FIELDS[finding.field] == "names":
            what = f"{finding.right}, unless the API server checks the rights of authors"
        entry = f"{finding.field}={finding.value}" if finding.value else finding.field
        allow = f"an administrator can allow it with security.allowedPodFields: [{entry!r}]"
        super().__init__(path or f"template.{finding.path}", f"{what}; {allow}")
