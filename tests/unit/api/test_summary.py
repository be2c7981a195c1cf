"""The line of `kubectl get pds`, derived from the rest of the status."""

from __future__ import annotations

from pdserve.api import DeviceUse, PDServiceStatus, RoleCount, ScenarioStatus


def scenario(
    name: str, prefill: tuple[int, int], decode: tuple[int, int], attainment: int | None = None
) -> ScenarioStatus:
    return ScenarioStatus(
        name=name,
        groups=1,
        prefill=RoleCount(ready=prefill[0], desired=prefill[1]),
        decode=RoleCount(ready=decode[0], desired=decode[1]),
        attainment_percent=attainment,
    )


def test_nothing_is_shown_before_anything_was_observed() -> None:
    assert PDServiceStatus().summary is None
    assert "summary" not in PDServiceStatus().to_dict()


def test_sums_and_the_worst_attainment() -> None:
    status = PDServiceStatus(
        scenarios=(scenario("search", (1, 2), (3, 3), 97), scenario("chat", (0, 1), (2, 2), 99)),
        devices=(
            DeviceUse(resource="huawei.com/Ascend910", used=7, budget=96),
            DeviceUse(resource="nvidia.com/gpu", used=2),
        ),
    )
    assert status.to_dict()["summary"] == {
        "scenarios": "1/2",
        "prefill": "1/3",
        "decode": "5/5",
        "slo": "97%",
        "devices": "7/96, 2",
    }


def test_unknown_attainment_is_not_zero() -> None:
    status = PDServiceStatus(scenarios=(scenario("chat", (1, 1), (1, 1)),))
    assert status.summary is not None
    assert status.summary.slo == "-"


def test_the_summary_follows_the_status_not_what_was_stored() -> None:
    status = PDServiceStatus(scenarios=(scenario("chat", (1, 1), (1, 1)),))
    stored = status.to_dict() | {"summary": {"scenarios": "9/9"}}
    assert PDServiceStatus.parse(stored) == status
