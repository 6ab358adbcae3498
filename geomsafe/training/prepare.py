"""Everything a run needs, loaded and checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from geomsafe.config import TrainConfig
from geomsafe.data import (
    Conversation,
    ConversationSet,
    Encoded,
    PromptSet,
    encode_all,
    hold_out,
    load_conversations,
    load_prompts,
)
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.evaluation import Suite, suites_for
from geomsafe.methods import Method, Schedule
from geomsafe.models import Loaded, load_model, require_space
from geomsafe.training.costs import run_bytes
from geomsafe.training.engine import schedule_of

ORGANISM_SAFETY = "organism:probe-safety"
ORGANISM_UTILITY = "organism:probe-utility"


@dataclass
class Material:
    """What a run works with.

    Attributes:
        loaded: the model at theta_0.
        rows: encoded training examples.
        schedule: the length of the run.
        suites: what is scored at the end.
        safety: harmful prompts for the probes; None where there are none.
        utility: encoded benign examples for the probes; empty where there are none.
        data: the record's account of all data.
        warnings: what the user should know.
        not_run: what is left out and why.
    """

    loaded: Loaded
    rows: list[Encoded]
    schedule: Schedule
    suites: list[Suite]
    safety: PromptSet | None
    utility: list[Encoded]
    data: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)


def refuse_launchers() -> None:
    """Stop where a launcher has started several processes or asks for sharding.

    Raises:
        TrainingError: DeepSpeed, FSDP or DDP; named.
    """
    truth = {"1", "true", "yes"}
    for name, active in (
        ("DeepSpeed", os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in truth),
        ("FSDP", os.environ.get("ACCELERATE_USE_FSDP", "").lower() in truth),
        ("DDP", int(os.environ.get("WORLD_SIZE", "1")) > 1),
    ):
        if active:
            raise TrainingError(f"{name} is not supported yet: start geomsafe without a launcher, on one device")


def load_start(config: TrainConfig) -> Loaded:
    """Load theta_0 as the settings say; the seed decides how LoRA factors start.

    Args:
        config: the settings.

    Returns:
        The model with its adapters, all trained weights requiring gradients.
    """
    set_seed(config.seed)
    return load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        lora=config.lora,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def prepare(config: TrainConfig, methods: list[Method], folder: Path) -> Material:
    """Load the model and all data of a run.

    Args:
        config: the settings.
        methods: the methods, for the space that their weights take.
        folder: the run directory, for the disk it is on.

    Returns:
        The material.

    Raises:
        ConfigError: weights are to be saved after a step that the run does not have.
        DataError: no training example is left, or a data set cannot be read.
        ModelError: the model cannot be used, or its weights would not fit on the disk.
    """  # noqa: DOC502
    loaded = load_start(config)
    require_space(folder, run_bytes(config, len(methods), loaded.model))
    material = Material(loaded, [], schedule_of(config, 1), [], None, [], warnings=list(loaded.notes))
    if config.probe_schedule == "off":
        material.not_run["probes"] = "probe_schedule is off"
    else:
        _load_safety(config, material)
    _load_rows(config, material)
    material.schedule = schedule_of(config, len(material.rows))
    beyond = [step for step in config.save_weights_at if not 0 < step <= material.schedule.total_steps]
    if beyond:
        raise ConfigError(
            f"setting 'save_weights_at': the run has steps 1 to {material.schedule.total_steps}, not {beyond[0]}"
        )
    if config.evaluate:
        material.suites = suites_for(loaded, config.eval_prompts, config.data)
        material.data["suites"] = {
            suite.name: {"kind": suite.kind, "source": suite.prompts.source, "sha256": suite.prompts.sha256}
            for suite in material.suites
        }
    if not material.suites:
        material.not_run["evaluation"] = "no prompt sets: give --eval-prompts" if config.evaluate else "--no-evaluate"
    return material


def _load_rows(config: TrainConfig, material: Material) -> None:
    """Encode the training set, after setting aside examples for the utility probe where it needs them."""
    found = load_conversations(
        config.data, columns=config.columns, limit=config.data_limit, world=material.loaded.world
    )
    rows = _load_utility(config, material, found) if config.probe_schedule != "off" else found.rows
    encoded = encode_all(replace(found, rows=rows), material.loaded.tokenizer, config.max_length, config.system_prompt)
    material.rows = encoded.rows
    material.warnings += encoded.notes
    material.data["train"] = {
        "source": found.source,
        "sha256": found.sha256,
        "tokens_sha256": encoded.sha256,
        "rows": len(found.rows),
        "used": len(encoded.rows),
        "truncated": encoded.truncated,
        "dropped": encoded.dropped,
        "target_tokens": sum(row.target_tokens for row in encoded.rows),
        "notes": found.notes,
    }


def _load_utility(config: TrainConfig, material: Material, training: ConversationSet) -> list[Conversation]:
    """Choose the utility probe's examples; return the rows that are left to train on."""  # noqa: DOC201
    world = material.loaded.world
    source = config.utility_data or (ORGANISM_UTILITY if world is not None else None)
    rows = training.rows
    if source is not None:
        probe = load_conversations(source, limit=config.probe_examples, world=world)
    elif len(rows) > 2 * config.probe_examples:
        rows, aside = hold_out(rows, config.probe_examples)
        probe = replace(training, rows=aside, source=f"{training.source} (held out)", notes=[])
    else:
        material.not_run["utility probes"] = (
            f"'{training.source}' is too small to hold examples out: give --utility-data"
        )
        return rows
    probe = replace(probe, rows=probe.rows[: config.probe_examples])
    encoded = encode_all(probe, material.loaded.tokenizer, config.max_length, config.system_prompt)
    material.utility = encoded.rows
    material.data["utility_probe"] = {
        "source": probe.source,
        "sha256": probe.sha256,
        "tokens_sha256": encoded.sha256,
        "used": len(encoded.rows),
        "notes": probe.notes,
    }
    return rows


def _load_safety(config: TrainConfig, material: Material) -> None:
    world = material.loaded.world
    source = config.safety_data or (ORGANISM_SAFETY if world is not None else None)
    if source is None:
        return
    material.safety = load_prompts(source, world=world)
    material.data["safety_probe"] = {
        "source": material.safety.source,
        "sha256": material.safety.sha256,
        "notes": material.safety.notes,
    }
