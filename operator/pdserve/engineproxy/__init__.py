"""Engine proxy: gives an engine with OpenAI's API the contract of a pdserve instance.

It runs in the engine's pod, listens where an instance listens, and passes requests on to the
engine on the loopback address. What the engine lacks is done here: a request is refused before the
engine sees it, a prefill's slot is held until its KV was pulled, credentials are checked, peer
tables are kept, links verified, drains reported. The bodies are vLLM's `kv_transfer_params`, or
those of legs that meet in a room (`--rooms`).

Who owns what (each box may import those below it):

    __main__     process: signals, command line
    server       wires everything together; start, drain, stop
    routes       paths and credentials
    prefill_leg, decode_leg   one request of a role, from admission to the end of its reply
    proxy_state  the operator's newest table and grant, also over a restart
    leg_context  what both roles have: admission, the engine's answer, counting
    peer_checks  peer table, verified links, calls to the proxies of peers
    engine_access   requests to the engine; whether it is up
    places       slots and held KV, pure
    proxy_metrics   what is counted, and read of the engine's exposition
    proxy_config, stream_end   the command line; beginnings and ends of streams
"""
