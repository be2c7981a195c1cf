"""What is nested too deeply is cut out, and nothing else is changed."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.kube.deep import CUT, without_depths
from pdserve.kube.transport import read_object


def nested(levels: int, opening: str = '{"a":', closing: str = "}") -> bytes:
    return (opening * levels + "1" + closing * levels).encode()


def deepness(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((deepness(v) for v in inner), default=0)


@pytest.mark.parametrize("pair", [('{"a":', "}"), ("[", "]"), ('[{"b": ', "}]"), ('{"]":', "}")])
def test_the_deep_part_goes_and_its_neighbours_stay(pair: tuple[str, str]) -> None:
    deep = nested(2000, *pair)
    document = b'{"items": [{"n": 1}, ' + deep + b', {"n": "[{\\""}]}'
    value = orjson.loads(without_depths(document, 20))
    assert value["items"][0] == {"n": 1}
    assert value["items"][2] == {"n": '[{"'}
    assert deepness(value) == 20
    assert CUT.strip(b'"') in without_depths(document, 20)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=15,
)


@given(JSON, st.integers(1, 6))
def test_cutting_is_exact(value: Any, most: int) -> None:
    document = json.dumps(value).encode()

    def cut(inner: Any, left: int) -> Any:
        if not isinstance(inner, dict | list):
            return inner
        if left == 0:
            return json.loads(CUT)
        if isinstance(inner, dict):
            return {k: cut(v, left - 1) for k, v in inner.items()}
        return [cut(v, left - 1) for v in inner]

    assert json.loads(without_depths(document, most)) == cut(value, most)


@given(st.binary(max_size=100))
def test_any_bytes_come_to_an_end(document: bytes) -> None:
    without_depths(document, 3)


async def test_an_answer_with_a_deep_part_is_read() -> None:
    value = await read_object(b'{"items": [{"x": ' + nested(5000) + b'}, {"y": 2}]}')
    assert value["items"][1] == {"y": 2}
