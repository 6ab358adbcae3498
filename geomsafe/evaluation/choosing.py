"""How the next token is chosen: the likeliest, or one drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from geomsafe.errors import ConfigError


@dataclass(frozen=True)
class Choosing:
    """Greedy at temperature 0, else sampled.

    A draw is u in [0, 1) put through the inverse of the cumulative distribution, tokens in order of falling
    probability. The k-th u of a prompt follows from seed, the prompt's number and k alone, so that an answer does
    not depend on which prompts share its batch.

    Attributes:
        temperature: what logits are divided by; 0 takes the largest logit.
        top_p: only the likeliest tokens, as few as reach this probability, may be drawn (nucleus sampling,
            Holtzman et al. 1904.09751); 1 keeps all.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature {self.temperature:g} must not be negative and top_p {self.top_p:g} must lie in (0, 1]"
            )
        if self.temperature == 0 and self.top_p != 1:
            raise ConfigError(
                f"top_p {self.top_p:g} means nothing at temperature 0: set a temperature, or leave it out"
            )

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def choose(self, logits: Tensor, numbers: Sequence[int], position: int) -> Tensor:
        """Choose the next token of each row.

        Args:
            logits: (rows, vocabulary).
            numbers: (rows,) the prompts' numbers.
            position: how many tokens each row has generated.

        Returns:
            (rows,) token ids.
        """
        if self.greedy:
            return logits.argmax(dim=-1)
        probabilities, tokens = (logits.double() / self.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        upper = probabilities.cumsum(dim=-1)  # (rows, vocabulary)
        # A token is kept when those before it do not reach top_p; the first always is.
        total = upper.masked_fill(upper - probabilities >= self.top_p, 0).amax(dim=-1, keepdim=True)
        draws = [uniform(self.seed, number, position) for number in numbers]
        wanted = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * total
        return tokens.gather(-1, (upper <= wanted).sum(dim=-1, keepdim=True))[:, 0]

    def seed_of(self, number: int) -> int:
        """Return a seed for one prompt alone, where the draws are another engine's."""
        return _mixed(self.seed, number)

    def settings(self) -> dict[str, Any]:
        """Return the settings as they are recorded; what plays no part when greedy is left out."""
        if self.greedy:
            return {"decoding": "greedy"}
        return {"decoding": "sampled", "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}


GREEDY = Choosing()

_BLOCK = 64


def uniform(seed: int, number: int, position: int) -> float:
    """Return the draw in [0, 1) for one position of one prompt's answer."""
    return _block(seed, number, position // _BLOCK)[position % _BLOCK]


@lru_cache(maxsize=4096)
def _block(seed: int, number: int, block: int) -> list[float]:
    """Return draws in blocks: a generator a token would cost more than the token."""
    generator = torch.Generator().manual_seed(_mixed(seed, number, block))
    return torch.rand(_BLOCK, generator=generator, dtype=torch.float64).tolist()


def _mixed(*numbers: int) -> int:
    """Return 63 bits that differ wherever the numbers do, as good as always."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1
