"""Engine type Toy: the Reference engine's program under other paths, headers and series.

What an engine of another project looks like to pdserve: a package with four faces, announced by
the entry point beside it, and no line elsewhere.
"""


def toy_path(path: str) -> str:
    """`/v1/completions` -> `/toy/v1/completions`."""
    return f"/toy{path}"


def toy_header(name: str) -> str:
    """`x-pdserve-slots` -> `x-toy-slots`, `x-request-id` -> `x-toy-request-id`."""
    return f"x-toy-{name.removeprefix('x-').removeprefix('pdserve-')}"


def toy_series(name: str) -> str:
    """`pdserve_engine_slots` -> `toy_slots`."""
    return f"toy_{name.removeprefix('pdserve_engine_')}"
