"""Directions as they are made, before any scaling: a tensor a weight, given when asked for and never kept.

A direction is drawn again from its seed, read from a run's saved weights, or read from a file in the landscape's
folder. So memory holds one tensor of a direction at a time, however many directions there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from geomsafe.errors import RecordError
from geomsafe.methods.origin import wide
from geomsafe.methods.random_direction import seeded_draw

Start = Mapping[str, Tensor]
"""theta_0: base name -> the model's own tensor, tied weights once. What is placed into the model later is not seen."""


class RawDirection(Protocol):
    """A direction of any length.

    Attributes:
        name: unique among the directions of a landscape.
        kind: as in `axes.KINDS`.
        options: as in the record.
        run: name of the run that it comes from; None where it comes from none.
        facts: what else is known of it, for the record.
    """

    name: str
    kind: str
    options: dict[str, Any]
    run: str | None
    facts: dict[str, Any]

    def tensor(self, weight: str) -> Tensor | None:
        """Return the direction in one weight, float64 (float32 on MPS); None where it has no part in it."""


def start_of(model: Any) -> dict[str, Tensor]:
    """Return theta_0 of a model that holds it: the floating-point parameters by name, tied ones once."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.is_floating_point()}


@dataclass
class RandomDirection:
    """A Gaussian draw, scaled part by part to theta_0's norm.

    Each tensor's draw follows from the seed and the tensor's name alone, on the CPU in float32.
    """

    name: str
    options: dict[str, Any]
    start: Start
    left_out: frozenset[str]  # weights that have no part in it
    group: Callable[[str], str]  # weight -> what is scaled together with it; not asked for rows
    facts: dict[str, Any] = field(default_factory=dict)
    kind: str = "random"
    run: str | None = None

    def __post_init__(self) -> None:
        self._scales: dict[str, float] = {}
        if self.options["norm"] == "row":
            return
        squares: dict[str, list[float]] = {}
        for weight, value in self.start.items():
            if weight not in self.left_out:
                drawn, own = squares.setdefault(self.group(weight), [0.0, 0.0]), wide(value)
                drawn[0] += float(self._drawn(weight).square().sum())
                drawn[1] += float(own.square().sum())
        self._scales = {group: (own / drawn) ** 0.5 for group, (drawn, own) in squares.items()}

    def tensor(self, weight: str) -> Tensor | None:
        """Return the scaled draw for one weight."""
        if weight in self.left_out:
            return None
        drawn = self._drawn(weight)
        if self.options["norm"] != "row":
            return drawn.mul_(self._scales[self.group(weight)])
        own = wide(self.start[weight])
        if own.dim() < 2:
            return drawn.mul_(float(own.norm() / drawn.norm()))
        axes = tuple(range(1, own.dim()))
        scale = torch.linalg.vector_norm(own, dim=axes, keepdim=True)
        return drawn.mul_(scale / torch.linalg.vector_norm(drawn, dim=axes, keepdim=True))

    def _drawn(self, weight: str) -> Tensor:
        return seeded_draw(self.options["seed"], weight, self.start[weight])


@dataclass
class SavedDirection:
    """What directions that are read from files have in common."""

    name: str
    kind: str
    options: dict[str, Any]
    run: str | None
    start: Start
    saved: SavedTensors
    facts: dict[str, Any] = field(default_factory=dict)

    def read(self, weight: str) -> Tensor:
        """Return what the file has for one weight."""
        return wide(self.saved[weight].to(self.start[weight].device))


@dataclass
class WeightsDirection(SavedDirection):
    """Saved weights minus theta_0, or with `sign` -1 theta_0 minus them."""

    sign: int = 1

    def tensor(self, weight: str) -> Tensor | None:
        """Return the difference in one weight."""
        return self.sign * (self.read(weight) - wide(self.start[weight]))


class StoredDirection(SavedDirection):
    """A direction that lies in a file under the names of the model's parameters; absent weights have no part in it."""

    def tensor(self, weight: str) -> Tensor | None:
        """Return the direction in one weight."""
        return self.read(weight) if weight in self.saved else None


@dataclass
class MixedDirection:
    """A weighted sum of others, such as a principal component of displacements."""

    name: str
    kind: str
    options: dict[str, Any]
    run: str | None
    parts: Sequence[RawDirection]
    weights: Sequence[float]
    facts: dict[str, Any] = field(default_factory=dict)

    def tensor(self, weight: str) -> Tensor | None:
        """Return the sum in one weight."""
        total: Tensor | None = None
        for part, factor in zip(self.parts, self.weights, strict=True):
            one = part.tensor(weight)
            if one is not None:
                total = factor * one if total is None else total.add_(one, alpha=factor)
        return total


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files, or of one file, each read when it is asked for.

    Attributes:
        facts: what was written beside them.
    """

    def __init__(self, path: Path) -> None:
        """Look at the names.

        Args:
            path: a folder or a file.

        Raises:
            RecordError: there is nothing to read.
        """
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise RecordError(f"'{path}' holds no safetensors: the weights are not there any more")
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self.facts: dict[str, Any] = {}
        for file in files:
            with safe_open(file, framework="pt") as stream:
                self._files |= dict.fromkeys(stream.keys(), file)
                self.facts |= json.loads((stream.metadata() or {}).get("facts", "{}"))

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor, read now."""
        file = self._files[name]
        if file not in self._open:
            # Kept open: reading its head for every tensor would cost more than the tensors. Pages are the system's.
            self._open[file] = safe_open(file, framework="pt")
        found: Tensor = self._open[file].get_tensor(name)
        return found

    def __iter__(self) -> Any:
        """Return an iterator over the names."""
        return iter(self._files)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._files)
