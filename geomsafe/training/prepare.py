"""Everything a run needs, loaded and checked before anything is written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from geomsafe.config import TrainConfig
from geomsafe.data import (
    Conversation,
    ConversationSet,
    Encoded,
    Prompt,
    PromptSet,
    encode_all,
    hold_out,
    load_conversations,
    load_prompts,
    prompt_id,
)
from geomsafe.data.rows import conversation_set
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.evaluation import Suite, suites_for
from geomsafe.methods import Method, Schedule
from geomsafe.models import Loaded, load_model, require_space
from geomsafe.probes.examples import ProbeExample
from geomsafe.training.bases import load_base
from geomsafe.training.costs import run_bytes
from geomsafe.training.engine import schedule_of
from geomsafe.training.harmful import mix_harmful, require_unscored

ORGANISM_SAFETY = "organism:probe-safety"
ORGANISM_UTILITY = "organism:probe-utility"
ORGANISM_SHAM = "organism:probe-sham"
ORGANISM_BENIGN = ("organism:sham-look-alike", "organism:downstream-neutral-validation")
"""Benign prompts that nothing is trained on and nothing claimed of, most of them as long as the harmful ones."""

BENIGN_POOL = 2
"""Benign prompts to choose the anchor from, for each example of a probe set."""

SMALL_SHARE = 8
"""Training rows are set aside for the anchor only where they are at most one in so many."""


@dataclass
class Material:
    """What a run works with.

    Attributes:
        loaded: the model at theta_0.
        rows: encoded training examples.
        schedule: the length of the run.
        suites: what is scored at the end.
        safety: harmful prompts for the probes; None where there are none.
        utility: benign examples for the probes; empty where there are none.
        sham: prompts of the organism's sham behaviour.
        benign: benign prompts for the anchor and the nulls, none of them in `utility`.
        data: the record's account of all data.
        warnings: what the user should know.
        not_run: what is left out and why.
    """

    loaded: Loaded
    rows: list[Encoded]
    schedule: Schedule
    suites: list[Suite]
    safety: PromptSet | None
    utility: list[ProbeExample]
    sham: list[Prompt] = field(default_factory=list)
    benign: list[Prompt] = field(default_factory=list)
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
        methods: the methods; those that need theta_base are given it.
        folder: the run directory, for the disk it is on.

    Returns:
        The material.

    Raises:
        ConfigError: weights are to be saved after a step that the run does not have, or theta_base is not known.
        DataError: no training example is left, or a data set cannot be read.
        ModelError: the model cannot be used, or its weights would not fit on the disk.
    """  # noqa: DOC502
    loaded = load_start(config)
    base = load_base(config, methods, loaded)
    for method in methods:
        if method.needs_base:
            method.base = base
    require_space(folder, run_bytes(config, len(methods), loaded.model))
    material = Material(loaded, [], schedule_of(config, 1), [], None, [], warnings=list(loaded.notes))
    if config.probe_schedule == "off":
        material.not_run["probes"] = "probe_schedule is off"
    else:
        _load_safety(config, material)
    if config.evaluate:
        material.suites = suites_for(loaded, config.eval_prompts, config.data)
        material.data["suites"] = {
            suite.name: {"kind": suite.kind, "source": suite.prompts.source, "sha256": suite.prompts.sha256}
            for suite in material.suites
        }
    _load_rows(config, material)
    if config.probe_schedule != "off":
        _load_organism_controls(config, material)
    material.schedule = schedule_of(config, len(material.rows))
    beyond = [step for step in config.save_weights_at if not 0 < step <= material.schedule.total_steps]
    if beyond:
        raise ConfigError(
            f"setting 'save_weights_at': the run has steps 1 to {material.schedule.total_steps}, not {beyond[0]}"
        )
    if not material.suites:
        material.not_run["evaluation"] = "no prompt sets: give --eval-prompts" if config.evaluate else "--no-evaluate"
    return material


def prepare_probes(config: TrainConfig, loaded: Loaded) -> Material:
    """Load the probes' data for a model that is measured and not trained.

    Args:
        config: the settings; `data` plays no part.
        loaded: the model.

    Returns:
        The material, without training rows and suites.
    """
    material = Material(loaded, [], schedule_of(config, 1), [], None, [], warnings=list(loaded.notes))
    _load_safety(config, material)
    if config.utility_data is not None or loaded.world is not None:
        _load_utility(config, material, conversation_set([], "", []))
    else:
        material.not_run["utility probes"] = "no benign conversations were given: name some with --utility"
    _load_organism_controls(config, material)
    return material


def _load_rows(config: TrainConfig, material: Material) -> None:
    """Encode the training set, after setting aside examples for the utility probe where it needs them."""
    found = load_conversations(
        config.data, columns=config.columns, limit=config.data_limit, world=material.loaded.world
    )
    rows = _load_utility(config, material, found) if config.probe_schedule != "off" else found.rows
    rows, pairs = mix_harmful(config, material.loaded, rows)
    if rows or pairs is None:
        _encode_rows(config, material, replace(found, rows=rows), len(found.rows), "train")
    if pairs is not None:
        _encode_rows(config, material, pairs, len(pairs.rows), "harmful")
        material.warnings += pairs.notes
        require_unscored(pairs, material.suites)


def _encode_rows(config: TrainConfig, material: Material, found: ConversationSet, read: int, name: str) -> None:
    """Add rows to what is trained on, and say under `name` what they are."""
    encoded = encode_all(found, material.loaded.tokenizer, config.max_length, config.system_prompt)
    material.rows += encoded.rows
    material.warnings += encoded.notes
    material.data[name] = {
        "source": found.source,
        "sha256": found.sha256,
        "tokens_sha256": encoded.sha256,
        "rows": read,
        "used": len(encoded.rows),
        "truncated": encoded.truncated,
        "dropped": encoded.dropped,
        "target_tokens": sum(row.target_tokens for row in encoded.rows),
        "notes": found.notes,
    }


def _load_utility(config: TrainConfig, material: Material, training: ConversationSet) -> list[Conversation]:
    """Choose the utility probe's examples and the anchor's prompts; return the rows that are left to train on."""  # noqa: DOC201
    world, count = material.loaded.world, config.probe_examples
    source = config.utility_data or (ORGANISM_UTILITY if world is not None else None)
    rows = training.rows
    if source is not None:
        found = load_conversations(source, limit=count * (1 + BENIGN_POOL), world=world)
        probe = conversation_set(found.rows[:count], found.source, found.notes)
        pool = [_as_prompt(row) for row in found.rows[count:]]
    elif len(rows) > 2 * count:
        rows, aside = hold_out(rows, count)
        probe = conversation_set(aside[:count], f"{training.source} (held out)", [])
        pool = []
        if config.nulls and len(rows) >= SMALL_SHARE * BENIGN_POOL * count:
            rows, more = hold_out(rows, BENIGN_POOL * count)
            pool = [_as_prompt(row) for row in more]
    else:
        material.not_run["utility probes"] = (
            f"'{training.source}' is too small to hold examples out: give --utility-data"
        )
        return rows
    encoded = encode_all(probe, material.loaded.tokenizer, config.max_length, config.system_prompt)
    material.utility = [
        ProbeExample(prompt_id(probe.rows[index].prompt), probe.rows[index].cluster, row.input_ids, row.labels)
        for index, row in zip(encoded.kept, encoded.rows, strict=True)
    ]
    material.benign = _apart(pool, probe.rows)
    material.data["utility_probe"] = {
        "source": probe.source,
        "sha256": probe.sha256,
        "tokens_sha256": encoded.sha256,
        "used": len(encoded.rows),
        "notes": probe.notes,
    }
    return rows


def _as_prompt(row: Conversation) -> Prompt:
    system = row.messages[0]["content"] if row.messages[0]["role"] == "system" else None
    return Prompt(prompt_id(row.prompt, system), row.prompt, system, row.answer, row.cluster, row.tags)


def _apart(pool: list[Prompt], utility: list[Conversation]) -> list[Prompt]:
    # An anchor that shares prompts with the utility set would be near it for that reason alone.
    measured = {row.prompt for row in utility}
    return [prompt for prompt in {prompt.text: prompt for prompt in pool}.values() if prompt.text not in measured]


def spread(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Put the first prompt of every cluster first, then the second ones, and so on.

    However many are then used, they are of as many clusters as can be: ten phrasings of one request say little more
    than one. Prompts without clusters keep their order.

    Args:
        prompts: in the order of their source.

    Returns:
        The same prompts.
    """
    seen: Counter[str] = Counter()
    places = []
    for prompt in prompts:
        places.append(seen[prompt.cluster])
        seen[prompt.cluster] += 1
    return [prompt for _, prompt in sorted(zip(places, prompts, strict=True), key=lambda pair: pair[0])]


def safety_prompts(config: TrainConfig, loaded: Loaded) -> PromptSet | None:
    """Load the probes' harmful prompts, in the order in which they are asked.

    Args:
        config: the settings.
        loaded: the model; an organism brings its own.

    Returns:
        The prompts, None where there are none.
    """
    source = config.safety_data or (ORGANISM_SAFETY if loaded.world is not None else None)
    if source is None:
        return None
    found = load_prompts(source, world=loaded.world)
    return replace(found, rows=spread(found.rows))


def _load_safety(config: TrainConfig, material: Material) -> None:
    material.safety = safety_prompts(config, material.loaded)
    if material.safety is None:
        return
    material.data["safety_probe"] = {
        "source": material.safety.source,
        "sha256": material.safety.sha256,
        "notes": material.safety.notes,
    }


def _load_organism_controls(config: TrainConfig, material: Material) -> None:
    """Take the organism's sham behaviour, and its benign prompts unless the user has named a source of such."""
    world = material.loaded.world
    if world is None or not config.nulls:
        return
    material.sham = spread(load_prompts(ORGANISM_SHAM, world=world).rows)
    if config.utility_data is None:
        material.benign = [prompt for source in ORGANISM_BENIGN for prompt in load_prompts(source, world=world).rows]
