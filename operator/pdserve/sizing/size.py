"""Fewest devices that meet an SLO under one demand, and how sure that answer is.

The same predictions as the running loop (`ratio.choose`), with two differences: decodes have no
more requests than gateways give them (`admission_batch`), so a request waits there instead of
slowing all; and no count is in force yet, so nothing is kept for its own sake. `tests/unit/sim`
holds the sizes to the simulator's plant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pdserve.ratio.choose import Predictor
from pdserve.ratio.model import OperatingPoint, PerformanceModel, admission_batch, build
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts, Demand
from pdserve.sizing.unsplit import unsplit_instances
from pdserve.terms import ROLES, Slo

MOST = 4096
"""Instances of a role at most."""
SPARE = 3
"""Instances of one role above its need that are tried, to make up for misses of the other."""
MOST_GROUPS = 64
SHORTEST, LONGEST = 16.0, 131_072.0
"""Prompt tokens between which the crossover is looked for."""
LENGTHS_TRIED = 53
"""Four to a doubling."""


class SizeError(ValueError):
    """There is no size; the message says what stands against it and what would help."""


@dataclass(frozen=True, slots=True)
class SizeQuestion:
    """What is to be served, and with what."""

    slo: Slo
    demand: Demand
    profile: PerformanceProfile
    prefill_devices: int = 8
    """Devices of one instance; likewise decode."""
    decode_devices: int = 8
    available: int | None = None
    """Devices in all; None: as many as needed."""
    group_instances: int | None = None
    """Most instances of one P/D group, both roles together; None: any number."""


@dataclass(frozen=True, slots=True)
class SizedCounts:
    """Counts with what they cost and attain."""

    counts: Counts
    devices: int
    attainment: float
    """Predicted share of offered requests that meet the SLO, 0 to 1."""


@dataclass(frozen=True, slots=True)
class SizeVariation:
    """The same question with one thing changed."""

    name: str
    kept: float
    """Predicted attainment when the counts stay as they are, 0 to 1."""
    needed: SizedCounts | None
    """What it would take; None where nothing does."""


@dataclass(frozen=True, slots=True)
class SizeAnswer:
    """See `size`."""

    question: SizeQuestion
    split: SizedCounts
    enough: bool
    """Whether `split` meets the SLO; False where the available devices are too few."""
    carried: float
    """Requests per second that `split` carries at the SLO."""
    batch_limit: int
    """Requests at once of a decode that meet TPOT."""
    integer_loss: float
    """Share of capacity lost because instances are whole, 0 to 1."""
    unsplit: int | None
    """Devices of instances that do both; None where they cannot meet the SLO."""
    crossover: float | None
    """Prompt tokens from which on splitting takes no more devices; None: at no length tried."""
    variations: tuple[SizeVariation, ...]


def size(question: SizeQuestion) -> SizeAnswer:
    """The answer to a question.

    Raises:
        SizeError: a request alone misses its target, or no size within the bounds meets the SLO.
    """
    _check_reachable(question)
    found = _fewest(question)
    if found is None and question.available is None:
        raise SizeError(f"more than {MOST} instances of a role would be needed: lower the rate")
    enough = found is not None and _fits(found, question)
    best = found if found is not None and enough else _best_within(question)
    unsplit = _unsplit_devices(question)
    return SizeAnswer(
        question=question, split=best, enough=enough, carried=_carried(question, best.counts),
        batch_limit=admission_batch(question.profile, question.demand.context_tokens, question.slo),
        integer_loss=_integer_loss(question, best.counts), unsplit=unsplit,
        crossover=_crossover(question), variations=tuple(_variations(question, best.counts)),
    )  # fmt: skip


def sizing_model(profile: PerformanceProfile, demand: Demand, slo: Slo) -> PerformanceModel:
    """Both roles, where gateways give each decode no more requests than meet TPOT.

    Their wait for a place counts against the handoff target.
    """
    model = build(profile, demand, slo)
    if not model.decode.options:
        return model
    batch = admission_batch(profile, demand.context_tokens, slo)
    step = profile.decode.step_seconds(batch, demand.context_tokens)
    point = OperatingPoint(batch, max((demand.output_tokens - 1.0) * step, 1e-6), slo.handoff)
    return replace(model, decode=replace(model.decode, options=(point,), cliff=False))


def _predictor(question: SizeQuestion) -> Predictor:
    return Predictor(sizing_model(question.profile, question.demand, question.slo))


def _check_reachable(question: SizeQuestion) -> None:
    model = build(question.profile, question.demand, question.slo)
    slo, demand = question.slo, question.demand
    if not model.prefill.options:
        raise SizeError(
            f"TTFT {slo.ttft * 1e3:g} ms cannot be met: one prompt of {demand.uncached_tokens:.0f} "
            f"tokens alone takes {model.prefill.alone * 1e3:.0f} ms; relax --ttft, shorten "
            "prompts, or use larger instances"
        )
    if not model.decode.options:
        raise SizeError(
            f"TPOT {slo.tpot * 1e3:g} ms cannot be met: one stream alone takes "
            f"{model.decode.alone * 1e3:.1f} ms a token; relax --tpot or use larger instances"
        )


def _fewest(question: SizeQuestion) -> SizedCounts | None:
    """Counts with the fewest devices, then instances, groups, and prefills; None without any."""
    predict, allowed = _predictor(question), 1.0 - question.slo.attainment
    least_p = predict.least("prefill", allowed, MOST)
    least_d = predict.least("decode", allowed, MOST)
    best: tuple[tuple[int, int, int, int], Counts] | None = None
    for prefill in range(least_p, least_p + SPARE):
        for decode in range(least_d, least_d + SPARE):
            if not predict.holds(Counts(1, prefill, decode), allowed):
                continue
            for counts in _grouped(prefill, decode, question.group_instances):
                instances = counts.total("prefill") + counts.total("decode")
                key = (_devices(counts, question), instances, counts.groups, counts.prefill)
                if best is None or key < best[0]:
                    best = (key, counts)
    return None if best is None else _sized(best[1], question, predict)


def _grouped(prefill: int, decode: int, most: int | None) -> Iterable[Counts]:
    """Equal groups that hold at least so many instances, none with more than `most`."""
    total = prefill + decode
    first = 1 if most is None else -(-total // most)
    for groups in range(first, max(first, min(MOST_GROUPS, prefill, decode)) + 1):
        counts = Counts(groups, -(-prefill // groups), -(-decode // groups))
        if most is None or counts.prefill + counts.decode <= most:
            yield counts


def _best_within(question: SizeQuestion) -> SizedCounts:
    """The counts with the highest predicted attainment among those that the devices allow."""
    predict, available = _predictor(question), question.available or 0
    found: list[tuple[float, int, Counts]] = []
    for prefill in range(1, available // question.prefill_devices + 1):
        decode = (available - prefill * question.prefill_devices) // question.decode_devices
        if decode >= 1:
            for counts in _grouped(prefill, decode, question.group_instances):
                if _devices(counts, question) <= available:
                    served = predict.served(counts)
                    found.append((predict.attainment(counts) + 1e-6 * served, -prefill, counts))
    if not found:
        least = question.prefill_devices + question.decode_devices
        raise SizeError(f"{available} devices hold no prefill and decode: at least {least}")
    return _sized(max(found)[2], question, predict)


def _fits(sized: SizedCounts, question: SizeQuestion) -> bool:
    return question.available is None or sized.devices <= question.available


def _devices(counts: Counts, question: SizeQuestion) -> int:
    prefills = counts.total("prefill") * question.prefill_devices
    return prefills + counts.total("decode") * question.decode_devices


def _sized(counts: Counts, question: SizeQuestion, predict: Predictor) -> SizedCounts:
    attained = predicted_attainment(predict, counts, 1.0 - question.slo.attainment)
    return SizedCounts(counts, _devices(counts, question), attained)


def predicted_attainment(predict: Predictor, counts: Counts, allowed: float) -> float:
    """Predicted attainment, 0 to 1, on the same side of the target as `Predictor.holds`.

    The prediction for requests that give up is too good where a role is nearly full; the one that
    sizes counts no request as given up and says nothing of overload.
    """
    if min(counts.prefill, counts.decode) < 1:
        return 0.0
    missed = sum(predict.misses(role, counts.total(role)) for role in ROLES)
    share = min(predict.attainment(counts), 1.0 - min(missed, 2.0 * allowed))
    return round(share, 4)


def _carried(question: SizeQuestion, counts: Counts) -> float:
    """Highest rate at which the counts hold the SLO, to 0.1 %."""
    allowed = 1.0 - question.slo.attainment
    model = sizing_model(question.profile, question.demand, question.slo)
    high = min(
        counts.total("prefill") * model.prefill.capacity,
        counts.total("decode") * model.decode.capacity,
    )
    low = 0.0
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if Predictor(replace(model, rate=middle)).holds(counts, allowed):
            low = middle
        else:
            high = middle
    return low


def _integer_loss(question: SizeQuestion, counts: Counts) -> float:
    """Capacity of these devices over that of the best split into fractions of instances, less 1."""
    model = sizing_model(question.profile, question.demand, question.slo)
    mu_p, mu_d = model.prefill.capacity, model.decode.capacity
    whole = min(counts.total("prefill") * mu_p, counts.total("decode") * mu_d)
    each = question.prefill_devices / mu_p + question.decode_devices / mu_d
    return max(0.0, 1.0 - whole * each / _devices(counts, question))


def _unsplit_devices(question: SizeQuestion) -> int | None:
    found = unsplit_instances(question.profile, question.demand, question.slo, MOST)
    return None if found is None else found * question.decode_devices


def _with_prompt(question: SizeQuestion, factor: float) -> SizeQuestion:
    demand = question.demand
    longer = replace(
        demand,
        prompt_tokens=demand.prompt_tokens * factor,
        uncached_tokens=demand.uncached_tokens * factor,
        uncached_squared=demand.uncached_squared * factor * factor,
    )
    return replace(question, demand=longer)


def _crossover(question: SizeQuestion) -> float | None:
    """Shortest prompt from which on splitting never takes more devices than not splitting.

    Lengths that neither can serve end the search.
    """
    found: float | None = None
    for step in range(LENGTHS_TRIED):
        length = SHORTEST * (LONGEST / SHORTEST) ** (step / (LENGTHS_TRIED - 1))
        varied = _with_prompt(question, length / max(question.demand.prompt_tokens, 1.0))
        split, unsplit = _fewest(varied), _unsplit_devices(varied)
        if split is None and unsplit is None:
            break
        pays = split is not None and (unsplit is None or split.devices <= unsplit)
        if not pays:
            found = None
        elif found is None:
            found = length
    return found


def _variations(question: SizeQuestion, counts: Counts) -> Iterable[SizeVariation]:
    slo, demand = question.slo, question.demand
    busier = replace(demand, rate=demand.rate * 1.2)
    tighter = replace(slo, ttft=slo.ttft * 0.8, handoff=slo.handoff * 0.8, tpot=slo.tpot * 0.8)
    varied = {
        "traffic +20 %": replace(question, demand=busier),
        "prompts +50 % longer": _with_prompt(question, 1.5),
        "answers +50 % longer": replace(
            question, demand=replace(demand, output_tokens=demand.output_tokens * 1.5)
        ),
        "SLO 20 % tighter": replace(question, slo=tighter),
    }
    for name, other in varied.items():
        kept = predicted_attainment(_predictor(other), counts, 1.0 - slo.attainment)
        yield SizeVariation(name, kept, _fewest(other))
    predict = _predictor(question)
    for role, less in (
        ("prefill", Counts(1, counts.total("prefill") - 1, counts.total("decode"))),
        ("decode", Counts(1, counts.total("prefill"), counts.total("decode") - 1)),
    ):
        yield SizeVariation(
            f"one {role} less", predicted_attainment(predict, less, 1.0 - slo.attainment), None
        )
