"""What the simulation reads out of objects that a step may have overwritten."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.dst.route_tables import routed_ids


@pytest.mark.parametrize(
    ("table", "ids"),
    [
        ({"scenarios": [{"groups": [{"instances": [{"id": "p"}, {"id": "d"}]}]}]}, ["p", "d"]),
        ({"scenarios": [{"groups": [{"instances": [{"id": ["p"]}]}]}]}, ["['p']"]),
        ({}, []),
        ({"scenarios": 9223372036854775807}, []),
        ({"scenarios": [5]}, []),
        ({"scenarios": [{"groups": None}]}, []),
        ({"scenarios": [{"groups": [{"instances": [{}]}]}]}, []),
    ],
)
def test_a_content_that_is_no_table_routes_nothing(table: dict[str, Any], ids: list[str]) -> None:
    assert routed_ids(table) == ids
