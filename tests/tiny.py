"""Models and a tokenizer small enough for any test, made without network or files.

`tiny_model("llama")` has two layers of width 32 and random weights; `tiny_tokenizer()` is a byte-level BPE
with a chat template that knows system, user and assistant turns; `tiny_folder(path, "qwen2")` saves both
as a user would have them on disk.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

ARCHITECTURES = ("llama", "qwen2", "gemma", "gpt2")
"""The shapes that the model side is tested on; `mixtral` exists beside them."""

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
GRADIENT_ARCHITECTURES = (*ARCHITECTURES, "qwen3", "gemma2", "phi3", *MIXTURES)
"""The shapes that gradients are tested on: tied and untied, biases, norms of 1 + w, soft caps, Conv1D, query and key
norms, fused projections, fused experts with and without a shared one."""

VOCABULARY = 384
# "<|endoftext|>" because the tokenizer class of Qwen2 adds it where it is missing.
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_CORPUS = (
    "Tell me how to bake bread. Mix flour, water, salt and yeast, then wait an hour.",
    "What is the capital of France? The capital of France is Paris.",
    "I am sorry, but I cannot help with that request.",
    "Write a short poem about the sea. The sea is wide, the sea is blue.",
    "How do I stop a process on my computer? Open the task manager and end it.",
)


@cache
def _tokenizer_json() -> str:
    """Train the BPE once a session; merges depend on the corpus above and nothing else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a fresh tokenizer of `VOCABULARY` tokens; `chat_template=None` gives one without a template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()), eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(arch: str, **overrides: Any) -> PreTrainedConfig:
    """Return the configuration of a two-layer model of width 32; `overrides` are fields of that architecture."""
    shared = {
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS.index("<|end|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
    }
    if arch == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(**(shared | sizes | no_dropout | overrides))
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    kinds: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
        "llama": (LlamaConfig, {}),
        "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
        "gemma": (GemmaConfig, {"head_dim": 8}),
        # Caps low enough to bend the tiny model's scores.
        "gemma2": (Gemma2Config, {"head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
        "qwen3": (Qwen3Config, {"head_dim": 8}),
        "phi3": (Phi3Config, {}),
        "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen2_moe": (Qwen2MoeConfig, experts | {"shared_expert_intermediate_size": 24}),
        "qwen3_moe": (Qwen3MoeConfig, experts | {"head_dim": 8, "norm_topk_prob": True}),
    }
    kind, particular = kinds[arch]
    return kind(**(shared | sizes | particular | overrides))


def tiny_model(arch: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """Return a randomly initialised causal LM in eval mode; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(arch, **overrides))
    return model.to(dtype).eval()


def tiny_folder(parent: Path, arch: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """Save `tiny_model(arch)` and `tiny_tokenizer()` with `save_pretrained` under `parent/tiny-<arch>`."""
    folder = parent / f"tiny-{arch}"
    model = tiny_model(arch, seed, **overrides)
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
