"""K7.10: A parameter that would change the answer and is not implemented is refused by name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from pdserve.http1.errors import ApiError
from pdserve.refengine.api import openai, parameters
from pdserve.refengine.model.loader import LoadedModel

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "parameters.md"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
LIMITS = openai.RequestLimits("both", "m", 2048, 1 << 20)


def read(model: LoadedModel, **fields: Any) -> openai.RequestDraft:
    draft = openai.read("chat", orjson.dumps(CHAT | fields), model, LIMITS)
    draft.request("r", None, draft.tokenise())
    return draft


CHANGES: dict[str, Any] = {
    "guided_json": {"type": "object"}, "guided_regex": "[0-9]+", "guided_choice": ["a"],
    "guided_grammar": "x", "guided_whitespace_pattern": "x", "structured_outputs": {"choice": []},
    "bad_words": ["Return"], "allowed_token_ids": [5], "length_penalty": 2.0,
    "use_beam_search": True, "truncate_prompt_tokens": 2, "include_stop_str_in_output": True,
    "skip_special_tokens": False, "spaces_between_special_tokens": False,
    "add_generation_prompt": False, "continue_final_message": True, "chat_template": "{{x}}",
    "documents": [{"t": "x"}], "tools": [{"type": "function"}], "tool_choice": "required",
    "modalities": ["audio"], "audio": {"voice": "x"}, "reasoning_effort": "high",
    "web_search_options": {}, "top_a": 0.5, "typical_p": 0.2, "mirostat": 2, "xgrammar": 1,
    "temprature": 0.1, "max_token": 1, "Temperature": 1, "repetition_penalty": 1.2,
    "verbosity": "low", "thinking": {"type": "enabled"}, "logits_processors": ["x"],
    "return_token_ids": True, "n": 2, "response_format": {"type": "json_object"},
    "function_call": {"name": "f"}, "prompt_logprobs": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_refused_by_name(name: str, model: LoadedModel) -> None:
    with pytest.raises(ApiError) as raised:
        read(model, **{name: CHANGES[name]})
    assert (raised.value.status, raised.value.param) == (400, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("presence_penalty", False), ("repetition_penalty", True), ("n", True), ("early_stopping", 0)],
)
def test_a_value_of_another_type_is_not_the_neutral_one(
    name: str, value: object, model: LoadedModel
) -> None:
    with pytest.raises(ApiError) as raised:
        read(model, **{name: value})
    assert (raised.value.status, raised.value.param) == (400, name)


PASSES: dict[str, Any] = {
    "tools": [], "tool_choice": "none", "functions": [], "user": "u", "metadata": {"a": "b"},
    "store": True, "service_tier": "flex", "parallel_tool_calls": False, "logit_bias": {},
    "response_format": {"type": "text"}, "modalities": ["text"], "n": 1, "presence_penalty": 0.0,
    "stop": [], "prediction": {"type": "content", "content": "x"}, "priority": 5,
    "my_trace": {"deep": [1]}, "session": "s", "x": None,
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_what_cannot_change_the_answer_passes(name: str, model: LoadedModel) -> None:
    read(model, **{name: PASSES[name]})


OPTIONAL = sorted((parameters.USED | set(parameters.REFUSED)) - {"model", "messages"})


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_is_absence(name: str, model: LoadedModel) -> None:
    assert read(model, **{name: None}).options == read(model).options


def test_parts_of_a_message(model: LoadedModel) -> None:
    empty: list[Any] = [None, "", []]
    for content in empty:
        read(model, messages=[{"role": "user", "content": content}])
    read(model, messages=[{"role": "assistant", "tool_calls": []}, *CHAT["messages"]])
    for part in ("tool_calls", "function_call", "audio"):
        said = {"role": "assistant", "content": None, part: [{"id": "1"}]}
        with pytest.raises(ApiError) as raised:
            read(model, messages=[said])
        assert raised.value.param == f"messages[0].{part}"


def test_many_unknown_fields_cost_little(model: LoadedModel) -> None:
    begin = time.process_time()
    with pytest.raises(ApiError, match="at most 16 fields may be unknown"):
        read(model, **{f"field_of_mine_{n}" + "x" * 500: n for n in range(500)})
    assert time.process_time() - begin < 2


def test_the_page_names_every_field() -> None:
    page = PAGE.read_text()
    for name in (*parameters.USED, *parameters.HARMLESS, *parameters.FAMILIES):
        assert f"`{name}`" in page
    for name, (_, why) in parameters.REFUSED.items():
        assert f"| `{name}` |" in page and f"| {why} |" in page
