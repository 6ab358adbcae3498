"""Which measures are asked for beside prompt sets: keys of a suite file, and options of `geomsafe evaluate`.

In a suite file:

    choices:
      - arc.jsonl
      - {source: mmlu.csv, letters: true, chat: false, limit: 100}
    held_out: [alpaca, {source: mine.jsonl, max_length: 1024}]
    lm_eval: [arc_easy, gsm8k]        # or {tasks: [...], path: FOLDER, chat_template: true, num_fewshot: 5}
    mt_bench: {folder: mt_bench, judge_url: "http://localhost:8000/v1", judge_model: gpt-4}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from geomsafe.errors import ConfigError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChoicesSpec(_Strict):
    """A file of multiple-choice items; see `data.choices.load_choices` and `evaluation.choices.score_choices`."""

    source: str
    limit: int | None = Field(default=None, ge=1)
    letters: bool | None = None
    preamble: str = ""
    chat: bool | None = None


class HeldOutSpec(_Strict):
    """Conversations whose answers are to be predicted; see `evaluation.heldout.held_out_loss`."""

    source: str
    limit: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=2048, ge=8)


class HarnessSpec(_Strict):
    """Tasks of lm-evaluation-harness; see `evaluation.harness.run_harness`."""

    tasks: tuple[str, ...] = Field(min_length=1)
    path: str | None = None
    limit: int | None = Field(default=None, ge=1)
    chat_template: bool = False
    num_fewshot: int | None = Field(default=None, ge=0)


class MtBenchSpec(_Strict):
    """MT-Bench's published files, and who judges; see `evaluation.mtbench`."""

    folder: str
    judge_url: str
    judge_model: str
    limit: int | None = Field(default=None, ge=1)


def _listed(key: str) -> BeforeValidator:
    """Return what takes a single entry for a list of one, and a text for an entry's most important field."""

    def listed(value: Any) -> Any:
        entries = value if isinstance(value, list | tuple) else [value]
        return [{key: entry} if isinstance(entry, str) else entry for entry in entries]

    return BeforeValidator(listed)


def _tasks(value: Any) -> Any:
    """Return tasks as they may be written, "a,b" or [a, b], in a mapping with their settings."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list | tuple) and value and all(isinstance(entry, str) for entry in value):
        return [{"tasks": value}]
    return value if isinstance(value, list | tuple) else [value]


class MeasureSpec(_Strict):
    """Everything that is measured beside prompt sets."""

    choices: Annotated[tuple[ChoicesSpec, ...], _listed("source")] = ()
    held_out: Annotated[tuple[HeldOutSpec, ...], _listed("source")] = ()
    lm_eval: Annotated[tuple[HarnessSpec, ...], BeforeValidator(_tasks)] = ()
    mt_bench: Annotated[tuple[MtBenchSpec, ...], _listed("folder")] = ()

    def and_those_of(self, other: MeasureSpec) -> MeasureSpec:
        """Return the measures of both."""
        return MeasureSpec(
            choices=self.choices + other.choices,
            held_out=self.held_out + other.held_out,
            lm_eval=self.lm_eval + other.lm_eval,
            mt_bench=self.mt_bench + other.mt_bench,
        )


def asked_measures(
    choices: Sequence[str] = (),
    held_out: Sequence[str] = (),
    lm_eval: str | None = None,
    lm_eval_path: str | None = None,
    mt_bench: str | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
) -> MeasureSpec:
    """Read the options of the command line.

    Args:
        choices: files of multiple-choice items.
        held_out: sets of conversations.
        lm_eval: names of the harness's tasks, with commas between them.
        lm_eval_path: folder with task files of one's own.
        mt_bench: folder with MT-Bench's published files.
        judge_url: address of the server that rates MT-Bench's answers.
        judge_model: its model.

    Returns:
        What is asked.

    Raises:
        ConfigError: an option is given without the one that it belongs to.
    """
    if lm_eval_path is not None and lm_eval is None:
        raise ConfigError(f"--lm-eval-path '{lm_eval_path}' names no task: add --lm-eval TASK")
    if lm_eval is not None and not lm_eval.strip(" ,"):
        raise ConfigError("--lm-eval names no task: write them with commas between, as in --lm-eval arc_easy,gsm8k")
    judge = {"--judge-url": judge_url, "--judge-model": judge_model}
    for option, value in judge.items():
        if mt_bench is not None and not value:
            raise ConfigError(
                f"--mt-bench needs a judge and {option} is missing: add --judge-url http://HOST:PORT/v1 and "
                "--judge-model NAME, a strong model behind an OpenAI-compatible server"
            )
        if mt_bench is None and value is not None:
            raise ConfigError(f"{option} '{value}' is for MT-Bench: add --mt-bench FOLDER, or leave it out")
    asked: dict[str, Any] = {"choices": list(choices), "held_out": list(held_out)}
    if lm_eval is not None:
        tasks = [name.strip() for name in lm_eval.split(",") if name.strip()]
        asked["lm_eval"] = [{"tasks": tasks, "path": lm_eval_path}]
    if mt_bench is not None:
        asked["mt_bench"] = [{"folder": mt_bench, "judge_url": judge_url, "judge_model": judge_model}]
    return MeasureSpec.model_validate(asked)
