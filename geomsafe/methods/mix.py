"""Safety mixing: part of the training rows are refusals, the plainest defence that uses safety data.

A share of the rows makes way for harmful prompts with theta_0's own greedy refusals, so that the number of rows and
steps stays and nothing but the data differs from a run without. The prompts are those of `anchor=safety` of the
gradient methods: the organism's alignment data, else `safety_data` from its end; none is scored. At most `anchors`
different refusals are made; more rows repeat them in turn, and the record says how many there are.

The run mixes (`geomsafe.training`); in a plain Trainer the data set is the user's own, and this method refuses to pass
for it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from geomsafe.config import Settings
from geomsafe.errors import ConfigError
from geomsafe.methods.base import Method, Schedule


class MixOptions(Settings):
    """Options of `mix`."""

    share: float = Field(0.1, gt=0, lt=1, description="share of the training rows that become refusals")
    anchor: str = Field("safety", description="safety, or a data set or file with prompts and refusals")
    anchors: int = Field(64, ge=1, description="different refusals, at most; more rows repeat them")


class Mix(Method):
    """Train on refusals too.

    Attributes:
        mixed: how many rows became refusals; 0 until the run has mixed them.
    """

    name: ClassVar[str] = "mix"
    Options: ClassVar[type[Settings]] = MixOptions
    options: MixOptions

    def __init__(self, options: Settings | None = None) -> None:
        super().__init__(options)
        self.mixed = 0

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, schedule: Schedule) -> None:
        """Make sure that the rows are mixed.

        Args:
            model: not used.
            optimizer: not used.
            schedule: not used.

        Raises:
            ConfigError: nobody has mixed them.
        """
        if not self.mixed:
            raise ConfigError(
                f"method {self.label} acts on the training rows, which only geomsafe's own run mixes: "
                "put refusals into the data set yourself"
            )

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Return the record's entry, with the number of rows that became refusals."""
        return super().describe(schedule) | {"mixed_rows": self.mixed}
