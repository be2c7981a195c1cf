"""The Reference engine: `pdserve.refengine`, a small Llama computed with numpy."""

TYPE = "Reference"
