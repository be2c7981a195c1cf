"""Checks of a running engine: does it keep the contract of an instance (`docs/engines/own.md`)?

`pdserve engine check` runs them. Requests are made, and replies read, by the engine type's own
flow and control face: what is checked is what gateway and operator will do. `engines.testing`
checks an adapter without an engine; the last check here runs it with a reply of this engine.

Who owns what (each box may import those below it):

    suite           order, needs and outcome of the checks
    instance_checks, leg_checks, load_checks   the checks
    pair            both legs of a request, in the order of the engine type
    subject         what is checked, and what was learned of it
    probe           bounded HTTP
"""
