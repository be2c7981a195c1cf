"""Which instance is slower than its peers at equal work."""

from __future__ import annotations

import pytest
from tests.support.ratio_values import PROFILE

from pdserve.ratio.outliers import slow_instances
from pdserve.ratio.types import InstanceWindow


def decode(name: str, slower: float = 1.0, batch: float = 10.0) -> InstanceWindow:
    seconds = 1000 * PROFILE.decode.step_seconds(batch, 1300.0) * slower
    return InstanceWindow(name, "decode", 1000.0, seconds, 1000 * batch, 1000 * batch * 1300.0)


def prefill(name: str, slower: float = 1.0, prompt: float = 1500.0) -> InstanceWindow:
    seconds = 100 * PROFILE.prefill.batch_seconds(1, prompt, prompt**2) * slower
    return InstanceWindow(name, "prefill", 100.0, seconds, 100 * prompt, 100 * prompt**2)


def test_one_that_takes_longer_at_equal_work_is_named_with_its_factor_and_share() -> None:
    seen = [decode(f"d-{k}", batch=5.0 + 5 * k) for k in range(7)] + [decode("d-7", 1.6, 20.0)]
    (slow,) = slow_instances(seen, PROFILE, "decode")
    assert slow.name == "d-7"
    assert slow.factor == pytest.approx(1.6)
    assert slow.share == pytest.approx(20.0 / 160.0)


def test_a_large_batch_is_no_slowness_and_roles_are_apart() -> None:
    seen = [decode("d-0"), decode("d-1"), decode("d-2", batch=30.0), prefill("p-0", 9.0)]
    assert slow_instances(seen, PROFILE, "decode") == ()


def test_the_slowest_comes_first() -> None:
    seen = [prefill(f"p-{k}") for k in range(4)] + [prefill("p-8", 1.4), prefill("p-9", 2.0)]
    assert [s.name for s in slow_instances(seen, PROFILE, "prefill")] == ["p-9", "p-8"]


@pytest.mark.parametrize(
    "seen",
    [
        [decode("d-0"), decode("d-1", 3.0)],
        [decode("d-0"), decode("d-1"), decode("d-2", 1.29)],
        [decode("d-0"), decode("d-1"), InstanceWindow("d-2", "decode", 49.0, 99.0, 49.0, 49.0)],
    ],
    ids=["two have no median", "a little slower", "too few steps"],
)
def test_none_is_named_without_proof(seen: list[InstanceWindow]) -> None:
    assert slow_instances(seen, PROFILE, "decode") == ()


def test_without_a_profile_none_is_known() -> None:
    seen = [decode("d-0"), decode("d-1"), decode("d-2", 5.0)]
    assert slow_instances(seen, None, "decode") == ()
