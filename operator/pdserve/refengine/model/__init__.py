"""The model: tokenizer, weights, exact numpy kernels, Llama forward pass, sampling.

Everything here is a pure function of its inputs: the same tokens at the same positions give the
same bits whatever else is in the batch (exact mode). No clock, no I/O but reading weights.
"""
