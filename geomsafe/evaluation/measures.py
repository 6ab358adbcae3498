"""The measures themselves: multiple choice, held-out loss, tasks of lm-evaluation-harness, MT-Bench.

Each wraps a part of the library (`choices`, `heldout`, `harness`, `mtbench`) that can be used without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geomsafe.data import ConversationSet, load_conversations
from geomsafe.data.choices import Choice, load_choices
from geomsafe.errors import DataError
from geomsafe.evaluation.choices import READINGS, score_choices
from geomsafe.evaluation.decoding import context_length
from geomsafe.evaluation.harness import run_harness, task_manager, tasks_sha256
from geomsafe.evaluation.heldout import held_out_loss, ratio_error
from geomsafe.evaluation.measure_spec import ChoicesSpec, HarnessSpec, HeldOutSpec, MeasureSpec, MtBenchSpec
from geomsafe.evaluation.measuring import Kind, Measure, Taken, Work
from geomsafe.evaluation.mtbench import MtBenchJudge, mtbench_questions
from geomsafe.evaluation.mtbench_measure import MtBenchMeasure
from geomsafe.evaluation.server import ChatServer
from geomsafe.evaluation.suite_file import PRESETS, read_suite
from geomsafe.evaluation.suites import ORGANISM, slug, unique_names
from geomsafe.records import content_sha256


@dataclass(frozen=True)
class ChoiceMeasure:
    """Multiple choice by log-likelihood: the share of right choices under each reading, clusters as units."""

    name: str
    spec: ChoicesSpec
    items: list[Choice]
    kind: Kind = "choices"

    @property
    def source(self) -> str:
        """The file."""
        return self.spec.source

    def identity(self, work: Work) -> dict[str, Any]:
        """Return the items, as they are put, and the form of the prompt."""
        return {
            "items_sha256": content_sha256(asdict(item) for item in self.items),
            "limit": self.spec.limit,
            "letters": self.spec.letters,
            "preamble": self.spec.preamble,
            "chat": self.spec.chat,
            "system_prompt": work.system_prompt,
        }

    def take(self, work: Work, identity: Mapping[str, Any]) -> Taken:
        """Return what the model chooses."""
        found = score_choices(
            work.loaded,
            self.items,
            chat=self.spec.chat,
            system_prompt=work.system_prompt,
            batch_size=work.batch_size or 32,
            progress=work.report,
        )
        clusters = [row.cluster for row in found.rows]
        right = {reading: np.array([float(row.right(reading)) for row in found.rows]) for reading in READINGS}
        return Taken(
            values={reading: found.correct[reading] / found.n for reading in READINGS},
            errors={reading: ratio_error(right[reading], np.ones(found.n), clusters) for reading in READINGS},
            n=dict.fromkeys(READINGS, found.n),
            counts={"clusters": len(set(clusters)), "merged": found.merged}
            | {f"ties {reading}": found.ties[reading] for reading in READINGS},
            higher_is_better=dict.fromkeys(READINGS, True),
            settings=found.settings,
            rows=found.records(),
        )


@dataclass(frozen=True)
class HeldOutMeasure:
    """Loss on conversations, in nats per answer token, and its perplexity."""

    name: str
    spec: HeldOutSpec
    found: ConversationSet | None
    kind: Kind = "held-out"

    @property
    def source(self) -> str:
        """The set."""
        return self.spec.source

    def identity(self, work: Work) -> dict[str, Any]:
        """Return the conversations and how long they may be."""
        conversations = self._conversations(work)
        return {
            "conversations_sha256": content_sha256([row.messages, row.cluster] for row in conversations.rows),
            "limit": self.spec.limit,
            "max_length": self._longest(work),
            "system_prompt": work.system_prompt,
        }

    def take(self, work: Work, identity: Mapping[str, Any]) -> Taken:
        """Return how well the model predicts the answers.

        Raises:
            DataError: every prompt is too long.
        """
        conversations = self._conversations(work)
        given = len(conversations.rows)
        work.report(0, given)
        batch_size = work.batch_size or 8
        try:
            found = held_out_loss(
                work.loaded,
                conversations,
                max_length=self._longest(work),
                batch_size=batch_size,
                system_prompt=work.system_prompt,
            )
        except DataError as error:
            # The remedy of training is no option here.
            remedy = "give shorter conversations, or max_length in a suite file where the model's context is longer"
            raise DataError(str(error).replace("raise --max-length", remedy)) from None
        work.report(given, given)
        return Taken(
            values={"nats_per_token": found.loss, "perplexity": found.perplexity},
            errors={"nats_per_token": found.standard_error},
            n=dict.fromkeys(("nats_per_token", "perplexity"), found.examples),
            counts={
                "tokens": found.tokens,
                "clusters": found.clusters,
                "truncated": found.truncated,
                "dropped": found.dropped,
            },
            higher_is_better={"nats_per_token": False, "perplexity": False},
            settings={"batch_size": batch_size},
        )

    def _conversations(self, work: Work) -> ConversationSet:
        if self.found is not None:
            return self.found
        return load_conversations(self.source, limit=self.spec.limit, world=work.loaded.world)

    def _longest(self, work: Work) -> int:
        context = context_length(work.loaded.model)
        return self.spec.max_length if context is None else min(self.spec.max_length, context)


@dataclass(frozen=True)
class HarnessMeasure:
    """One task, group or tag of lm-evaluation-harness; metrics are called "<task>/<metric>,<filter>"."""

    name: str
    source: str
    spec: HarnessSpec
    manager: Any
    kind: Kind = "lm-eval"

    def identity(self, work: Work) -> dict[str, Any]:
        """Return the task with its examples, and the harness's version."""
        from lm_eval import __version__

        return {
            "lm_eval": __version__,
            "task": self.source,
            "tasks_sha256": tasks_sha256([self.source], self.manager),
            "limit": self.spec.limit,
            "num_fewshot": self.spec.num_fewshot,
            "apply_chat_template": self.spec.chat_template,
        }

    def take(self, work: Work, identity: Mapping[str, Any]) -> Taken:
        """Return what the harness says."""
        found = run_harness(
            work.loaded,
            [self.source],
            limit=self.spec.limit,
            batch_size=work.batch_size or 8,
            apply_chat_template=self.spec.chat_template,
            num_fewshot=self.spec.num_fewshot,
            manager=self.manager,
        )
        scores = {f"{score.task}/{score.metric},{score.filter}": score for score in found.scores}
        directions = {metric: score.higher_is_better for metric, score in scores.items()}
        return Taken(
            values={metric: score.value for metric, score in scores.items()},
            errors={metric: score.stderr for metric, score in scores.items()},
            n={metric: score.n for metric, score in scores.items()},
            higher_is_better={metric: up for metric, up in directions.items() if up is not None},
            settings=found.settings
            | {"path": self.spec.path}
            | {"versions": {score.task: score.version for score in found.scores}}
            | {"shots": {score.task: score.num_fewshot for score in found.scores}},
        )


def make_measures(asked: MeasureSpec | None, suite: str | None = None, limit: int | None = None) -> list[Measure]:
    """Read the data of all measures and check their names, before a model is loaded.

    Args:
        asked: what is asked for.
        suite: a suite file whose measures are taken as well.
        limit: only the first items of each, where it has no smaller limit of its own.

    Returns:
        The measures: choices, held-out sets, tasks, MT-Bench.
    """
    spec = asked if asked is not None else MeasureSpec()
    if suite is not None and suite not in PRESETS:
        spec = spec.and_those_of(read_suite(suite, organism=False))
    plans: list[tuple[str, Callable[[str], Measure]]] = []
    for choices in spec.choices:
        plans.append((f"choices-{slug(choices.source)}", _choices(_limited(choices, limit))))
    for held_out in spec.held_out:
        plans.append((f"held-out-{slug(held_out.source)}", _held_out(_limited(held_out, limit))))
    for tasks in spec.lm_eval:
        manager = task_manager(tasks.tasks, Path(tasks.path) if tasks.path is not None else None)
        plans += [(f"lm-eval-{slug(task)}", _task(task, _limited(tasks, limit), manager)) for task in tasks.tasks]
    for mt_bench in spec.mt_bench:
        plans.append((f"mt-bench-{slug(mt_bench.judge_model)}", _mt_bench(_limited(mt_bench, limit))))
    names = unique_names([name for name, _ in plans])
    return [make(name) for name, (_, make) in zip(names, plans, strict=True)]


def _limited(spec: Any, limit: int | None) -> Any:
    limits = [one for one in (spec.limit, limit) if one is not None]
    return spec.model_copy(update={"limit": min(limits, default=None)})


def _choices(spec: ChoicesSpec) -> Callable[[str], Measure]:
    items = load_choices(Path(spec.source), letters=spec.letters, preamble=spec.preamble, limit=spec.limit)
    if not items:
        raise DataError(f"'{spec.source}' has no multiple-choice items: give a file with at least one")
    return lambda name: ChoiceMeasure(name, spec, items)


def _held_out(spec: HeldOutSpec) -> Callable[[str], Measure]:
    # The organism's own sets come with its world, which comes with the model.
    later = spec.source.startswith(ORGANISM)
    found = None if later else load_conversations(spec.source, limit=spec.limit)
    return lambda name: HeldOutMeasure(name, spec, found)


def _task(task: str, spec: HarnessSpec, manager: Any) -> Callable[[str], Measure]:
    return lambda name: HarnessMeasure(name, task, spec, manager)


def _mt_bench(spec: MtBenchSpec) -> Callable[[str], Measure]:
    folder = Path(spec.folder)
    questions = mtbench_questions(folder)[: spec.limit]
    judge = MtBenchJudge(ChatServer(spec.judge_url, spec.judge_model), folder)
    # Without the client it fails here.
    judge.settings()
    return lambda name: MtBenchMeasure(name, spec, questions, judge)
