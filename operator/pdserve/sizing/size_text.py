"""A `SizeAnswer` for people and for scripts."""

from __future__ import annotations

from pdserve.sizing.size import SizeAnswer, SizedCounts
from pdserve.terms.json import JsonObject


def answer_text(answer: SizeAnswer) -> str:
    """The answer in a few lines."""
    question, split = answer.question, answer.split
    slo, demand, counts = question.slo, question.demand, answer.split.counts
    prefills, decodes = counts.total("prefill"), counts.total("decode")
    lines = [
        f"{demand.rate:g} requests/s of {demand.prompt_tokens:.0f} + {demand.output_tokens:.0f} "
        f"tokens ({demand.uncached_tokens:.0f} to prefill); TTFT {slo.ttft * 1e3:g} ms, handoff "
        f"{slo.handoff * 1e3:g} ms, TPOT {slo.tpot * 1e3:g} ms for {slo.attainment:.1%}",
        f"profile: {question.profile.source}",
        "",
        f"size       {counts.groups} group{'s' * (counts.groups > 1)} of {counts.prefill} prefill "
        f"and {counts.decode} decode ({prefills}:{decodes}), {split.devices} devices",
        f"attains    {split.attainment:.2%} predicted; carries {answer.carried:.3g} requests/s "
        f"at {slo.attainment:.1%}",
    ]
    if not answer.enough:
        lines.append(f"TOO FEW    {question.available} devices do not meet the SLO; this is the "
                     "best use of them")  # fmt: skip
    lines += [
        f"decodes    at most {answer.batch_limit} requests at once on each, to meet TPOT",
        f"whole      {answer.integer_loss:.0%} of the capacity is lost because instances are whole",
        f"unsplit    {_unsplit(answer)}",
        "",
        f"{'what if':22} {'kept as is':>10}   needed",
    ]
    lines += [
        f"{v.name:22} {v.kept:>10.1%}   {_needed(v.needed) if v.needed else '-'}"
        for v in answer.variations
    ]
    return "\n".join(lines)


def _needed(sized: SizedCounts) -> str:
    return f"{sized.counts}, {sized.devices} devices, {sized.attainment:.1%}"


def _unsplit(answer: SizeAnswer) -> str:
    if answer.unsplit is None:
        first = "instances that do both do not meet the SLO"
    else:
        less = "split" if answer.split.devices <= answer.unsplit else "not split"
        first = f"{answer.unsplit} devices if instances do both: better {less}"
    if answer.crossover is None:
        return f"{first}; splitting saves devices at no prompt length"
    return f"{first}; splitting takes no more from prompts of {answer.crossover:.0f} tokens on"


def answer_json(answer: SizeAnswer) -> JsonObject:
    """The answer for scripts; times in seconds, shares 0 to 1."""
    demand, slo = answer.question.demand, answer.question.slo
    return {
        "demand": {
            "requestsPerSecond": demand.rate, "promptTokens": demand.prompt_tokens,
            "uncachedTokens": demand.uncached_tokens, "outputTokens": demand.output_tokens,
        },
        "slo": {"ttft": slo.ttft, "handoff": slo.handoff, "tpot": slo.tpot,
                "attainment": slo.attainment},
        "profile": answer.question.profile.source,
        "size": _sized_json(answer.split),
        "enough": answer.enough,
        "carriesRequestsPerSecond": round(answer.carried, 4),
        "decodeBatchLimit": answer.batch_limit,
        "integerLoss": round(answer.integer_loss, 4),
        "unsplitDevices": answer.unsplit,
        "crossoverPromptTokens": answer.crossover,
        "variations": [
            {"name": v.name, "attainmentAsIs": v.kept,
             "needed": None if v.needed is None else _sized_json(v.needed)}
            for v in answer.variations
        ],
    }  # fmt: skip


def _sized_json(sized: SizedCounts) -> JsonObject:
    counts = sized.counts
    return {
        "groups": counts.groups, "prefill": counts.prefill, "decode": counts.decode,
        "devices": sized.devices, "predictedAttainment": sized.attainment,
    }  # fmt: skip
