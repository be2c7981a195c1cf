"""Fast arithmetic is the same model as exact arithmetic but for rounding, and shares its KV."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.engine_requests import PATH
from tests.support.engines import Client
from tests.support.model_runs import Memory, prompt, textbook_logits

from pdserve.refengine.config import parse
from pdserve.refengine.model import fast
from pdserve.refengine.model.arithmetic import EXACT, FAST
from pdserve.refengine.model.loader import LoadedModel, load_model
from pdserve.refengine.model.plan import Rows
from pdserve.wire import calls

NEAR = 2e-4
LENGTHS = (1, 3, 31, 32, 33, 64, 90, 128, 17, 200)


@pytest.fixture(scope="module")
def quick() -> LoadedModel:
    return load_model(None, FAST)


def members(memory: Memory) -> list[Rows]:
    """Prompts of many lengths."""
    return [Rows(prompt(n, seed=n), 0, memory.table(n + 1), True) for n in LENGTHS]


def following(prompts: list[Rows], late: Rows) -> list[Rows]:
    """One token more of each, and a prompt that begins in the midst of them."""
    more = np.asarray([77], np.int32)
    made = [Rows(more, len(r.tokens), r.table, True) for r in prompts]
    return [*made[:4], late, *made[4:]]


def two_steps(first: LoadedModel, second: LoadedModel, seed: int) -> tuple[Any, Any]:
    """Logits of prompts computed by one model, and of what follows by another on the same KV."""
    memory = Memory(first, seed)
    prompts = members(memory)
    late = Rows(prompt(150, seed=99), 0, memory.table(150), True)
    begun = first.llama.step(prompts, memory.pool)
    return begun, second.llama.step(following(prompts, late), memory.pool)


@pytest.mark.parametrize("length", [1, 33, 100])
def test_logits_are_those_of_the_textbook(length: int, quick: LoadedModel) -> None:
    tokens, memory = prompt(length), Memory(quick, 1)
    got = quick.llama.step([Rows(tokens, 0, memory.table(length), True)], memory.pool)[0]
    np.testing.assert_allclose(got, textbook_logits(quick, tokens), rtol=NEAR, atol=NEAR)


@pytest.mark.parametrize("most", [1, 5000, fast.CACHED_FLOATS])
@pytest.mark.parametrize("prefill", ["exact", "fast"])
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_either_goes_on_from_the_others_kv(
    most: int, prefill: str, decode: str, model: LoadedModel, quick: LoadedModel, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fast, "CACHED_FLOATS", most)  # One sequence in a group, some, all.
    by_name = {"exact": model, "fast": quick}
    want = two_steps(model, model, 5)
    got = two_steps(by_name[prefill], by_name[decode], 6)  # Other old values, other blocks.
    for mine, exact in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=NEAR, atol=NEAR)


@pytest.mark.parametrize("chunk", [1, 8, 33, 64, 65])
def test_chunks_give_the_whole(chunk: int, quick: LoadedModel) -> None:
    tokens, memory = prompt(150), Memory(quick, chunk)
    table = memory.table(150)
    for start in range(0, 150, chunk):
        part = Rows(tokens[start : start + chunk], start, table, start + chunk >= 150)
        got = quick.llama.step([part], memory.pool)
    np.testing.assert_allclose(got[0], textbook_logits(quick, tokens), rtol=NEAR, atol=NEAR)


def test_members_without_logits_give_none(quick: LoadedModel) -> None:
    memory = Memory(quick, 3)
    rows = Rows(prompt(40), 0, memory.table(40), False)
    assert quick.llama.step([rows], memory.pool).shape == (0, quick.config.vocab)


def test_exact_is_the_default_and_the_same_model(model: LoadedModel, quick: LoadedModel) -> None:
    assert parse([], {}).arithmetic == EXACT
    assert parse(["--arithmetic", "fast"], {}).arithmetic == FAST
    assert quick.fingerprint == model.fingerprint
    assert (quick.numerics, model.numerics == "fast") == ("fast", False)


def test_other_arithmetic_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        parse(["--arithmetic", "bfloat16"], {})
    assert "invalid choice: 'bfloat16' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("prefill", ["exact", "fast"])
async def test_processes_serve_it(
    prefill: str, client: Client, start_group: Any, quick: LoadedModel
) -> None:
    group = await start_group(("--arithmetic", prefill), ("--arithmetic", "fast", "--slots", "8"))
    infos = [
        (await client.call("GET", e.url + calls.PATH_INFO)).body["numerics"]
        for e in (*group.prefills, *group.decodes)
    ]
    assert [name == "fast" for name in infos] == [prefill == "fast", True]
    tokens = prompt(70)
    body = {"model": "reference", "prompt": [int(t) for t in tokens], "max_tokens": 8,
            "temperature": 0, "ignore_eos": True, "logprobs": 1}  # fmt: skip
    reply = await group.generate(PATH, body)
    assert reply.body["usage"]["completion_tokens"] == 8
    logits = textbook_logits(quick, tokens)
    chance = logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert reply.body["choices"][0]["logprobs"]["token_logprobs"][0] == pytest.approx(
        chance, abs=1e-3
    )
