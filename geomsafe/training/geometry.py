"""`geometry`: one capture of any checkpoint, without training, in a record that `geomsafe analyze` reads.

The model is theta_0 and the run has no step. What is measured is what the first capture of a run holds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomsafe.config import TrainConfig
from geomsafe.data import Encoded
from geomsafe.errors import ConfigError, DataError, RecordError
from geomsafe.evaluation.suites import slug
from geomsafe.gradients import Sum, gradient_pass
from geomsafe.gradients.curvature import curvature_along
from geomsafe.models import Anchor, find_device, no_loading_bars
from geomsafe.probes import Probes
from geomsafe.probes.examples import Example, padded
from geomsafe.records import RunRecord, write_atomic, write_record
from geomsafe.training.prepare import Material, load_start, prepare_probes, refuse_launchers
from geomsafe.training.probing import make_probes
from geomsafe.training.record import create_run, now
from geomsafe.training.selfcheck import gradient_check
from geomsafe.training.threads import threads_set

Progress = Callable[[str, int, int], None]

STAGES = 5


def measure_checkpoint(config: TrainConfig, *, curvature: bool = False, progress: Progress | None = None) -> Path:
    """Measure the gradient geometry of a model as it is.

    Args:
        config: the settings: model, safety_data, utility_data, probe_examples, nulls, refusal_text, out and what
            loading needs; those of training play no part. With a `refusal_text` it is measured on all harmful
            prompts, refused or not, so that a model that refuses nothing can be measured too.
        curvature: also take the curvature of the safety loss along the utility gradient and its own, into the record.
        progress: called with a label, stages done and stages in all.

    Returns:
        The folder: run.json, captures/step-000000.safetensors, probes/.

    Raises:
        ConfigError: there are no harmful prompts to measure on.
        DataError: neither set can be measured.
        RecordError: the folder is not empty.
    """  # noqa: DOC502
    refuse_launchers()
    shown = progress or (lambda label, done, total: None)
    folder = config.out if config.out is not None else default_folder(config.model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordError(f"'{folder}' exists and is not empty: choose another folder with --out")
    with threads_set(config.threads), no_loading_bars():
        shown("load", 0, STAGES)
        loaded = load_start(config)
        if config.safety_data is None and loaded.world is None:
            raise ConfigError(f"'{config.model}' brings no harmful prompts of its own: name some with --safety")
        material = prepare_probes(config, loaded)
        record = create_run(folder, config, find_device(config.device))
        try:
            _measure(folder, config, record, material, curvature, shown)
        except BaseException:
            # Half a measurement is none, and would stand in the way of the next attempt.
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


def _measure(
    folder: Path, config: TrainConfig, record: RunRecord, material: Material, curvature: bool, shown: Progress
) -> None:
    shown("refusals and controls", 1, STAGES)
    anchor = Anchor(material.loaded.model, "cpu")
    probes = make_probes(config, material, anchor, folder, refused_only=config.refusal_text is None)
    if probes is None or not probes.sets:
        raise DataError(f"nothing to measure '{config.model}' on: {'; '.join(material.not_run.values())}")
    shown("check", 2, STAGES)
    kind = probes.sets[0]
    rows = [Encoded(row.input_ids, row.labels, False, len(row.answer)) for row in probes.examples[kind]]
    pad_id = material.loaded.tokenizer.pad_token_id or 0
    record.provenance["checks"] = {"gradients": gradient_check(material.loaded.model, rows, pad_id)}
    shown("capture", 3, STAGES)
    probes.steps(0)
    probes.measure(0)
    shown("curvature", 4, STAGES)
    if curvature:
        _add_curvature(material, probes)
    _finish(folder, record, material, anchor, probes)
    shown("done", STAGES, STAGES)


def default_folder(model: str) -> Path:
    """Return where a checkpoint's capture goes when no folder is named: runs/geometry-<name>."""
    return Path("runs") / f"geometry-{slug(model)}"


def curvature_of(probes: Probes, model: Any, pad_id: int, memory: int) -> dict[str, dict[str, Any]]:
    """Take the curvature of the safety loss along unit steps down the utility and the safety loss.

    Args:
        probes: holds the examples.
        model: the model.
        pad_id: token id of padding.
        memory: bytes that one pass may hold.

    Returns:
        For each direction u = -g / ||g||: slope u^T g_s, curvature u^T H_s u (nats per unit length and squared unit
        length) and the route of the product.
    """
    safety = probes.examples["safety"]
    batch = padded(safety, pad_id)
    found = {}
    for kind, rows in probes.examples.items():
        down = _down(model, rows, pad_id, memory)
        along = curvature_along(model, batch, down, memory_budget=memory)
        found[f"along_{kind}"] = {"slope": along.slope, "curvature": along.value, "route": along.route}
    return found


def _down(model: Any, rows: Any, pad_id: int, memory: int) -> Mapping[str, Tensor]:
    examples: list[Example] = list(rows)
    taken = gradient_pass(model, padded(examples, pad_id), {"sum": Sum()}, reduction="sum", memory_budget=memory)
    total: dict[str, Tensor] = taken["sum"]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part.double()) for part in total.values()]))
    return {name: part / -float(norm) for name, part in total.items()}


def _add_curvature(material: Material, probes: Probes) -> None:
    if "safety" not in probes.sets:
        material.not_run["curvature"] = "there is no safety set"
        return
    pad_id = material.loaded.tokenizer.pad_token_id or 0
    material.data["curvature"] = curvature_of(probes, material.loaded.model, pad_id, probes.memory)


def _finish(folder: Path, record: RunRecord, material: Material, anchor: Anchor, probes: Probes) -> None:
    record.model = material.loaded.record() | {"theta_0_norm": anchor.norm(), "lora": None}
    record.data = material.data
    record.not_run = probes.not_run | material.not_run | {"training": "one capture of a model as it is"}
    record.warnings = sorted({*material.warnings, *probes.notes})
    record.status, record.finished = "finished", now()
    write_atomic(folder / "steps.jsonl", "")
    write_record(folder, record)
