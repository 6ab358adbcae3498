"""Tasks of lm-evaluation-harness (EleutherAI), run in this process on a model that is loaded already.

The harness does its own prompting, tokenising, decoding and scoring; nothing of it is changed here. What is added: the
model, its modes and every random state are left as found, and what a user can get wrong is said in one line.

What is covered: every task that needs text and no execution of generated code. What is not: images, several devices,
and the harness's own caches and loggers.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geomsafe.data.chat import DATE
from geomsafe.errors import ConfigError, DataError
from geomsafe.gradients.undisturbed import undisturbed
from geomsafe.models import Loaded


@dataclass(frozen=True)
class HarnessScore:
    """One number of one task.

    Attributes:
        task: task or group.
        metric: "acc", "exact_match", ...
        filter: what prepared the answers, "none", "strict-match", ...
        value: in the metric's own unit.
        stderr: the harness's standard error, examples taken as independent; None where it gives none.
        n: examples.
        version: of the task; "Yaml" or None where its file says none.
        higher_is_better: None where the task does not say.
        num_fewshot: solved examples before each prompt; None for a group whose tasks differ.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    version: str | None
    higher_is_better: bool | None
    num_fewshot: int | None


@dataclass(frozen=True)
class HarnessResult:
    """What a run of the harness gave.

    Attributes:
        scores: the numbers, in the harness's order.
        settings: versions, template flag and whatever else decided them.
    """

    scores: list[HarnessScore]
    settings: dict[str, Any]

    def records(self) -> list[dict[str, Any]]:
        """Return the scores as they can be written to a JSONL file."""
        return [asdict(score) for score in self.scores]


def run_harness(
    loaded: Loaded,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int | str = 8,
    apply_chat_template: bool = False,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    manager: Any = None,
) -> HarnessResult:
    """Run tasks on a model.

    Args:
        loaded: the model, left as found.
        tasks: names of tasks, groups or tags of the harness, or of `include_path`.
        limit: only the first examples of each task: for trying out, not for numbers.
        batch_size: requests that run together, or "auto".
        apply_chat_template: write prompts as user turns. Off by default, as in the harness and most published numbers.
        include_path: folder with task files (YAML) of one's own.
        num_fewshot: solved examples before each prompt; None is each task's own number.
        manager: from `task_manager`, where it is there already, in place of `include_path`.

    Returns:
        One score a task, metric and filter.

    Raises:
        ConfigError: the harness is not installed, or does not know a task.
        DataError: a task's data set is not here and cannot be fetched.
    """  # noqa: DOC502 - task_manager and _data_of raise them
    known = task_manager(tasks, include_path) if manager is None else manager
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with undisturbed(loaded.model), _random_state_kept():
        wrapped = HFLM(
            pretrained=loaded.model,
            # The harness may add a padding token to it.
            tokenizer=copy.deepcopy(loaded.tokenizer),
            batch_size=batch_size,
            chat_template_args={"date_string": DATE},
        )
        with _data_of(tasks):
            found = lm_eval.simple_evaluate(
                model=wrapped,
                tasks=list(tasks),
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                limit=limit,
                apply_chat_template=apply_chat_template,
                task_manager=known,
                log_samples=False,
            )
    settings = {
        "lm_eval": lm_eval.__version__,
        "tasks": list(tasks),
        "limit": limit,
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "template_sha256": loaded.template_sha256 if apply_chat_template else None,
        "batch_size": batch_size,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "device": loaded.device.type,
    }
    return HarnessResult(_scores(found), settings)


def task_manager(tasks: Sequence[str], include_path: Path | None = None) -> Any:
    """Return the harness's index of tasks, which knows all that are named.

    Args:
        tasks: names of tasks, groups or tags.
        include_path: folder with task files of one's own.

    Returns:
        The harness's own `TaskManager`.

    Raises:
        ConfigError: the harness is not installed, no task is named, nobody knows one, or `include_path` is no folder.
    """
    if not tasks:
        raise ConfigError("no task is named: give names such as arc_easy, hellaswag or gsm8k")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness is not installed ({error}): pip install 'geomsafe[lm-eval]'"
        ) from None
    if include_path is not None:
        if not include_path.is_dir():
            raise ConfigError(f"include_path '{include_path}' is no folder: give the one with the task files")
        # The harness's own index has 14,000 entries and takes half a minute to read.
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=str(include_path) if include_path is not None else None)
    known = manager.all_tasks
    for name in tasks:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "'lm-eval ls tasks' lists what there is"
            raise ConfigError(f"lm-evaluation-harness has no task '{name}': {hint}")
    return manager


def tasks_sha256(tasks: Sequence[str], manager: Any) -> str:
    """Hash what tasks ask: the configuration and every example of each, wherever they come from.

    Args:
        tasks: names of tasks, groups or tags.
        manager: from `task_manager`.

    Returns:
        64 hexadecimal digits.

    Raises:
        DataError: a task's data set is not here and cannot be fetched.
    """  # noqa: DOC502 - _data_of raises it
    digest = hashlib.sha256()
    with _data_of(tasks), _random_state_kept():
        # Releases before `load` have nested mappings from group to tasks instead.
        load = getattr(manager, "load", None)
        found = load(list(tasks))["tasks"] if load is not None else manager.load_task_or_group(list(tasks))
        for name, task in sorted(_leaves(found)):
            for part in (name, task.dump_config(), *task.eval_docs):
                text = json.dumps(part, sort_keys=True, ensure_ascii=False, default=str)
                # A function's address changes from process to process.
                digest.update(re.sub(r" at 0x[0-9a-f]+", "", text).encode("utf-8") + b"\n")
    return digest.hexdigest()


def _leaves(found: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in found.items():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield str(name), task


@contextmanager
def _data_of(tasks: Sequence[str]) -> Iterator[None]:
    """Explain data that cannot be had.

    Raises:
        DataError: a task's data set is not here and cannot be fetched.
    """  # noqa: DOC402
    try:
        yield
    # `datasets` and the hub client raise these two where a data set cannot be had.
    except (ConnectionError, FileNotFoundError) as error:
        raise DataError(
            f"the data of {', '.join(tasks)} is not in the local cache and cannot be fetched: go online once, or "
            f"check the task's files ({' '.join(str(error).split())[:160]})"
        ) from None


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the random states of Python and NumPy, which the harness seeds; torch's is `undisturbed`'s."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _scores(found: dict[str, Any]) -> list[HarnessScore]:
    """Return the harness's table, `metric,filter` beside `metric_stderr,filter`, as one score a metric and filter."""
    scores = []
    # A group stands under "groups"; some versions of the harness repeat it under "results".
    for task, values in (found["results"] | found.get("groups", {})).items():
        for key, value in values.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{kept}")
            version = found.get("versions", {}).get(task)
            scores.append(
                HarnessScore(
                    task=task,
                    metric=metric,
                    filter=kept,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    n=_examples(found, task),
                    version=None if version is None else str(version),
                    higher_is_better=found.get("higher_is_better", {}).get(task, {}).get(metric),
                    num_fewshot=found.get("n-shot", {}).get(task),
                )
            )
    return scores


def _examples(found: dict[str, Any], task: str) -> int:
    """Return the examples of a task, of a group those of all tasks in it."""
    own = found["n-samples"].get(task)
    if own is not None:
        return int(own["effective"])
    return sum(_examples(found, child) for child in found.get("group_subtasks", {}).get(task, []))
