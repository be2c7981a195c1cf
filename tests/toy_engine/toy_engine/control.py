"""Control paths of its own."""

from pdserve.engines.control import JsonControl
from pdserve.wire import http
from toy_engine import toy_path

CONTROL = JsonControl(
    toy_path(http.PATH_PEERS), toy_path(http.PATH_LINKS), toy_path(http.PATH_DRAIN)
)
