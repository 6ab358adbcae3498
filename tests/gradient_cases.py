"""Models, examples and batches that the tests of `geomsafe.gradients` share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from reference import Example, slow_example_gradients
from tiny import MIXTURES, VOCABULARY, tiny_model
from torch import Tensor

Rows = dict[str, Tensor]  # parameter -> (examples, *shape) float64, token-summed


def some_examples(count: int = 7, seed: int = 0, equal: bool = False) -> list[Example]:
    """Random prompts of 3-9 tokens and answers of 1-6 tokens (or all 5 and 4)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    examples = []
    for _ in range(count):
        prompt, answer = (5, 4) if equal else (draw(3, 10), draw(1, 7))
        ids = torch.randint(5, VOCABULARY, (prompt + answer,), generator=generator).tolist()
        examples.append((ids, [-100] * prompt + ids[prompt:]))
    return examples


def padded(examples: Sequence[Example], left: bool = False) -> dict[str, Tensor]:
    """One batch of examples of any length."""
    width = max(len(ids) for ids, _ in examples)

    def row(values: list[int], fill: int) -> list[int]:
        pad = [fill] * (width - len(values))
        return pad + values if left else values + pad

    return {
        "input_ids": torch.tensor([row(ids, 0) for ids, _ in examples]),
        "attention_mask": torch.tensor([row([1] * len(ids), 0) for ids, _ in examples]),
        "labels": torch.tensor([row(labels, -100) for _, labels in examples]),
    }


def with_lora(model: Any, seed: int = 0, **options: Any) -> Any:
    """Adapters with B != 0, so that A's and B's gradients are both alive."""
    config = LoraConfig(**({"r": 3, "lora_alpha": 6, "target_modules": "all-linear"} | options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
    return adapted.eval()


def merged(adapted: Any, names: Sequence[str]) -> Any:
    """A plain model with W + (alpha / r) B A, whose weights `names` are trainable."""
    plain = copy.deepcopy(adapted).merge_and_unload()
    for name, weight in plain.named_parameters():
        weight.requires_grad_(name in names)
    return plain


def lively_model(arch: str, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """A tiny model whose weights are large enough that attention, caps and routing are not near-uniform.

    Gains and biases, which start at exactly 1 or 0, are moved: a rule that forgets one of them then errs.
    """
    wide = {"initializer_range": 0.15} | overrides
    model = tiny_model(arch, dtype=dtype, **wide)
    if arch in MIXTURES:  # the fused expert kernel knows no float64
        model.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(dtype)
    return model


@cache
def shared_model(arch: str, dtype: torch.dtype = torch.float64) -> Any:
    """`lively_model`, made once; for tests that do not change it."""
    return lively_model(arch, dtype)


@cache
def shared_rows(arch: str) -> Rows:
    """Token-summed gradients of `some_examples()` by the loop, for `shared_model(arch)`."""
    return slow_example_gradients(shared_model(arch), some_examples())
