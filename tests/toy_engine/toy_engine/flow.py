"""Requests: bodies as vLLM's, paths and headers of its own."""

from pdserve.engines.pull_flow import FlowNames, PullFlow
from pdserve.wire import calls
from toy_engine import toy_header, toy_path

FLOW = PullFlow(
    FlowNames(
        completions=toy_path(calls.PATH_COMPLETIONS),
        chat=toy_path(calls.PATH_CHAT),
        release=toy_path(calls.PATH_RELEASE),
        request_id=toy_header(calls.HEADER_REQUEST_ID).encode(),
        deadline_ms=toy_header(calls.HEADER_DEADLINE_MS).encode(),
        early_head=toy_header(calls.HEADER_EARLY_HEAD).encode(),
        reject=toy_header(calls.HEADER_REJECT).encode(),
        slots=toy_header(calls.HEADER_SLOTS).encode(),
        free_in_ms=toy_header(calls.HEADER_FREE_IN_MS).encode(),
        epoch=toy_header(calls.HEADER_EPOCH).encode(),
    )
)
