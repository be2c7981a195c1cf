"""Pods of the Reference engine: its command line (`pdserve.refengine.config`)."""

from pdserve.engines.pod_parts import InstanceFacts, PodParts, text_flag
from pdserve.wire import names


class ReferencePod:
    """`EnginePod` of the Reference engine."""

    def parts(self, facts: InstanceFacts) -> PodParts:
        """Arguments alone: its paths are pdserve's; its role is in `PDSERVE_ROLE`."""
        flips = facts.members == 1 and facts.peer_slots > 0
        return PodParts(
            args=reference_args(facts), env=_slots_by_role(facts) if flips else {}, flips=flips
        )


def reference_args(facts: InstanceFacts) -> tuple[str, ...]:
    """Its command line for an instance with these facts."""
    weights = ("--weights", facts.weights) if facts.weights else ()
    return (
        "--port", str(names.PORT_HTTP),
        "--transfer-port", str(names.PORT_TRANSFER),
        "--slots", str(facts.slots),
        *text_flag("--model-name", facts.model),
        *weights,
    )  # fmt: skip


def _slots_by_role(facts: InstanceFacts) -> dict[str, str]:
    """What `--slots` is in each role: variables, which engines that do not flip ignore."""
    prefill, decode = facts.slots, facts.peer_slots
    if facts.role == "decode":
        prefill, decode = decode, prefill
    return {names.PREFILL_SLOTS: str(prefill), names.DECODE_SLOTS: str(decode)}


POD = ReferencePod()
