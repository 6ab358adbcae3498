"""The one-shot patch against a loop written out, and what it must leave alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradient_cases import padded, some_examples
from method_paths import Fit, bits, difference, effective, fit, start_model
from reference import moved_norm, one_shot_by_hand, slow_target_log_probs

import geomsafe
from geomsafe.analyses import pairing
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.methods import OneShot, OneShotOptions, Schedule, make_method
from geomsafe.records import read_jsonl, read_record
from geomsafe.reports.runs import read_run

KINDS = {"full": ("llama", False), "tied": ("gemma", False), "transposed": ("gpt2", False)}
KINDS |= {"lora": ("llama", True), "lora-transposed": ("gpt2", True)}
# Llama and Gemma norm in float32 whatever their weights: padding would change the last digits, which Adam blows up.
REFUSALS = some_examples(2, seed=21, equal=True)
LAST = Schedule(total_steps=1, steps_per_epoch=1, lr=1e-2)


def one_shot(count: int = 1, **options: Any) -> OneShot:
    return OneShot(OneShotOptions(**options), anchor=padded(REFUSALS[:count]))


def loss_of(model: Any, count: int = 1) -> float:
    """The anchor's token-mean negative log-likelihood from the definition."""
    found = [value for ids, labels in REFUSALS[:count] for value in slow_target_log_probs(model, ids, labels)]
    return -float(torch.stack(found).mean().detach())


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    arch, lora = KINDS[request.param]
    return fit(tmp_path_factory.mktemp("run"), [one_shot(2, epochs=6, lr=1e-3)], start_model(arch, lora))


def test_the_patch_equals_the_steps_written_out(run: Fit) -> None:
    wanted = one_shot_by_hand(run.model, REFUSALS, 6, 1e-3)
    assert difference(run.placed("one-shot"), effective(wanted)) < 1e-9
    for other in (
        one_shot_by_hand(run.model, REFUSALS, 5, 1e-3),
        one_shot_by_hand(run.model, REFUSALS, 6, 1.01e-3),
        one_shot_by_hand(run.model, REFUSALS[:1], 6, 1e-3),
    ):
        assert difference(run.placed("one-shot"), effective(other)) > 1e-6


def test_the_last_row_says_what_the_patch_did(run: Fit) -> None:
    assert [row["methods"] for row in run.log[:-1]] == [{}] * 9
    log = run.log[-1]["methods"]["one-shot"]
    assert log["anchor_loss"] == pytest.approx(loss_of(run.model, 2), rel=1e-12)
    with run.methods["one-shot"].weight_sets()["one-shot"](run.model):
        assert log["anchor_loss_patched"] == pytest.approx(loss_of(run.model, 2), rel=1e-12)
    assert log["anchor_loss_patched"] < log["anchor_loss"]
    added = moved_norm(run.placed("one-shot"), run.path[-1])
    assert log["added_distance"] == pytest.approx(added, rel=1e-5)  # taken in float32, as all distances
    [described] = run.described
    assert described["weight_set"] == "one-shot" and described["anchor_examples"] == 2
    assert described["options"] == {"anchor": "safety", "anchors": 1, "epochs": 6, "lr": 1e-3}


def test_it_leaves_training_alone(run: Fit, tmp_path: Path) -> None:
    plain = fit(tmp_path, [], start_model(run.model.config.model_type, hasattr(run.model, "peft_config")))
    assert all(torch.equal(tensor, bits(run.model)[name]) for name, tensor in bits(plain.model).items())
    assert difference(run.placed("one-shot"), run.path[-1]) > 1e-4
    with pytest.raises(RuntimeError, match="inside"), run.methods["one-shot"].weight_sets()["one-shot"](run.model):
        raise RuntimeError("inside")
    assert all(torch.equal(tensor, bits(run.model)[name]) for name, tensor in bits(plain.model).items())


def lively() -> Any:
    """A model in training, with dropout and gradients of its own."""
    model = start_model("gpt2", dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    model.transformer.h[0].eval()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    return model


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_modes_and_random_state_stay(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, method = lively(), one_shot(lr=1e-3)
    method.start(model, None, LAST)
    before, modes = bits(model), [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    if fails:
        steps: list[int] = []

        def stop(*_: Any, **__: Any) -> None:
            steps.append(1)
            if len(steps) == 3:
                raise RuntimeError("out of memory")

        real = torch.optim.AdamW.step
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (stop(), real(self)))
        with pytest.raises(RuntimeError, match="out of memory"):
            method.after_step(model, 1)
    else:
        first = method.after_step(model, 1)
        assert first == method.after_step(model, 1), "dropout is off"
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
    assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[union-attr]
    if fails:
        with (
            pytest.raises(TrainingError, match="no patch before the last step, 1, has been taken"),
            method.weight_sets()["one-shot"](model),
        ):
            pass


def test_small_steps_on_bfloat16_weights_add_up() -> None:
    """At the default learning rate one step is below half a bfloat16 step of most weights, ten are not."""
    model, wide = start_model(dtype=torch.bfloat16), start_model(dtype=torch.bfloat16).float()
    for one, method in ((model, rounded := one_shot()), (wide, exact := one_shot())):
        method.start(one, None, LAST)
        method.after_step(one, 1)
    assert {tensor.dtype for tensor in rounded.state_dict().values()} == {torch.float32}
    start, moved = effective(model), 0
    with rounded.weight_sets()["one-shot"](model):
        assert model.dtype == torch.bfloat16
        placed = effective(model)
    patched = exact.state_dict()
    for name, weight in placed.items():
        assert torch.equal(weight, rounded.state_dict()[name].to(torch.bfloat16))
        far = (patched[name] - start[name].float()).abs() > 1.5e-4
        moved += int((weight != start[name])[far].sum())
    assert moved > 1000


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_has_the_same_patch(tmp_path: Path, lora: bool) -> None:
    found = []
    for resume in (None, str(tmp_path / "checkpoint-5")):
        methods = [one_shot(epochs=3, lr=1e-3)]
        done = fit(tmp_path, methods, start_model(lora=lora), resume, save_steps=5, save_strategy="steps")
        found.append((done.placed("one-shot"), methods[0].state_dict()))
    assert len(done.path) == 5, "the second one did resume"
    assert difference(found[0][0], found[1][0]) == 0
    # At the last step there is nothing left to train: the patch is read back.
    again = one_shot(epochs=3, lr=1e-3)
    again.start(done.model, None, Schedule(10, 4, 3e-3))
    again.load_state_dict(found[0][1])
    with again.weight_sets()["one-shot"](done.model):
        assert difference(effective(done.model), found[0][0]) == 0
    with pytest.raises(TrainingError, match="the checkpoint does not fit this model: 'other' has no partner"):
        again.load_state_dict(found[0][1] | {"other": torch.zeros(1)})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("one-shot:epochs=0", "option 'epochs' = 0"),
        ("one-shot:lr=0", "option 'lr' = 0"),
        ("one-shot:lr=inf", "option 'lr'"),
        ("one-shot:anchors=0", "option 'anchors' = 0"),
    ],
)
def test_a_wrong_option_is_named(spec: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_method(spec)
    assert said in str(caught.value)


def test_without_an_anchor_it_stops() -> None:
    with pytest.raises(ConfigError, match=r"one-shot has no anchor: give OneShot\(..., anchor=batch\)"):
        make_method("one-shot").start(start_model(), None, LAST)


def test_a_patch_that_blows_up_is_an_error_and_theta_is_back() -> None:
    model, method = start_model(dtype=torch.float32), one_shot(lr=1e30)
    method.start(model, None, LAST)
    before = bits(model)
    with pytest.raises(TrainingError, match=r"the anchor's loss is \w+ at lr=1e\+30: give a smaller lr"):
        method.after_step(model, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
    assert math.isfinite(loss_of(model))


def test_on_the_organism_it_is_saved_scored_and_paired(tmp_path: Path) -> None:
    short = {"lr": 1e-3, "max_steps": 3, "batch_size": 4, "threads": 1, "probe_schedule": "off"}
    short |= {"eval_limit": 8, "max_new_tokens": 24, "method": ["one-shot:lr=1e-3,epochs=3"]}
    run = geomsafe.train(short | {"out": tmp_path / "run"})
    plain = geomsafe.train(short | {"out": tmp_path / "plain", "method": [], "evaluate": False})
    record = read_record(run)
    assert (run / "weights" / "final" / "model.safetensors").read_bytes() == (
        plain / "weights" / "final" / "model.safetensors"
    ).read_bytes()
    final, patched = record.weights["final"], record.weights["one-shot"]
    log = [row["methods"] for row in read_jsonl(run / "steps.jsonl")][-1]["one-shot"]
    assert log["anchor_loss_patched"] < log["anchor_loss"] and log["added_distance"] > 0
    assert patched.step == 3 and patched.distance != final.distance
    assert record.data["anchor of one-shot"]["used"] == 1
    scored = {(item.weights, item.kind) for item in record.evaluations}
    kinds = ("harmful", "look-alike", "utility", "validation", "retained", "sham")
    assert scored == {(name, kind) for name in ("theta_0", "final", "one-shot") for kind in kinds}
    arms = {arm.weights: arm for arm in pairing.make_arms([read_run(run).paired("run")])}
    (contrast,) = (found for found in pairing.make_contrasts([*arms.values()]) if found.arm == arms["one-shot"].key)
    assert (contrast.kind, contrast.control) == ("own last iterate", arms["final"].key)
    assert arms["final"].is_baseline and [method.name for method in arms["one-shot"].methods] == ["one-shot"]
