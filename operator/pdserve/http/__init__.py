"""HTTP/1.1 as gateway and engine both speak it: receiving requests, framing replies, errors.

- `receive`: bytes of one connection -> `Request`s within limits, or a refusal (httptools).
- `send`: status lines and chunks. `errors`: OpenAI's error object as reply body or stream event.

Who serves what, when and for how long is not here: the gateway runs a task per request with
deadlines and back-pressure (`gateway.http_server`), the engine calls straight into its event loop
(`refengine.api.http`), because a rejection must cost well under a millisecond there. No sockets.
"""
