"""Safe LoRA against dense matrices over ten steps in float64, and theta_base: where it comes from, paired by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_paths import Fit, Follow, bits, difference, fit, rows, start_model
from reference import alignment_map, safe_lora_by_hand
from runs import QUIET, tiny_run
from tiny import tiny_folder, tiny_model
from transformers import Trainer, TrainingArguments

from geomsafe.errors import ConfigError, ModelError
from geomsafe.methods import MethodsCallback, SafeLora, SafeLoraOptions, base_weights, make_method
from geomsafe.methods.alignment import Alignment, input_first
from geomsafe.records import read_jsonl, read_record
from geomsafe.training import train

KINDS = {"lora": ("llama", True), "lora-transposed": ("gpt2", True), "full": ("llama", False), "tied": ("qwen2", False)}


def base_of(arch: str, seed: int = 5) -> dict[str, torch.Tensor]:
    return base_weights(tiny_model(arch, seed=seed, dtype=torch.float64))


def project(folder: Path, arch: str, lora: bool, **options: Any) -> tuple[Fit, SafeLora]:
    """Train ten steps with Safe LoRA at the end."""
    method = SafeLora(SafeLoraOptions(**options), base=base_of(arch))
    args = TrainingArguments(
        str(folder), max_steps=10, learning_rate=1e-2, per_device_train_batch_size=4, report_to=[], use_cpu=True
    )
    log: list[dict[str, Any]] = []
    follow = Follow()
    callback = MethodsCallback([method], log=lambda row: log.append(dict(row)))
    trainer = Trainer(start_model(arch, lora), args, train_dataset=rows(16), callbacks=[callback, follow])
    trainer.train()
    return Fit(trainer.model, {method.label: method}, follow.path, log, callback.describe()), method


@pytest.mark.parametrize("options", [{}, {"projector": "true", "rank": 5, "threshold": 0.3}], ids=["released", "true"])
@pytest.mark.parametrize("kind", KINDS)
def test_safe_lora_equals_the_dense_definition(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    arch, lora = KINDS[kind]
    done, method = project(tmp_path, arch, lora, **options)
    base, first = base_of(arch), input_first(done.model)
    turned = [
        {name: w.T if name in first else w for name, w in point.items()} for point in (done.path[-1], done.path[0])
    ]
    maps = {
        name: alignment_map(
            weight,
            base[name].T if name in first else base[name],
            str(options.get("projector", "released")),
            options.get("rank"),
        )
        for name, weight in turned[1].items()
        if weight.dim() == 2
    }
    _, cosines = safe_lora_by_hand(*turned, maps, 1.0)
    threshold = float(options.get("threshold", 0.5))
    for limit in (threshold, sorted(cosines.values())[len(cosines) // 2]):
        method.options.threshold = limit + 1e-9
        wanted, _ = safe_lora_by_hand(*turned, maps, limit + 1e-9)
        wanted = {name: w.T if name in first else w for name, w in wanted.items()}
        assert difference(done.placed("safe-lora"), wanted) < 1e-11
    found = method.cosines(done.model)
    assert found == pytest.approx(cosines, abs=1e-9)
    log = done.log[-1]["methods"]["safe-lora"]
    assert log["projected"] == sum(cosine <= threshold for cosine in cosines.values())
    assert (log["weights"], log["least"], log["most"]) == pytest.approx((
        len(maps),
        min(cosines.values()),
        max(cosines.values()),
    ))
    assert all("safe-lora" not in row["methods"] for row in done.log[:-1])
    if lora:
        assert first == ({name for name in first if "embed" in name or "transformer" in name})
        assert (arch == "gpt2") == any("attn" in name for name in first)


def test_layers_takes_the_least_aligned_and_leaves_the_rest_bitwise(tmp_path: Path) -> None:
    done, method = project(tmp_path, "llama", True, layers=3)
    cosines = method.cosines(done.model)
    least = sorted(cosines, key=lambda name: cosines[name])[:3]
    before, placed = bits(done.model), done.placed("safe-lora")
    changed = {name for name in placed if not torch.equal(placed[name], done.path[-1][name])}
    assert changed >= set(least)
    for name in set(placed) - set(least):
        assert float((placed[name] - done.path[-1][name]).abs().max()) < 1e-14, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in done.model.state_dict().items())


def test_the_true_projector_is_one_and_the_released_map_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    difference_ = torch.randn(12, 7, generator=generator, dtype=torch.float64)
    moved = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    for rank, wanted in ((None, 7), (3, 3), (99, 7)):
        true = Alignment(difference_, "true", rank)
        once = true.apply(moved)
        assert true.rank == wanted and not true.is_identity
        assert torch.allclose(true.apply(once), once, atol=1e-12)
        assert float(once.norm()) < float(moved.norm())
    released = Alignment(difference_, "released")
    assert not torch.allclose(released.apply(released.apply(moved)), released.apply(moved), atol=1e-2)
    for scale in (0.1, 10.0):  # it grows with V, which a projector would not
        grown = Alignment(scale * difference_, "released").apply(moved)
        assert torch.allclose(grown, scale * released.apply(moved))
        same = Alignment(scale * difference_, "true").apply(moved)
        assert torch.allclose(same, Alignment(difference_, "true").apply(moved))
    assert Alignment(difference_.T, "true").is_identity


def begin(method: SafeLora, model: Any, folder: Path) -> None:
    args = TrainingArguments(str(folder), max_steps=1, report_to=[], use_cpu=True)
    Trainer(model, args, train_dataset=rows(8), callbacks=[MethodsCallback([method])]).train()


def test_weights_without_partner_are_listed(tmp_path: Path) -> None:
    base = base_of("llama")
    del base["model.layers.0.mlp.up_proj.weight"]
    base["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(3, 3)
    method = SafeLora(base={"model." + name: tensor for name, tensor in base.items()} | base)
    with pytest.raises(ModelError) as caught:
        begin(method, start_model(lora=True), tmp_path)
    assert "2 weights have no partner in theta_base" in str(caught.value)
    assert "'model.layers.0.mlp.up_proj.weight' (absent)" in str(caught.value)
    assert "'model.layers.1.self_attn.q_proj.weight' ((3, 3) against (32, 32))" in str(caught.value)


def test_extra_names_and_another_order_do_no_harm(tmp_path: Path) -> None:
    base = dict(reversed(base_of("llama").items())) | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    turned = SafeLora(base=base)
    begin(turned, start_model(lora=True), tmp_path)
    plain = SafeLora(base=base_of("llama"))
    begin(plain, start_model(lora=True), tmp_path)
    moved = torch.ones(32, 1, dtype=torch.float64)
    for name, one in plain._maps.items():
        if one.outputs == 32:
            assert torch.equal(one.apply(moved), turned._maps[name].apply(moved)), name


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method safe-lora needs theta_base.*give --base-model"):
        fit(tmp_path, ["safe-lora"], start_model(lora=True))
    with pytest.raises(ModelError, match="and theta_0 are equal in 'model.layers.0.self_attn.q_proj.weight'"):
        begin(SafeLora(base=base_of("llama", seed=0)), start_model(lora=True), tmp_path)
    with pytest.raises(ConfigError, match="give threshold= or layers=, not both"):
        make_method("safe-lora:threshold=0.1,layers=3")
    with pytest.raises(ConfigError, match="rank= belongs to projector=true"):
        make_method("safe-lora:rank=3")
    with pytest.raises(ModelError, match="defined for matrices, these weights are not: .*experts"):
        begin(SafeLora(base=base_of("mixtral")), start_model("mixtral"), tmp_path)


def test_a_true_projector_onto_everything_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "o_proj"]  # square, so that V has full row rank
    model = get_peft_model(tiny_model(dtype=torch.float64), LoraConfig(r=2, target_modules=targets))
    with pytest.raises(ConfigError, match="full row rank in every weight.*give rank="):
        begin(SafeLora(SafeLoraOptions(projector="true"), base=base_of("llama")), model, tmp_path)


def test_a_run_takes_theta_base_by_name(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "base", seed=9)
    settings = {"base_model": str(tmp_path / "base" / "tiny-llama"), "lora": {"rank": 2}}
    run = train(tiny_run(tmp_path, method=["safe-lora:layers=2"], **settings), console=QUIET)
    assert set(read_record(run).weights) == {"final", "safe-lora"}
    last = list(read_jsonl(run / "steps.jsonl"))[-1]["methods"]["safe-lora"]
    assert (last["projected"], last["weights"]) == (2, 14)
    with pytest.raises(ConfigError, match="give --base-model"):
        train(tiny_run(tmp_path, method=["safe-lora"], out=str(tmp_path / "other")), console=QUIET)
    assert not (tmp_path / "other").exists()
    odd = tiny_folder(tmp_path / "odd", "gpt2")
    with pytest.raises(ModelError, match="have no partner in theta_base: 'model.embed_tokens.weight' .absent."):
        train(tiny_run(tmp_path, method=["safe-lora"], base_model=str(odd), out=str(tmp_path / "other")), console=QUIET)


def test_the_organism_brings_its_own_theta_base(tmp_path: Path) -> None:
    settings = {"model": "organism", "data": "organism:downstream-neutral", "data_limit": 16, "max_steps": 2}
    run = train(tiny_run(tmp_path, method=["safe-lora:layers=1"], **settings), console=QUIET)
    assert "safe-lora" in read_record(run).weights
