"""Plain fine-tuning: the method that does nothing, so that it has a name in the record."""

from __future__ import annotations

from typing import ClassVar

from geomsafe.methods.base import Method


class Baseline(Method):
    """Leave gradients and weights to the optimizer."""

    name: ClassVar[str] = "baseline"

    @property
    def stands_beside(self) -> bool:
        """True: there is nothing it could disturb."""
        return True
