"""Control paths of the Reference engine: pdserve's own."""

from pdserve.engines.control import JsonControl

CONTROL = JsonControl()
