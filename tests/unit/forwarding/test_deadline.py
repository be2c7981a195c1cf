"""Deadlines, and what is learned of the length of prompts and of prefills."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.forwarding.deadline import (
    PrefillTimes,
    PromptSize,
    TokenEstimate,
    admission_deadline,
    predict_prefill,
    prompt_size,
)


def test_admission_deadline_leaves_time_for_prefill() -> None:
    predicted = predict_prefill((0.1, 0.001), 400)
    assert predicted == pytest.approx(0.5)
    assert admission_deadline(10.0, 1.0, predicted) == pytest.approx(10.475)
    assert admission_deadline(10.0, 1.0, predict_prefill(None, 400)) == 11.0


def test_tokens_per_byte_are_learned_and_ids_are_exact() -> None:
    estimate = TokenEstimate()
    text = prompt_size({"prompt": "x" * 1000})
    for _ in range(60):
        estimate.learn(text, 500)
    assert estimate.tokens(text) == pytest.approx(500, rel=0.05)
    assert estimate.tokens(prompt_size({"prompt": [1, 2, 3]})) == 3
    chat = prompt_size(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "abcd"}]},
                      {"role": "user", "content": "ef"}, {"role": "assistant", "content": None}]}
    )  # fmt: skip
    assert (chat.text, chat.messages) == (6, 3)
    assert prompt_size({"prompt": "\u00e9\U0001f600"}).text == 6


def test_many_empty_messages_teach_what_a_message_costs_and_not_what_a_byte_does() -> None:
    estimate = TokenEstimate()
    for _ in range(30):
        estimate.learn(PromptSize(4000), 1000)
    for _ in range(200):
        estimate.learn(PromptSize(300, messages=300), 300 * 13)
    assert estimate.tokens(PromptSize(4000)) == pytest.approx(1000, rel=0.3)
    assert estimate.tokens(PromptSize(300, messages=300)) == pytest.approx(3900, rel=0.2)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**22), st.integers(0, 10**5), st.integers(0, 10**5),
            st.integers(0, 2**31),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_estimates_stay_in_their_bounds_whatever_is_seen(
    seen: list[tuple[int, int, int, int]],
) -> None:
    estimate = TokenEstimate()
    for text, ids, messages, tokens in seen:
        estimate.learn(PromptSize(text, ids, messages), tokens)
        assert 0.05 <= estimate.per_byte <= 2.0
        assert 0.0 <= estimate.per_message <= 64.0


def test_what_was_wrongly_learned_is_forgotten() -> None:
    estimate = TokenEstimate()
    for _ in range(500):
        estimate.learn(PromptSize(4000), 8000)
    assert estimate.per_byte > 1.8
    for _ in range(250):
        estimate.learn(PromptSize(1000), 250)
    assert estimate.per_byte < 0.5


def test_only_what_was_measured_refuses_a_length() -> None:
    times = PrefillTimes()
    assert not times.too_long(10_000, 0.5)
    for seconds in (9.0, 2.0, 2.0):
        assert not times.too_long(10_000, 0.5), "once or twice may have been a cold start"
        times.learn(10_000, seconds)
    assert times.too_long(10_000, 0.5)
    assert times.too_long(40_000, 0.5)
    assert not times.too_long(4_000, 0.5)
    assert not times.too_long(10_000, 2.5)
    times.learn(10_000, 0.3)
    assert not times.too_long(10_000, 0.5), "one that was fast enough is enough"
    assert times.at_most(10_000) == times.at_most(100) == 0.3
    assert times.at_most(20_000) == float("inf")


def test_until_any_are_seen_a_byte_is_a_quarter_of_a_token_and_a_message_eight() -> None:
    assert TokenEstimate().tokens(PromptSize(100, 7, 2)) == 25 + 7 + 16


TIMES = [
    ("the same length", 1024, 1024, True),
    ("less than the root of two longer", 1024, 1400, True),
    ("more than it longer", 1024, 1500, False),
    ("shorter", 1024, 100, True),
    ("one token and none", 1, 0, True),
    ("two tokens are more than one", 1, 2, False),
]


@pytest.mark.parametrize(
    ("seen", "asked", "known"), [t[1:] for t in TIMES], ids=[t[0] for t in TIMES]
)
def test_prefills_of_a_length_bound_shorter_ones(seen: float, asked: float, known: bool) -> None:
    times = PrefillTimes()
    times.learn(seen, 0.5)
    assert times.at_most(asked) == (0.5 if known else float("inf"))


@pytest.mark.parametrize(
    ("asked", "want"), [(100, 0.3), (1024, 0.3), (4096, 0.3), (16384, 0.7), (32768, float("inf"))]
)
def test_a_longer_prompt_that_was_faster_bounds_a_shorter_one(asked: int, want: float) -> None:
    times = PrefillTimes()
    for length, seconds in ((1024, 0.5), (4096, 0.3), (16384, 0.7)):
        times.learn(length, seconds)
    assert times.at_most(asked) == want


def test_what_is_forgotten_of_prefill_times_and_what_refuses_a_length() -> None:
    times = PrefillTimes()
    for seconds in (0.1, 1.0, 1.0, 1.0):
        times.learn(1024, seconds)
    assert not times.too_long(1024, 0.5), "one of the last four was faster"
    times.learn(1024, 1.0)
    assert times.too_long(1024, 0.5)
    assert not times.too_long(1024, 1.0), "as long as there is"
    assert times.at_most(1024) == 1.0
