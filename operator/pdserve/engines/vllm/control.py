"""Control paths of vLLM: pdserve's own, which its proxy has."""

from pdserve.engines.control import JsonControl

CONTROL = JsonControl()
