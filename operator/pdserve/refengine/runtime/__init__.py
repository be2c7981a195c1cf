"""Running requests: admission by slots, batching, the compute thread, pacing and prediction.

HTTP is not part of it: `api` turns bytes into `sequence.Sequence`s and events back into bytes.
"""
