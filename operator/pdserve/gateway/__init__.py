"""Front door of one PDService: OpenAI requests in, prefill and decode legs out.

Protocol-level asyncio, no web framework on the hot path:

- `errors`: overload and its like.
- `app`: paths, keys (`auth`), request ids; `intake` checks a body; `process` is the process.
- `route_source` follows the route table; `service` keeps one `scenario_scheduler` per scenario,
  which drives the decisions of `forwarding` with a clock.
- `pipeline` carries one request through `prefill_phase` and `decode_phase`, which share a
  `request_context`, account in `legs` and give up KV through `release`; `delivery` and `sse` relay
  and measure the stream.
- `measure` says what a request amounted to, `metrics` counts every offered one.

Needs `wire`, `http1`, `exposition`, `forwarding`, `engines.flow*` and `kube`, nothing of the
operator.
"""
