"""Safe LoRA: put the update back into the space of alignment where it has left it (Hsu et al., arXiv 2405.16833).

    V = theta_0 - theta_base,   D = theta - theta_0 (LoRA: delta W = s B A)
    D <- C D   in the weights with cos(C D, D) <= threshold, or in the `layers` with the smallest cosine

Followed is the released code where it differs from the paper's text: C = V V^T / ||V||_F, which is no projector and
scales the update by the size of V; `projector=true` takes U U^T of V instead (see `alignment`). The threshold of .5
and the 10 layers are its defaults; the paper's experiments use .35. The code pairs weights by order of enumeration,
which goes wrong with biases; here they are paired by name.

The authors define it for LoRA. With all weights trained, D of every matrix is treated alike, which is ours;
biases and norms stay as trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from geomsafe.config import Settings
from geomsafe.methods.alignment import Alignment, Projector, alignments, input_first
from geomsafe.methods.base import Schedule
from geomsafe.methods.endpoint import EndPoint
from geomsafe.models import l2_norm


class SafeLoraOptions(Settings):
    """Options of `safe-lora`."""

    threshold: float | None = Field(default=None, ge=-1, le=1, description="largest cosine that is projected (0.5)")
    layers: int | None = Field(default=None, ge=1, description="project the N least aligned weights instead")
    projector: Projector = Field("released", description="C = V V^T / ||V||, or the true projector")
    rank: int | None = Field(default=None, ge=1, description="projector=true: leading directions of V (default: all)")

    @model_validator(mode="after")
    def _consistent(self) -> SafeLoraOptions:
        if self.threshold is not None and self.layers is not None:
            raise ValueError("give threshold= or layers=, not both")
        if self.rank is not None and self.projector != "true":
            raise ValueError("rank= belongs to projector=true")
        return self


class SafeLora(EndPoint):
    """Offer the last iterate with its least aligned displacements projected."""

    name: ClassVar[str] = "safe-lora"
    Options: ClassVar[type[Settings]] = SafeLoraOptions
    options: SafeLoraOptions
    needs_base: ClassVar[bool] = True

    def __init__(self, options: Settings | None = None, *, base: Mapping[str, Tensor] | None = None) -> None:
        """Prepare the method.

        Args:
            options: its options.
            base: theta_base by name, outside of a run: `base_weights(model)`.
        """
        super().__init__(options)
        self.base = base
        self._maps: dict[str, Alignment] = {}
        self._first: set[str] = set()
        self._last_step = 0

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Prepare C of each weight.

        Args:
            model: the model that is trained.
            optimizer: not used.
            schedule: gives the last step.
        """
        self._last_step = schedule.total_steps
        self._first = input_first(model)
        self._maps = alignments(self.label, model, self.origin, self.base, self.options.projector, self.options.rank)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Say after the last step what is projected.

        Args:
            model: the model after the optimizer step.
            step: the step that was taken.

        Returns:
            After the last step: `projected` of `weights`, and the range of their cosines.
        """
        if step != self._last_step:
            return {}
        cosines = self.cosines(model)
        log = {"projected": float(len(self._chosen(cosines))), "weights": float(len(self._maps))}
        return log | ({"least": min(cosines.values()), "most": max(cosines.values())} if cosines else {})

    @torch.no_grad()
    def cosines(self, model: nn.Module) -> dict[str, float]:
        """Return cos(C D, D) by base name; a weight that has not moved has none.

        Args:
            model: the model at theta.

        Returns:
            Cosines over whole weights, as one vector each.
        """
        found = {}
        for name, change in self.origin.displacement(model):
            if name in self._maps and bool(change.any()):
                kept = self._projected(name, change)
                norms = l2_norm(kept) * l2_norm(change)
                found[name] = float((kept * change).sum()) / norms if norms else 0.0
        return found

    def moved(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield C D where the weight is chosen, else D."""
        chosen = self._chosen(self.cosines(model))
        for name, change in self.origin.displacement(model):
            yield name, self._projected(name, change) if name in chosen else change

    def _chosen(self, cosines: Mapping[str, float]) -> set[str]:
        if self.options.layers is not None:
            return set(sorted(cosines, key=cosines.__getitem__)[: self.options.layers])
        threshold = 0.5 if self.options.threshold is None else self.options.threshold
        return {name for name, cosine in cosines.items() if cosine <= threshold}

    def _projected(self, name: str, change: Tensor) -> Tensor:
        return self._maps[name].apply(change.T).T if name in self._first else self._maps[name].apply(change)
