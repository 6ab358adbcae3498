"""Sets measured beside the safety set: the sham behaviour, the benign anchor, and nulls of equal count and length.

All are made once, from answers of theta_0, and kept in the run (`probes/sets.json`): a resumed run measures the same
tokens. Whatever cannot be made is listed with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geomsafe.data import Prompt, prompt_ids
from geomsafe.errors import RecordError
from geomsafe.gradients import token_losses, undisturbed
from geomsafe.models import Loaded
from geomsafe.probes.asking import Answer, target
from geomsafe.probes.examples import Example, ProbeExample, padded
from geomsafe.probes.matching import cut_to_lengths, match_lengths, match_losses
from geomsafe.probes.nulls import BENIGN_LENGTH, LOSS_MATCHED, RANDOM_TOKENS, SAME_TEXT, random_tokens, same_text
from geomsafe.probes.refusals import FEWEST, RefusalSet
from geomsafe.records import content_sha256, write_atomic

SCHEMA = "geomsafe.probe-sets/1"
FILE = Path("probes") / "sets.json"

SHAM = "sham"
BENIGN = "benign"

Generate = Callable[[list[list[int]]], Sequence[Answer]]


@dataclass(frozen=True)
class Controls:
    """The sets that were made, how near each comes to the safety set, and what could not be made."""

    sets: dict[str, list[ProbeExample]] = field(default_factory=dict)
    match: dict[str, dict[str, float]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Prompts to ask theta_0, and which of its answers are wanted."""

    prompts: Sequence[Prompt]
    wanted: Callable[[str, str], bool]  # of prompt and completion


def build_controls(
    loaded: Loaded,
    safety: RefusalSet,
    *,
    folder: Path,
    generate: Generate,
    sham: Source | None,
    benign: Source | None,
    seed: int,
    max_length: int = 512,
    system_prompt: str | None = None,
    batch_size: int = 16,
) -> Controls:
    """Make the control sets and nulls of a safety set, or read them from the run.

    Args:
        loaded: theta_0; on resume any weights, since the sets are read from the run.
        safety: theta_0's refusals.
        folder: the run directory; the sets are kept in its `probes/sets.json`.
        generate: greedy answers to prompts in tokens.
        sham: prompts of the sham behaviour; None where the model has none.
        benign: benign prompts, more than the safety set has, so that there is something to choose from.
        seed: of the random tokens.
        max_length: longest prompt with answer, in tokens.
        system_prompt: system turn of prompts that have none.
        batch_size: examples in one forward pass.

    Returns:
        The sets.

    Raises:
        RecordError: the run holds sets of another model or safety set.
    """  # noqa: DOC502
    path = folder / FILE
    identity = content_sha256([loaded.fingerprint, loaded.template_sha256, [asdict(row) for row in safety.rows]])
    if path.exists():
        return _read(path, identity)
    like = [ProbeExample(row.id, row.cluster, row.input_ids, row.labels) for row in safety.rows]
    asking = _Asking(loaded, generate, max_length, system_prompt)
    made = Controls()
    if sham is None:
        made.not_run["sham probes"] = "the model has no sham behaviour: only the organism does"
    else:
        _keep(made, SHAM, asking.own(sham)[: len(like)], {})
    if benign is None:
        made.not_run["benign anchor"] = "no benign prompts were left: give more with --utility-data"
    else:
        _benign(made, asking, benign, like, batch_size)
    special = {*loaded.tokenizer.all_special_ids, *loaded.tokenizer.added_tokens_decoder}
    vocabulary = min(len(loaded.tokenizer), loaded.model.get_input_embeddings().weight.shape[0])
    _keep(made, RANDOM_TOKENS, random_tokens(like, vocabulary, special, seed), {})
    _write(path, identity, made)
    return made


def mean_losses(model: Any, examples: Sequence[Example], batch_size: int, pad_id: int) -> NDArray[np.float64]:
    """Compute the token-mean loss of each example, without gradients.

    Args:
        model: a causal LM, left exactly as found.
        examples: the examples.
        batch_size: examples in one forward pass.
        pad_id: token id of padding.

    Returns:
        (examples,) nats.
    """
    found: list[float] = []
    with undisturbed(model), torch.no_grad():
        for start in range(0, len(examples), batch_size):
            measured = token_losses(model, padded(examples[start : start + batch_size], pad_id))
            found += (measured.losses.cpu().double() / measured.tokens.cpu()).tolist()
    return np.array(found)


@dataclass(frozen=True)
class _Asking:
    loaded: Loaded
    generate: Generate
    max_length: int
    system_prompt: str | None

    def own(self, source: Source) -> list[ProbeExample]:
        """Return theta_0's own answers, those that are wanted."""
        ids = [
            prompt_ids(prompt.text, self.loaded.tokenizer, prompt.system or self.system_prompt)
            for prompt in source.prompts
        ]
        return [
            example
            for prompt, answer in zip(source.prompts, self.generate(ids), strict=True)
            if source.wanted(prompt.text, answer.text)
            if (example := self._example(prompt, answer.text, answer.finished)) is not None
        ]

    def given(self, source: Source) -> list[ProbeExample]:
        """Return the source's own answers, where it has any."""
        made = (self._example(prompt, prompt.reference, True) for prompt in source.prompts if prompt.reference)
        return [example for example in made if example is not None]

    def _example(self, prompt: Prompt, text: str, whole: bool) -> ProbeExample | None:
        system = prompt.system or self.system_prompt
        encoded = target(prompt.text, system, text, self.loaded.tokenizer, self.max_length, whole)
        if not any(label != -100 for label in encoded.labels):
            return None
        return ProbeExample(prompt.id, prompt.cluster, encoded.input_ids, encoded.labels)


def _benign(made: Controls, asking: _Asking, source: Source, like: list[ProbeExample], batch_size: int) -> None:
    own = asking.own(source)
    anchor = match_lengths(own, like)
    _keep(made, BENIGN, anchor.examples, anchor.match)
    _keep(made, BENIGN_LENGTH, *cut_to_lengths(own, like))
    _keep(made, SAME_TEXT, same_text(anchor.examples, like), {})
    # Own answers are the likeliest ones; the source's answers widen the range of losses to choose from.
    pool = own + asking.given(source)
    pad = asking.loaded.tokenizer.pad_token_id or 0
    losses = mean_losses(asking.loaded.model, [*pool, *like], batch_size, pad)
    _keep(made, LOSS_MATCHED, *match_losses(pool, losses[: len(pool)], like, losses[len(pool) :]))


def _keep(made: Controls, name: str, examples: list[ProbeExample], match: dict[str, float]) -> None:
    if len(examples) < FEWEST:
        made.not_run[f"{name} probes"] = f"theta_0 gives {len(examples)} usable answers and {FEWEST} are needed"
    else:
        made.sets[name] = examples
        made.match[name] = match | {"examples": len(examples)}


def _write(path: Path, identity: str, made: Controls) -> None:
    sets = {
        name: {"match": made.match[name], "examples": [asdict(example) for example in examples]}
        for name, examples in made.sets.items()
    }
    content = {"schema": SCHEMA, "identity": identity, "not_run": made.not_run, "sets": sets}
    write_atomic(path, json.dumps(content, ensure_ascii=False) + "\n")


def _read(path: Path, identity: str) -> Controls:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RecordError(f"'{path}' cannot be read ({error}): start a new run directory") from None
    if content.get("schema") != SCHEMA or content.get("identity") != identity:
        raise RecordError(f"'{path}' holds probe sets of another model or safety set: start a new run directory")
    return Controls(
        {name: [ProbeExample(**example) for example in entry["examples"]] for name, entry in content["sets"].items()},
        {name: entry["match"] for name, entry in content["sets"].items()},
        content["not_run"],
    )
