"""HTTP/1.1 between clients, gateways, engines and operator.

- `receive`: bytes of one connection -> `HttpRequest`s within limits, or a refusal (httptools).
- `send`: status lines and chunks. `errors`: OpenAI's error object as reply body or stream event.
- `server`: the server of all three, with deadlines and back-pressure; `connection` serves one
  client, `reply` is an answer, `resets` sees whether the last one was read.
- `pages`: a few read-only pages on that server; the operator's port.
- `client`: pooled connections to instances, for the gateway and the load generator.
- `listen`: where a server listens. `collector`: parsing of large JSON.

A handler is a coroutine, which gets a task, or a function that is called straight from the bytes
and answers at once or by callbacks: the engine's, where a rejection must cost well under a
millisecond.
The API server and Prometheus are reached by their own clients (docs/dependencies.md). Nothing here
knows OpenAI's requests or P/D.
"""
