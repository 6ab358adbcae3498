"""Models that say lively things, and a tokenizer that spells them: for tests that compare tokens."""

from __future__ import annotations

from typing import Any

import torch
from tiny import tiny_model


def lively_model(arch: str, **overrides: Any) -> Any:
    """Weights large enough that attention decides the next token: a fault in mask or positions shows.

    Untied, since a tied random model repeats its last token whatever it attends to.
    """
    model = tiny_model(arch, seed=3, dtype=torch.float64, tie_word_embeddings=False, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(20 if "wpe" in name else 8)
    return model


class Spelling:
    """A tokenizer whose text is the ids themselves, so that texts compare token for token."""

    eos_token_id = None

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))
