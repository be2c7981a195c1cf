"""HTTP: bytes -> validated OpenAI request -> replies and event streams; control routes.

Protocol level on httptools; no framework, because a rejection must cost well under 1 ms.
"""
