"""Put theta_0 + displacement into a model and take it out again, bitwise.

The model's own storage is theta_0: it is set aside and put back, nothing is added and subtracted. What is placed is
computed from theta_0 in float64 (float32 on MPS) and rounded once to each weight's dtype. So there is at most one more
copy of the weights, whatever the number of directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomsafe.landscape.frame import Frame
from geomsafe.methods.origin import wide
from geomsafe.methods.swap import swapped

ONE_ULP = 1 / math.sqrt(12)
"""Rounding noise of a step of one unit in the last place, relative to the step: uniform over one unit."""


class Placed(NamedTuple):
    """What came of a displacement that was asked for.

    Attributes:
        moved: ||placed - theta_0|| / ||theta_0||.
        rounding: ||placed - (theta_0 + asked)|| / ||asked||; 0 where nothing was asked.
        resolved: whether the step is above one unit in the last place of the weights, in the mean square.
    """

    moved: float
    rounding: float
    resolved: bool


class Placer:
    """Goes to points around theta_0.

    Attributes:
        frame: the directions.
    """

    def __init__(self, model: Any, frame: Frame) -> None:
        """Take the model.

        Args:
            model: at theta_0; the frame was made from it.
            frame: the directions.
        """
        self.frame = frame
        self._weights: dict[str, nn.Parameter] = dict(model.named_parameters())

    @contextmanager
    def at(self, line: int | None, at: Sequence[float]) -> Iterator[Placed]:
        """Put theta_0 + displacement into the model for the length of a block.

        Args:
            line: index of the direction; None in a plane.
            at: coordinates, see `Frame.displacement`. At the origin the model is left alone.

        Yields:
            What rounding left of the displacement. Afterwards the model is theta_0 again, bitwise.
        """
        if not any(at):
            yield Placed(0.0, 0.0, True)
            return
        sums = _Sums(self.frame.norm, math.hypot(*at))

        @torch.no_grad()
        def pairs() -> Iterator[tuple[nn.Parameter, Tensor]]:
            for name, asked in self.frame.displacement(line, at):
                weight = self._weights[name]
                yield weight, sums.place(wide(self.frame.start[name]), asked, weight.dtype)

        with swapped(pairs()):
            yield sums.placed()


class _Sums:
    """Squared lengths over the weights placed so far."""

    def __init__(self, norm: float, asked: float) -> None:
        # Directions of a frame are as long as theta_0, and orthogonal in a plane: the length asked for is known.
        self._norm, self._asked = norm, asked * norm
        self._moved = self._lost = 0.0

    def place(self, own: Tensor, asked: Tensor, dtype: torch.dtype) -> Tensor:
        """Return own + asked in `dtype`; what is asked for is used up, since a large weight's copies are large."""
        aim = asked.add_(own)
        placed = aim.to(dtype, copy=True)
        self._lost += float(torch.linalg.vector_norm(aim.sub_(placed))) ** 2
        # Not subtracted in place: a float64 weight is theta_0's own.
        self._moved += float(torch.linalg.vector_norm(torch.sub(own, placed, out=aim))) ** 2
        return placed

    def placed(self) -> Placed:
        rounding = math.sqrt(self._lost) / self._asked
        return Placed(math.sqrt(self._moved) / self._norm, rounding, rounding <= ONE_ULP)
