"""Saving the weight sets of a run and saying where each lies relative to theta_0."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

from geomsafe.config import TrainConfig
from geomsafe.methods import Method
from geomsafe.methods.swap import swapped
from geomsafe.models import Anchor, Loaded, base_parameter_name, l2_norm, save_model
from geomsafe.records import WeightSet

LAST = "final"


def step_name(step: int) -> str:
    """Return the name of the weights after a step: `step-000120`."""
    return f"step-{step:06d}"


def saved_steps(config: TrainConfig, total: int) -> list[int]:
    """Return the steps whose weights a run saves beside the last: those asked for, and those of its curve.

    Args:
        config: the settings; `curve_points` asks for that many steps, evenly spaced in log(step).
        total: steps of the run.

    Returns:
        Steps in [1, total - 1], and `total` itself where `save_weights_at` names it, in order.
    """
    return sorted({*config.save_weights_at, *_log_spaced(config.curve_points or 0, total)})


def _log_spaced(count: int, total: int) -> set[int]:
    # Rounding merges early steps: ask for more until enough different ones are left.
    for asked in range(count, 50 * count):
        found = {int(step) for step in np.round(np.geomspace(1, total, asked + 1))[:-1] if step < total}
        if len(found) >= min(count, total - 1):
            return found
    return set(range(1, total)) if count else set()


def set_names(methods: Iterable[Method]) -> list[str]:
    """Return the weight sets that a finished run has, beside the steps asked for."""
    return [LAST, *(name for method in methods for name in method.weight_sets())]


class WeightStore:
    """Writes weight sets into `weights/` of a run, with distances in the record's form."""

    def __init__(self, loaded: Loaded, anchor: Anchor, run: Path, use_cache: bool) -> None:
        """Prepare the store.

        Args:
            loaded: the model in training.
            anchor: theta_0.
            run: the run directory.
            use_cache: what the model's config said before Trainer switched it off; saved models keep it.
        """
        self._loaded = loaded
        self._anchor = anchor
        self._run = run
        self._use_cache = use_cache

    def save_step(self, step: int) -> WeightSet:
        """Save the weights as they are under `step-<step>`.

        Args:
            step: the step just taken.

        Returns:
            Its entry; the alignment follows when the last iterate is known.
        """
        self._write(step_name(step))
        return self._entry(step_name(step), step, self._anchor.distance(self._loaded.model).total, None)

    def save_last(self, methods: Iterable[Method], step: int) -> dict[str, WeightSet]:
        """Save the last iterate and every weight set that the methods offer.

        Args:
            methods: the methods of the run.
            step: the last step.

        Returns:
            Name -> entry.
        """
        model = self._loaded.model
        self._write(LAST)
        last = {name: change.cpu() for name, change in self._anchor.displacement(model)}
        distance = _norm(last)
        entries = {LAST: self._entry(LAST, step, distance, 1.0 if distance else None)}
        for method in methods:
            for name, placed in method.weight_sets().items():
                with placed(model):
                    self._write(name)
                    moved = method.displacement(name)
                    measured = _against(last, moved or self._anchor.displacement(model))
                if moved is not None:
                    # The set has no factors of its own: it is saved merged, the adapter would be theta_0's.
                    shutil.rmtree(self._run / "weights" / name / "adapter")
                entries[name] = self._entry(name, method.step_of(name, step), *measured)
        return entries

    def align(self, entries: dict[str, WeightSet]) -> dict[str, WeightSet]:
        """Compare weights saved earlier with the last iterate, which the model must hold.

        Args:
            entries: sets in `weights/`, their alignment still unknown.

        Returns:
            The entries with their alignment.
        """
        model = self._loaded.model
        last = {name: change.cpu() for name, change in self._anchor.displacement(model)} if entries else {}
        aligned = {}
        for name, entry in entries.items():
            with swapped(_saved(model, self._run / entry.path)):
                _, alignment = _against(last, self._anchor.displacement(model))
            aligned[name] = entry.model_copy(update={"alignment": alignment})
        return aligned

    def _write(self, name: str) -> None:
        with _config_value(self._loaded.model, self._use_cache):
            save_model(
                self._loaded.model, self._loaded.tokenizer, self._run / "weights" / name, source=self._loaded.folder
            )

    def _entry(self, name: str, step: int, distance: float, alignment: float | None) -> WeightSet:
        return WeightSet(
            path=f"weights/{name}",
            step=step,
            distance=distance,
            relative_distance=distance / self._anchor.norm(),
            alignment=alignment,
        )


def _against(last: dict[str, Tensor], moved: Iterable[tuple[str, Tensor]]) -> tuple[float, float | None]:
    """Return ||moved|| and its cosine with `last`; a displacement of zero has no direction."""
    squares = dot = 0.0
    for name, change in moved:
        wide = change.cpu().double()
        squares += float(wide.square().sum())
        # LoRA's base weights and weights trained beside it have the same names in both.
        dot += float((wide * last[name]).sum())
    norms = math.sqrt(squares), _norm(last)
    return norms[0], dot / (norms[0] * norms[1]) if all(norms) else None


def _norm(displacement: dict[str, Tensor]) -> float:
    return math.sqrt(math.fsum(l2_norm(change) ** 2 for change in displacement.values()))


def _saved(model: nn.Module, folder: Path) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Pair the trained parameters with those in a saved folder, by name."""
    adapter = folder / "adapter"
    files = (adapter if adapter.is_dir() else folder).glob("*.safetensors")
    tensors = {base_parameter_name(name): tensor for file in files for name, tensor in load_file(file).items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield parameter, tensors[base_parameter_name(name)]


@contextmanager
def _config_value(model: Any, use_cache: bool) -> Iterator[None]:
    """Let the config say what it said before Trainer switched the cache off for training."""
    during = model.config.use_cache
    model.config.use_cache = use_cache
    try:
        yield
    finally:
        model.config.use_cache = during
