"""Conversations to prompts: the model's own chat template, rendered as Hugging Face does it.

A template is Jinja that comes with the model, so it runs in Jinja's immutable sandbox. What it
writes becomes pieces: special tokens, and text between them. Special tokens that stand in a user's
text stay text: they are hidden from the template's output behind private-use characters.

`strftime_now` is not offered: prefill and decode must render the same prompt, also at midnight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pdserve.refengine.model.tensors import WeightsError
from pdserve.terms.json import JsonMap, JsonObject

_PRIVATE: Final = (0x100000, 0x10FFFD)
"""First and last character of Unicode's second supplementary private-use area."""
_HIDE_ALWAYS = f"[{chr(_PRIVATE[0])}-{chr(_PRIVATE[1])}]"

ROLE_TOKENS: Final = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' ~ m.role ~ '|>' if '<|' ~ m.role ~ '|>' in special_tokens else '<|user|>' }}"
    "{{ m.content }}{{ eos_token }}{% endfor %}<|assistant|>"
)
CHAT_ML: Final = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant{{ '\n' }}"
)
PLAIN: Final = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
)


class ChatTemplateError(ValueError):
    """The template does not render this conversation; the message is the template's own."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn: role (system, user, assistant) and text."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template of one model."""

    def __init__(
        self, source: str, special: Mapping[str, int], *, bos: str = "", eos: str = ""
    ) -> None:
        """Compile it.

        Args:
            source: Jinja.
            special: token ids of special tokens, by their text.
            bos: text of the token that begins a prompt; "" without one.
            eos: text of the token that ends a turn; "" without one.

        Raises:
            WeightsError: the template is not valid Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise WeightsError(f"chat template: {error}") from error
        self._special = special
        self._given: JsonMap = {
            "bos_token": bos, "eos_token": eos, "special_tokens": tuple(special),
            "add_generation_prompt": True,
        }  # fmt: skip
        listed = sorted(special, key=len, reverse=True)
        self._split = re.compile("|".join(["(?!)", *(f"({re.escape(s)})" for s in listed)]))
        self._hidden = re.compile("|".join([_HIDE_ALWAYS, *map(re.escape, listed)]))

    def tokens(
        self, messages: Iterable[ChatMessage], encode: Callable[[str], Sequence[int]]
    ) -> list[int]:
        """The prompt of a conversation, up to where the assistant is to speak.

        Args:
            messages: the turns, oldest first.
            encode: tokens of a text without special tokens.

        Raises:
            ChatTemplateError: the template refuses the conversation, or fails on it.
        """
        hidden: dict[str, str] = {}
        turns = [
            {"role": m.role, "content": self._hidden.sub(lambda f: _hide(hidden, f[0]), m.content)}
            for m in messages
        ]
        try:
            text = self._template.render(messages=turns, **self._given)
        except (TemplateError, SecurityError, TypeError, ValueError, ArithmeticError,
                LookupError, AttributeError, RecursionError) as error:  # fmt: skip
            raise ChatTemplateError(str(error) or type(error).__name__) from error
        shown = {ord(stand_in): original for original, stand_in in hidden.items()}
        found: list[int] = []
        start = 0
        for match in self._split.finditer(text):
            found += self._plain(text[start : match.start()], shown, encode)
            found.append(self._special[match[0]])
            start = match.end()
        return found + self._plain(text[start:], shown, encode)

    def _plain(
        self, text: str, shown: Mapping[int, str], encode: Callable[[str], Sequence[int]]
    ) -> list[int]:
        return list(encode(text.translate(shown))) if text else []


def tokenizer_settings(directory: Path) -> JsonObject:
    """Content of `tokenizer_config.json`; empty where a model directory has none.

    Raises:
        WeightsError: it is not a JSON object.
    """
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: not a JSON object")
    return found


def template_of(directory: Path) -> str | None:
    """The template that a model directory brings; None where it brings none.

    Raises:
        WeightsError: a file cannot be read, or its template has another form.
    """
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise WeightsError(f"{file}: {error}") from error
    found = tokenizer_settings(directory).get("chat_template")
    if isinstance(found, list):  # several by name
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise WeightsError(f"{directory}: chat_template is a {type(found).__name__}, not a text")
    return found


def default_template(special: Mapping[str, int]) -> str:
    """For a model that brings none: the form that its special tokens suggest."""
    if "<|assistant|>" in special:
        return ROLE_TOKENS
    if "<|im_start|>" in special and "<|im_end|>" in special:
        return CHAT_ML
    return PLAIN


def _hide(hidden: dict[str, str], text: str) -> str:
    """A private-use character that stands for `text`, the same one each time."""
    if text not in hidden:
        if _PRIVATE[0] + len(hidden) > _PRIVATE[1]:
            raise ChatTemplateError("too many different private-use characters")
        hidden[text] = chr(_PRIVATE[0] + len(hidden))
    return hidden[text]


def _to_json(value: object, indent: int | None = None) -> str:
    """As Hugging Face's templates expect it: no HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))
