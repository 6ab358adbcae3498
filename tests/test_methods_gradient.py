"""PCGrad, SafeGrad and clipping against short references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_cases import lively_model, with_lora
from method_steps import (
    SCHEDULE,
    anchor_batch,
    gradients_of,
    largest_difference,
    safety_gradient,
    task_gradients,
    train_by_hand,
    train_with,
)
from reference import pcgrad_projection
from test_methods_callback import fit, same_bits
from torch import Tensor

from geomsafe.errors import TrainingError
from geomsafe.methods import (
    Clip,
    ClipOptions,
    MethodsCallback,
    PcGrad,
    PcGradOptions,
    SafeGrad,
    SafeGradOptions,
    make_method,
    make_methods,
)


def pcgrad() -> PcGrad:
    return PcGrad(PcGradOptions(), anchor=anchor_batch())


def safegrad(rho: float = 1.0) -> SafeGrad:
    return SafeGrad(SafeGradOptions(rho=rho), anchor=anchor_batch())


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_pcgrad_equals_flat_vectors_over_ten_steps(arch: str) -> None:
    model = lively_model(arch)
    wanted = train_by_hand(model, lambda other, given, _: pcgrad_projection(given, safety_gradient(other)))
    plain = train_by_hand(model, lambda _, given, __: given)
    logs = train_with(model, pcgrad())
    assert largest_difference(model, wanted) < 1e-9
    assert largest_difference(model, plain) > 1e-4
    assert 0 < sum(log["fired"] for log in logs) < 10
    assert all(log.keys() >= {"anchor_loss", "cosine", "removed", "update_dot", "update_cosine"} for log in logs)


def test_pcgrad_leaves_no_conflict_and_agreement_alone() -> None:
    model = lively_model("llama", torch.float32)
    for step in range(1, 4):
        task_gradients(model, step)
        given, safety = gradients_of(model), safety_gradient(model)
        method = pcgrad()
        method.start(model, None, SCHEDULE)
        log = method.on_gradient(model, step)
        after = gradients_of(model)
        if log["fired"]:
            size = sum(float((g * g).sum()) for g in safety.values()) ** 0.5
            whole = sum(float((g * g).sum()) for g in given.values()) ** 0.5
            assert abs(sum(float((after[n] * safety[n]).sum()) for n in safety)) < 1e-5 * size * whole
            assert log["removed"] == pytest.approx(log["cosine"] ** 2)
        else:
            assert all(torch.equal(after[name], given[name]) for name in given)


def kl_gradient(model: Any, start: Any) -> dict[str, Tensor]:
    """Gradient of the mean KL(p_theta || p_theta_0) over the anchor's target positions, spelled out."""
    batch = anchor_batch()
    chosen = (batch["labels"][0, 1:] != -100).nonzero()[:, 0]
    names, weights = zip(*model.named_parameters(), strict=True)
    with torch.enable_grad():
        now = torch.softmax(model(input_ids=batch["input_ids"]).logits[0, chosen], dim=-1)
        then = torch.softmax(start(input_ids=batch["input_ids"]).logits[0, chosen], dim=-1).detach()
        loss = sum((p * (p / q).log()).sum() for p, q in zip(now, then, strict=True)) / len(chosen)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else g for n, w, g in zip(names, weights, found, strict=True)}


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_safegrad_equals_a_plain_divergence_over_ten_steps(rho: float) -> None:
    model, start = lively_model("llama"), lively_model("llama")

    def change(other: Any, given: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if step == 1:
            return given
        pull = kl_gradient(other, start)
        return {name: gradient + rho * pull[name] for name, gradient in pcgrad_projection(given, pull).items()}

    wanted = train_by_hand(model, change)
    plain = train_by_hand(model, lambda _, given, __: given)
    logs = train_with(model, safegrad(rho))
    assert largest_difference(model, wanted) < 1e-9
    assert largest_difference(model, plain) > 1e-4
    assert logs[0]["anchor_loss"] == logs[0]["fired"] == 0 and "cosine" not in logs[0]
    assert any(log["fired"] for log in logs)


def test_both_work_on_lora_factors_and_leave_random_state_alone() -> None:
    for method in (pcgrad(), safegrad()):
        model = with_lora(lively_model("llama"), r=4).to(torch.float64)
        state = torch.get_rng_state()
        logs = train_with(model, method, steps=4)
        assert torch.equal(torch.get_rng_state(), state)
        assert method.describe(SCHEDULE)["acts_on"] == "factors" and any(log["fired"] for log in logs)


def test_a_resumed_safegrad_still_knows_theta_0(tmp_path: Path) -> None:
    models = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        callback = MethodsCallback([safegrad()])
        models.append(fit(tmp_path, [callback], resume=resume, save_steps=3, save_strategy="steps"))
    assert same_bits(*models)
    with pytest.raises(TrainingError, match="written with another anchor"):
        safegrad().load_state_dict({})


def test_clip_equals_torchs(tmp_path: Path) -> None:
    inside = fit(tmp_path / "ours", [MethodsCallback(make_methods(["clip:limit=0.25"]))], max_grad_norm=0.0)
    assert (
        same_bits(inside, fit(tmp_path / "plain", [], max_grad_norm=0.25))
        or largest_difference(inside, fit(tmp_path / "plain", [], max_grad_norm=0.25)) < 1e-4
    )  # torch divides by the norm + 1e-6
    assert not same_bits(inside, fit(tmp_path / "none", [], max_grad_norm=0.0))


@pytest.mark.parametrize("over", ["global", "parameter"])
def test_clip_bounds_norms_and_leaves_short_gradients_alone(over: str) -> None:
    model = lively_model("llama")
    task_gradients(model, 1)
    given = gradients_of(model)
    norms = {name: float(g.norm()) for name, g in given.items()}
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    middle = sorted(norms.values())[len(norms) // 2]
    limit = whole / 2 if over == "global" else middle
    log = Clip(ClipOptions(limit=limit, over=over)).on_gradient(model, 1)  # type: ignore[arg-type]
    for name, gradient in gradients_of(model).items():
        factor = 0.5 if over == "global" else min(1.0, limit / norms[name])
        torch.testing.assert_close(gradient, factor * given[name])
        assert factor < 1 or torch.equal(gradient, given[name])
    assert log["clipped"] == (1 if over == "global" else pytest.approx(0.5, abs=0.1)) and log["kept"] < 1
    again = Clip(ClipOptions(limit=2 * whole)).on_gradient(model, 1)
    assert again == {"kept": 1.0, "clipped": 0.0}


def test_methods_compose_in_order(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    methods = [*make_methods(["clip:limit=0.01"]), pcgrad(), *make_methods(["ema"])]
    fit(tmp_path, [MethodsCallback(methods, log=lambda row: seen.append(dict(row)))])
    assert all(list(row["methods"]) == ["clip", "pcgrad", "ema"] for row in seen)
    assert all(row["grad_norm_methods"] <= 0.01 * (1 + 1e-4) for row in seen)
    assert make_method("clip").acts_on_gradient
