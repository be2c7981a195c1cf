"""Running requests: admission by slots, batching, the compute thread, pacing and prediction.

Nothing here knows HTTP; `api` turns bytes into `sequence.Sequence`s and events back into bytes.
"""
