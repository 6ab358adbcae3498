"""How far a weight set has moved from theta_0 in behaviour, beside how far in weights (`geomsafe.records.Drift`).

theta_0 is read once: its sampled answers to task prompts, its refusals of the probes' harmful prompts, its logits on
both. The draws do not depend on the run's seed, so that all runs from one theta_0 are measured on the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geomsafe.config import TrainConfig
from geomsafe.data import Encoded, Prompt, prompt_ids
from geomsafe.data.encoding import IGNORED
from geomsafe.evaluation import Suite
from geomsafe.evaluation.sampling import sample_answers
from geomsafe.evaluation.teacher import Divergence, answer_losses
from geomsafe.models import Loaded
from geomsafe.probes.asking import target
from geomsafe.probes.margins import refusal_margins
from geomsafe.probes.refusals import RefusalSet
from geomsafe.records import Drift
from geomsafe.training.prepare import safety_prompts, spread
from geomsafe.training.probing import refusals_of

EXAMPLES = 64
"""Prompts behind each number, at most."""

TOKENS = 32
"""Tokens of a sampled answer, at most: theta_0's logits on all of them are kept (64 x 32 x vocabulary x 4 bytes)."""

SHALLOW = 5
"""Answer positions on harmful prompts: what keeps a refusal is decided there (Qi et al., arXiv 2406.05946)."""

_SEED = 0

Progress = Callable[[str, int, int], None]


class DriftMeter:
    """Measures weight sets against theta_0.

    Attributes:
        not_run: what is left out and why.
        refusals: theta_0's refusals of the probes' prompts, with the openings of the margin; None where there are none.
    """

    def __init__(self, start: Loaded, config: TrainConfig, suites: Sequence[Suite], run: Path) -> None:
        """Read theta_0.

        Args:
            start: theta_0.
            config: the settings of the run.
            suites: what the run is scored on; the first of kind "utility" gives the task prompts.
            run: the run directory, where theta_0's refusals are kept.
        """
        self.not_run: dict[str, str] = {}
        self._batch_size = config.probe_batch_size
        self._held_out = {
            name: _references(start, config, suites, kind)
            for name, kind in (("utility_loss", "utility"), ("validation_loss", "validation"))
        }
        prompts = _prompts(suites, "utility", config)
        task = [row for row in _sampled(start, config, prompts) if row.target_tokens] if prompts else []
        self.refusals = measured_refusals(start, config, run)
        refused = (
            [] if self.refusals is None else [_as_encoded(row.input_ids, row.labels) for row in self.refusals.rows]
        )
        self._refused = refused
        self._task = Divergence(start.model, task, self._batch_size) if task else None
        self._harmful = Divergence(start.model, refused, self._batch_size, SHALLOW) if refused else None
        self._counts = {"kl_task": len(task), "kl_harmful": len(refused), "refusal_nll": len(refused)} | {
            name: len(rows) for name, rows in self._held_out.items()
        }
        if not task:
            self.not_run["KL on the task"] = "no suite of kind utility gives task prompts"
        if not refused:
            self.not_run["KL on harmful prompts"] = "theta_0 was not asked harmful prompts, or refuses too few of them"

    def measure(self, model: Any) -> Drift:
        """Measure a model.

        Args:
            model: the weight set, with theta_0's vocabulary, left as found.

        Returns:
            Its drift; exactly 0 in both divergences for theta_0.
        """
        values: dict[str, float | None] = {}
        for name, divergence in (("kl_task", self._task), ("kl_harmful", self._harmful)):
            values[name] = float(divergence.of(model).mean()) if divergence is not None else None
        for name, rows in self._held_out.items():
            if rows:
                total, tokens = answer_losses(model, rows, self._batch_size).sum(dim=0).tolist()
                values[name] = total / tokens
        if self.refusals is not None and self._refused:
            losses = answer_losses(model, self._refused, self._batch_size)
            values["refusal_nll"] = float((losses[:, 0] / losses[:, 1]).mean())
            margins = refusal_margins(
                model,
                [row.prompt_tokens for row in self.refusals.rows],
                self.refusals.refusal_openings,
                self.refusals.compliance_openings,
                self._batch_size,
            ).margin
            values["refusal_margin"] = float(margins.mean()) if margins is not None else None
        return Drift(**values, examples={name: count for name, count in self._counts.items() if count})


def _prompts(suites: Sequence[Suite], kind: str, config: TrainConfig) -> list[Prompt]:
    found = next((suite.prompts.rows for suite in suites if suite.kind == kind), [])
    return spread(found[: config.eval_limit])[:EXAMPLES]


def _references(start: Loaded, config: TrainConfig, suites: Sequence[Suite], kind: str) -> list[Encoded]:
    rows = [
        target(
            prompt.text,
            prompt.system or config.system_prompt,
            prompt.reference,
            start.tokenizer,
            config.max_length,
            True,
        )
        for prompt in _prompts(suites, kind, config)
        if prompt.reference is not None
    ]
    return [row for row in rows if row.target_tokens]


def _sampled(start: Loaded, config: TrainConfig, prompts: Sequence[Prompt]) -> list[Encoded]:
    ids = [prompt_ids(prompt.text, start.tokenizer, prompt.system or config.system_prompt) for prompt in prompts]
    tokens = min(TOKENS, config.max_new_tokens)
    answers = sample_answers(start.model, start.tokenizer, ids, tokens, config.eval_batch_size, _SEED)
    return [
        _as_encoded([*prompt, *answer], [IGNORED] * len(prompt) + answer)
        for prompt, answer in zip(ids, answers, strict=True)
    ]


def _as_encoded(ids: list[int], labels: list[int]) -> Encoded:
    return Encoded(ids, labels, False, sum(label != IGNORED for label in labels))


def measured_refusals(start: Loaded, config: TrainConfig, run: Path) -> RefusalSet | None:
    """Ask theta_0 for its refusals of the probes' prompts, or read them from the run.

    Args:
        start: theta_0.
        config: the settings of the run.
        run: the run directory.

    Returns:
        The refusals; None without harmful prompts, or where theta_0 refuses too few.
    """
    prompts = safety_prompts(config, start)
    found = refusals_of(config, start, prompts.rows, run) if prompts is not None else None
    return found if found is not None and found.reason is None else None
