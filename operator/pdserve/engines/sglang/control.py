"""Control paths of SGLang: pdserve's own, which its proxy has."""

from pdserve.engines.control import JsonControl

CONTROL = JsonControl()
