"""A PDService in a cluster, what its user changes, and every instance that there ever is."""

from __future__ import annotations

import threading
from contextlib import suppress

from tests.support import scenarios as s
from tests.support.following import Following
from tests.support.installed import (
    fixed,
    image,
    pdservice,
    role,
    scenario,
)
from urllib3.exceptions import HTTPError

from pdserve.wire import names

NAMESPACE = "actions"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
START_SECONDS = 3
"""Every instance takes at least so long to start."""
WAIT = 120.0


class Service:
    """PDService actions/actions with one scenario."""

    def __init__(self, cluster: s.Cluster) -> None:
        self.cluster = cluster
        sleep = ["sleep", str(START_SECONDS)]
        slow = {"name": "slow", "image": image("engine"), "command": sleep}
        template = {"spec": {"initContainers": [slow]}}
        self.document = pdservice(
            NAMESPACE,
            NAMESPACE,
            scenario("chat", fixed(1, 1, 2)),
            prefill=role(slots=4) | {"template": template},
            decode=role(slots=16) | {"template": template},
            recovery={"drainSeconds": 30, "nodeSuspectSeconds": 5},
        )

    @property
    def spec(self) -> s.Json:
        """What `apply` applies."""
        spec: s.Json = self.document["spec"]
        return spec

    def apply(self) -> None:
        """`kubectl apply`."""
        self.cluster.apply(self.document, namespace=NAMESPACE)

    def set_ratio(self, chosen: s.Json) -> None:
        """Another mode or other counts; returns when that is settled."""
        self.spec["scenarios"][0]["ratio"] = chosen
        self.apply()
        self.wait()

    def wait(self) -> None:
        """Until it is Ready, and nothing goes on."""
        s.wait_service(self.cluster, NAMESPACE, NAMESPACE, WAIT)
        s.wait_settled(self.cluster, NAMESPACE, GROUP, WAIT)

    def instances(self) -> dict[str, s.Identity]:
        """Its instances that stay."""
        found = {s.name_of(p) for p in s.pods(self.cluster, NAMESPACE)}
        every = s.identities(self.cluster, NAMESPACE)
        return {name: identity for name, identity in every.items() if name in found}

    def traffic(self, model: str | None = None, tokens: int = 8) -> Following:
        """Clients of its gateways; None: of the model's name now."""
        name = model or self.spec["model"]["name"]
        return Following(self.cluster, NAMESPACE, NAMESPACE, model=name, tokens=tokens)


class Seen:
    """Every instance that there ever is while the block runs, also one that does not stay."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._over = threading.Event()
        self.uids: set[str] = set()

    def __enter__(self) -> Seen:
        self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(WAIT)
        self._look()

    def _look(self) -> None:
        found = s.pods(self._service.cluster, NAMESPACE)
        self.uids |= {pod["metadata"]["uid"] for pod in found}

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            with suppress(HTTPError, AssertionError):
                self._look()
