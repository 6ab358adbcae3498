"""lm-evaluation-harness on a tiny model and task files of our own: numbers, manners, messages, and our own choices."""

from __future__ import annotations

import builtins
import importlib.util
import json
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from geomsafe.data.choices import make_choice
from geomsafe.errors import ConfigError, DataError
from geomsafe.evaluation.choices import score_choices
from geomsafe.evaluation.harness import HarnessScore, run_harness
from geomsafe.models import Loaded

INSTALLED = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install 'geomsafe[lm-eval]'",
)

ROWS = [
    {"question": "What is the capital of France?", "options": ["Paris", "the sea", "bread"], "gold": 0},
    {"question": "How do I bake bread?", "options": ["Open the task manager.", "Mix flour and water."], "gold": 1},
    {"question": "What is blue?", "options": ["The sea", "Salt", "Yeast", "An hour"], "gold": 0},
    {"question": "What should I do?", "options": ["wait an hour", "wait a day, then mix water and salt"], "gold": 1},
]
CHOICE_TASK = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_norm}}]
metadata: {{version: 3.5}}
"""
GENERATE_TASK = """
task: own_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{options[gold]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - {{name: first-word, filter: [{{function: regex, regex_pattern: "(\\\\S+)"}}, {{function: take_first}}]}}
"""
GROUP = """
group: own_group
task: [own_choice]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 2}
"""
ABSENT_TASK = """
task: own_absent
dataset_path: nobody-here/no-such-set
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: gold
"""


def loaded_model(arch: str = "llama", dtype: torch.dtype = torch.float64) -> Loaded:
    """Return a model as `load_model` gives it, without its files."""
    return Loaded(
        model=tiny_model(arch, 1, dtype),
        tokenizer=tiny_tokenizer(),
        source="tiny",
        folder=None,
        revision=None,
        fingerprint="0" * 64,
        template_sha256="0" * 64,
        world=None,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files, all data in it."""
    path = tmp_path_factory.mktemp("tasks")
    rows = path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, text in (("choice", CHOICE_TASK), ("generate", GENERATE_TASK)):
        (path / f"{name}.yaml").write_text(text.format(rows=rows, cache=path / "cache"), encoding="utf-8")
    (path / "group.yaml").write_text(GROUP, encoding="utf-8")
    (path / "absent.yaml").write_text(ABSENT_TASK, encoding="utf-8")
    return path


def own_scores(loaded: Loaded, chat: bool) -> Any:
    items = [make_choice(f"Question: {row['question']}\nAnswer:", row["options"], row["gold"]) for row in ROWS]
    return score_choices(loaded, items, chat=chat, batch_size=3)


@INSTALLED
@pytest.mark.parametrize("chat", [False, True])
def test_both_kinds_of_tasks_give_numbers(folder: Path, chat: bool) -> None:
    """Accuracies are those of our own choices on the same items; everything that decides them is told."""
    loaded = loaded_model()
    result = run_harness(
        loaded, ["own_choice", "own_generate"], batch_size=2, include_path=folder, apply_chat_template=chat
    )
    acc, acc_norm, match = result.scores
    ours = own_scores(loaded, chat)
    assert acc.value == ours.correct["acc"] / 4 and acc_norm.value == ours.correct["acc_norm"] / 4
    expected_error = np.std([row.right("acc") for row in ours.rows], ddof=1) / 2
    assert acc.stderr == pytest.approx(expected_error)
    assert acc == HarnessScore("own_choice", "acc", "none", acc.value, acc.stderr, 4, "3.5", True, 0)
    assert (match.task, match.metric, match.filter, match.n) == ("own_generate", "exact_match", "first-word", 4)
    assert 0 <= match.value <= 1
    assert result.settings["lm_eval"].startswith("0.4.") and result.settings["apply_chat_template"] is chat
    assert (result.settings["template_sha256"] is not None) == chat
    assert json.loads(json.dumps(result.records()))[0]["metric"] == "acc"


@INSTALLED
def test_limit_and_few_shot_reach_the_harness(folder: Path) -> None:
    (match,) = run_harness(
        loaded_model(), ["own_generate"], include_path=folder, limit=2, num_fewshot=1, batch_size=1
    ).scores
    assert (match.n, match.num_fewshot) == (2, 1)


@INSTALLED
def test_everything_is_left_as_found(folder: Path) -> None:
    """Weights, gradients, modes, generation settings, tokenizer, and all three random states; also after an error."""
    loaded = loaded_model()
    model, tokenizer = loaded.model.train(), loaded.tokenizer
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    tokenizer.pad_token = None

    def state() -> list[Any]:
        weights = {name: (id(weight), weight.clone()) for name, weight in model.named_parameters()}
        return [
            {name: identity for name, (identity, _) in weights.items()},
            {name: weight.tolist() for name, (_, weight) in weights.items()},
            {name: None if w.grad is None else w.grad.tolist() for name, w in model.named_parameters()},
            {name: weight.requires_grad for name, weight in model.named_parameters()},
            [module.training for module in model.modules()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            model.generation_config.to_dict(),
            (tokenizer.pad_token, tokenizer.padding_side, len(tokenizer)),
            random.getstate(),
            torch.get_rng_state().tolist(),
            [part if isinstance(part, int | str | float) else part.tolist() for part in np.random.get_state()],
        ]

    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    before = state()
    run_harness(loaded, ["own_choice", "own_generate"], include_path=folder, limit=2)
    assert state() == before
    with pytest.raises(DataError):
        run_harness(loaded, ["own_absent"], include_path=folder)
    assert state() == before


@INSTALLED
def test_the_harness_does_seed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what restores them, the random states would be others: the test above can fail."""
    monkeypatch.setattr("geomsafe.evaluation.harness._random_state_kept", nullcontext)
    random.seed(5)
    np.random.seed(6)
    before = random.getstate(), np.random.get_state()[1].tolist()
    run_harness(loaded_model(), ["own_choice"], include_path=folder, limit=1)
    assert random.getstate() != before[0] and np.random.get_state()[1].tolist() != before[1]


@INSTALLED
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("chat", [False, True])
def test_our_choices_have_the_harness_log_likelihoods(
    arch: str, dtype: torch.dtype, tolerance: float, chat: bool
) -> None:
    """Option by option, as the harness's own model class reads them, with its rule for the chat template."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    loaded = loaded_model(arch, dtype)
    wrapped = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=2)
    requests, counts = [], []
    for row in ROWS:
        prompt = f"Question: {row['question']}\nAnswer:"
        if chat:
            prompt = wrapped.apply_chat_template([{"role": "user", "content": prompt}])
        pairs = [(prompt, option if chat else f" {option}") for option in row["options"]]
        requests += [Instance("loglikelihood", row, pair, place) for place, pair in enumerate(pairs)]
        counts.append(len(pairs))
    theirs = iter(total for total, _ in wrapped.loglikelihood(requests, disable_tqdm=True))
    ours = own_scores(loaded, chat)
    assert ours.merged == 0
    for row, count in zip(ours.rows, counts, strict=True):
        assert row.log_likelihoods == pytest.approx([next(theirs) for _ in range(count)], rel=tolerance)


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the harness's own 14,000 tasks out, which take long to read."""
    import lm_eval.tasks

    class Small(lm_eval.tasks.TaskManager):
        def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Small)


@INSTALLED
@pytest.mark.usefixtures("small_index")
def test_a_group_has_scores_of_its_own(folder: Path) -> None:
    scores = run_harness(loaded_model(), ["own_group"], include_path=folder).scores
    group = next(score for score in scores if score.task == "own_group")
    task = next(score for score in scores if score.task == "own_choice" and score.metric == "acc")
    assert (group.metric, group.value, group.n, group.version) == ("acc", task.value, 4, "2")
    assert (group.higher_is_better, group.num_fewshot) == (True, 0)


@INSTALLED
@pytest.mark.usefixtures("small_index")
def test_an_unknown_task_is_named_with_its_neighbours(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no task 'own_choise': did you mean own_choice"):
        run_harness(loaded_model(), ["own_choise"], include_path=folder)
    with pytest.raises(ConfigError, match="has no task 'qqqq': 'lm-eval ls tasks' lists"):
        run_harness(loaded_model(), ["own_choice", "qqqq"], include_path=folder)


@INSTALLED
def test_data_that_cannot_be_had_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="the data of own_absent is not in the local cache and cannot be fetched"):
        run_harness(loaded_model(), ["own_absent"], include_path=folder)


@INSTALLED
def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="include_path '.*nowhere' is no folder"):
        run_harness(loaded_model(), ["own_choice"], include_path=tmp_path / "nowhere")


def test_no_task_is_no_run() -> None:
    with pytest.raises(ConfigError, match="no task is named"):
        run_harness(loaded_model(), [])


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"is not installed .*: pip install 'geomsafe\[lm-eval\]'"):
        run_harness(loaded_model(), ["arc_easy"])
