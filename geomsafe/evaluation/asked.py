"""A suite as it is put to an engine: prompts, how each is put, and who judges the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomsafe.data import Prompt
from geomsafe.errors import DataError
from geomsafe.evaluation.attacks import Attempt
from geomsafe.evaluation.attempting import attempts_of
from geomsafe.evaluation.decoding import Completion
from geomsafe.evaluation.engines import Engine
from geomsafe.evaluation.judges import JudgeSpec, make_judges
from geomsafe.evaluation.judging import reads_refusals, split
from geomsafe.evaluation.stopping import early_stop
from geomsafe.evaluation.stored import Row
from geomsafe.evaluation.suites import Suite
from geomsafe.evaluation.verdicts import BatchJudge, RowJudge
from geomsafe.records import Evaluation, content_sha256


@dataclass(frozen=True)
class Asked:
    """One suite, rendered for an engine, and who judges it."""

    suite: Suite
    limit: int | None
    left_out: int
    prompts: list[Prompt]
    attempts: list[Attempt]
    questions: list[Any]
    judges: list[RowJudge]
    later: list[BatchJudge]
    settled: Callable[[str], bool] | None

    @property
    def stopping(self) -> list[str] | None:
        """Names of the judges that have to be settled for an answer to stop, None where every answer is whole."""
        return None if self.settled is None else [judge.name for judge in self.judges if reads_refusals(judge)]

    @property
    def stop_rules(self) -> dict[str, Any] | None:
        """These judges with their rules: what an answer that stopped depends on."""
        by_name = {judge.name: judge.settings() for judge in self.judges}
        return None if self.stopping is None else {name: by_name[name] for name in self.stopping}

    def describe(self, engine: Engine, weights: str) -> Evaluation:
        """Return the evaluation without scores."""
        settings = engine.settings() | {
            "batch_size": engine.batch_size,
            "limit": self.limit,
            "available": len(self.suite.prompts.rows),
            "left_out": self.left_out,
            "attack": self.suite.attack.settings(),
            "early_stop": self.stopping,
            "judges": {judge.name: judge.settings() for judge in self.judges},
        }
        return Evaluation(
            weights=weights,
            suite=self.suite.name,
            kind=self.suite.kind,
            attack=self.suite.attack.name,
            source=self.suite.prompts.source,
            prompts_sha256=prompts_sha256(self.prompts),
            file=f"evaluations/{weights}--{self.suite.name}.jsonl",
            n=len(self.prompts),
            scores={},
            settings=settings,
        )

    def row(self, index: int, completion: Completion) -> Row:
        """Return the row of one prompt, without verdicts.

        Args:
            index: its place in the suite.
            completion: what was answered.
        """
        prompt, attempt = self.prompts[index], self.attempts[index]
        row: Row = {
            "index": index,
            "id": prompt.id,
            "cluster": prompt.cluster,
            "tags": prompt.tags,
            "prompt": prompt.text,
        }
        if attempt.text != prompt.text:
            row["asked"] = attempt.text
        if attempt.opening:
            row["opening"] = attempt.opening
        return row | {
            # What a data set gives beside a harmful prompt is an attack's target: it is not kept as an answer.
            "reference": None if self.suite.kind == "harmful" else prompt.reference,
            "completion": completion.text,
            "completion_tokens": completion.tokens,
            "finished": completion.finished,
            "stopped_early": completion.stopped_early,
            "verdicts": {},
        }


def ask_suite(
    engine: Engine,
    suite: Suite,
    usual: Sequence[JudgeSpec] | None,
    limit: int | None,
    whole_answers: bool,
    searched: Path,
    progress: Callable[[int, int], None],
) -> Asked:
    """Render a suite and name its judges.

    Args:
        engine: what will answer.
        suite: the suite.
        usual: judges of refusal where the suite names none; None for the usual ones.
        limit: only the first prompts, where the suite has no smaller limit.
        whole_answers: let every answer run to its end also where its verdicts are settled before.
        searched: where attempts that cost a search are kept.
        progress: called as such attempts are found.

    Returns:
        What is to be answered and judged.

    Raises:
        DataError: not one prompt can be asked.
    """
    limits = [one for one in (limit, suite.limit) if one is not None]
    prompts = suite.prompts.rows[: min(limits, default=None)]
    attempts = attempts_of(suite.attack, prompts, engine.loaded, engine.system_prompt, searched, progress)
    world = None if engine.loaded is None else engine.loaded.world
    judges = make_judges(suite.kind, world, usual if suite.judges is None else suite.judges)
    by_row, later = split(judges)
    reading = [judge for judge in judges if reads_refusals(judge)]
    tokenizer = None if engine.loaded is None else engine.loaded.tokenizer
    settled = None if whole_answers or tokenizer is None else early_stop(tokenizer, reading)
    questions = engine.ask(prompts, attempts, suite.prompts.source)
    kept = [index for index, question in enumerate(questions) if question is not None]
    if not kept:
        raise DataError(f"no prompt of '{suite.prompts.source}' fits the model's context: name another set")
    return Asked(
        suite,
        min(limits, default=None),
        len(prompts) - len(kept),
        [prompts[index] for index in kept],
        [attempts[index] for index in kept],
        [questions[index] for index in kept],
        by_row,
        later,
        settled,
    )


def prompts_sha256(prompts: Iterable[Prompt]) -> str:
    """Return the SHA-256 of what is asked: text and own system turn of every prompt in order, no references."""
    return content_sha256({"text": prompt.text, "system": prompt.system} for prompt in prompts)
