"""`MethodsCallback` in a user's plain `transformers.Trainer`."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tiny import VOCABULARY, tiny_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from geomsafe.errors import TrainingError
from geomsafe.methods import Method, MethodsCallback, NotFiniteError, make_methods
from geomsafe.methods.callback import refuse_distributed
from geomsafe.methods.finite import first_bad_output


def rows(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Random examples of equal length, so that the default collator stacks them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (count, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def fit(folder: Path, callbacks: list[TrainerCallback], resume: str | None = None, **settings: Any) -> nn.Module:
    """Train a tiny Llama in a plain Trainer and return it."""
    arguments: dict[str, Any] = {
        "learning_rate": 1e-2,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "seed": 1,
    }
    arguments |= settings
    args = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", **arguments
    )
    trainer = Trainer(tiny_model("llama"), args, train_dataset=rows(16), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model


def same_bits(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


class Scaled(Method):
    """Multiply every gradient by ten."""

    name: ClassVar[str] = "scaled"
    acts_on_gradient: ClassVar[bool] = True

    def on_gradient(self, model: nn.Module, step: int) -> dict[str, float]:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(10)
        return {"factor": 10.0}


@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_without_methods_the_weights_are_those_of_a_plain_trainer(tmp_path: Path, clip: float) -> None:
    plain = fit(tmp_path / "plain", [], max_grad_norm=clip)
    ours = fit(tmp_path / "ours", [MethodsCallback(make_methods([]))], max_grad_norm=clip)
    assert same_bits(plain, ours)
    assert not same_bits(plain, fit(tmp_path / "other", [], max_grad_norm=0.25))


def test_a_shadow_leaves_training_alone_and_feedback_is_a_smaller_learning_rate(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", [])
    assert same_bits(plain, fit(tmp_path / "shadow", [MethodsCallback(make_methods(["ema"]))]))
    fed_back = fit(tmp_path / "back", [MethodsCallback(make_methods(["ema:mode=feedback"]))])
    slower = fit(tmp_path / "slow", [], learning_rate=0.25e-2)
    for one, other in zip(fed_back.parameters(), slower.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    assert not same_bits(plain, fed_back)


def test_clipping_comes_after_the_gradient_methods(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    fit(tmp_path, [MethodsCallback([Scaled()], log=lambda row: seen.append(dict(row)))])
    for number, row in enumerate(seen, start=1):
        assert row["step"] == number
        assert row["grad_norm_methods"] == pytest.approx(10 * row["grad_norm"], rel=1e-5)
        assert row["grad_norm_clipped"] == pytest.approx(0.5, rel=1e-4)
        assert row["methods"] == {"scaled": {"factor": 10.0}}
    assert [row["lr"] for row in seen] == pytest.approx([1e-2 * (6 - step) / 6 for step in range(6)])


def test_the_learning_rate_limit_is_taken_over_and_given_back(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), max_steps=2, max_grad_norm=0.5, report_to=[], use_cpu=True)
    inside: list[float] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            inside.append(args.max_grad_norm)

    callbacks = [MethodsCallback(make_methods([])), Look()]
    Trainer(tiny_model("llama"), args, train_dataset=rows(16), callbacks=callbacks).train()
    assert inside == [0.0, 0.0]
    assert args.max_grad_norm == 0.5


def test_a_resumed_trainer_continues_the_average(tmp_path: Path) -> None:
    averages = []
    for folder, resume in ((tmp_path, None), (tmp_path, str(tmp_path / "checkpoint-3"))):
        methods = make_methods(["ema:eta=0.1", "ema:eta=0.01"])
        fit(folder, [MethodsCallback(methods)], resume=resume, save_steps=3, save_strategy="steps")
        averages.append([method.state_dict() for method in methods])
    for before, after in zip(*averages, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    (tmp_path / "checkpoint-3" / "geomsafe-methods.safetensors").unlink()
    with pytest.raises(TrainingError, match="methods' state .* is missing"):
        fit(tmp_path, [MethodsCallback(make_methods(["ema"]))], resume=str(tmp_path / "checkpoint-3"))


def test_what_is_read_back_lies_in_memory_as_what_was_saved(tmp_path: Path) -> None:
    """A dot product over memory of another alignment adds in another order."""
    given: list[torch.Tensor] = []

    class Keeps(Method):
        name: ClassVar[str] = "keeps"

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {str(size): torch.ones(size) for size in (1, 3, 17)}

        def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
            given.extend(tensors.values())

    for resume in (None, str(tmp_path / "checkpoint-3")):
        fit(tmp_path, [MethodsCallback([Keeps()])], resume=resume, save_steps=3, save_strategy="steps")
    assert sorted(len(tensor) for tensor in given) == [1, 3, 17]
    aligned = [tensor.data_ptr() % 64 for tensor in given]
    assert aligned == [torch.ones(size).data_ptr() % 64 for size in (1, 3, 17)] == [0, 0, 0]


def test_probes_measure_at_their_steps_after_the_methods(tmp_path: Path) -> None:
    order: list[str] = []

    class Acts(Method):
        name: ClassVar[str] = "acts"

        def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
            order.append(f"method {step}")
            return {}

    class Probes:
        def steps(self, total: int) -> set[int]:
            return {0, 2, total}

        def remember(self) -> None:
            order.append("remember")

        def measure(self, step: int, optimizer: Any = None) -> Path:
            order.append(f"probe {step}")
            assert (step == 0) == (optimizer is None)
            return Path("nowhere")

    fit(tmp_path, [MethodsCallback([Acts()], probes=Probes())], max_steps=3)
    assert order == [
        "probe 0", "method 1", "remember", "method 2", "probe 2", "remember", "method 3", "probe 3",
    ]  # fmt: skip


class Poison(TrainerCallback):
    """Make one gradient infinite at step 2, as an overflow would."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            dict(kwargs["model"].named_parameters())["model.layers.1.mlp.up_proj.weight"].grad[0, 0] = math.inf


def test_an_infinite_gradient_stops_with_step_and_layer(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"step 2: the gradient is not finite in 'model.layers.1.mlp.up_proj"):
        fit(tmp_path, [Poison(), MethodsCallback(make_methods([]))])


def test_the_first_module_with_a_bad_output_is_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    batch = {"input_ids": torch.arange(5, 15)[None]}
    assert first_bad_output(model, batch) == "model.layers.1.mlp.up_proj"
    assert first_bad_output(tiny_model("llama"), batch) is None
    assert not model.model.layers[1].mlp.up_proj._forward_hooks


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"deepspeed": "x"}, "DeepSpeed"),
        ({"fsdp": "full_shard"}, "FSDP"),
        ({"world_size": 2}, "DDP"),
        ({"n_gpu": 2}, "DataParallel"),
    ],
)
def test_more_than_one_process_is_refused_by_name(change: dict[str, Any], name: str) -> None:
    one = {"deepspeed": None, "fsdp": None, "world_size": 1, "n_gpu": 1}
    refuse_distributed(SimpleNamespace(**one))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=name):
        refuse_distributed(SimpleNamespace(**(one | change)))  # type: ignore[arg-type]
