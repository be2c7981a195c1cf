"""The torch back-end is the same model but for rounding, and shares its KV with numpy's.

Needs the package torch, which is in no image and no environment of the tests:
docs/models.md#exact-fast-or-torch says how these tests were run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.engine_requests import PATH
from tests.support.engines import Client, EngineProcess
from tests.support.model_runs import Memory, prompt, textbook_logits

from pdserve.refengine.config import parse
from pdserve.refengine.kv.payload import gather, landing
from pdserve.refengine.model.arithmetic import Arithmetic
from pdserve.refengine.model.loader import BUILT_IN, LoadedModel, load_model
from pdserve.refengine.model.model_files import read_model
from pdserve.refengine.model.plan import Rows
from pdserve.refengine.model.tensors import WeightsError
from pdserve.wire import calls

pytest.importorskip("torch", reason="the torch back-end needs the package torch (extra `torch`)")

FLOAT32 = Arithmetic("fast", "torch", device="cpu")
BFLOAT16 = Arithmetic("fast", "torch", "bfloat16", device="cpu")
NEAR = {"float32": 2e-4, "bfloat16": 0.15}
"""Most that a logit may be off."""
LENGTHS = (1, 3, 31, 32, 33, 64, 90, 128, 17, 200)
MARGIN = 4
"""A token may differ where the two best are nearer than so many times the logits' error."""


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def torched(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(None, {"float32": FLOAT32, "bfloat16": BFLOAT16}[request.param])


def near(model: LoadedModel) -> float:
    return NEAR[model.computes.split(", ")[1]]


def apart(arithmetic: Arithmetic) -> LoadedModel:
    """The built-in model with KV in memory of its own, as on a GPU."""
    from pdserve.refengine.model.torch_llama import TorchLlama

    files = read_model(BUILT_IN)
    plain = load_model(None, arithmetic)
    llama = TorchLlama(files.config, files.tensors, arithmetic, mirrored=True)
    return LoadedModel(
        plain.config, llama, plain.tokenizer, plain.fingerprint, plain.numerics,
        plain.computes, llama.mirror,
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 33, 100, 300])
def test_logits_are_those_of_the_textbook(length: int, torched: LoadedModel) -> None:
    tokens, memory = prompt(length), Memory(torched, 1)
    got = torched.llama.step([Rows(tokens, 0, memory.table(length), True)], memory.pool)[0]
    want = textbook_logits(torched, tokens)
    np.testing.assert_allclose(got, want, rtol=near(torched), atol=near(torched))
    assert got.dtype == np.float32


def two_steps(first: LoadedModel, second: LoadedModel, seed: int) -> tuple[Any, Any]:
    """Logits of prompts of many lengths by one model, and of what follows by another.

    Among what follows begins another prompt. Both use one pool, and tell each other.
    """
    memory = Memory(first, seed)
    prompts = [Rows(prompt(n, seed=n), 0, memory.table(n + 1), True) for n in LENGTHS]
    begun = first.llama.step(prompts, memory.pool)
    every = list(range(1, 200))
    if first.mirror is not None:
        first.mirror.fetch(every)
    if second.mirror is not None:
        second.mirror.received(every)
    more = np.asarray([77], np.int32)
    singles = [Rows(more, len(r.tokens), r.table, True) for r in prompts]
    late = Rows(prompt(150, seed=99), 0, memory.table(150), True)
    return begun, second.llama.step([*singles[:4], late, *singles[4:]], memory.pool)


@pytest.mark.parametrize("where", ["in the pool", "apart"])
@pytest.mark.parametrize("order", ["numpy first", "torch first", "torch alone"])
def test_either_goes_on_from_the_others_kv(
    order: str, where: str, model: LoadedModel, torched: LoadedModel
) -> None:
    other = torched
    if where == "apart":
        other = apart(BFLOAT16 if near(torched) > 0.1 else FLOAT32)
    first, second = {
        "numpy first": (model, other), "torch first": (other, model), "torch alone": (other, other),
    }[order]  # fmt: skip
    want = two_steps(model, model, 5)
    got = two_steps(first, second, 6)  # Other old values, other blocks.
    for mine, exact in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=near(torched), atol=near(torched))


@pytest.mark.parametrize("chunk", [1, 33, 64, 257])
def test_chunks_give_the_whole(chunk: int, torched: LoadedModel) -> None:
    length = 300
    tokens, memory = prompt(length), Memory(torched, chunk)
    table = memory.table(length)
    for start in range(0, length, chunk):
        part = Rows(tokens[start : start + chunk], start, table, start + chunk >= length)
        got = torched.llama.step([part], memory.pool)
    want = textbook_logits(torched, tokens)
    np.testing.assert_allclose(got[0], want, rtol=near(torched), atol=near(torched))


def test_kv_moves_between_devices_through_what_is_handed_over(model: LoadedModel) -> None:
    """As a prefill and a decode do it: gathered out of one pool, landed in another's blocks."""
    prefill, decode = apart(FLOAT32), apart(FLOAT32)
    tokens = prompt(90)
    here, there, reference = Memory(prefill, 1), Memory(decode, 2), Memory(model, 3)
    table, other = here.table(91), there.table(91)
    # What the decode's device has of these blocks is another request's.
    decode.llama.step([Rows(prompt(91, seed=4), 0, other, False)], there.pool)
    prefill.llama.step([Rows(tokens, 0, table, True)], here.pool)
    assert prefill.mirror is not None
    assert decode.mirror is not None
    prefill.mirror.fetch([int(b) for b in table])
    data = gather(here.pool, [int(b) for b in table], 90, prefill.config).data
    for buffer in landing(there.pool, [int(b) for b in other], 90):
        buffer[:], data = data[: len(buffer)], data[len(buffer) :]
    decode.mirror.received([int(b) for b in other])
    more = [Rows(np.asarray([77], np.int32), 90, other, True)]
    got = decode.llama.step(more, there.pool)
    whole = reference.table(91)
    want = model.llama.step([Rows(np.append(tokens, np.int32(77)), 0, whole, True)], reference.pool)
    np.testing.assert_allclose(got, want, rtol=NEAR["float32"], atol=NEAR["float32"])


def test_an_unknown_device_is_refused_with_its_name() -> None:
    for name in ("cuda:77", "no-such-device"):
        with pytest.raises(WeightsError, match=f"device {name}: torch cannot use it here"):
            load_model(None, Arithmetic("fast", "torch", device=name))


def test_bfloat16_halves_the_weights() -> None:
    sizes = {}
    for arithmetic in (FLOAT32, BFLOAT16):
        llama: Any = load_model(None, arithmetic).llama
        sizes[arithmetic.dtype] = sum(m.nbytes for m in llama.matrices())
    assert sizes["bfloat16"] * 2 == sizes["float32"]


def first_difference(one: Any, two: Any) -> tuple[int, float] | None:
    """Where two answers part, and how far the two best tokens are apart there; None: nowhere."""
    a, b = (reply.body["choices"][0]["logprobs"] for reply in (one, two))
    for at, (mine, theirs) in enumerate(zip(a["tokens"], b["tokens"], strict=True)):
        if mine != theirs:
            best = sorted(a["top_logprobs"][at].values(), reverse=True)
            return at, best[0] - best[1]
    return None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_prefill_and_decode_answer_as_one_engine_does(
    dtype: str, client: Client, start: Any, start_group: Any, model: LoadedModel
) -> None:
    """Design's rule: they may part only where the two best tokens are nearer than 4 errors."""
    flags = ("--backend", "torch", "--dtype", dtype, "--device", "cpu")
    assert parse(flags, {}).arithmetic.backend == "torch"
    group = await start_group(flags, (*flags, "--slots", "8"))
    one = await start(EngineProcess("both", flags))
    info = (await client.call("GET", one.url + calls.PATH_INFO)).body
    assert info["computes"] == f"torch, {dtype}, cpu"
    memory = Memory(model, 1)
    torched = load_model(None, FLOAT32 if dtype == "float32" else BFLOAT16)
    error = max(
        np.abs(
            torched.llama.step([rows], memory.pool) - model.llama.step([rows], memory.pool)
        ).max()
        for rows in (Rows(prompt(60, seed=n), 0, memory.table(60), True) for n in range(4))
    )
    parted = []
    for seed in range(8):
        body = {"model": "reference", "prompt": [int(t) for t in prompt(70, seed)],
                "max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 2}  # fmt: skip
        answer = await client.call("POST", one.url + PATH, body)
        found = first_difference(await group.generate(PATH, body), answer)
        if found is not None:
            parted.append((seed, *found))
    print(f"{dtype}: logits are off by {error:.2g} at most; parted: {parted}")
    assert all(margin < MARGIN * error for _, _, margin in parted), (parted, error)
