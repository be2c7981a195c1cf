"""Control paths: pdserve's own, which the proxy has."""

from pdserve.engines.control import JsonControl

CONTROL = JsonControl()
