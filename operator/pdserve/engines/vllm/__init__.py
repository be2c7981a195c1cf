"""vLLM with its NIXL connector, behind pdserve's engine proxy; see docs/engines/vllm.md."""

TYPE = "vLLM"
