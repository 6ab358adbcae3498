"""What a pass hands to the quantities, and a place on disk for what does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from geomsafe.gradients.uses import Dense, Lookup, Outer, Rows, Use, same_expert


@dataclass(frozen=True)
class Setting:
    """What all quantities of one call share."""

    shapes: Mapping[str, torch.Size]  # of the measured weights, in the model's order
    tokens: Tensor  # (examples,) int64 target tokens
    reduction: str  # "mean" over an example's own tokens, or "sum"
    dtype: torch.dtype
    passes: int  # passes that the examples are cut into
    device: torch.device

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.tokens)

    @property
    def scale(self) -> Tensor:
        """What turns token-summed gradients into the reduction's: (examples,) float64."""
        return torch.ones(self.examples, dtype=torch.float64) if self.reduction == "sum" else 1 / self.tokens.double()


@dataclass(frozen=True)
class Piece:
    """All uses of one weight in one pass over some of the examples."""

    name: str
    uses: list[Use]
    shape: torch.Size
    at: Tensor  # (examples of the pass,) int64: their places in the whole batch

    def matrix(self) -> tuple[int, int]:
        """Return rows and columns of the weight as a matrix; of one expert where experts are seen apart."""
        if self.uses and self.uses[0].index is not None:
            return self.shape[1], self.shape[2]
        return (self.shape[0], self.shape[1:].numel()) if self.shape else (1, 1)

    def by_matrix(self) -> dict[int | None, list[Use]]:
        """Return the uses by matrix: None for a plain weight, the expert for a fused one, looped over or not."""
        if len(self.shape) != 3:
            return same_expert(self.uses)
        parts: list[Use] = []
        for use in self.uses:
            if isinstance(use, Dense) and use.index is None:
                parts += [Dense(use.values[:, index], use.output, index) for index in range(self.shape[0])]
            else:
                parts.append(use)
        return same_expert(parts)

    def matrix_shape(self) -> tuple[int, int]:
        """Return rows and columns of one matrix of `by_matrix`; a vector is one column."""
        if len(self.shape) == 3:
            return self.shape[1], self.shape[2]
        return self.shape[0], self.shape[1:].numel()


class FactorFiles:
    """Factors of one call, one file a weight and pass; removed as they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, list[Path]] = {}
        self.shapes: dict[str, torch.Size] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, piece: Piece) -> None:
        """Write all uses of one weight in one pass."""
        tensors = {"at": piece.at}
        metadata = {}
        for number, use in enumerate(piece.uses):
            kind, held = _held(use)
            index = -1 if use.index is None else use.index
            metadata[str(number)] = f"{kind} {use.output} {index} {use.height if isinstance(use, Lookup) else 0}"
            tensors |= {f"{number}/{key}": tensor.contiguous().cpu() for key, tensor in held.items()}
        files = self.files.setdefault(piece.name, [])
        self.shapes[piece.name] = piece.shape
        place = self.folder / f"factors-{list(self.files).index(piece.name):05d}-{len(files):05d}.safetensors"
        save_file(tensors, place, metadata=metadata)
        files.append(place)

    def read(self, setting: Setting) -> Iterator[Piece]:
        """Yield every weight with its uses in all passes, and remove its files."""
        everyone = torch.arange(setting.examples)
        for name, files in self.files.items():
            uses: list[Use] = []
            for file in files:
                uses += _uses(file, setting)
                file.unlink()
            yield Piece(name, uses, self.shapes[name], everyone)


def _held(use: Use) -> tuple[str, dict[str, Tensor]]:
    if isinstance(use, Outer):
        return "outer", {"example": use.rows.example, "left": use.left, "right": use.right}
    if isinstance(use, Lookup):
        return "lookup", {"example": use.rows.example, "ids": use.ids, "grad": use.grad}
    return "dense", {"values": use.values}


def _uses(file: Path, setting: Setting) -> Iterator[Use]:
    with safe_open(file, framework="pt", device=str(setting.device)) as held:
        at = held.get_tensor("at").cpu()
        for number, described in sorted(held.metadata().items(), key=lambda item: int(item[0])):
            kind, *numbers = described.split()
            output, index, height = map(int, numbers)
            expert = None if index < 0 else index
            if kind == "dense":
                use: Use = Dense(held.get_tensor(f"{number}/values"), output, expert)
            else:
                rows = Rows(held.get_tensor(f"{number}/example"), len(at))
                first, second = ("left", "right") if kind == "outer" else ("ids", "grad")
                one, two = held.get_tensor(f"{number}/{first}"), held.get_tensor(f"{number}/{second}")
                use = (
                    Outer(rows, one, two, output, expert)
                    if kind == "outer"
                    else Lookup(rows, one, two, height, output, expert)
                )
            yield use.placed(at, setting.examples)
