"""Reference engine: a real, small LLM server with P/D roles, used wherever no accelerator is.

It computes a Llama-family model with numpy, keeps KV in paged blocks, rejects instead of
queueing, hands KV over in one message per request and speaks OpenAI's API plus vLLM's P/D
contract (`kv_transfer_params`). Operator and gateway see it through `pdserve.wire` only.

Who owns what (each box may import those below it):

    __main__   process: BLAS set to one thread, then `server`
    config     command line and environment -> `EngineConfig`
    server     wires everything together; start, drain, stop
    api/       bytes -> validated request -> OpenAI replies; routes; SSE
    links      peer table, verified links to the other role
    runtime/   sequences, admission by slots, batch scheduler, compute thread, pacing, prediction
    kv/        block pool and prefix cache; leases on finished prefills; KV transport (tcp)
    model/     tokenizer, weights, exact numpy kernels, the Llama forward pass, sampling
    errors     `field_error` and `RejectedError`, the two ways a request is refused

Threads: the event loop owns all state; one compute thread runs model steps and touches only the
KV blocks of the sequences in the step it was given.
"""
