"""Reports an engine gives the operator: links to peers, and progress of a drain."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdserve.terms.json import JsonObject
from pdserve.wire.bounds import MAX_VERSION, Fields

MAX_CAPABILITY = 1000
MAX_GRANT = 256
OTHER_FIELDS = 64 << 10
"""Bytes of a body for everything but the prompt."""


def largest_body(max_prompt_bytes: int) -> int:
    """Bytes above which no request body holds a prompt that fits; 0 where that is not known.

    JSON spells a byte of text with at most six, and a token id with fewer than six for each byte
    of the longest token.
    """
    return 6 * max_prompt_bytes + OTHER_FIELDS if max_prompt_bytes else 0


@dataclass(frozen=True, slots=True)
class LinkReport:
    """Answer of `GET /pdserve/v1/links`.

    `version` is the newest peer table this process was given (0: none yet); `up` the peers whose
    link this process has verified under it; `down` maps the others to the last error.
    `credentials` is `wire.credentials.CAPABILITY` of engines that read grants, and `grant` the
    revision of the newest one they took; 0 and empty from older engines. `max_prompt_bytes`: no
    prompt whose text has more UTF-8 bytes fits into the context. `max_model_len`: tokens of the
    context, prompt and answer together. Either is 0 where the engine does not say.
    `pulls` of a decode lately, and `corrupt` ones among them, by prefill; empty elsewhere. Two
    reports that differ in `pulls` alone are equal: that more was pulled is no news.
    """

    version: int
    up: frozenset[str]
    down: dict[str, str]
    credentials: int = 0
    grant: str = ""
    max_prompt_bytes: int = 0
    max_model_len: int = 0
    pulls: dict[str, int] = field(default_factory=dict, compare=False)
    corrupt: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether a table was given and every link it demands is verified."""
        return self.version > 0 and not self.down

    def to_json(self) -> JsonObject:
        """Plain JSON value, keys in camelCase as on the wire."""
        return {
            "version": self.version,
            "up": sorted(self.up),
            "down": dict(self.down),
            "credentials": self.credentials,
            "grant": self.grant,
            **({"maxPromptBytes": self.max_prompt_bytes} if self.max_prompt_bytes else {}),
            **({"maxModelLen": self.max_model_len} if self.max_model_len else {}),
            **({"pulls": dict(self.pulls)} if self.pulls else {}),
            **({"corrupt": dict(self.corrupt)} if self.corrupt else {}),
        }

    @staticmethod
    def from_json(value: object) -> LinkReport:
        """Parse `to_json`'s value; fields of newer versions are ignored.

        Raises:
            WireError: a field is missing, has another type, or is out of its bounds.
        """
        report = Fields(value, "link report")
        return LinkReport(
            report.integer("version", high=MAX_VERSION),
            frozenset(report.texts("up")),
            report.text_map("down"),
            report.integer("credentials", 0, high=MAX_CAPABILITY),
            report.text("grant", "", most=MAX_GRANT),
            report.integer("maxPromptBytes", 0),
            report.integer("maxModelLen", 0),
            report.integer_map("pulls", {}),
            report.integer_map("corrupt", {}),
        )


@dataclass(frozen=True, slots=True)
class DrainReport:
    """Answer of `POST /pdserve/v1/drain`: what still runs here.

    `executing` requests in a batch, `holding` KV kept for a peer to pull, `streams` open replies.
    """

    executing: int
    holding: int
    streams: int

    @property
    def idle(self) -> bool:
        """Whether no request, KV block or read is left: the instance can go."""
        return self.executing == self.holding == self.streams == 0

    def to_json(self) -> JsonObject:
        """Plain JSON value, keys in camelCase as on the wire."""
        return {"executing": self.executing, "holding": self.holding, "streams": self.streams}

    @staticmethod
    def from_json(value: object) -> DrainReport:
        """Parse `to_json`'s value; fields of newer versions are ignored.

        Raises:
            WireError: a field is missing, no whole number, or negative.
        """
        report = Fields(value, "drain report")
        return DrainReport(
            report.integer("executing"), report.integer("holding"), report.integer("streams")
        )
