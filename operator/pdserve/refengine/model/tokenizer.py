"""Text to tokens and back: byte-level BPE from a `tokenizer.json`.

Encoding uses `tokenizers`; text of users is never turned into special tokens. Decoding is ours,
because a stream must emit only complete UTF-8 characters: token -> bytes -> incremental decoder.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as Backend

from pdserve.refengine.model.chat_template import (
    ChatMessage,
    ChatTemplate,
    default_template,
    template_of,
    tokenizer_settings,
)
from pdserve.refengine.model.tensors import WeightsError
from pdserve.terms.json import JsonObject


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable alphabet for bytes, reversed (openai/gpt-2 encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    shifted = (b for b in range(256) if b not in set(plain))
    return table | {chr(256 + n): b for n, b in enumerate(shifted)}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a model's tokenizer is made of, and where that comes from."""

    path: Path
    document: JsonObject
    """`tokenizer.json`."""
    settings: JsonObject
    """`tokenizer_config.json`."""
    template: str | None
    """The chat template; None where the model brings none."""


def tokenizer_files(path: Path) -> TokenizerFiles:
    """Read a `tokenizer.json` and what stands beside it.

    Raises:
        WeightsError: a file cannot be read.
    """
    try:
        document: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    settings = tokenizer_settings(path.parent)
    return TokenizerFiles(path, document, settings, template_of(path.parent))


def _begins_with_bos(files: TokenizerFiles) -> bool:
    """Whether prompts begin with the model's BOS: as its files say, else yes."""
    said = files.settings.get("add_bos_token")
    if said is not None:
        return bool(said)
    processor = files.document.get("post_processor")
    return processor is None or "SpecialToken" in json.dumps(processor.get("single"))


class Tokenizer:
    """Encoder, decoder and chat template of one model."""

    def __init__(
        self,
        source: Path | TokenizerFiles,
        bos: int | None,
        vocab_size: int,
        eos: Sequence[int] = (),
    ) -> None:
        """Make it.

        Args:
            source: a `tokenizer.json`, or what was read of one.
            bos: id of the token that begins every prompt; None without one.
            vocab_size: number of token ids that the model knows.
            eos: ids of tokens that end an output; the first one ends a turn.

        Raises:
            WeightsError: the file cannot be read, or is no byte-level BPE of that size.
        """
        files = source if isinstance(source, TokenizerFiles) else tokenizer_files(source)
        path, document = files.path, files.document
        try:
            self._backend = Backend.from_str(json.dumps(document))
        except Exception as error:  # `tokenizers` raises bare Exception for a bad document.
            raise WeightsError(f"{path}: {error}") from error
        if "ByteLevel" not in json.dumps(document.get("decoder")):
            raise WeightsError(f"{path}: decoder is not ByteLevel; only byte-level BPE is known")
        # Text such as "<|eos|>" in a prompt stays text.
        self._backend.encode_special_tokens = True
        vocab = self._backend.get_vocab(with_added_tokens=True)
        if max(vocab.values()) >= vocab_size:
            raise WeightsError(
                f"{path}: ids up to {max(vocab.values())}, the model has {vocab_size}"
            )
        added = document.get("added_tokens", [])
        self.special = {t["content"]: int(t["id"]) for t in added}
        plain = {t["content"] for t in added if not t.get("special", True)}
        texts = {number: text for text, number in self.special.items()}
        self._template = ChatTemplate(
            files.template or default_template(self.special),
            {text: number for text, number in self.special.items() if text not in plain},
            bos="" if bos is None else texts.get(bos, ""),
            eos=texts.get(eos[0], "") if eos else "",
        )
        self.bos = bos if _begins_with_bos(files) else None
        letters = _byte_of_character()
        special_ids = set(self.special.values())
        self._bytes = [b""] * vocab_size
        for text, token in vocab.items():
            if token not in special_ids:
                self._bytes[token] = bytes(letters[c] for c in text if c in letters)

    def encode(self, text: str) -> list[int]:
        """Tokens of a completion prompt, beginning with BOS where the model has one."""
        return [*self._start(), *self._plain(text)]

    def encode_chat(self, messages: Iterable[ChatMessage]) -> list[int]:
        """Tokens of a conversation, ending where the assistant is to speak.

        Raises:
            ChatTemplateError: the model's template refuses it.
        """
        return self._template.tokens(messages, self._plain)

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token, at least 1."""
        return max(1, *map(len, self._bytes))

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes of one token id, possibly a part of a character; empty for special tokens."""
        return self._bytes[token]

    def stream(self) -> TextStream:
        """A decoder for one output."""
        return TextStream(self)

    def _start(self) -> list[int]:
        return [] if self.bos is None else [self.bos]

    def _plain(self, text: str) -> list[int]:
        # `encode` would keep the GIL, a batch of one gives it up; offsets are not needed.
        return list(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)


class TextStream:
    """Incremental detokeniser: text so far never ends inside a UTF-8 character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that became certain with this token id; "" within a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left (a replacement character for an unfinished one)."""
        return self._decoder.decode(b"", final=True)
