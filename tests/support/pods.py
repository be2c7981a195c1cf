"""Pods for tests of process nodes: short ways to write and to ask them."""

from __future__ import annotations

import textwrap
import urllib.request
from typing import Any

from tests.support.cluster import SECONDS, Json

IMAGE = "registry.example/pdserve/engine:test"
SERVER = """
    import http.server, os, signal, sys, threading
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/break":
                broken.set()
            self.send_response(500 if broken.is_set() and self.path == "/health" else 200)
            self.end_headers()
            self.wfile.write(os.environ.get("SAY", "").encode())
        def log_message(self, *a): pass
    broken = threading.Event()
    signal.signal(signal.SIGTERM, lambda *a: (print("asked to end", flush=True), os._exit(0)))
    http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8000), Handler).serve_forever()
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def pod(name: str, *command: str, **main: Any) -> Json:
    spec_fields = {
        key: main.pop(key)
        for key in (
            "restartPolicy",
            "terminationGracePeriodSeconds",
            "volumes",
            "initContainers",
            "readinessGates",
            "nodeName",
            "automountServiceAccountToken",
        )
        if key in main
    }
    spec_fields.setdefault("terminationGracePeriodSeconds", 1)
    first = {"name": "main", "image": IMAGE, "command": list(command), **main}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"test": name}},
        "spec": {"containers": [first], **spec_fields},
    }


def python(source: str) -> tuple[str, ...]:
    return ("python", "-c", textwrap.dedent(source))


def fetch(pod: Json, path: str = "/") -> str:
    url = f"http://{pod['status']['podIP']}:8000{path}"
    with urllib.request.urlopen(url, timeout=SECONDS) as reply:
        return str(reply.read().decode())
