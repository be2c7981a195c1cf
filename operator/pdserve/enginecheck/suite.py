"""All checks in their order: what each needs, and what became of it.

Every check ends in time: its requests are bounded, and so is the check itself. A check whose need
failed is skipped, so that one fault is one failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from pdserve.enginecheck import instance_checks as own
from pdserve.enginecheck import leg_checks as legs
from pdserve.enginecheck import load_checks as load
from pdserve.enginecheck.probe import ProbeError
from pdserve.enginecheck.subject import CheckedInstance, CheckSubject, NotCheckedError, UnkeptError
from pdserve.engines import testing
from pdserve.engines.flow import FlowError
from pdserve.terms import Role

CHECK_SECONDS: Final = 12.0
"""Bound of one check, in bounds of one request."""
MOST_SAID: Final = 400
"""Characters of a sentence about one check."""
Outcome = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What became of one check. `where`: an instance's name, or `pair`, or `adapter`."""

    name: str
    where: str
    outcome: Outcome
    says: str


@dataclass(frozen=True, slots=True)
class InstanceCheck:
    """A check of each instance."""

    name: str
    run: Callable[[CheckSubject, CheckedInstance], Awaitable[str]]
    needs: tuple[str, ...] = ("health",)


@dataclass(frozen=True, slots=True)
class PairCheck:
    """A check of the pair, or of one role through it; `decode`: it needs one."""

    name: str
    run: Callable[[CheckSubject], Awaitable[str]]
    needs: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ("prefill",)


INSTANCE_CHECKS: Final = (
    InstanceCheck("health", own.health, ()),
    InstanceCheck("models", own.models),
    InstanceCheck("control", own.control),
    InstanceCheck("ready", own.ready, ("control",)),
    InstanceCheck("metrics", own.series),
    InstanceCheck("credentials", own.credentials, ("models",)),
    InstanceCheck("errors", own.errors, ("models",)),
)
_PAIR: Final[tuple[Role, ...]] = ("prefill", "decode")
PAIR_CHECKS: Final = (
    PairCheck("deadline", legs.deadline, ("ready", "models")),
    PairCheck("prefill", legs.prefill, ("ready", "models")),
    PairCheck("release", legs.release, ("prefill", "deadline")),
    PairCheck("hints", legs.hints, ("deadline", "release")),
    PairCheck("abort-prefill", load.left_prefill, ("hints",)),
    PairCheck("refusal-prefill", load.full_prefill, ("hints", "release", "abort-prefill")),
    PairCheck("handoff", legs.handoff, ("ready", "models", "prefill", "hints"), _PAIR),
    PairCheck("completion", legs.completion, ("ready", "models", "prefill", "handoff"), _PAIR),
    PairCheck("stream", legs.stream, ("completion",), _PAIR),
    PairCheck("kept-kv", legs.kept_kv, ("completion",), _PAIR),
    PairCheck("lost-kv", legs.lost_kv, ("completion", "release"), _PAIR),
    PairCheck("abort-decode", load.left_decode, ("stream", "kept-kv"), _PAIR),
    PairCheck("refusal-decode", load.full_decode, ("stream", "kept-kv", "abort-decode"), _PAIR),
)
DRAIN: Final = InstanceCheck("drain", load.drain, ("ready",))
NAMES: Final = (
    *(c.name for c in INSTANCE_CHECKS), *(c.name for c in PAIR_CHECKS), DRAIN.name, "adapter",
)  # fmt: skip


async def run(subject: CheckSubject, *, drain: bool) -> AsyncIterator[CheckResult]:
    """The results, each as soon as it is there.

    `drain`: also drain the instances at the end, which end serving with it.
    """
    outcomes: dict[tuple[str, str], Outcome] = {}

    def keep(result: CheckResult) -> CheckResult:
        outcomes[result.name, result.where] = result.outcome
        return result

    async def each(check: InstanceCheck) -> AsyncIterator[CheckResult]:
        # A decode drains first: it needs a prefill to have something that runs.
        for target in sorted(subject.targets, key=lambda t: t.role):
            unmet = _unmet(check.needs, outcomes, target.name)
            call = lambda t=target: check.run(subject, t)  # noqa: E731
            yield keep(await _result(check.name, target.name, unmet, call, subject))

    for instance_check in INSTANCE_CHECKS:
        async for result in each(instance_check):
            yield result
    for pair_check in PAIR_CHECKS:
        missing = [role for role in pair_check.roles if subject.of(role) is None]
        unmet = f"give the URL of a {missing[0]} too" if missing else ""
        unmet = unmet or _unmet(pair_check.needs, outcomes, None)
        call = lambda c=pair_check: c.run(subject)  # noqa: E731
        yield keep(await _result(pair_check.name, "pair", unmet, call, subject))
    if drain:
        async for result in each(DRAIN):
            yield result
    yield adapter(subject)


def adapter(subject: CheckSubject) -> CheckResult:
    """The type's adapter, with a reply of this engine where there is one."""
    reply = subject.prefill_reply or testing.SAMPLE_REPLY
    broken = testing.broken_promises(subject.type_name, reply)
    if broken:
        return CheckResult("adapter", subject.type_name, "fail", "; ".join(broken)[:MOST_SAID])
    with_what = "a reply of this engine" if subject.prefill_reply else "the kit's own reply"
    return CheckResult(
        "adapter", subject.type_name, "pass", f"keeps its promises, with {with_what}"
    )


def _unmet(
    needs: tuple[str, ...], outcomes: dict[tuple[str, str], Outcome], where: str | None
) -> str:
    """The first need that failed, in words; a need that was skipped is none."""
    for need in needs:
        if any(o == "fail" and n == need and where in (None, w) for (n, w), o in outcomes.items()):
            return f"needs {need}, which failed"
    return ""


async def _result(
    name: str, where: str, unmet: str, check: Callable[[], Awaitable[str]], subject: CheckSubject
) -> CheckResult:
    if unmet:
        return CheckResult(name, where, "skip", unmet)
    seconds = CHECK_SECONDS * max(t.probe.seconds for t in subject.targets)
    outcome: Outcome = "pass"
    try:
        async with asyncio.timeout(seconds):
            says = await check()
    except NotCheckedError as error:
        outcome, says = "skip", str(error)
    except (UnkeptError, ProbeError, FlowError) as error:
        outcome, says = "fail", str(error)
    except TimeoutError:
        outcome, says = "fail", f"not done within {seconds:g} s"
    except Exception as error:  # an adapter may raise anything
        raised = f"{type(error).__name__}: {error}"
        outcome, says = "fail", f"the type's adapter raises {raised}: see the check adapter"
    return CheckResult(name, where, outcome, says[:MOST_SAID])
