"""The plan of a cluster: `cluster` makes it and passes it to the process `daemon`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from localcluster.agent.host import AgentSettings
from localcluster.config import ClusterConfig, NodeSpec
from localcluster.controlplane import ControlPlaneSettings
from localcluster.errors import LocalError
from pdserve.terms.json import JsonObject

PLAN = "plan.json"
READY = "ready.json"
LOCK = "daemon.lock"
LOG = "logs/daemon.log"
PROBLEM = "problem.txt"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """One local cluster."""

    name: str
    config: ClusterConfig
    control_plane: ControlPlaneSettings = field(default_factory=ControlPlaneSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)

    def __post_init__(self) -> None:
        if self.control_plane.node_grace < 3 * self.agent.lease_period:
            raise LocalError(
                f"node_grace {self.control_plane.node_grace:g} s: expected at least three times "
                f"lease_period ({self.agent.lease_period:g} s), or healthy nodes flap"
            )

    def to_json(self) -> JsonObject:
        """Plain JSON value."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: JsonObject) -> ClusterPlan:
        """Read `to_json`'s value."""
        config = value["config"]
        return ClusterPlan(
            name=value["name"],
            config=ClusterConfig(
                tuple(NodeSpec(**node) for node in config["nodes"]), config["resource"]
            ),
            control_plane=ControlPlaneSettings(**value["control_plane"]),
            agent=AgentSettings(**value["agent"]),
        )

    def save(self, state_dir: Path) -> None:
        """Write it where the daemon and later `up`s look for it."""
        (state_dir / PLAN).write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")

    @staticmethod
    def load(state_dir: Path) -> ClusterPlan:
        """The plan of the cluster in `state_dir`, as `save` wrote it."""
        return ClusterPlan.from_json(json.loads((state_dir / PLAN).read_text(encoding="utf-8")))
