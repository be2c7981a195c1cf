"""Fields of a request body that the engine does not implement: which are refused, which ignored.

A field that would change the answer is refused unless its value means the same as its absence;
`null` always does. A field that cannot change the answer is ignored. An unknown field is refused if
its name looks like a misspelt one that matters, or belongs to a family that matters. Any other
unknown field is ignored, so that clients may send fields of their own.
docs/reference/parameters.md lists the same; a test compares the two.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

from pdserve.refengine.errors import field_error
from pdserve.terms.json import JsonMap
from pdserve.wire.calls import PARAM_KV

USED: Final = frozenset(
    {
        "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens",
        "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos",
        "logprobs", "top_logprobs", "stream", "stream_options", "cache_salt", PARAM_KV,
    }
)  # fmt: skip
"""Fields that `openai` reads."""

_PENALTIES = "penalties are not implemented"
_TOOLS = "tools are not implemented"
_GUIDED = "output cannot be constrained here"
_REASONING = "the model does not reason"
_TEXT = "output is text only"
_TEMPLATE = "the chat template is the model's own"
_CHOICES = "one choice per request; send several requests"

REFUSED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "presence_penalty": ((0,), _PENALTIES),
    "frequency_penalty": ((0,), _PENALTIES),
    "repetition_penalty": ((1,), _PENALTIES),
    "length_penalty": ((1,), _PENALTIES),
    "no_repeat_ngram_size": ((0,), _PENALTIES),
    "min_p": ((0,), "min_p is not implemented"),
    "top_a": ((0,), "top_a is not implemented"),
    "typical_p": ((1,), "typical_p is not implemented"),
    "mirostat": ((0,), "mirostat is not implemented"),
    "mirostat_mode": ((0,), "mirostat is not implemented"),
    "logit_bias": (({},), "logit_bias is not implemented"),
    "logits_processors": (([],), "logits processors are not implemented"),
    "bad_words": (([],), "bad_words is not implemented"),
    "allowed_token_ids": ((), "allowed_token_ids is not implemented"),
    "use_beam_search": ((False,), "beam search is not implemented"),
    "early_stopping": ((False,), "beam search is not implemented"),
    "best_of": ((1,), _CHOICES),
    "n": ((1,), _CHOICES),
    "echo": ((False,), "echo is not implemented"),
    "suffix": (("",), "suffix is not implemented"),
    "prompt_logprobs": ((), "prompt_logprobs is not implemented"),
    "tools": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "functions": (([],), "functions are not implemented"),
    "function_call": (("none", "auto"), "functions are not implemented"),
    "response_format": (({"type": "text"},), "only {'type': 'text'} is implemented"),
    "structured_outputs": ((), _GUIDED),
    "guided_json": ((), _GUIDED),
    "guided_regex": ((), _GUIDED),
    "guided_choice": ((), _GUIDED),
    "guided_grammar": ((), _GUIDED),
    "json_schema": ((), _GUIDED),
    "regex": ((), _GUIDED),
    "ebnf": ((), _GUIDED),
    "grammar": ((), _GUIDED),
    "modalities": ((["text"],), _TEXT),
    "audio": ((), _TEXT),
    "reasoning_effort": (("none",), _REASONING),
    "reasoning": (({},), _REASONING),
    "thinking": (({"type": "disabled"},), _REASONING),
    "verbosity": (("medium",), "verbosity is not implemented"),
    "web_search_options": ((), "the engine does not search"),
    "documents": (([],), _TEMPLATE),
    "chat_template": ((), _TEMPLATE),
    "chat_template_kwargs": (({},), _TEMPLATE),
    "add_generation_prompt": ((True,), _TEMPLATE),
    "continue_final_message": ((False,), _TEMPLATE),
    "prompt_embeds": ((), "prompts are text or token ids"),
    "truncate_prompt_tokens": ((), "prompts are not cut"),
    "include_stop_str_in_output": ((False,), "stop strings are left out"),
    "skip_special_tokens": ((True,), "special tokens are left out"),
    "spaces_between_special_tokens": ((True,), "special tokens are left out"),
    "return_token_ids": ((False,), "token ids are not returned"),
    "return_tokens_as_token_ids": ((False,), "token ids are not returned"),
    "lora_path": ((), "adapters are not implemented"),
}
"""Field -> (values that mean nothing beside `null`, why others are refused)."""

HARMLESS: Final = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "priority", "request_id", "parallel_tool_calls",
        "prediction", "include_reasoning", "add_special_tokens", "nvext",
    }
)  # fmt: skip
"""Known fields that are ignored: they cannot change the answer of this engine."""

FAMILIES: Final = ("guided_", "grammar", "penalty", "beam_", "mirostat", "logit", "_schema")
"""Parts of names of parameters that change the answer, whatever the engine they are meant for."""

SIMILAR: Final = 0.8
"""Names at least this alike (difflib's ratio) are taken for slips of the pen."""
MOST_SALT: Final = 512
MOST_UNKNOWN: Final = 16
"""Unknown fields of one body; comparing names takes time."""
_MESSAGE_REFUSED: Final = ("tool_calls", "function_call", "audio")

_MATTER: Final = tuple(sorted(USED | set(REFUSED)))


def check(body: JsonMap) -> None:
    """Refuse what would change the answer.

    Raises:
        ApiError: 400, with the field's name.
    """
    unknown = 0
    for name, value in body.items():
        if value is None or name in USED or name in HARMLESS:
            continue
        known = REFUSED.get(name)
        if known is not None:
            neutral, why = known
            if not any(_same(value, each) for each in neutral):
                raise field_error(name, value, why)
            continue
        unknown += 1
        _check_unknown(name, value, unknown)


def _same(value: object, neutral: object) -> bool:
    """Python takes False for 0 and True for 1; JSON does not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def cache_salt(body: JsonMap) -> bytes:
    """What keeps the cached blocks of this prompt apart from those of other salts.

    Raises:
        ApiError: 400, it is no text, empty or longer than `MOST_SALT` characters.
    """
    salt = body.get("cache_salt")
    if salt is None:
        return b""
    if not isinstance(salt, str) or not 0 < len(salt) <= MOST_SALT:
        raise field_error("cache_salt", salt, f"text of 1 to {MOST_SALT} characters is required")
    return salt.encode(errors="surrogatepass")


def check_message(path: str, message: JsonMap) -> None:
    """Refuse parts of a chat message that would be lost.

    Raises:
        ApiError: 400, with the field's name.
    """
    for name in _MESSAGE_REFUSED:
        if message.get(name):
            raise field_error(f"{path}.{name}", message[name], "only text is known")


def _check_unknown(name: str, value: object, number: int) -> None:
    shown = name[:64]
    if number > MOST_UNKNOWN:
        raise field_error(shown, value, f"at most {MOST_UNKNOWN} fields may be unknown")
    if any(part in shown.lower() for part in FAMILIES):
        raise field_error(shown, value, "the field is unknown and may change the answer")
    meant = difflib.get_close_matches(shown.lower(), _MATTER, n=1, cutoff=SIMILAR)
    if meant:
        raise field_error(shown, value, f"the field is unknown; is {meant[0]} meant?")
