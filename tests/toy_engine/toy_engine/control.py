"""Control paths of its own."""

from pdserve.engines.control import JsonControl
from pdserve.wire import calls
from toy_engine import toy_path

CONTROL = JsonControl(
    toy_path(calls.PATH_PEERS), toy_path(calls.PATH_LINKS), toy_path(calls.PATH_DRAIN)
)
