"""Pods of the Reference engine: its command line (`pdserve.refengine.config`)."""

from pdserve.engines.pod_parts import InstanceFacts, PodParts, text_flag
from pdserve.wire import names


class ReferencePod:
    """`EnginePod` of the Reference engine."""

    def parts(self, facts: InstanceFacts) -> PodParts:
        """Arguments alone: its paths are pdserve's."""
        return PodParts(args=reference_args(facts))


def reference_args(facts: InstanceFacts) -> tuple[str, ...]:
    """Its command line for an instance with these facts."""
    weights = ("--weights", facts.weights) if facts.weights else ()
    return (
        "--role", facts.role,
        "--port", str(names.PORT_HTTP),
        "--transfer-port", str(names.PORT_TRANSFER),
        "--slots", str(facts.slots),
        *text_flag("--model-name", facts.model),
        *weights,
    )  # fmt: skip


POD = ReferencePod()
