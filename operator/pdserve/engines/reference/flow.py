"""Requests of the Reference engine: vLLM's P/D contract under pdserve's own headers."""

from pdserve.engines.pull_flow import PullFlow

FLOW = PullFlow()
