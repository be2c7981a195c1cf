"""Sampling is a pure function of seed and position; text, stop strings and ends are exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pdserve.refengine.model.chat_template import ChatMessage
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.sampler import Sampled, SamplingParams, sample, uniform
from pdserve.refengine.runtime.output import Output
from pdserve.refengine.runtime.request import Finish, GenerationRequest, Replay

LOGITS = np.asarray([0.5, 2.0, 2.0, -1.0, 1.9], np.float32)


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    assert sample(LOGITS, SamplingParams(temperature=0), 7).token == 1
    assert sample(LOGITS, SamplingParams(temperature=0), 7, banned=(1,)).token == 2


def test_the_same_seed_and_position_give_the_same_token() -> None:
    params = SamplingParams(temperature=1.0, seed=5)
    first = [sample(LOGITS, params, p).token for p in range(50)]
    assert first == [sample(LOGITS, params, p).token for p in range(50)]
    assert first != [sample(LOGITS, replace(params, seed=6), p).token for p in range(50)]
    assert first != [sample(LOGITS, replace(params, choice=1), p).token for p in range(50)]


def test_frequencies_follow_the_distribution() -> None:
    params = SamplingParams(temperature=0.7, seed=1)
    count = np.bincount([sample(LOGITS, params, p).token for p in range(4000)], minlength=5)
    weights = np.exp(LOGITS.astype(np.float64) / 0.7)
    np.testing.assert_allclose(count / 4000, weights / weights.sum(), atol=0.03)


def test_uniform_numbers_are_uniform() -> None:
    numbers = np.asarray([uniform(3, 0, p) for p in range(4000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0], 400, atol=90)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.2}, {1}),
        ({"top_p": 0.5}, {1, 2}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
    ],
)
def test_truncation(changes: dict[str, Any], allowed: set[int]) -> None:
    params = replace(SamplingParams(temperature=2.0), **changes)
    assert {sample(LOGITS, params, p).token for p in range(600)} == allowed


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    params = SamplingParams(temperature=0.1, top_k=1, logprobs=2)
    got = sample(LOGITS, params, 0)
    want = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert got.logprob == pytest.approx(want[1])
    assert [t for t, _ in got.top] == [1, 2]
    assert got.top[1][1] == pytest.approx(want[2])


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🙂", "a\tb\n\n  c", "<|eos|> is text", ""])
def test_tokens_and_back(text: str, model: LoadedModel) -> None:
    tokens = model.tokenizer.encode(text)
    assert tokens[0] == model.config.bos
    assert not set(tokens[1:]) & set(model.tokenizer.special.values())
    stream = model.tokenizer.stream()
    assert "".join(stream.push(t) for t in tokens) + stream.finish() == text


def test_a_stream_never_shows_half_a_character(model: LoadedModel) -> None:
    stream = model.tokenizer.stream()
    pieces = [stream.push(t) for t in model.tokenizer.encode("🙂")]
    assert "".join(pieces) == "🙂" and "\ufffd" not in "".join(pieces)
    broken = model.tokenizer.stream()
    assert broken.push(model.tokenizer.encode("🙂")[1]) + broken.finish() == "\ufffd"


def test_chat_template(model: LoadedModel) -> None:
    special = model.tokenizer.special
    tokens = model.tokenizer.encode_chat([ChatMessage("system", "a"), ChatMessage("user", "b")])
    marks = [t for t in tokens if t in special.values()]
    names = ("<|bos|>", "<|system|>", "<|eos|>", "<|user|>", "<|eos|>", "<|assistant|>")
    assert marks == [special[n] for n in names]


def output(model: LoadedModel, **changes: Any) -> Output:
    request = GenerationRequest("r", (5,), SamplingParams(), max_tokens=100, eos=model.config.eos)
    return Output(replace(request, **changes), model.tokenizer.stream(), 2048)


def run(out: Output, tokens: list[int]) -> tuple[list[str], Finish | None]:
    pieces = []
    for token in tokens:
        event = out.push(Sampled(token))
        pieces.append(event.text)
        if event.finish is not None:
            return pieces, event.finish
    return pieces, None


STOPS = [
    (("STOP",), "one two STOP three", "one two ", Finish.STOP),
    (("ST", "STOP"), "one STOP", "one ", Finish.STOP),
    (("two", "one"), "one two", "", Finish.STOP),
    (("xyz",), "one xy two", "one xy two", None),
    (("\n\n",), "a\nb\n\nc", "a\nb", Finish.STOP),
]


@pytest.mark.parametrize(("stops", "text", "want", "finish"), STOPS)
def test_stop_strings(
    stops: tuple[str, ...], text: str, want: str, finish: Finish | None, model: LoadedModel
) -> None:
    tokens = model.tokenizer.encode(text)[1:]
    # Also when each token is one byte, so that a stop string spans many tokens.
    single = [model.tokenizer.encode(c)[1:] for c in text]
    for form in (tokens, [t for group in single for t in group]):
        pieces, got = run(output(model, stop_strings=stops), form)
        assert got is finish
        assert "".join(pieces) == want or finish is None
    if finish is None:
        assert want.startswith("".join(pieces))


@pytest.mark.parametrize("text", ["one xy two xyz", "a🙂b🙂🙂", "é\nxyx", "plain"])
def test_replayed_tokens_leave_what_the_rest_of_the_text_needs(
    text: str, model: LoadedModel
) -> None:
    """Text that is held back, and characters cut in the middle, at every token."""
    single = [t for c in text for t in model.tokenizer.encode(c)[1:]]
    whole = output(model, stop_strings=("xyz",))
    events = []
    for token in single:
        events.append(whole.push(Sampled(token)))
        if events[-1].finish:
            break
    for cut in range(1, len(events)):
        replay = Replay(tuple(single[:cut]), "r", 1, 0)
        prompt = (5, *single[:cut])
        rest = output(model, stop_strings=("xyz",), prompt=prompt, replay=replay)
        assert rest.count == cut
        assert [rest.push(Sampled(t)) for t in single[cut : len(events)]] == events[cut:]


def test_replayed_tokens_count_against_both_limits(model: LoadedModel) -> None:
    replay = Replay((50, 51), "r", 1, 0)
    short = output(model, prompt=(5, 50, 51), replay=replay, max_tokens=3, min_tokens=3)
    assert short.banned()
    assert short.push(Sampled(52)).finish is Finish.LENGTH


def test_held_back_text_comes_with_the_last_token(model: LoadedModel) -> None:
    tokens = model.tokenizer.encode("wait for xy")[1:]
    pieces, finish = run(output(model, stop_strings=("xyz",), max_tokens=len(tokens)), tokens)
    assert "".join(pieces) == "wait for xy" and finish is Finish.LENGTH


def test_ends(model: LoadedModel) -> None:
    eos = model.config.eos[0]
    assert run(output(model), [50, eos])[1] is Finish.STOP
    assert run(output(model, ignore_eos=True), [50, eos, 50])[1] is None
    assert run(output(model, stop_tokens=(60,)), [50, 60])[1] is Finish.STOP
    assert run(output(model, max_tokens=2), [50, 51, 52])[1] is Finish.LENGTH
    waiting = output(model, min_tokens=2, stop_tokens=(60,))
    assert waiting.banned() == (eos, 60)
    run(waiting, [50, 51])
    assert waiting.banned() == ()
