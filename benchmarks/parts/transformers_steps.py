"""Decode steps by the `transformers` package, for `decode_steps.py`, in an environment with it.

    python transformers_steps.py FOLDER

Writes its versions as a line. Then reads lines: `BATCH CONTEXT` makes a KV cache of that size with
random numbers in it and writes `ready`; `step` computes one token for each member of the batch,
writes its milliseconds, and takes the token off the cache again. One thread, float32.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> int:
    """Serve until standard input ends; the exit status."""
    torch: Any = importlib.import_module("torch")
    library: Any = importlib.import_module("transformers")
    torch.set_num_threads(1)
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _say(f"transformers {library.__version__}, torch {torch.__version__}")
    c = model.config
    cache, tokens = None, None
    with torch.inference_mode():
        for line in sys.stdin:
            if line.strip() != "step":
                batch, context = (int(word) for word in line.split())
                cache = library.DynamicCache(config=c)
                shape = (batch, c.num_key_value_heads, context, c.head_dim)
                for layer in range(c.num_hidden_layers):
                    cache.update(torch.randn(shape), torch.randn(shape), layer)
                tokens = torch.full((batch, 1), 5)
                _say("ready")
                continue
            begin = time.perf_counter()
            model(tokens, cache=cache, use_cache=True, logits_to_keep=1)
            _say(str(1000 * (time.perf_counter() - begin)))
            assert cache is not None
            cache.crop(-1)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
