"""The forward pass is Llama, and its bits do not depend on batching, chunking or block ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.model_runs import Memory, prompt, textbook_logits

from pdserve.refengine.kv.payload import gather, landing
from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.model.kernels import MAX_PRODUCT, TiledLinear, pad_tiles
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.model_config import BLOCK_TOKENS
from pdserve.refengine.model.plan import Rows
from pdserve.refengine.model.selftest import NotExactError, numerics_digest


def whole(model: LoadedModel, tokens: Any) -> Any:
    memory = Memory(model, 1)
    return model.llama.step([Rows(tokens, 0, memory.table(len(tokens)), True)], memory.pool)[0]


@pytest.mark.parametrize("length", [1, 7, 33, 100])
def test_logits_are_those_of_the_textbook(length: int, model: LoadedModel) -> None:
    tokens = prompt(length)
    np.testing.assert_allclose(
        whole(model, tokens), textbook_logits(model, tokens), rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("chunk", [1, 2, 7, 8, 9, 31, 32, 33, 64, 150])
def test_chunking_does_not_change_a_bit(chunk: int, model: LoadedModel) -> None:
    tokens = prompt(150)
    memory = Memory(model, chunk)
    table = memory.table(150)
    for start in range(0, 150, chunk):
        part = tokens[start : start + chunk]
        got = model.llama.step([Rows(part, start, table, True)], memory.pool)[0]
    assert np.array_equal(got, whole(model, tokens))


def test_neighbours_do_not_change_a_bit(model: LoadedModel) -> None:
    lengths = [1, 3, 32, 33, 64, 90, 128, 17, 200]
    prompts = [prompt(n, seed=n) for n in lengths]
    memory = Memory(model, 5)
    tables = [memory.table(n + 2) for n in lengths]
    everything = [Rows(p, 0, t, True) for p, t in zip(prompts, tables, strict=True)]
    together = model.llama.step(everything, memory.pool)
    for got, tokens in zip(together, prompts, strict=True):
        assert np.array_equal(got, whole(model, tokens))
    # Decode tokens of some beside a prompt chunk of another, in any order.
    extra = np.asarray([77], np.int32)
    late = prompt(70, seed=99)
    members = [Rows(extra, n, t, True) for n, t in zip(lengths, tables, strict=True)]
    members.insert(4, Rows(late, 0, memory.table(70), True))
    mixed = model.llama.step(members, memory.pool)
    assert np.array_equal(mixed[4], whole(model, late))
    for got, tokens in zip(np.delete(mixed, 4, axis=0), prompts, strict=True):
        assert np.array_equal(got, whole(model, np.concatenate([tokens, extra])))


def test_members_without_logits_give_none(model: LoadedModel) -> None:
    memory = Memory(model, 3)
    rows = Rows(prompt(40), 0, memory.table(40), False)
    assert model.llama.step([rows], memory.pool).shape == (0, model.config.vocab)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 95, 96, 100])
def test_kv_that_travelled_gives_the_same_bits(length: int, model: LoadedModel) -> None:
    tokens = prompt(length + 1)
    sender, receiver = Memory(model, 8), Memory(model, 9)
    table = sender.table(length)
    model.llama.step([Rows(tokens[:length], 0, table, False)], sender.pool)
    payload = gather(sender.pool, [int(b) for b in table], length, model.config)
    assert len(payload.data) == blocks_for(length) * BLOCK_TOKENS * model.config.kv_bytes_per_token
    blocks = receiver.table(length + 1)
    offset = 0
    for view in landing(receiver.pool, [int(b) for b in blocks], length):
        view[:] = payload.data[offset : offset + len(view)]
        offset += len(view)
    assert offset == len(payload.data)
    got = model.llama.step([Rows(tokens[length:], length, blocks, True)], receiver.pool)[0]
    assert np.array_equal(got, whole(model, tokens))


def test_payload_does_not_leak_what_was_in_the_block_before(model: LoadedModel) -> None:
    length = BLOCK_TOKENS + 3
    payloads = []
    for seed in (1, 2):
        memory = Memory(model, seed)
        table = memory.table(length)
        model.llama.step([Rows(prompt(length), 0, table, False)], memory.pool)
        payloads.append(gather(memory.pool, [int(b) for b in table], length, model.config))
    assert payloads[0].checksums == payloads[1].checksums


@pytest.mark.parametrize("shape", [(64, 48), (192, 320), (512, 192), (700, 1000), (1400, 130)])
def test_tiled_product(shape: tuple[int, int]) -> None:
    k, n = shape
    rng = np.random.default_rng(k)
    weight = rng.standard_normal((n, k), dtype=np.float32)
    x = rng.standard_normal((21, k), dtype=np.float32)
    linear = TiledLinear(weight)
    got = linear(pad_tiles(x)).reshape(-1, n)[:21]
    np.testing.assert_allclose(got, x @ weight.T, rtol=1e-3, atol=1e-3)
    assert all(a * b <= MAX_PRODUCT for a, b in linear.shapes())
    for row in range(21):
        alone = linear(pad_tiles(x[row : row + 1]))[0, 0]
        assert np.array_equal(alone, got[row])


def test_self_test_notices_a_product_that_depends_on_neighbours(model: LoadedModel) -> None:
    def contaminated(x: Any, w: Any) -> Any:
        return np.matmul(x, w) * (1 + 1e-7 * np.sign(x.sum()))

    with pytest.raises(NotExactError, match="exact mode is not possible"):
        numerics_digest(model.config, [(192, 320)], contaminated)


def test_self_test_is_repeatable_and_tells_other_arithmetic(model: LoadedModel) -> None:
    def other_cpu(x: Any, w: Any) -> Any:
        return np.matmul(x.astype(np.float64), w).astype(np.float32)

    shapes = [(192, 320), (512, 192)]
    assert numerics_digest(model.config, shapes) == numerics_digest(model.config, shapes[::-1])
    assert numerics_digest(model.config, shapes) != numerics_digest(model.config, shapes, other_cpu)
