"""Make the reference engine's built-in tokenizer and weights from freely licensed text.

The reference engine needs a small model whose output reads like text, and no weights of another
project are shipped. This script trains one from what every machine with Python has: prose and code
of the standard library (PSF licence) and this project's own documents (Apache-2.0).

Phases:
  1. corpus: docstrings and comment blocks as documents, `question -> first paragraph` pairs as
     chats, module sources as code; sorted by path, so one Python version gives one corpus;
  2. tokenizer: byte-level BPE trained with `tokenizers`;
  3. model: the Llama family of `pdserve.refengine.model.llama`, trained with JAX (fp32, AdamW,
     cosine schedule, fixed seed and step count);
  4. export: config.json, tokenizer.json, model.safetensors (fp16) with Hugging Face names.

Needs `jax optax tokenizers safetensors numpy` (not dependencies of pdserve: use a throw-away
environment). Run: `python hack/train_weights.py --out operator/pdserve/refengine/weights`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import random
import re
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
BOS, EOS, SYSTEM, USER, ASSISTANT = range(5)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 2048,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
SEQ, BATCH = 256, 12
SKIPPED_DIRS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "__pycache__",
    "lib2to3",
    "ensurepip",
}

# A document is a list of (role or None, text): None is plain text, else a chat turn.
Document = list[tuple[int | None, str]]


def _paragraphs(doc: str) -> list[str]:
    return [p.strip() for p in re.split(r"\n\s*\n", doc) if p.strip()]


def _prose(text: str) -> str:
    return re.sub(r"[ \t]+", " ", " ".join(text.split()))


def _module_documents(path: Path, name: str) -> Iterator[Document]:
    source = path.read_text(encoding="utf-8", errors="ignore")
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        doc = ast.get_docstring(node)
        if not doc or len(doc) < 40:
            continue
        paragraphs = _paragraphs(doc)
        yield [(None, "\n\n".join(_prose(p) for p in paragraphs))]
        what = name if isinstance(node, ast.Module) else f"{name}.{node.name}"
        first = _prose(paragraphs[0])
        if 30 < len(first) < 600:
            asks = ("What does {} do?", "Explain {}.", "Tell me about {}.", "What is {}?")
            ask = asks[len(first) % len(asks)].format(what)
            yield [(USER, ask), (ASSISTANT, first)]
    for block in re.findall(r"(?:^[ \t]*#[^\n]*\n){3,}", source, re.MULTILINE):
        text = _prose(re.sub(r"^[ \t]*#+!?", "", block, flags=re.MULTILINE))
        if len(text) > 80:
            yield [(None, text)]


def corpus(project: Path) -> list[Document]:
    """Phase 1: every document, in a fixed order."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    documents: list[Document] = []
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if SKIPPED_DIRS & set(relative.parts) or path.stat().st_size > 300_000:
            continue
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        documents.extend(_module_documents(path, name))
    pages = [project / "README.md", *sorted((project / "docs").rglob("*.md"))]
    for page in (p for p in pages if p.is_file()):
        documents.extend([(None, _prose(p))] for p in _paragraphs(page.read_text()) if len(p) > 80)
    return documents


def train_tokenizer(documents: list[Document]) -> Tokenizer:
    """Phase 2: byte-level BPE with the special tokens at ids 0..4."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t for d in documents for _, t in d), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[Document]) -> np.ndarray:
    """All documents as one token stream, shuffled with a fixed seed."""
    order = list(range(len(documents)))
    random.Random(0).shuffle(order)
    stream: list[int] = []
    for index in order:
        stream.append(BOS)
        for role, text in documents[index]:
            if role is not None:
                stream.append(role)
            stream.extend(tokenizer.encode(text, add_special_tokens=False).ids)
            stream.append(EOS)
    return np.asarray(stream, np.int32)


def init_params(seed: int) -> dict[str, jax.Array]:
    """Hugging Face names; matrices are [out, in]."""
    rng = np.random.default_rng(seed)
    c = CONFIG
    hidden, ffn, kv = (
        c["hidden_size"],
        c["intermediate_size"],
        c["num_key_value_heads"] * c["head_dim"],
    )

    def matrix(out: int, inp: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.normal(0, scale * inp**-0.5, (out, inp)), jnp.float32)

    params = {"model.embed_tokens.weight": matrix(c["vocab_size"], hidden, 0.5)}
    depth = (2 * c["num_hidden_layers"]) ** -0.5
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        params |= {
            p + "self_attn.q_proj.weight": matrix(c["num_attention_heads"] * 32, hidden),
            p + "self_attn.k_proj.weight": matrix(kv, hidden),
            p + "self_attn.v_proj.weight": matrix(kv, hidden),
            p + "self_attn.o_proj.weight": matrix(hidden, hidden, depth),
            p + "mlp.gate_proj.weight": matrix(ffn, hidden),
            p + "mlp.up_proj.weight": matrix(ffn, hidden),
            p + "mlp.down_proj.weight": matrix(hidden, ffn, depth),
            p + "input_layernorm.weight": jnp.ones(hidden),
            p + "post_attention_layernorm.weight": jnp.ones(hidden),
        }
    params["model.norm.weight"] = jnp.ones(hidden)
    return params


def _norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + CONFIG["rms_norm_eps"]) * weight


def _rope(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    inverse = CONFIG["rope_theta"] ** (-jnp.arange(half) / half)
    angle = jnp.arange(x.shape[1])[:, None] * inverse
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """Logits [batch, time, vocab] of tokens [batch, time]."""
    c = CONFIG
    heads, kv_heads, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    batch, length = tokens.shape
    x = params["model.embed_tokens.weight"][tokens]
    causal = jnp.tril(jnp.ones((length, length), bool))
    for layer in range(c["num_hidden_layers"]):
        p = functools.partial("model.layers.{}.{}.weight".format, layer)
        h = _norm(x, params[p("input_layernorm")])
        q = (h @ params[p("self_attn.q_proj")].T).reshape(batch, length, heads, dim)
        k = (h @ params[p("self_attn.k_proj")].T).reshape(batch, length, kv_heads, dim)
        v = (h @ params[p("self_attn.v_proj")].T).reshape(batch, length, kv_heads, dim)
        q = _rope(q).reshape(batch, length, kv_heads, heads // kv_heads, dim)
        scores = jnp.einsum("btkgd,bskd->bkgts", q, _rope(k)) * dim**-0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30), -1)
        out = jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(batch, length, heads * dim)
        x = x + out @ params[p("self_attn.o_proj")].T
        h = _norm(x, params[p("post_attention_layernorm")])
        gate = jax.nn.silu(h @ params[p("mlp.gate_proj")].T) * (h @ params[p("mlp.up_proj")].T)
        x = x + gate @ params[p("mlp.down_proj")].T
    return _norm(x, params["model.norm.weight"]) @ params["model.embed_tokens.weight"].T


def _loss(params: dict[str, jax.Array], window: jax.Array) -> jax.Array:
    logits = forward(params, window[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()


def train(stream: np.ndarray, steps: int, out: Path, tokenizer: Tokenizer) -> None:
    """Phase 3; exports every 200 steps so that a stopped run leaves usable weights."""
    params = init_params(0)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 60, steps, 1e-4)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.95, weight_decay=0.05)
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, window: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(_loss)(params, window)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng = np.random.default_rng(1)
    started, average = time.monotonic(), 0.0
    for number in range(1, steps + 1):
        starts = rng.integers(0, len(stream) - SEQ - 1, BATCH)
        window = jnp.asarray(np.stack([stream[s : s + SEQ + 1] for s in starts]))
        params, state, loss = step(params, state, window)
        average = float(loss) if number == 1 else 0.98 * average + 0.02 * float(loss)
        if number % 50 == 0:
            spent = time.monotonic() - started
            rate = number * BATCH * SEQ / spent
            print(f"step {number}/{steps} loss {average:.3f} {rate:.0f} tok/s", flush=True)
        if number % 200 == 0 or number == steps:
            export(params, tokenizer, out)


def export(params: dict[str, jax.Array], tokenizer: Tokenizer, out: Path) -> None:
    """Phase 4."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    tensors = {k: np.asarray(v, np.float16) for k, v in sorted(params.items())}
    save_file(tensors, str(out / "model.safetensors"), {"format": "pt"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the built-in weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    documents = corpus(Path(__file__).resolve().parent.parent)
    tokenizer = train_tokenizer(documents)
    stream = encode(tokenizer, documents)
    text = sum(len(t) for d in documents for _, t in d)
    print(f"{len(documents)} documents, {text} characters, {len(stream)} tokens", flush=True)
    train(stream, args.steps, args.out, tokenizer)


if __name__ == "__main__":
    main()
