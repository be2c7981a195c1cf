"""Front door of one PDService: OpenAI requests in, prefill and decode legs out.

Protocol-level asyncio (no web framework on the hot path): `http_server` and `http_client` speak
HTTP/1.1, `intake` checks a request, `lane` drives the decisions of `forwarding`, `legs` and
`pipeline` carry one request through prefill and decode, `sse` measures its stream, `metrics`
counts every offered request. `routes` follows the route table, `auth` the keys, `app` joins it
all. The gateway needs `wire`, `forwarding`, `engines.flow*` and `kube`, nothing of the operator.
"""
