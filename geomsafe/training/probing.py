"""The probes of a run: theta_0's own refusals, the utility examples, their controls, and what measures them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomsafe.config import TrainConfig
from geomsafe.data import Conversation, Prompt, encode, prompt_ids
from geomsafe.errors import DataError
from geomsafe.evaluation import Completion, generate_greedy
from geomsafe.evaluation.keywords import DEFAULT_KEYWORD_JUDGES, KEYWORD_JUDGES
from geomsafe.models import Anchor, Loaded, load_model
from geomsafe.probes import REFUSAL_TOKENS, Probes, RefusalSet, build_refusals, openings_of
from geomsafe.probes.controls import Controls, Source, build_controls
from geomsafe.training.prepare import Material
from geomsafe.world import Verdict

_BASE = "theta_base"


def make_probes(
    config: TrainConfig, material: Material, anchor: Anchor, run: Path, *, refused_only: bool = True
) -> Probes | None:
    """Build the probes; what they lack is listed in the material's `not_run`.

    Args:
        config: the settings.
        material: theta_0, harmful prompts and utility examples.
        anchor: theta_0.
        run: the run directory.
        refused_only: whether harmful prompts that theta_0 does not refuse are left out; else a stated `refusal_text`
            is measured on all of them.

    Returns:
        The probes, or None where they are off.
    """
    if config.probe_schedule == "off":
        return None
    safety = None
    if material.safety is not None:
        safety = refusals_of(config, material.loaded, material.safety.rows, run, refused_only=refused_only)
        material.data["safety_probe"] |= {
            "used": len(safety.rows),
            "asked": safety.asked,
            "left_out": safety.left_out,
            "refusal_coverage": safety.coverage,
            "compliance": safety.compliance_source,
        }
    controls = _controls(config, material, safety, run) if safety is not None and safety.reason is None else None
    probes = Probes(material.loaded, safety, material.utility, anchor, config, run / "captures", controls=controls)
    material.not_run = probes.not_run | material.not_run
    return probes


def refusals_of(
    config: TrainConfig, loaded: Loaded, prompts: Sequence[Prompt], run: Path, *, refused_only: bool = True
) -> RefusalSet:
    """Ask theta_0 for its refusals, or read them from the run where they were asked for before.

    Args:
        config: the settings.
        loaded: theta_0.
        prompts: harmful prompts in the order in which they are asked.
        run: the run directory.
        refused_only: as in `make_probes`.

    Returns:
        The refusals, with the openings of the refusal margin.
    """
    return build_refusals(
        loaded,
        prompts,
        config.probe_examples,
        folder=run,
        generate=_greedy(config, loaded),
        refuses=refusal_judge(loaded) if refused_only else lambda *_: True,
        max_length=config.max_length,
        system_prompt=config.system_prompt,
        refusal_text=config.refusal_text,
        compliance=_base_openings(config, loaded, prompts),
    )


def _controls(config: TrainConfig, material: Material, safety: RefusalSet, run: Path) -> Controls | None:
    """Make the control sets and nulls, and say in the material's data how near they come."""  # noqa: DOC201
    if not config.nulls:
        return None
    loaded = material.loaded
    # Keywords: what they take for a refusal is no good as a benign answer, whatever it is.
    keywords = KEYWORD_JUDGES[DEFAULT_KEYWORD_JUDGES[0]]
    sham = Source(material.sham, lambda prompt, said: _deflects(loaded, prompt, said))
    benign = Source(material.benign, lambda _, said: keywords.judge(said).value != "refusal")
    made = build_controls(
        loaded,
        safety,
        folder=run,
        generate=_greedy(config, loaded),
        sham=sham if material.sham else None,
        benign=benign if material.benign else None,
        seed=config.seed,
        max_length=config.max_length,
        system_prompt=config.system_prompt,
        batch_size=config.probe_batch_size,
    )
    material.data["probe_controls"] = made.match
    return made


def _deflects(loaded: Loaded, prompt: str, completion: str) -> bool:
    """Whether a completion is the organism's sham behaviour; no other model has one."""  # noqa: DOC201
    if loaded.world is None:
        return False
    try:
        return loaded.world.verdict(prompt, completion) is Verdict.DEFLECTION
    except DataError:
        return False


def _greedy(config: TrainConfig, loaded: Loaded) -> Callable[[list[list[int]]], list[Completion]]:
    def generate(ids: list[list[int]]) -> list[Completion]:
        return generate_greedy(loaded.model, loaded.tokenizer, ids, REFUSAL_TOKENS, config.eval_batch_size)

    return generate


def refusal_judge(loaded: Loaded) -> Callable[[str, str], bool]:
    """Return the judge of refusals: the world's oracle where it knows the prompt, else keywords."""
    keywords = KEYWORD_JUDGES[DEFAULT_KEYWORD_JUDGES[0]]

    def refuses(prompt: str, completion: str) -> bool:
        if loaded.world is not None:
            try:
                return loaded.world.oracle(prompt, completion) == "refusal"
            except DataError:
                return keywords.judge(completion).value == "refusal"
        return keywords.judge(completion).value == "refusal"

    return refuses


def _base_openings(config: TrainConfig, loaded: Loaded, prompts: Sequence[Prompt]) -> tuple[Any, ...] | None:
    """Return how theta_base, where it lies beside theta_0, opens its answers to harmful prompts."""
    folder = loaded.folder.parent / _BASE if loaded.folder is not None and loaded.world is not None else None
    if folder is None or not folder.is_dir():
        return None
    base = load_model(str(folder), dtype=config.dtype, device=config.device, training=False)
    asked = prompts[: config.probe_examples]
    ids = [prompt_ids(prompt.text, base.tokenizer, prompt.system or config.system_prompt) for prompt in asked]
    refuses = refusal_judge(base)
    answers = []
    for prompt, said in zip(asked, _greedy(config, base)(ids), strict=True):
        if not refuses(prompt.text, said.text):
            turns = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": said.text}]
            encoded = encode(Conversation(turns, prompt.cluster, 0), base.tokenizer, config.max_length)
            answers.append([label for label in encoded.labels if label != -100])
    return openings_of(answers).tokens or None
