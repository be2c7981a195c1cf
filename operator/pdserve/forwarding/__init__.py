"""On-demand forwarding as decisions (P/D-Serve section 3.5): who gets a request, and when.

Instances have no queue: a prefill with a free slot accepts, else it rejects at once, and the
request stays with the gateway until its deadline. This package decides; it never sends. Time and
randomness are arguments, so the gateway, the simulator and the tests run the same code.

- `match`: which scenario a request belongs to. `deadline`: until when a prefill may accept it.
- `hints`, `ejection`, `instance`: what one gateway process knows and estimates of an instance.
- `scenario_view`: the instances of a scenario, their groups and decode credit.
- `dispatch`: the waiting room and the choice of a prefill. `decode`: the choice of a decode.
- `prefix`: which prefill holds the beginning of a prompt, and what that saves.
- `request`: one request as a state machine, from its arrival to its end.
- `budget`: how many second prefills the process may spend.

Sizes and measurements behind the rules: docs/architecture.md and docs/concepts.md.
"""
