"""What the gradient benchmarks measure on: random Llamas, random batches, memory of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """A Llama's shape."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = False


SHAPES = {
    "17m": Shape(384, 1024, 8, 6, 6, 4096),
    "97m": Shape(768, 2048, 12, 12, 12, 8192),
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 128256, tied=True),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 32000),
}


def random_llama(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any) -> Any:
    """Build a Llama of that shape with random weights (seed 0), in eval mode."""
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **options).eval()


def random_batch(vocabulary: int, examples: int, tokens: int, answer: int, device: str = "cpu") -> Batch:
    """Random token ids, no padding; the last `answer` tokens of each example are its targets."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (examples, tokens), generator=generator)
    labels = ids.clone()
    labels[:, : tokens - answer] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {key: value.to(device) for key, value in batch.items()}


def resident_peak() -> int:
    """Return the highest resident memory of this process so far, in bytes (Linux).

    Not getrusage's ru_maxrss, which a process started by another inherits from it.
    """
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
