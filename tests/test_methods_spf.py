"""SPF against a dense reference over ten steps, what it must leave alone, and its controls."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradient_cases import lively_model, padded, some_examples, with_lora
from method_steps import (
    SCHEDULE,
    adam,
    anchor_batch,
    gradients_of,
    largest_difference,
    safety_gradient,
    task_gradients,
    train_by_hand,
    train_with,
)
from reference import slow_example_gradients, spf_projection
from safetensors.torch import load_file, save_file
from test_methods_callback import fit, same_bits
from tiny import tiny_model
from torch import Tensor, nn

from geomsafe.errors import ConfigError, TrainingError
from geomsafe.gradients import adam_preconditioner
from geomsafe.methods import MethodsCallback, Spf, SpfOptions, make_method
from geomsafe.methods.projection import without_random

MAIN = "model.layers.0.mlp.up_proj.weight"


def spf(**options: Any) -> Spf:
    return Spf(SpfOptions(**options), anchor=anchor_batch())


def input_first(model: nn.Module) -> set[str]:
    """Weights stored (d_in, d_out): GPT-2's Conv1D, and embeddings that are not the output layer too."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]
    names = {name for name, _ in model.named_parameters()}
    return {
        name
        for name in names
        if ("transformer.h" in name and "ln" not in name) or "wpe" in name or ("embed" in name and not tied)
    } - {name for name, weight in model.named_parameters() if weight.dim() == 1}


def set_gradients(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = values[name].to(parameter.dtype).clone() if name in values else None


def acted_on(model: Any, values: dict[str, Tensor], method: Spf) -> tuple[dict[str, Tensor], Any]:
    """What `on_gradient` makes of given gradients, and its log."""
    set_gradients(model, values)
    method.start(model, adam(model), SCHEDULE)
    log = method.on_gradient(model, 1)
    return gradients_of(model), log


def against(model: Any, seed: int = 0, noise: float = 1.0) -> dict[str, Tensor]:
    """Gradients in conflict: minus the safety gradient, and noise."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: -gradient
        + noise * gradient.std() * torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype)
        for name, gradient in safety_gradient(model).items()
    }


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("qwen2", {}),
        ("mixtral", {}),
        ("llama", {"side": "right", "rank": 6}),
        ("gpt2", {"side": "both", "rank": 4}),
        ("llama", {"test": "layer"}),
        ("qwen2", {"test": "parameter", "rank": 5}),
        ("llama", {"rank_share": 0.1}),
    ],
)
def test_ten_steps_equal_the_dense_reference(arch: str, options: dict[str, Any]) -> None:
    model = lively_model(arch)
    stored = input_first(model)
    switches = {"rank": options.get("rank", 20), "share": options.get("rank_share", 0.5)}
    switches |= {key: options[key] for key in ("side", "test") if key in options}

    def change(other: Any, gradients: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return spf_projection(gradients, safety_gradient(other), input_first=stored, **switches)

    wanted = train_by_hand(model, change)
    plain = train_by_hand(model, lambda _, gradients, __: gradients)
    logs = train_with(model, spf(**options))
    # An expert that few tokens pass has small singular values, whose vectors are less well defined.
    assert largest_difference(model, wanted) < (1e-7 if arch == "mixtral" else 1e-9)
    assert largest_difference(model, plain) > 1e-4
    assert 0 < sum(log["fired"] for log in logs)
    assert options.get("test", "global") != "global" or sum(log["fired"] for log in logs) < 10


@pytest.mark.parametrize(("options", "every"), [({"refresh": 4}, 4), ({"frozen": True}, 100)])
def test_old_gradients_and_bases(options: dict[str, Any], every: int) -> None:
    model = lively_model("llama")
    stored, kept = input_first(model), [safety_gradient(model)]

    def change(other: Any, gradients: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        now = safety_gradient(other)
        if step % every == 1:
            kept[0] = now
        test = now if "frozen" in options else kept[0]
        return spf_projection(gradients, test, kept[0], rank=20, input_first=stored)

    wanted = train_by_hand(model, change)
    fresh = copy.deepcopy(model)
    train_with(fresh, spf())
    logs = train_with(model, spf(**options))
    assert largest_difference(model, wanted) < 1e-9
    assert largest_difference(model, fresh) > 1e-5
    assert [step for step, log in enumerate(logs, start=1) if "anchor_loss" in log] == (
        [1, 5, 9] if "refresh" in options else list(range(1, 11))
    )


def test_adams_metric() -> None:
    model = lively_model("llama")
    stored = input_first(model)
    optimizer = adam(model)
    method = spf(space="preconditioned")
    method.start(model, optimizer, SCHEDULE)
    fired = 0.0
    for step in range(1, 7):
        task_gradients(model, step)
        given, safety = gradients_of(model), safety_gradient(model)
        metric = (
            adam_preconditioner(model, optimizer) if step > 1 else {n: torch.ones_like(g) for n, g in given.items()}
        )
        log = method.on_gradient(model, step)
        scaled = {name: metric[name] * gradient for name, gradient in given.items()}
        wanted = spf_projection(scaled, safety, rank=20, input_first=stored)
        for name, gradient in gradients_of(model).items():
            torch.testing.assert_close(metric[name] * gradient, wanted[name], rtol=1e-7, atol=1e-9)
        fired += log["fired"] if step > 1 else 0
        optimizer.step()
        method.after_step(model, step)
    assert fired > 0
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="needs Adam's state, and the optimizer is SGD"):
        method.start(model, sgd, SCHEDULE)


def test_the_update_itself() -> None:
    model, plain = lively_model("llama"), lively_model("llama")
    stored = input_first(model)
    optimizer, other = adam(model), adam(plain)
    method = spf(space="update")
    method.start(model, optimizer, SCHEDULE)
    fired = 0.0
    for step in range(1, 7):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        plain.load_state_dict(model.state_dict())
        safety = safety_gradient(model)
        for one, its in ((model, optimizer), (plain, other)):
            task_gradients(one, step)
            if one is model:
                method.on_gradient(one, step)
            its.step()
        log = method.after_step(model, step)
        descent = {name: before[name] - weight.detach() for name, weight in plain.named_parameters()}
        wanted = spf_projection(descent, safety, rank=20, input_first=stored)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(before[name] - weight.detach(), wanted[name], rtol=0, atol=1e-12)
        fired += log["fired"]
        assert not log["fired"] or log["update_dot"] < 1e-3 * float(
            sum((descent[n] * safety[n]).abs().sum() for n in safety)
        )
    assert fired > 0


@pytest.mark.parametrize("space", ["gradient", "preconditioned"])
def test_without_conflict_every_bit_stays(space: str) -> None:
    model = lively_model("llama", torch.float32)
    safety = safety_gradient(model)
    for name in safety:  # most agree, one conflicts: the test is over all weights
        safety[name] = -0.1 * safety[name] if name == MAIN else safety[name]
    after, log = acted_on(model, safety, spf(space=space))
    assert log["fired"] == log["projected"] == log["removed"] == 0 and log["cosine"] > 0
    assert all(torch.equal(after[name], safety[name].float()) for name in safety)
    after, log = acted_on(model, safety, spf(test="parameter"))
    assert log["projected"] == 1 and [n for n in safety if not torch.equal(after[n], safety[n].float())] == [MAIN]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral", "qwen2"])
def test_in_conflict_nothing_is_left_in_the_subspace_and_norms_do_not_grow(arch: str) -> None:
    model = lively_model(arch)
    given, safety, stored = against(model), safety_gradient(model), input_first(model)
    after, log = acted_on(model, given, spf(rank=6))
    assert log["fired"] == 1 and log["projected"] == len(given)
    gone = sum(float(g.square().sum()) for g in given.values()) - sum(float(g.square().sum()) for g in after.values())
    assert log["removed"] == pytest.approx(gone / sum(float(g.square().sum()) for g in given.values()), rel=1e-9)
    for name, gradient in after.items():
        assert gradient.norm() <= given[name].norm() * (1 + 1e-12), name
        if gradient.dim() == 1:
            assert float(gradient @ safety[name]) == pytest.approx(0, abs=1e-9 * float(safety[name].norm()))
        experts = zip(gradient, safety[name], given[name], strict=True) if gradient.dim() == 3 else []
        for part, anchor, start in experts or [(gradient, safety[name], given[name])]:
            if part.dim() < 2 or not anchor.any():
                assert part.dim() < 2 or torch.equal(part, start), "what the anchor does not reach stays"
                continue
            facing, by = (part.T, anchor.T) if name in stored else (part, anchor)
            left, values, _ = torch.linalg.svd(by)
            rank = min(6, min(part.shape) // 2, int((values > 1e-10 * values[0]).sum()))
            assert float((left[:, :rank].T @ facing).norm()) < 1e-8 * float(start.norm()), name
            assert float(part.norm()) > 1e-3 * float(start.norm()), name


def test_zero_and_missing_safety_gradients_are_the_identity() -> None:
    model = lively_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # no gradient comes past it
    given = {name: torch.randn(p.shape, dtype=p.dtype) for name, p in model.named_parameters()}
    conflict = {"lm_head.weight": -safety_gradient(model)["lm_head.weight"]}
    after, log = acted_on(model, given | conflict, spf())
    assert log["fired"] == 1
    assert [name for name in given if not torch.equal(after[name], (given | conflict)[name])] == ["lm_head.weight"]
    model.lm_head.weight.requires_grad_(False)
    after, log = acted_on(model, given, spf())
    assert log["fired"] == 0 and "cosine" not in log
    assert all(torch.equal(after[name], given[name]) for name in given)


def test_a_weight_without_gradient_gets_none() -> None:
    model = lively_model("llama")
    given = against(model)
    del given[MAIN]
    after, log = acted_on(model, given, spf())
    assert log["fired"] == 1 and MAIN not in after and model.get_parameter(MAIN).grad is None


@pytest.mark.parametrize("options", [{}, {"basis": "random"}])
def test_random_state_and_modes_stay_and_dropout_is_off(options: dict[str, Any]) -> None:
    model = lively_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    given = against(model)
    model.train()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first, log = acted_on(model, given, spf(**options))
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()  # type: ignore[union-attr]
    assert model.training and log["fired"] == 1
    second, again = acted_on(model, given, spf(**options))
    assert log == again and all(torch.equal(first[name], second[name]) for name in first)


def test_lora_projects_the_factors_and_says_so() -> None:
    model = with_lora(lively_model("llama"), r=4).to(torch.float64)
    factors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    method = spf(rank=3)
    method.start(model, None, SCHEDULE)
    described = method.describe(SCHEDULE)
    assert described["acts_on"] == "factors" and described["anchor_examples"] == 1
    assert len(described["capped"]) == len(factors), "half of rank 4 is 2"
    task_gradients(model, 1)
    for p in factors.values():
        p.grad.neg_()  # type: ignore[union-attr]
    if method.on_gradient(model, 1)["fired"] == 0:
        for p in factors.values():
            p.grad.neg_()  # type: ignore[union-attr]
    start = gradients_of(model)
    log = method.on_gradient(model, 1)
    assert log["fired"] == 1 and log["capped"] == log["projected"] == len(factors) and 0 < log["removed"] < 1
    after = gradients_of(model)
    safety = safety_gradient(model)
    for name in factors:
        left = torch.linalg.svd(safety[name])[0][:, :2]
        assert float((left.T @ after[name]).norm()) < 1e-8 * float(start[name].norm()), name
        assert 0 < float(after[name].norm()) < float(start[name].norm()), "not wiped"
    assert spf().describe(SCHEDULE)["acts_on"] == "weights"


def test_a_basis_frozen_at_the_start_of_lora_leaves_a_alone(tmp_path: Path) -> None:
    model = with_lora(lively_model("llama"), r=4).to(torch.float64)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.zero_()
    method = spf(frozen=True, rank=3)
    train_with(model, method, steps=2)
    widths = {name: basis.shape[1] for name, basis in method.state_dict().items()}
    assert {width for name, width in widths.items() if "lora_A" in name} == {0}
    assert {width for name, width in widths.items() if "lora_B" in name} == {2}
    save_file(method.state_dict(), tmp_path / "state")
    again = spf(frozen=True, rank=3)
    again.start(model, None, SCHEDULE)
    again.load_state_dict(load_file(tmp_path / "state"))
    assert again.state_dict().keys() == widths.keys()


def test_bfloat16_weights() -> None:
    model = lively_model("llama", torch.bfloat16)
    given = {name: g.to(torch.bfloat16).double() for name, g in against(lively_model("llama")).items()}
    after, log = acted_on(model, given, spf(rank=6))
    assert log["fired"] == 1 and after[MAIN].dtype == torch.bfloat16
    method = spf(rank=6)
    method.start(model, None, SCHEDULE)
    set_gradients(model, given)
    method.on_gradient(model, 1)
    [(axis, basis)] = method._bases[MAIN]
    assert axis == 0
    left = float((basis.T @ after[MAIN].double()).norm())
    assert left < 0.01 * float(given[MAIN].norm()) < float((basis.T @ given[MAIN]).norm())


def test_random_directions_remove_exactly_the_energy_that_spf_would() -> None:
    model = lively_model("llama")
    given, safety = against(model), safety_gradient(model)
    chosen, log = acted_on(model, given, spf(rank=6))
    control, same = acted_on(model, given, spf(rank=6, basis="random"))
    other, _ = acted_on(model, given, spf(rank=6, basis="random", seed=1))
    assert same["removed"] == pytest.approx(log["removed"], rel=1e-9)
    for name, gradient in control.items():
        assert float(gradient.norm()) == pytest.approx(float(chosen[name].norm()), rel=1e-9), name
    left = torch.linalg.svd(safety[MAIN])[0][:, :6]
    assert float((left.T @ control[MAIN]).norm()) > 0.3 * float((left.T @ given[MAIN]).norm())
    assert not torch.equal(control[MAIN], other[MAIN])
    assert sum(float((control[n] * safety[n]).sum()) for n in safety) < sum(
        float((chosen[n] * safety[n]).sum()) for n in safety
    ), "the conflict that SPF removes is still there"


def test_random_directions_are_uniform_and_never_grow() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 5), (5, 12), (7, 7), (4, 1)):
        matrix = torch.randn(shape, dtype=torch.float64)
        for axis in (0, 1):
            for share in (0.0, 0.3, 1.0):
                energy = share * float(matrix.square().sum())
                left = without_random(matrix, energy, axis, generator)
                assert float(left.square().sum()) == pytest.approx((1 - share) * float(matrix.square().sum()), abs=1e-9)
    pointed = torch.zeros(6, 40, dtype=torch.float64)
    pointed[0] = 1
    mean = torch.stack([without_random(pointed, 20.0, 0, generator) for _ in range(400)]).mean(dim=0)
    assert float(mean[1:].abs().max()) < 0.1 < float(mean[0].mean())


def test_the_flipped_sign_acts_where_both_agree() -> None:
    model = lively_model("llama")
    agree = {name: -gradient for name, gradient in against(model).items()}
    untouched, log = acted_on(model, agree, spf())
    assert log["fired"] == 0 and all(torch.equal(untouched[name], agree[name]) for name in agree)
    flipped, log = acted_on(model, agree, spf(sign="flipped"))
    assert log["fired"] == 1 and log["cosine"] > 0
    reversed_, _ = acted_on(model, {name: -gradient for name, gradient in agree.items()}, spf())
    for name, gradient in flipped.items():
        torch.testing.assert_close(gradient, -reversed_[name], rtol=0, atol=1e-12)


def test_spf_keeps_the_anchor_and_its_flipped_sign_hurts() -> None:
    losses = {}
    for kind, options in (("spf", {}), ("flipped", {"sign": "flipped"}), ("update", {"space": "update"})):
        model = lively_model("llama")
        train_with(model, spf(**options), steps=10)
        losses[kind] = model(**anchor_batch()).loss.item()
    plain = train_by_hand(lively_model("llama"), lambda _, g, __: g)(**anchor_batch()).loss.item()
    assert losses["spf"] < plain < losses["flipped"]
    assert losses["update"] < plain


def test_the_log_says_what_the_step_did_after_adam() -> None:
    model = lively_model("llama")
    optimizer, method = adam(model), spf()
    method.start(model, optimizer, SCHEDULE)
    reappeared = False
    for step in range(1, 8):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        safety = safety_gradient(model)
        task_gradients(model, step)
        log = method.on_gradient(model, step)
        optimizer.step()
        log |= method.after_step(model, step)
        moved = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
        dot = sum(float((moved[name] * safety[name]).sum()) for name in moved)
        sizes = [sum(float(g.square().sum()) for g in side.values()) ** 0.5 for side in (moved, safety)]
        assert log["update_dot"] == pytest.approx(dot, rel=1e-9)
        assert log["update_cosine"] == pytest.approx(dot / sizes[0] / sizes[1], rel=1e-9)
        assert log["anchor_loss"] > 0
        reappeared |= bool(log["fired"]) and abs(log["update_cosine"]) > 1e-3
    assert reappeared, "Adam puts back what was removed before it: that is what the number is for"


@pytest.mark.parametrize(
    "options", [{}, {"refresh": 4}, {"frozen": True}, {"basis": "random"}, {"side": "both", "refresh": 2}]
)
def test_a_resumed_trainer_gives_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    models, logs = [], []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        seen: list[dict[str, Any]] = []
        callback = MethodsCallback([spf(**options)], log=lambda row, seen=seen: seen.append(dict(row)))
        models.append(fit(tmp_path, [callback], resume=resume, save_steps=3, save_strategy="steps"))
        logs.append([row["methods"]["spf"] for row in seen])
    assert same_bits(*models)
    assert logs[0][3:] == logs[1]
    assert not same_bits(models[0], fit(tmp_path / "plain", []))
    other = MethodsCallback([spf(**({"refresh": 3} if "refresh" not in options else {}))])
    with pytest.raises(TrainingError, match="written with another refresh or frozen"):
        fit(tmp_path, [other], resume=str(tmp_path / "checkpoint-3"))


def test_accumulation_gives_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    seen: dict[int, list[dict[str, Any]]] = {1: [], 4: []}
    for parts, log in seen.items():
        callback = MethodsCallback([spf()], log=lambda row, log=log: log.append(row["methods"]["spf"]))
        sizes = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        fit(tmp_path, [callback], learning_rate=1e-3, max_steps=4, **sizes)
    assert len(seen[1]) == len(seen[4]) == 4
    for one, other in zip(*seen.values(), strict=True):
        assert one["cosine"] == pytest.approx(other["cosine"], abs=1e-4)
        assert one["fired"] == other["fired"] and one["removed"] == pytest.approx(other["removed"], abs=1e-3)


def test_an_anchor_of_several_examples_is_their_token_mean() -> None:
    model, examples = lively_model("llama"), some_examples(3, seed=5)
    method = Spf(SpfOptions(), anchor=padded(examples))
    set_gradients(model, against(model))
    method.start(model, None, SCHEDULE)
    log = method.on_gradient(model, 1)
    summed = slow_example_gradients(model, examples, "sum")
    tokens = sum(sum(label != -100 for label in labels[1:]) for _, labels in examples)
    for name, gradient in method._safety.items():
        torch.testing.assert_close(gradient, summed[name].sum(dim=0) / tokens, rtol=1e-8, atol=1e-10)
    assert log["anchor_loss"] > 0 and method.describe(SCHEDULE)["anchor_tokens"] == tokens


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("spf:rank=0", "option 'rank' = 0"),
        ("spf:test=gobal", "option 'test' = 'gobal'"),
        ("spf:ranc=3", "did you mean 'rank'?"),
        ("spf:rank_share=0", "option 'rank_share' = 0"),
    ],
)
def test_a_wrong_specification_is_named(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_method(spec)
    assert message in str(caught.value)


def test_without_an_anchor_it_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match=r"method spf has no anchor: give Spf\(\.\.\., anchor=batch\)"):
        make_method("spf").start(tiny_model("llama"), None, SCHEDULE)
