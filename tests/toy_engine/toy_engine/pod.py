"""Pods: another program in the Reference engine's image, and other probes."""

from pdserve.engines.pod_parts import InstanceFacts, PodParts
from pdserve.engines.reference.pod import reference_args
from pdserve.wire import calls
from toy_engine import toy_path


class ToyPod:
    """`EnginePod` of the toy engine."""

    def parts(self, facts: InstanceFacts) -> PodParts:
        """Its command line, which the program that it wraps reads, and its paths."""
        return PodParts(
            command=("python", "-m", "toy_engine"),
            args=reference_args(facts),
            health_path=toy_path(calls.PATH_HEALTH),
            ready_path=toy_path(calls.PATH_READY),
            metrics_path=toy_path(calls.PATH_METRICS),
        )


POD = ToyPod()
