"""Devices promised to pods: for as long as they may be needed, and no longer."""

from __future__ import annotations

import pytest

from pdserve.controllers.shared.promises import FAILED_SECONDS, Promises
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import ObjectKey
from pdserve.topology import Reservation

LATE, MART = ObjectKey("team", "late-chat"), ObjectKey("team", "mart-chat")
PREFILL = Reservation("late-chat-1-p0-a", "b-0", "example.com/npu", 2)
DECODE = Reservation("late-chat-1-d0-a", "b-0", "example.com/npu", 2)


class Time:
    """Monotonic seconds."""

    now = 0.0


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def promises(time: Time) -> Promises:
    return Promises(lambda: time.now)


def test_held_while_the_pods_are_made_and_not_after(promises: Promises) -> None:
    with promises.held(LATE, (PREFILL, DECODE)):
        assert promises.of(LATE) == (PREFILL, DECODE)
    assert promises.of(LATE) == ()


@pytest.mark.parametrize(
    "error",
    [
        KubeError(0, "Unreachable", "connection reset after the request was sent"),
        KubeError(504, "Timeout", "the request may have been carried out"),
        KubeError(429, "TooManyRequests", "later"),
        TimeoutError(),
    ],
)
def test_an_attempt_that_failed_keeps_them_until_its_group_plans_again(
    error: Exception, promises: Promises
) -> None:
    with pytest.raises(type(error)), promises.held(LATE, (PREFILL, DECODE)):
        raise error
    with promises.held(MART, ()):
        promises.plans_anew(MART)
        assert promises.of(LATE) == (PREFILL, DECODE)
    promises.plans_anew(LATE)
    assert promises.of(LATE) == ()


@pytest.mark.parametrize(("status", "reason"), [(403, "Forbidden"), (404, "NotFound")])
def test_what_the_api_server_refuses_keeps_nothing(
    status: int, reason: str, promises: Promises
) -> None:
    with pytest.raises(KubeError), promises.held(LATE, (PREFILL,)):
        raise KubeError(status, reason, "no")
    assert promises.of(LATE) == ()


def test_what_fails_again_and_again_keeps_others_waiting_for_a_bounded_time(
    promises: Promises, time: Time
) -> None:
    kept = []
    for time.now in range(0, 540, 20):
        promises.plans_anew(LATE)
        with pytest.raises(KubeError), promises.held(LATE, (PREFILL,)):
            raise KubeError(500, "InternalError", "failed calling webhook")
        kept.append(bool(promises.of(LATE)))
    assert kept == [True, True, True, *[False] * (len(kept) - 3)]


def test_after_a_success_a_failure_is_a_first_one(promises: Promises, time: Time) -> None:
    for time.now in (0.0, 100.0):
        with pytest.raises(KubeError), promises.held(LATE, (PREFILL,)):
            raise KubeError(500, "InternalError", "etcd leader changed")
        assert promises.of(LATE) == (PREFILL,)
        promises.plans_anew(LATE)
        with promises.held(LATE, (PREFILL,)):
            pass
        assert promises.of(LATE) == ()


def test_a_group_that_is_gone_keeps_nothing(promises: Promises) -> None:
    with pytest.raises(KubeError), promises.held(LATE, (PREFILL,)):
        raise KubeError(0, "Unreachable", "reset")
    gone = {"metadata": {"name": LATE.name, "namespace": LATE.namespace}}
    promises.group_changed("MODIFIED", gone, gone)
    assert promises.of(LATE) == (PREFILL,)
    promises.group_changed("DELETED", gone, None)
    assert promises.of(LATE) == ()


def test_what_never_plans_again_keeps_nothing_for_long(promises: Promises, time: Time) -> None:
    with pytest.raises(KubeError), promises.held(LATE, (PREFILL,)):
        raise KubeError(0, "Unreachable", "reset")
    time.now = FAILED_SECONDS - 1
    assert promises.of(LATE) == (PREFILL,)
    time.now = FAILED_SECONDS
    assert promises.of(LATE) == ()
