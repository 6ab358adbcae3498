"""From directions as they are asked for to directions that give tensors; and the same ones again, from the record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from geomsafe.errors import ConfigError
from geomsafe.evaluation.suites import slug
from geomsafe.landscape import gradients
from geomsafe.landscape.axes import AxisSpec
from geomsafe.landscape.directions import (
    MixedDirection,
    RandomDirection,
    RawDirection,
    SavedTensors,
    StoredDirection,
    WeightsDirection,
    start_of,
)
from geomsafe.landscape.frame import Shape, raw_gram
from geomsafe.landscape.places import RunPlace, place_of
from geomsafe.landscape_record import Direction
from geomsafe.models import Loaded, load_model, model_folder
from geomsafe.records import RunRecord
from geomsafe.training.bases import base_name

FOLDER = "directions"

_LAYER = re.compile(r"(.*?\.\d+)\.")


class Maker:
    """Makes the directions of one landscape."""

    def __init__(self, start: Loaded, places: Sequence[RunPlace], folder: Path) -> None:
        """Take what directions are made of.

        Args:
            start: theta_0.
            places: the runs; the first one's probes give safety and utility examples.
            folder: the landscape's folder, where what cannot be made again is kept.
        """
        self._start, self._places, self._folder = start, places, folder
        self._weights = start_of(start.model)
        self._batches: dict[str, gradients.Batch] = {}

    def make(self, specs: Sequence[AxisSpec], shape: Shape) -> list[RawDirection]:
        """Make directions as they are asked for.

        Args:
            specs: what is asked for.
            shape: "plane": one direction a spec. "lines": one for each run where the spec names none, and as many
                random ones as it counts.

        Returns:
            The directions, names unique.

        Raises:
            ConfigError: a direction cannot be made for this model or these runs.
        """
        found: list[RawDirection] = []
        for spec in specs:
            options = spec.options.model_dump(exclude_none=True)
            found += [self.one(spec.kind, each) for each in self._each(spec, options, shape)]
        names = [one.name for one in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"direction '{twice}' is asked for twice: leave one out")
        return found

    def _each(self, spec: AxisSpec, options: dict[str, Any], shape: Shape) -> list[dict[str, Any]]:
        """Return the options of each direction that a spec stands for.

        Raises:
            ConfigError: several random directions for one axis, or no run has an average.
        """  # noqa: DOC201
        if spec.kind == "random":
            count = options.pop("count")
            if shape == "plane" and count > 1:
                raise ConfigError(f"an axis of a plane is one direction, random:count={count} are {count}: use --lines")
            return [options | {"seed": options["seed"] + number} for number in range(count)]
        if spec.kind not in {"finetune", "ema"}:
            return [options]
        options.setdefault("weights", "final" if spec.kind == "finetune" else "ema")
        having = [place for place in self._places if options["weights"] in place.record.weights]
        if "run" in options:
            return [options]
        if not having:
            raise ConfigError(f"direction '{spec.kind}': no run has weights named '{options['weights']}'")
        chosen = having if shape == "lines" else having[:1]
        return [options | {"run": place.name} for place in chosen]

    def one(self, kind: str, options: dict[str, Any]) -> RawDirection:
        """Return one direction, opened where it lies in the landscape's folder already.

        Args:
            kind: as in `axes.KINDS`.
            options: checked ones.
        """
        if kind == "random":
            return self._random(options)
        if kind in {"finetune", "ema"}:
            return self._of_weights(kind, options)
        if kind == "alignment":
            return self._alignment()
        if kind == "pca":
            return self._component(options)
        return self._stored(kind, options)

    def _random(self, options: dict[str, Any]) -> RawDirection:
        left_out = frozenset() if options["norms"] else frozenset(norm_weights(self._start.model))
        if not options["embeddings"]:
            left_out |= embedding_weights(self._start.model)
        group: dict[str, Callable[[str], str]] = {"tensor": lambda weight: weight, "global": lambda _: "", "row": str}
        chosen = group.get(options["norm"], layer_of)
        name = f"random {options['seed']}" + "".join(
            part
            for part, said in (
                (f", {options['norm']}", options["norm"] != "tensor"),
                (", norms too", options["norms"]),
                (", no embeddings", not options["embeddings"]),
            )
            if said
        )
        facts = {"drawn": "float32 on the CPU, from SHA-256 of seed and weight", "left_out": sorted(left_out)}
        return RandomDirection(name, options, self._weights, left_out, chosen, facts)

    def _of_weights(self, kind: str, options: dict[str, Any]) -> RawDirection:
        place = place_of(self._places, options.get("run"))
        options = options | {"run": place.name}
        folder = place.folder(options["weights"])
        name = f"{options['weights']} of {place.name}"
        saved = self._saved(str(folder), f"{place.name}--{options['weights']}")
        facts = {"step": place.weights(options["weights"]).step}
        return WeightsDirection(name, kind, options, place.name, self._weights, saved, facts)

    def _alignment(self) -> RawDirection:
        base = base_name(self._places[0].config, self._start)
        if base is None:
            raise ConfigError("direction 'alignment' needs theta_base: train with --base-model, or leave it out")
        saved = self._saved(base, "theta_base")
        return WeightsDirection("alignment", "alignment", {}, None, self._weights, saved, {"theta_base": base}, -1)

    def _component(self, options: dict[str, Any]) -> RawDirection:
        place = place_of(self._places, options.get("run"))
        names = path_sets(place.record)
        steps = [self._of_weights("finetune", {"run": place.name, "weights": name}) for name in names]
        if options["component"] > len(steps):
            raise ConfigError(
                f"pca:component={options['component']}: run '{place.name}' has {len(steps)} saved weight sets: "
                "train with --curve-points or --save-weights-at"
            )
        values, vectors = np.linalg.eigh(raw_gram(self._weights, steps))
        weights = vectors[:, -options["component"]]
        # Towards the end of training.
        weights = weights * (1.0 if weights[-1] >= 0 else -1.0)
        facts = {"share_of_energy": float(values[-options["component"]] / values.sum()), "weight_sets": names}
        name = f"pca {options['component']} of {place.name}"
        options = options | {"run": place.name}
        return MixedDirection(name, "pca", options, place.name, steps, weights.tolist(), facts)

    def _stored(self, kind: str, options: dict[str, Any]) -> RawDirection:
        what = "".join(f" {key} {value}" for key, value in options.items())
        name = f"{kind}{what}"
        path = self._folder / FOLDER / f"{slug(name)}.safetensors"
        if not path.is_file():
            vector, facts = self._vector(kind, options)
            _save(path, {key: part for key, part in vector.items() if bool(part.any())}, facts)
        saved = SavedTensors(path)
        return StoredDirection(name, kind, options, None, self._weights, saved, saved.facts)

    def _vector(self, kind: str, options: dict[str, Any]) -> tuple[gradients.Vector, dict[str, Any]]:
        model = self._start.model
        if kind == "hessian":
            return gradients.sharpest_direction(model, self.batch("safety"))
        if kind == "conflict":
            return gradients.conflict_direction(model, self.batch("safety"), self.batch("utility"), options["rank"])
        batch = self.batch(kind.removesuffix("-gradient"))
        facts: dict[str, Any] = {}
        if "component" in options:
            vector, facts = gradients.span_direction(model, batch, options["component"])
        else:
            vector = gradients.mean_gradient(model, batch)
        if "rank" in options:
            vector = gradients.cut(vector, options["rank"])
        # Utility goes downhill, as training does; safety uphill, where the model is less safe.
        sign = -1 if kind == "utility-gradient" else 1
        return {name: sign * part for name, part in vector.items()}, facts | {"examples": len(batch["labels"])}

    def batch(self, kind: str) -> gradients.Batch:
        """Return the safety or the utility examples."""
        if kind not in self._batches:
            place = self._places[0]
            self._batches[kind] = (
                gradients.safety_batch(self._start, place.config, place.path)
                if kind == "safety"
                else gradients.utility_batch(self._start, place.config)
            )
        return self._batches[kind]

    def _saved(self, model: str, label: str) -> SavedTensors:
        """Open saved weights; those that transformers keeps under other names are loaded and written under ours."""  # noqa: DOC201
        kept = self._folder / FOLDER / f"{slug(label)}.safetensors"
        folder = model_folder(model)
        if not kept.is_file():
            saved = SavedTensors(folder) if folder is not None else None
            if saved is not None and all(name in saved for name in self._weights):
                return saved
            config = self._places[0].config
            loaded = load_model(
                model, dtype=config.dtype, device="cpu", trust_remote_code=config.trust_remote_code, training=False
            )
            _require_same(self._weights, start_of(loaded.model), model)
            _save(kept, start_of(loaded.model))
        return SavedTensors(kept)


def reopen(maker: Maker, directions: Sequence[Direction]) -> list[RawDirection]:
    """Make the directions of a record again; nothing that took a gradient is computed anew.

    Args:
        maker: of the landscape's folder.
        directions: from the record.

    Returns:
        The same directions.
    """
    return [maker.one(one.kind, dict(one.options)) for one in directions]


def path_sets(record: RunRecord) -> list[str]:
    """Return a run's weight sets on the path of training: those of steps in their order, then the last iterate."""
    steps = [name for name in record.weights if name.startswith("step-")]
    return [
        *sorted(steps, key=lambda name: record.weights[name].step),
        *(["final"] if "final" in record.weights else []),
    ]


def norm_weights(model: nn.Module) -> set[str]:
    """Return the names of the weights that normalisation layers have."""
    found = set()
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            found |= {f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)}
    return found


def embedding_weights(model: Any) -> frozenset[str]:
    """Return the names of the weights of embeddings, and of the layer that gives logits."""
    owners = {
        id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    }
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if id(module) in owners or isinstance(module, nn.Embedding)
        for own, _ in module.named_parameters(recurse=False)
    )


def layer_of(weight: str) -> str:
    """Return the transformer layer that a weight is in; a weight outside of them is its own."""
    found = _LAYER.match(weight)
    return found[1] if found else weight


def _require_same(weights: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str) -> None:
    """Refuse a model of another shape.

    Raises:
        ConfigError: a weight has no partner of its shape.
    """
    for weight, tensor in weights.items():
        if weight not in other or other[weight].shape != tensor.shape:
            raise ConfigError(f"'{name}' has no weight '{weight}' of shape {tuple(tensor.shape)} as theta_0 has")


def _save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, part, metadata={"facts": json.dumps(dict(facts or {}))})
    part.replace(path)
