"""What the methods that act once, at the end, have in common: a weight set theta_0 + moved(theta).

They leave training alone, so that one fine-tune carries any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from geomsafe.errors import ConfigError
from geomsafe.methods.base import Method, Schedule, Swap

LAST = "final"


class EndPoint(Method):
    """Offer a weight set that is computed from theta_0 and the last iterate when it is asked for.

    Nothing is stored or saved in checkpoints but theta_0, once for all methods of the run. With LoRA
    the set is placed merged: what comes out need not have the adapter's rank.
    """

    uses_origin: ClassVar[bool] = True

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._held: dict[str, Tensor] = {}
        self._run: tuple[Method, ...] = (self,)

    @property
    def stands_beside(self) -> bool:
        """True: the set is computed when training is over."""
        return True

    def moved(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the displacement from theta_0 of the weights this method offers.

        Args:
            model: the model at the last iterate.

        Yields:
            (base name, tensor) for every effective weight; each is read from the model when its turn comes.

        Raises:
            NotImplementedError: always here; methods say what they offer.
        """
        raise NotImplementedError(type(self).__name__)
        yield

    def meet(self, methods: Sequence[Method]) -> None:
        """Remember the methods of the run, whose weight sets may be referred to."""
        self._run = tuple(methods)

    def weight_sets(self) -> dict[str, Swap]:
        """Return the weights under the method's label."""
        return {self.label: self._placed}

    def displacement(self, name: str) -> Iterator[tuple[str, Tensor]] | None:
        """Return the displacement that is in the model now, where LoRA factors cannot hold it."""
        return iter(self._held.items()) if self.origin.adapted else None

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry; the weights are those under the label."""
        return super().describe(schedule) | {"weight_set": self.label}

    def norms_of(self, name: str, model: nn.Module) -> dict[str, float]:
        """Return the norm of each tensor of another weight set's displacement.

        Args:
            name: "final" or a weight set of another method of the run.
            model: the model at the last iterate.

        Returns:
            Base name -> ||theta_set - theta_0||_2.
        """
        if name == LAST:
            return self.origin.norms(self.origin.displacement(model))
        owner = next(method for method in self._run if name in method.weight_sets())
        with owner.weight_sets()[name](model):
            return self.origin.norms(owner.displacement(name) or self.origin.displacement(model))

    def require_set(self, name: str) -> None:
        """Make sure that a weight set referred to is there.

        Args:
            name: as `norms_of` takes it.

        Raises:
            ConfigError: no other method of the run offers it.
        """
        others = [known for method in self._run if method is not self for known in method.weight_sets()]
        if name not in {LAST, *others}:
            raise ConfigError(
                f"method {self.label}: the run has no weight set '{name}': choose one of {', '.join([LAST, *others])}"
            )

    @contextmanager
    def _placed(self, model: nn.Module) -> Iterator[nn.Module]:
        # Only under LoRA is the displacement held: there it cannot be read off the model again.
        moved = self.moved(model)
        if self.origin.adapted:
            self._held = dict(moved)
            moved = iter(self._held.items())
        try:
            with self.origin.placed(model, moved):
                yield model
        finally:
            self._held = {}
