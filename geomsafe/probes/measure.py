"""The probes of a run: the same examples at every scheduled step, one backward pass a capture.

What a capture holds is described in docs/numbers.md. A measurement leaves the model, its
gradients and the random state exactly as found: a run with probes and one without have
bitwise equal weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from geomsafe.config import TrainConfig
from geomsafe.errors import ModelError, RecordError
from geomsafe.gradients import target_shapes
from geomsafe.gradients.adam import adam_preconditioner
from geomsafe.gradients.memory import free_bytes
from geomsafe.models import Anchor, Loaded, lora_layers
from geomsafe.probes.capture import SCHEMA, capture_path, write_capture
from geomsafe.probes.controls import BENIGN, SHAM, Controls
from geomsafe.probes.examples import ProbeExample
from geomsafe.probes.geometry import (
    RANK,
    SKETCH_DIM,
    SKETCH_SEED,
    Found,
    Probed,
    measure_nulls,
    measure_sets,
    measure_singles,
    norms_of,
)
from geomsafe.probes.margins import refusal_margins
from geomsafe.probes.nulls import NULLS, SAME_TEXT, UNTRAINED, room_for_twin, untrained_twin
from geomsafe.probes.refusals import RefusalSet
from geomsafe.probes.schedule import probe_steps
from geomsafe.probes.sums import Facing

FEWEST = 2
"""Examples in a probe set, at least: two, or there is no noise floor."""

CONTROLS = (SHAM, BENIGN)
"""Sets of the first and last capture only, beside the safety and the utility set."""


class Probes:
    """Measure a model in training and write one capture a measurement.

    Attributes:
        sets: the sets of every capture, of "safety" and "utility", in this order.
        examples: their examples.
        memory: bytes that one pass may hold.
        not_run: what is not measured and why, for the run record.
        notes: what was changed to fit, for the run's warnings; may grow with a measurement.
    """

    def __init__(
        self,
        loaded: Loaded,
        safety: RefusalSet | None,
        utility: Sequence[ProbeExample] | None,
        anchor: Anchor,
        config: TrainConfig,
        folder: Path,
        *,
        controls: Controls | None = None,
        memory_budget: int | None = None,
    ) -> None:
        """Fix the examples and the weights that are measured.

        Args:
            loaded: the model in training, adapters added and parameters frozen as they stay.
            safety: theta_0's refusals; None, or a set with a `reason`, is listed in `not_run`.
            utility: benign examples; None or too few are listed in `not_run`.
            anchor: theta_0 of `loaded.model`.
            config: probe_schedule, probe_batch_size, spectra, nulls and seed are used.
            folder: where captures are written, `captures/` of the run.
            controls: the control sets and nulls of the safety set.
            memory_budget: bytes that one pass may hold (default: half of the free memory).

        Raises:
            ModelError: the anchor does not have exactly the weights that gradients are taken of.
        """
        self._model: Any = loaded.model
        self._anchor, self._config, self._folder = anchor, config, folder
        self._before: Anchor | None = None
        self._last: int | None = None
        self._start: dict[str, dict[str, Facing]] | None = None
        self.not_run: dict[str, str] = {}
        self.notes: list[str] = []
        self._refusals = self._usable_refusals(safety)
        self.examples = self._probe_sets(utility)
        self._controls = controls if controls is not None and self._refusals is not None else Controls()
        self.not_run |= self._controls.not_run
        self.sets = tuple(self.examples)
        shapes = target_shapes(self._model)
        norms = anchor.norms()
        if set(shapes) != set(norms):
            odd = sorted(set(shapes) ^ set(norms))
            raise ModelError(f"anchor and model differ in {len(odd)} trained weights, the first is '{odd[0]}'")
        self._names = list(shapes)
        self._norms = torch.tensor([norms[name] for name in self._names], dtype=torch.float64)
        self.memory = free_bytes(loaded.device) // 2 if memory_budget is None else memory_budget
        self._probed = Probed(self._model, shapes, loaded.tokenizer.pad_token_id or 0, self.memory)

    def steps(self, total: int) -> set[int]:
        """Return the optimizer steps to measure after, of `total`; the first and last get spectra and nulls too."""
        self._last = total
        return probe_steps(self._config.probe_schedule, total)

    def remember(self) -> None:
        """Keep the weights as they are: the next measurement is of one step later, and the difference its update."""
        self._before = Anchor(self._model)

    def measure(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> Path:
        """Measure the model as it is now and write its capture.

        Args:
            step: optimizer steps taken.
            optimizer: what trains the model; with Adam's state there is a preconditioned Gram matrix too.

        Returns:
            The capture file.
        """
        tensors: dict[str, Tensor] = {"parameter_norm": self._norms}
        ends = step in {0, self._last}
        changes = self._changes(step)
        tensors["displacement_norm"] = torch.zeros_like(self._norms)
        for what, change in changes.items():
            tensors[f"{what}_norm"] = norms_of(change, self._names)
        sets = self._sets(ends)
        found = Found()
        if sets:
            found = measure_sets(
                self._probed,
                sets,
                changes=changes,
                preconditioner=self._preconditioner(optimizer),
                at_start=self._at_start() if step else {},
                spectra=self._config.spectra and ends,
            )
            if step == 0:
                count = len(found.tensors["example_tokens"])
                found.tensors["displacement_dots"] = torch.zeros((len(self._names), count), dtype=torch.float64)
        tensors |= found.tensors
        facts, skipped = dict(found.facts), dict(found.skipped)
        if self._refusals is not None:
            of_safety = slice(0, len(self._refusals.rows))
            tensors["refusal_nll"] = tensors["example_losses"][of_safety] / tensors["example_tokens"][of_safety]
            tensors |= self._refusal_margins(self._refusals)
        if ends and self._config.nulls and self._refusals is not None:
            for more in self._nulls(step, self._refusals, found):
                tensors |= more.tensors
                for key, fact in more.facts.items():
                    facts[key] = facts.get(key, {}) | fact
                skipped |= more.skipped
        self._before = None
        self._note(skipped)
        path = capture_path(self._folder, step)
        write_capture(path, tensors, self._metadata(step, sets, tensors, facts, skipped))
        return path

    def _changes(self, step: int) -> dict[str, Mapping[str, Tensor]]:
        # At step 0 nothing has moved: there is no displacement to take inner products with.
        found: dict[str, Mapping[str, Tensor]] = {}
        if step:
            found["displacement"] = self._anchor.changes(self._model)
        if self._before is not None:
            found["update"] = self._before.changes(self._model)
        return found

    def _sets(self, ends: bool) -> dict[str, Sequence[ProbeExample]]:
        controls = {kind: self._controls.sets[kind] for kind in CONTROLS if kind in self._controls.sets}
        return self.examples | (controls if ends else {})

    def _preconditioner(self, optimizer: torch.optim.Optimizer | None) -> Mapping[str, Tensor] | None:
        """Read P where the optimizer is Adam and moves the very weights that are measured."""  # noqa: DOC201
        if optimizer is None or self._config.optimizer != "adamw":
            return None
        if lora_layers(self._model):
            self.not_run["preconditioned products"] = "Adam moves LoRA's factors, gradients are of effective weights"
            return None
        try:
            return adam_preconditioner(self._model, optimizer)
        except ModelError as error:
            self.not_run["preconditioned products"] = str(error)
            return None

    def _nulls(self, step: int, refusals: RefusalSet, found: Found) -> list[Found]:
        measured = []
        matrices = list(dict.fromkeys(name.partition("[")[0] for name in found.spaces["safety"]))
        nulls = {kind: self._controls.sets[kind] for kind in NULLS if kind in self._controls.sets}
        if nulls and self._config.spectra:
            measured.append(measure_nulls(self._probed, nulls, matrices))
        if self._config.spectra and step == 0:
            measured += self._of_untrained(refusals, matrices)
        same_text = self._controls.sets.get(SAME_TEXT, [])
        clusters = [row.cluster for row in refusals.rows]
        measured.append(measure_singles(self._probed, refusals.rows, clusters, same_text, matrices))
        return measured

    def _of_untrained(self, refusals: RefusalSet, matrices: Sequence[str]) -> list[Found]:
        """Measure the safety set on weights that nothing has trained; once a run, since they do not change."""  # noqa: DOC201
        reason = room_for_twin(self._model)
        if reason is not None:
            self.not_run["untrained null"] = reason
            return []
        twin = untrained_twin(self._model, self._config.seed)
        probed = Probed(twin, self._probed.shapes, self._probed.pad_id, self._probed.memory)
        return [measure_nulls(probed, {UNTRAINED: refusals.rows}, matrices)]

    def _at_start(self) -> dict[str, dict[str, Facing]]:
        """Read the spaces of step 0 from its capture, so that a resumed run has the same ones."""  # noqa: DOC201
        if self._start is None:
            path = capture_path(self._folder, 0)
            self._start = read_spaces(path) if path.is_file() else {}
        return self._start

    def _note(self, skipped: Mapping[str, str]) -> None:
        for name, reason in skipped.items():
            note = f"not measured: {name}: {reason}"
            if note not in self.notes:
                self.notes.append(note)

    def _metadata(
        self,
        step: int,
        sets: Mapping[str, Sequence[ProbeExample]],
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        skipped: Mapping[str, str],
    ) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "step": str(step),
            "parameters": self._names,
            "shapes": [list(shape) for shape in self._probed.shapes.values()],
            "sets": list(sets),
            "set_examples": {kind: len(rows) for kind, rows in sets.items()} | facts.get("null_examples", {}),
            "clusters": {kind: [row.cluster for row in rows] for kind, rows in sets.items()},
            "prompt_ids": [row.id for row in self._refusals.rows] if self._refusals is not None else [],
            "sketch": {"dim": SKETCH_DIM, "seed": SKETCH_SEED},
            "basis_rank": RANK,
            "nulls": [kind for kind in NULLS if any(name.startswith(f"{kind}_singular") for name in tensors)],
            "match": {kind: match for kind, match in self._controls.match.items() if match},
            "spectra_skipped": skipped,
            "slow": [],
            "routes": {},
        }
        if self._refusals is not None:
            metadata["refusal_openings"] = self._refusals.refusal_openings
            metadata["compliance_openings"] = self._refusals.compliance_openings
            metadata["compliance_source"] = self._refusals.compliance_source
        return metadata | {key: fact for key, fact in facts.items() if key != "null_examples"}

    def _usable_refusals(self, safety: RefusalSet | None) -> RefusalSet | None:
        if safety is None:
            self.not_run["safety probes"] = "no harmful prompts were given: name some with --safety-data"
        elif safety.reason is not None:
            self.not_run["safety probes"] = safety.reason
        else:
            self.notes.extend(safety.notes)
            if not safety.compliance_openings:
                self.not_run["refusal margin"] = "every opening of compliance also begins a refusal"
            return safety
        return None

    def _probe_sets(self, utility: Sequence[ProbeExample] | None) -> dict[str, Sequence[ProbeExample]]:
        found: dict[str, Sequence[ProbeExample]] = {}
        if self._refusals is not None:
            found["safety"] = [
                ProbeExample(row.id, row.cluster, row.input_ids, row.labels) for row in self._refusals.rows
            ]
        if utility is None or len(utility) < FEWEST:
            given = 0 if utility is None else len(utility)
            self.not_run["utility probes"] = f"{given} benign examples were given and {FEWEST} are needed"
        else:
            found["utility"] = utility
        return found

    def _refusal_margins(self, refusals: RefusalSet) -> dict[str, Tensor]:
        measured = refusal_margins(
            self._model,
            [row.prompt_tokens for row in refusals.rows],
            refusals.refusal_openings,
            refusals.compliance_openings,
            self._config.probe_batch_size,
        )
        tensors = {"refusal_log_odds": measured.log_odds}
        if measured.margin is not None:
            tensors["refusal_margin"] = measured.margin
        return tensors


def read_spaces(path: Path) -> dict[str, dict[str, Facing]]:
    """Read the left spaces of a capture.

    Args:
        path: a capture file.

    Returns:
        Set -> matrix -> space, in the order of the file's sets.

    Raises:
        RecordError: the file is of another schema.
    """
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata() or {}
        if metadata.get("schema") != SCHEMA:
            raise RecordError(
                f"capture '{path}' has schema {metadata.get('schema')!r}, this geomsafe continues '{SCHEMA}': "
                "start a new run directory"
            )
        axes, held = json.loads(metadata.get("basis_axis", "{}")), set(stream.keys())
        return {
            kind: {
                name: Facing(stream.get_tensor(f"{kind}_basis/{name}"), torch.zeros(0), axis)
                for name, axis in axes.items()
                if f"{kind}_basis/{name}" in held
            }
            for kind in json.loads(metadata["sets"])
        }
