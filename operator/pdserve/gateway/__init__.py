"""Front door of one PDService: OpenAI requests in, prefill and decode legs out.

Protocol-level asyncio, no web framework on the hot path:

- `errors`: overload and its like.
- `app`: paths, keys (`auth`), request ids; `intake` checks a body; `process` is the process.
- `route_source` follows the route table; `service` keeps one `timed_scheduler` per scenario, which
  gives the decisions of `forwarding` a clock.
- `generate` reads a generating request; a `request_driver` per choice carries out what its
  `forwarding.request` decides: `leg_bodies` makes legs, `leg_call` sends them, `release` gives up
  KV; `delivery` and `sse` relay and measure the stream.
- `metrics` counts every offered request.

Needs `wire`, `http1`, `exposition`, `forwarding`, `engines.flow*` and `kube`, nothing of the
operator.
"""
