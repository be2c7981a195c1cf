"""HTTP/1.1 between clients, gateways, engines and operator.

- `receive`: bytes of one connection -> `HttpRequest`s within limits, or a refusal (httptools).
- `send`: status lines and chunks. `errors`: OpenAI's error object as reply body or stream event.
- `server`: a task per request, with deadlines and back-pressure; the gateway's ports.
- `pages`: a few read-only pages on that server; the operator's port.
- `client`: pooled connections to instances, for the gateway and the load generator.
- `listen`: where a server listens. `collector`: parsing of large JSON.

The engine receives and frames by these parts too, and calls straight into its event loop instead of
making a task (`refengine.api.connection`): a rejection must cost well under a millisecond there.
The API server and Prometheus are reached by their own clients (docs/dependencies.md). Nothing here
knows OpenAI's requests or P/D.
"""
