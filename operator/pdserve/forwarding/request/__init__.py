"""One request as a state machine: what is asked of which instance and when, and how it ends.

Events come in (a leg's head, a loss, a client that left), effects go out (send a leg, release KV,
answer); time comes with each event. So the gateway, which has sockets, and a simulation, which has
none, run the same policy.

- `request`: admission, the events, the end. Every event is a method of `Request`.
- `prefill_legs`, `decode_legs`, `local_leg`, `pair_legs`: what one kind of leg means.
- `recovery`: what a request whose KV or stream was lost may still cost.
- `state`: what all of them share. `leg`: one leg and its place in an instance's account.
- `scheduler`: the requests of one scenario that wait, for a prefill or for a decode.
- `effects`: what a driver does for a request. `measure`: what a request amounted to.

Each leg that is sent ends once, by `Effects.drop` or by `Request.on_lost`; KV is released once or
was pulled; a request is counted once and hears of nothing after `Effects.ended`.
"""
