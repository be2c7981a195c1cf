"""Commands for people: `pdserve` and `kubectl pdserve`.

A command parses, calls what the other layers already know, and prints. Anything worth testing
without a terminal lives below this layer.
"""
