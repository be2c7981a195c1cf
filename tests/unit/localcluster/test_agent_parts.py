"""Small pure parts of the node agent: images, devices, back-off, verdicts, addresses, mounts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localcluster.agent.addresses import FIRST_POD, LAST_POD, NodeAddresses
from localcluster.agent.backoff import RestartBackoff
from localcluster.agent.devices import Devices, NoDevices
from localcluster.agent.images import ImageError, program, repository
from localcluster.agent.probes import ProbeSpec, ProbeVerdict
from localcluster.agent.sandbox import Mount, uncovered, without_mounts


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ("pdserve/engine", "pdserve/engine"),
        ("pdserve/engine:0.1", "pdserve/engine"),
        ("registry.example/pdserve/engine:0.1", "pdserve/engine"),
        ("localhost:5000/pdserve/engine", "pdserve/engine"),
        ("localhost/pdserve/engine:a", "pdserve/engine"),
        ("r.example:5000/team/pdserve/engine@sha256:abc", "team/pdserve/engine"),
        ("nginx", "nginx"),
        ("nginx:1.29", "nginx"),
    ],
)
def test_repository(image: str, want: str) -> None:
    assert repository(image) == want


@pytest.mark.parametrize(
    ("image", "module"),
    [
        ("pdserve/operator:x", "pdserve.controllers"),
        ("ghcr.example/pdserve/gateway", "pdserve.gateway"),
        ("mirror.example/hub/pdserve/engine", "pdserve.refengine"),
    ],
)
def test_own_images_run_this_checkout(image: str, module: str) -> None:
    found = program(image, lambda: Path("/none"), "127.1.2.3")
    assert found.entrypoint[1:] == ("-m", module)
    assert found.env == {"PDSERVE_BIND": "127.1.2.3"}, "as their real images bind all addresses"


def test_tags_name_the_checkouts_of_a_directory_of_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path_of(image: str) -> str | None:
        return program(image, lambda: Path("/none"), "127.1.2.3").env.get("PYTHONPATH")

    (tmp_path / "first" / "operator").mkdir(parents=True)
    (tmp_path / "latest").symlink_to("first")
    first = str((tmp_path / "first" / "operator").resolve())
    assert path_of("pdserve/engine:first") is None
    monkeypatch.setenv("PDSERVE_RELEASES", str(tmp_path))
    assert path_of("pdserve/engine:first") == first
    assert path_of("registry.example:5000/hub/pdserve/gateway:latest") == first, "not the link"
    assert path_of("pdserve/engine:other") is None
    assert path_of("pdserve/engine") is None
    assert path_of("localhost:5000/pdserve/engine@sha256:first") is None


def test_prometheus_is_looked_for_only_when_asked_for() -> None:
    found = program("docker.io/prom/prometheus:v3", lambda: Path("/bin/prom"), "127.1.2.3")
    assert found.entrypoint == ("/bin/prom", "--web.listen-address=127.1.2.3:9090")


@pytest.mark.parametrize("image", ["nginx", "engine", "pdserve", "xpdserve/engine", "prometheus"])
def test_other_images_are_refused(image: str) -> None:
    with pytest.raises(ImageError, match=f'image "{image}": a process node has no programs'):
        program(image, lambda: Path("/none"), "127.1.2.3")


def needs(uid: str, *counts: int) -> dict[str, Any]:
    containers = [
        {"name": f"c{i}", "resources": {"limits": {"huawei.com/Ascend910": str(n)}}}
        for i, n in enumerate(counts)
    ]
    return {"metadata": {"uid": uid}, "spec": {"containers": containers}}


def test_devices_are_given_lowest_first_and_come_back() -> None:
    devices = Devices("huawei.com/Ascend910", 4)
    assert devices.take(needs("a", 1, 2)) == {"c0": [0], "c1": [1, 2]}
    with pytest.raises(NoDevices, match="Requested: 2, Available: 1"):
        devices.take(needs("b", 2))
    assert devices.take(needs("c", 1)) == {"c0": [3]}
    devices.give_back("a")
    devices.unhealthy = {1}
    assert devices.take(needs("b", 2)) == {"c0": [0, 2]}
    assert devices.healthy == 3


def test_a_refused_pod_holds_nothing() -> None:
    devices = Devices("huawei.com/Ascend910", 2)
    with pytest.raises(NoDevices):
        devices.take(needs("a", 1, 2))
    assert devices.take(needs("b", 2)) == {"c0": [0, 1]}


@pytest.mark.parametrize(
    ("resource", "want"),
    [
        ("huawei.com/Ascend910", {"ASCEND_VISIBLE_DEVICES": "0,3"}),
        ("nvidia.com/gpu", {"NVIDIA_VISIBLE_DEVICES": "0,3"}),
        ("example.com/thing", {}),
    ],
)
def test_containers_get_their_device_numbers(resource: str, want: dict[str, str]) -> None:
    assert Devices(resource, 4).env([0, 3]) == want
    assert Devices(resource, 4).env([]) == {}


def test_back_off_doubles_to_its_limit_and_forgets() -> None:
    backoff = RestartBackoff()
    delays = [backoff.after_run(1.0) for _ in range(8)]
    assert delays == [0, 10, 20, 40, 80, 160, 300, 300]
    assert backoff.after_run(600.0) == 0
    assert backoff.after_run(1.0) == 10


@pytest.mark.parametrize(
    ("ran", "want"),
    [
        # As a kubelet was seen to do it.
        (4.0, [0, 0, 10, 20, 40, 80]),
        (30.0, [0, 0, 0, 0, 40, 80]),
        (700.0, [0] * 6),
    ],
)
def test_after_a_probe_ended_it_the_run_before_counts(ran: float, want: list[float]) -> None:
    backoff = RestartBackoff()
    assert [backoff.after_run(ran, by_probe=True) for _ in want] == want


@pytest.mark.parametrize(
    ("answers", "want"),
    [
        ("+", [True]),
        ("--", [None, None]),
        ("---", [None, None, False]),
        ("--+--", [None, None, True, None, None]),
        ("----", [None, None, False, False]),
        ("+++", [True, True, True]),
    ],
)
def test_verdicts_need_enough_equal_answers_in_a_row(answers: str, want: list[bool | None]) -> None:
    verdict = ProbeVerdict(ProbeSpec.of({"failureThreshold": 3}))
    assert [verdict.add(a == "+") for a in answers] == want


def test_success_threshold() -> None:
    verdict = ProbeVerdict(ProbeSpec.of({"successThreshold": 2}))
    assert [verdict.add(a) for a in (True, False, True, True)] == [None, None, None, True]


def test_probe_defaults_are_kubernetes_own() -> None:
    spec = ProbeSpec.of({})
    assert (spec.initial_delay, spec.period, spec.timeout) == (0, 10, 1)
    assert (spec.successes, spec.failures) == (1, 3)


def test_pod_addresses_are_unique_and_used_again_last() -> None:
    addresses = NodeAddresses(77, 3)
    assert addresses.node == "127.77.3.1"
    assert addresses.device(15) == "127.77.3.17"
    taken = [addresses.take() for _ in range(addresses.pods)]
    assert len(set(taken)) == addresses.pods == LAST_POD - FIRST_POD + 1
    assert addresses.take() is None
    addresses.give_back("127.77.3.40")
    addresses.give_back("127.77.3.39")
    assert addresses.take() == "127.77.3.40"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("/etc/app", "/src"),
        ("/etc/app/file", "/src/file"),
        ("--config=/etc/app/file", "--config=/src/file"),
        ("/etc/application", "/etc/application"),
        ("/other/etc/app", "/other/etc/app"),
        ("/etc/app/inner/x", "/inner/x"),
    ],
)
def test_without_namespaces_mount_paths_are_replaced(text: str, want: str) -> None:
    mounts = [
        Mount(Path("/src"), "/etc/app", True),
        Mount(Path("/inner"), "/etc/app/inner", True),
    ]
    assert without_mounts(text, mounts) == want


@pytest.mark.parametrize(
    ("targets", "places", "want"),
    [
        (["/etc/config"], ["/srv/checkout"], []),
        (["/srv"], ["/srv/checkout"], ["/srv/checkout"]),
        (["/srv"], ["/srv/checkout", "/srv/checkout/.venv"], ["/srv/checkout"]),
        (["/srv", "/opt"], ["/opt/cache", "/srv/checkout"], ["/opt/cache", "/srv/checkout"]),
        (["/srv/checkout-not"], ["/srv/checkout"], []),
    ],
)
def test_programs_that_a_mount_covers_are_shown_again(
    targets: list[str], places: list[str], want: list[str]
) -> None:
    mounts = [Mount(Path("/volume"), target, read_only=False) for target in targets]
    shown = uncovered(mounts, [Path(place) for place in places])
    assert [(str(m.source), m.target, m.read_only) for m in shown] == [(w, w, True) for w in want]
