"""SGLang behind pdserve's engine proxy; see docs/engines/sglang.md."""

TYPE = "SGLang"
