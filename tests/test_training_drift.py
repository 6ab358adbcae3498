"""Drift in behaviour: sampled answers, divergence and losses against loops over single examples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import kl_by_position, slow_target_log_probs
from runs import QUIET, tiny_run
from tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

from geomsafe.data import Encoded, prompt_ids
from geomsafe.evaluation.decoding import stop_token_ids
from geomsafe.evaluation.sampling import sample_answers
from geomsafe.evaluation.teacher import Divergence, answer_losses
from geomsafe.records import read_record
from geomsafe.training import train
from geomsafe.training.weights import saved_steps


def examples() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for prompt, answer in ((5, 3), (9, 1), (2, 8), (6, 6), (12, 2)):
        ids = torch.randint(6, 300, (prompt + answer,), generator=generator).tolist()
        rows.append(Encoded(ids, [-100] * prompt + ids[prompt:], False, answer))
    return rows


def pair(arch: str) -> tuple[Any, Any]:
    start, model = (tiny_model(arch, seed, torch.float64) for seed in (0, 0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double())
    return start, model


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("first", [None, 2])
def test_divergence_is_the_sum_over_the_vocabulary(arch: str, batch_size: int, first: int | None) -> None:
    """Padded or not, any batch: as one example at a time, and never the other way round."""
    start, model = pair(arch)
    rows = examples()
    found = Divergence(start, rows, batch_size, first).of(model)
    wanted = [value for row in rows for value in kl_by_position(start, model, row.input_ids, row.labels, first)]
    # Gemma takes its norms in float32, whatever the weights are.
    tolerance = 1e-5 if arch == "gemma" else 1e-9
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=tolerance, atol=tolerance)
    swapped = [value for row in rows for value in kl_by_position(model, start, row.input_ids, row.labels, first)]
    assert not torch.allclose(found, torch.tensor(swapped, dtype=torch.float64), rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_has_not_diverged_from_itself(dtype: torch.dtype) -> None:
    model = tiny_model("llama", 0, dtype)
    assert Divergence(model, examples(), 2).of(model).tolist() == [0.0] * 20


def test_a_small_divergence_keeps_its_figures() -> None:
    """Weights that moved by 1e-6 diverge by some 1e-12 nats: float32 logits leave it, the softmax must not lose it."""
    start, model = tiny_model("llama", 0), tiny_model("llama", 0)
    with torch.no_grad():
        model.lm_head.weight.add_(
            1e-4 * torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(2))
        )
    found = Divergence(start, examples(), 2).of(model)
    assert found.min() > 0
    assert 1e-9 < float(found.mean()) < 1e-5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_are_those_of_single_examples(arch: str) -> None:
    model = tiny_model(arch, 0, torch.float64)
    rows = examples()
    found = answer_losses(model, rows, 3)
    tolerance = 1e-5 if arch == "gemma" else 1e-9
    for (total, tokens), row in zip(found.tolist(), rows, strict=True):
        wanted = [float(-value.detach()) for value in slow_target_log_probs(model, row.input_ids, row.labels)]
        assert total == pytest.approx(sum(wanted), rel=tolerance)
        assert tokens == len(wanted) == row.target_tokens


def test_sampled_answers_follow_the_models_distribution_and_leave_it_alone() -> None:
    """First tokens of many draws against the softmax; the random state and the generation config stay."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prompt = prompt_ids("What is 2?", tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    state, config = torch.get_rng_state(), model.generation_config
    draws = 2000
    answers = sample_answers(model, tokenizer, [prompt] * draws, 1, 500, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and model.generation_config is config
    counts = Counter(answer[0] for answer in answers)
    likely = int(probabilities.argmax())
    expected = float(probabilities[likely])
    assert 0.02 < expected < 0.98
    assert abs(counts[likely] / draws - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5
    assert len(counts) > 3, "a greedy decoder would give one answer"
    assert answers == sample_answers(model, tokenizer, [prompt] * draws, 1, 500, seed=3)
    assert answers != sample_answers(model, tokenizer, [prompt] * draws, 1, 500, seed=4)


def test_sampled_answers_end_with_their_end_token() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prompts = [prompt_ids(text, tokenizer) for text in ("Hi.", "What is the capital of France?", "Why?")]
    stops = stop_token_ids(model, tokenizer)
    for answer in sample_answers(model, tokenizer, prompts * 40, 30, 50, seed=0):
        assert 1 <= len(answer) <= 30
        assert not stops & set(answer[:-1])
        assert len(answer) == 30 or answer[-1] in stops


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_sampled_answers_stay_inside_the_models_context(arch: str) -> None:
    """A table of positions ends there; beyond it a learned position does not exist."""
    size = {"n_positions": 24} if arch == "gpt2" else {"max_position_embeddings": 24}
    model, tokenizer = tiny_model(arch, **size), tiny_tokenizer()
    prompts = [[7] * 20, [8] * 3, [9] * 23]
    answers = sample_answers(model, tokenizer, prompts, 32, 2, seed=0)
    assert [len(answer) <= room for answer, room in zip(answers, (4, 4, 1), strict=True)] == [True] * 3
    assert all(answers)


def test_a_run_records_the_drift_of_every_weight_set(tmp_path: Path) -> None:
    config = tiny_run(
        tmp_path,
        method=["ema:eta=0.3"],
        evaluate=True,
        curve_points=3,
        safety_data=str(tmp_path / "harmful.jsonl"),
        refusal_text="I am sorry, but I cannot help with that request.",
        eval_prompts=[f"utility={tmp_path / 'data.jsonl'}", f"harmful={tmp_path / 'harmful.jsonl'}"],
        eval_limit=6,
    )
    record = read_record(train(config, console=QUIET))
    assert set(record.drift) == {"theta_0", *record.weights}
    assert {name for name in record.weights if name.startswith("step-")} == {
        "step-000001",
        "step-000002",
        "step-000003",
    }
    start = record.drift["theta_0"]
    assert start.kl_task == 0.0
    assert start.utility_loss is not None and start.validation_loss is None
    for name, drift in record.drift.items():
        assert (drift.kl_task or 0.0) > 0 or name == "theta_0"
        assert drift.examples["kl_task"] == 6
    # A model with random weights refuses nothing: said, not skipped.
    assert start.kl_harmful is None and "KL on harmful prompts" in record.not_run
    assert (record.drift["final"].utility_loss or 9) < start.utility_loss, "the run trains on these answers"


def test_drift_can_be_left_out(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, evaluate=True, drift=False, eval_prompts=[f"utility={tmp_path / 'data.jsonl'}"])
    assert read_record(train(config, console=QUIET)).drift == {}


@pytest.mark.parametrize("total", [1, 2, 5, 13, 200, 1000])
@pytest.mark.parametrize("count", [2, 12])
def test_the_steps_of_a_curve(tmp_path: Path, total: int, count: int) -> None:
    """As many as asked for where there are so many, none the last, the first one among them, denser at the start."""
    steps = saved_steps(tiny_run(tmp_path, curve_points=count), total)
    assert len(steps) == min(count, total - 1)
    assert steps == sorted(set(steps)) and all(1 <= step < total for step in steps)
    assert not steps or steps[0] == 1
    assert saved_steps(tiny_run(tmp_path, curve_points=count, save_weights_at=[total]), total)[-1] == total
