"""What a weight set says about safety without generating: proxies, shallow-alignment curve, refusal direction.

    probes/proxies.jsonl     refusal margin, log-odds and nll of every scored harmful prompt under every weight set
    probes/shallow.jsonl     D(theta_0 || theta) at the first answer positions of compliant answers, prompt by prompt
    probes/directions.jsonl  the refusal direction of every weight set, by layer and position

One line a prompt or site and weight set; docs/numbers.md describes them. theta_0 is read first: the others are compared
with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomsafe.config import TrainConfig
from geomsafe.data import IGNORED, Encoded, Prompt
from geomsafe.evaluation import Suite
from geomsafe.evaluation.teacher import Divergence, answer_losses
from geomsafe.models import Loaded
from geomsafe.probes import REFUSAL_TOKENS
from geomsafe.probes.asking import target
from geomsafe.probes.directions import ContrastSets, Directions, contrast_sets, direction_sites, directions_of
from geomsafe.probes.examples import answer_start
from geomsafe.probes.margins import refusal_margins
from geomsafe.probes.refusals import RefusalSet
from geomsafe.probes.residuals import prompts_in_tokens
from geomsafe.records import read_jsonl, write_jsonl
from geomsafe.training.bases import base_name
from geomsafe.training.prepare import spread
from geomsafe.training.probing import refusal_judge

FOLDER = Path("probes")
BASE = "theta_base"
START = "theta_0"

PROXIED = 100
"""Harmful prompts whose proxies are read, at most, of as many clusters as there are."""

PROMPTS = 48
"""Prompts behind the curve, at most: theta_0's logits on them are kept (48 x 20 x vocabulary x 4 bytes)."""

POSITIONS = 20
"""Answer positions of the curve."""


class SafetyReader:
    """Reads weight sets beside theta_0 and keeps what it reads in the run.

    Attributes:
        not_run: what is left out and why.
        base: where theta_base lies; None where it is not known.
    """

    def __init__(
        self, start: Loaded, config: TrainConfig, suites: Sequence[Suite], run: Path, refusals: RefusalSet | None
    ) -> None:
        """Read theta_0 as far as others are compared with it; call `read` for its own lines.

        Args:
            start: theta_0.
            config: the settings of the run.
            suites: what the run is scored on: the first harmful one is read, and the first of look-alikes, else of the
                task, is what harmless prompts look like.
            run: the run directory; theta_0's answers to the harmful suite lie there.
            refusals: theta_0's refusals of the probes' prompts, for the openings of the margin.
        """
        self.not_run: dict[str, str] = {}
        self.base = base_name(config, start)
        self._config, self._run, self._refusals = config, run, refusals
        self._rows: dict[str, list[dict[str, Any]]] = {"proxies": [], "shallow": [], "directions": []}
        harmful = next((suite for suite in suites if suite.kind == "harmful"), None)
        asked = spread(harmful.prompts.rows[: config.eval_limit]) if harmful is not None else []
        self._suite, self._asked = harmful.name if harmful is not None else "", asked[:PROXIED]
        self._ids = prompts_in_tokens(self._asked, start.tokenizer, config.system_prompt)
        self._said = self._refused(start) if refusals is not None else {}
        self._compliant = self._answers(start, [prompt for prompt in asked if prompt.reference])
        rows = [row for _, row in self._compliant]
        self._divergence = Divergence(start.model, rows, config.probe_batch_size, POSITIONS) if rows else None
        self._vocabulary = start.model.get_input_embeddings().num_embeddings
        self._sets = self._contrast(start, asked, suites)
        self._origin: Directions | None = None
        self._say_what_is_missing(harmful)

    def read(self, loaded: Loaded, name: str) -> None:
        """Read one weight set and write what is known so far.

        Args:
            loaded: the model with the weights in it; left as found.
            name: of the weight set.
        """
        self._rows["proxies"] += self._proxies(loaded, name)
        self._compare(loaded, name)

    def read_base(self, loaded: Loaded) -> None:
        """Read theta_base, which answers nothing and is compared with theta_0 only.

        Args:
            loaded: theta_base.
        """
        if loaded.model.get_input_embeddings().num_embeddings != self._vocabulary:
            self.not_run["shallow-alignment curve"] = (
                f"theta_base '{loaded.source}' has another vocabulary than theta_0"
            )
            return
        self._compare(loaded, BASE)

    def _compare(self, loaded: Loaded, name: str) -> None:
        self._rows["shallow"] += self._curve(loaded, name)
        self._rows["directions"] += self._directions(loaded, name)
        for kind, rows in self._rows.items():
            if rows:
                write_jsonl(self._run / FOLDER / f"{kind}.jsonl", rows)

    def _proxies(self, loaded: Loaded, name: str) -> list[dict[str, Any]]:
        if self._refusals is None or not self._asked:
            return []
        size = self._config.probe_batch_size
        openings = self._refusals.refusal_openings, self._refusals.compliance_openings
        found = refusal_margins(loaded.model, self._ids, *openings, self._config.eval_batch_size)
        losses = answer_losses(loaded.model, list(self._said.values()), size) if self._said else None
        means = dict(zip(self._said, (losses[:, 0] / losses[:, 1]).tolist(), strict=True)) if losses is not None else {}
        margins = found.margin.tolist() if found.margin is not None else [None] * len(self._ids)
        return [
            {
                "weights": name,
                "suite": self._suite,
                "id": prompt.id,
                "cluster": prompt.cluster,
                "refusal_margin": margin,
                "refusal_log_odds": log_odds,
                "refusal_nll": means.get(prompt.id),
            }
            for prompt, margin, log_odds in zip(self._asked, margins, found.log_odds.tolist(), strict=True)
        ]

    def _curve(self, loaded: Loaded, name: str) -> list[dict[str, Any]]:
        if self._divergence is None:
            return []
        found = self._divergence.by_row(loaded.model)
        return [
            {"weights": name, "id": prompt.id, "cluster": prompt.cluster, "kl": values.tolist()}
            for (prompt, _), values in zip(self._compliant, found, strict=True)
        ]

    def _directions(self, loaded: Loaded, name: str) -> list[dict[str, Any]]:
        if self._sets is None:
            return []
        size = self._config.eval_batch_size
        found = directions_of(loaded.model, self._sets, size)
        if self._origin is None:
            self._origin = found
        sites = direction_sites(loaded.model, self._sets, found, self._origin, size)
        counts = {
            "n_harmful": len(self._sets.harmful),
            "n_harmless": len(self._sets.harmless),
            "held_out_harmful": len(self._sets.harmful_held_out),
            "held_out_harmless": len(self._sets.harmless_held_out),
        }
        tokens = loaded.tokenizer.convert_ids_to_tokens(self._sets.ending)
        return [{"weights": name, **site._asdict(), "token": tokens[site.position], **counts} for site in sites]

    def _contrast(self, start: Loaded, harmful: Sequence[Prompt], suites: Sequence[Suite]) -> ContrastSets | None:
        for kind in ("look-alike", "utility"):
            harmless = next((suite.prompts.rows for suite in suites if suite.kind == kind), None)
            if harmless is not None:
                return contrast_sets(
                    harmful, spread(harmless[: self._config.eval_limit]), start.tokenizer, self._config.system_prompt
                )
        return None

    def _refused(self, start: Loaded) -> dict[str, Encoded]:
        """Return theta_0's own refusals of the scored prompts, in tokens, by prompt id."""
        path = self._run / "evaluations" / f"{START}--{self._suite}.jsonl"
        if not path.exists():
            return {}
        refuses = refusal_judge(start)
        prompts = {prompt.id: prompt for prompt in self._asked}
        found = {}
        for row in read_jsonl(path):
            prompt = prompts.get(row["id"])
            if prompt is not None and refuses(prompt.text, row["completion"]):
                found[prompt.id] = self._encoded(start, prompt, row["completion"], row["finished"], REFUSAL_TOKENS)
        return {name: row for name, row in found.items() if row.target_tokens}

    def _answers(self, start: Loaded, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Encoded]]:
        """Return compliant answers in tokens, the beginning that is read; an attack's target does not end there."""
        rows = [
            (prompt, self._encoded(start, prompt, prompt.reference or "", False, POSITIONS))
            for prompt in prompts[:PROMPTS]
        ]
        return [(prompt, row) for prompt, row in rows if row.target_tokens]

    def _encoded(self, start: Loaded, prompt: Prompt, text: str, whole: bool, tokens: int) -> Encoded:
        system = prompt.system or self._config.system_prompt
        found = target(prompt.text, system, text, start.tokenizer, self._config.max_length, whole)
        if not any(label != IGNORED for label in found.labels):
            return found
        end = answer_start(found.labels) + tokens
        labels = found.labels[:end]
        return Encoded(found.input_ids[:end], labels, False, sum(label != IGNORED for label in labels))

    def _say_what_is_missing(self, harmful: Suite | None) -> None:
        if harmful is None:
            why = "no harmful prompts are scored"
        elif self._refusals is None:
            why = "theta_0 was not asked harmful prompts by the probes, or refuses too few of them"
        else:
            why = None
        if why is not None:
            self.not_run["proxy validity"] = why
        if self._divergence is None:
            self.not_run["shallow-alignment curve"] = "no scored harmful prompts with compliant answers"
        elif self.base is None:
            self.not_run["shallow-alignment curve of theta_0"] = "theta_base is not known: give --base-model"
        if self._sets is None:
            self.not_run["refusal direction"] = "fewer than 8 clusters of harmful and of look-alike or task prompts"
