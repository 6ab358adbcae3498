"""The anchors of a run's methods: a prompt, or a few, with the answer that theta_0 gives to it.

What "safety" is here is what the probes mean by it: theta_0's own greedy refusal of a harmful prompt. Where
prompts come from:

| anchor | organism | other models |
|---|---|---|
| safety | its alignment data: refused prompts | `safety_data`, from the end, where the probes begin at the front |
| benign | its alignment data: answered prompts | `utility_data`, likewise |
| sham | its alignment data: deflected prompts | there is none |
| anything else | | a data set or file with answers, which are taken as they are |

No prompt is used that the run is scored on, and none whose answer is not of the wanted kind. Anchors are kept in
the run, `anchors/<method>.json`: a resumed run has the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from geomsafe.config import TrainConfig
from geomsafe.data import Prompt, load_conversations, load_prompts, prompt_ids
from geomsafe.data.encoding import Encoded, encode_all
from geomsafe.errors import ConfigError
from geomsafe.evaluation import generate_greedy
from geomsafe.methods import AnchorWanted, Method
from geomsafe.models import Loaded
from geomsafe.probes import REFUSAL_TOKENS
from geomsafe.probes.asking import MOST_ASKED, target
from geomsafe.probes.examples import padded
from geomsafe.records import content_sha256, write_atomic
from geomsafe.training.prepare import Material
from geomsafe.training.probing import refusal_judge

ALIGNMENT = "organism:alignment"
_TASKS = {"safety": "refusal", "sham": "deflection", "benign": "how-to"}


def give_anchors(config: TrainConfig, material: Material, methods: Sequence[Method], folder: Path) -> None:
    """Give each method that wants one its anchor, and note it among the run's data.

    Args:
        config: the settings.
        material: theta_0 and the suites.
        methods: the methods, not yet started.
        folder: the run directory.

    Raises:
        ConfigError: there are too few prompts to make one of.
    """  # noqa: DOC502
    for method in methods:
        wanted = method.anchor_wanted
        if wanted is None or method.anchor is not None:
            continue
        path = folder / "anchors" / f"{method.label}.json"
        if path.exists():
            rows = [Encoded(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        else:
            rows = answered_examples(config, material, wanted, f"method {method.label}")
            write_atomic(path, json.dumps([vars(row) for row in rows]) + "\n")
        method.anchor = padded(rows, material.loaded.tokenizer.pad_token_id or 0)
        material.data[f"anchor of {method.label}"] = {
            "source": wanted.source,
            "used": len(rows),
            "target_tokens": sum(row.target_tokens for row in rows),
            "tokens_sha256": content_sha256([[row.input_ids, row.labels] for row in rows]),
        }


def answered_examples(config: TrainConfig, material: Material, wanted: AnchorWanted, who: str) -> list[Encoded]:
    """Return prompts with the answers that are to be kept, encoded.

    Args:
        config: the settings.
        material: theta_0 and the suites.
        wanted: which and how many.
        who: who wants them, for messages.

    Returns:
        (wanted.examples,) examples, none on a prompt that the run is scored on.

    Raises:
        ConfigError: there are fewer.
    """
    loaded = material.loaded
    if wanted.source not in _TASKS:
        found = load_conversations(wanted.source, limit=wanted.examples, world=loaded.world)
        rows = encode_all(found, loaded.tokenizer, config.max_length, config.system_prompt).rows
    else:
        prompts, agrees = _candidates(config, loaded, wanted.source, who)
        scored = {prompt.id for suite in material.suites for prompt in suite.prompts.rows}
        free = [prompt for prompt in prompts if prompt.id not in scored]
        if not free:
            raise ConfigError(
                f"{who}: no prompt is left for anchor={wanted.source}, the run is scored on all {len(prompts)}: "
                "give anchor=FILE with prompts and answers"
            )
        rows = list(_answered(config, loaded, free, agrees, wanted))
    if len(rows) < wanted.examples:
        raise ConfigError(
            f"{who}: anchor={wanted.source} gives {len(rows)} of {wanted.examples} examples: "
            "ask for fewer anchors, or give anchor=FILE with prompts and answers"
        )
    return rows[: wanted.examples]


def _candidates(
    config: TrainConfig, loaded: Loaded, source: str, who: str
) -> tuple[list[Prompt], Callable[[Prompt, str], bool]]:
    """Return prompts in the order in which they are asked, and whether an answer is of the wanted kind."""  # noqa: DOC201, DOC501
    world = loaded.world
    if world is not None:
        rows = load_prompts(ALIGNMENT, world=world).rows
        # The data say what the answer should be; theta_0's own has to be of the same kind.
        return [
            prompt for prompt in rows if prompt.tags.get("task") == _TASKS[source]
        ], lambda prompt, said: world.verdict(prompt.text, said) == world.verdict(prompt.text, prompt.reference or "")
    data = {"safety": config.safety_data, "benign": config.utility_data}.get(source)
    if data is None:
        option = {"safety": "--safety-data", "benign": "--utility-data"}.get(source)
        hint = (
            f"give {option}, or anchor=FILE" if option else "only the organism has a sham behaviour, give anchor=FILE"
        )
        raise ConfigError(f"{who}: there are no prompts for anchor={source}: {hint}")
    refuses = refusal_judge(loaded)
    return list(
        reversed(load_prompts(data).rows)
    ), lambda prompt, said: refuses(prompt.text, said) == (source == "safety")


def _answered(
    config: TrainConfig,
    loaded: Loaded,
    prompts: Sequence[Prompt],
    agrees: Callable[[Prompt, str], bool],
    wanted: AnchorWanted,
) -> Iterator[Encoded]:
    """Ask theta_0 a few prompts at a time; yield those that it answers in the wanted way."""  # noqa: DOC402
    tokenizer: Any = loaded.tokenizer
    for start in range(0, min(len(prompts), MOST_ASKED * wanted.examples), wanted.examples):
        asked = prompts[start : start + wanted.examples]
        ids = [prompt_ids(prompt.text, tokenizer, prompt.system or config.system_prompt) for prompt in asked]
        answers = generate_greedy(loaded.model, tokenizer, ids, REFUSAL_TOKENS, config.eval_batch_size)
        for prompt, said in zip(asked, answers, strict=True):
            if not agrees(prompt, said.text):
                continue
            stated = config.refusal_text if wanted.source == "safety" else None
            text, whole = (said.text, said.finished) if stated is None else (stated, True)
            system = prompt.system or config.system_prompt
            encoded = target(prompt.text, system, text, tokenizer, config.max_length, whole)
            if encoded.target_tokens:
                yield encoded
