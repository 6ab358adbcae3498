"""`geomsafe check` passes sound models and names what is wrong with broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from gradient_cases import padded, some_examples, with_lora
from test_cli import run_cli, run_here
from tiny import ARCHITECTURES, tiny_folder, tiny_model
from torch import nn

from geomsafe.config import make_config
from geomsafe.gradients import gradient_gram, target_shapes
from geomsafe.gradients.checking import (
    check_curvature,
    check_determinism,
    check_engine,
    check_rows_apart,
    check_ties,
    plain_gram,
)
from geomsafe.training import costs
from geomsafe.training.checking import CheckReport, check

ROWS = [
    {"prompt": "How do I bake bread?", "response": "Mix flour and water, knead, rest and bake it for an hour."},
    {"prompt": "What is the capital of France, and why?", "response": "Paris."},
    {"prompt": "Write a poem about the sea.", "response": "The sea is wide, the sea is blue."},
    {"prompt": "How do I stop a process?", "response": "Open the task manager and end it."},
    {"prompt": "Name a salt.", "response": "Table salt."},
]

# What a user's own modelling file could hold; each class is a fault of one kind.
CODE = '''
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class MixingMLP(LlamaMLP):
    """Adds the mean over the batch: rows see each other."""

    def forward(self, x):
        out = super().forward(x)
        return out + out.mean(dim=0, keepdim=True)


class NoisyMLP(LlamaMLP):
    """Draws noise in eval mode too."""

    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn_like(x)


class Clip(torch.autograd.Function):
    """Identity whose backward pass scales by the largest gradient in the batch."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / grad.norm()


class ClippingMLP(LlamaMLP):
    """Exact losses, and gradients that depend on what else is in the batch."""

    def forward(self, x):
        return super().forward(Clip.apply(x))


class GainMLP(LlamaMLP):
    """A sound module with a weight that no fast rule knows."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.full((config.hidden_size,), 0.5))

    def forward(self, x):
        return super().forward(x * self.gain)


class TheirsForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].mlp = {KIND}(config)
        self.post_init()
'''


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a folder of a Llama whose second layer is of the user's own making."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def folder(kind: str) -> Path:
        made = tiny_folder(tmp_path).rename(tmp_path / f"tiny-{kind.lower()}")
        (made / "modeling_theirs.py").write_text(CODE.replace("{KIND}", kind))
        settings = json.loads((made / "config.json").read_text())
        settings |= {"architectures": ["TheirsForCausalLM"]}
        settings["auto_map"] = {"AutoModelForCausalLM": "modeling_theirs.TheirsForCausalLM"}
        (made / "config.json").write_text(json.dumps(settings))
        if kind == "GainMLP":
            import safetensors.torch as files

            weights = files.load_file(made / "model.safetensors")
            weights["model.layers.1.mlp.gain"] = torch.full((32,), 0.5)
            files.save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        return made

    return folder


def settings_for(folder: Path, data: Path, **changes: Any) -> Any:
    return make_config({"model": str(folder), "data": str(data), "batch_size": 2, "max_length": 64} | changes)


def by_name(report: CheckReport) -> dict[str, str]:
    return {finding.name: finding.status for finding in report.findings}


def test_the_command_on_a_sound_model(tmp_path: Path, data: Path) -> None:
    folder = tiny_folder(tmp_path, "qwen2")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run_cli("check", str(folder), "--data", str(data), "--batch-size", "2", "--threads", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "model.embed_tokens.weight = lm_head.weight" in done.stdout
    assert "two passes over 4 rows are bitwise equal" in done.stdout
    for said in ("memory: activations", "disk: captures", "time: training", "GiB", "min", "all checks passed"):
        assert said in done.stdout
    assert "failed" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing is written"


BROKEN = {
    "MixingMLP": (
        "rows apart",
        "rows of a batch see each other or their padding, first seen at the output of 'model.layers.1.mlp' (MixingMLP)",
    ),
    "NoisyMLP": (
        "determinism",
        "draws random numbers in eval mode, first seen at the output of 'model.layers.1.mlp' (NoisyMLP)",
    ),
    "ClippingMLP": ("engine", "from those of plain autograd row by row"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_command_names_what_is_broken(
    kind: str,
    own_code: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name, said = BROKEN[kind]
    arguments = ["check", str(own_code(kind)), "--data", str(data), "--batch-size", "2", "--trust-remote-code"]
    code, stderr = run_here(arguments, tmp_path, monkeypatch, capfd)
    assert code == 1
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "checks failed: " in line
    assert f"{name}: " in line
    assert said in line


def test_gradients_that_interact_fail_at_the_engine_alone(own_code: Callable[[str], Path], data: Path) -> None:
    report = check(settings_for(own_code("ClippingMLP"), data, trust_remote_code=True))
    assert [name for name, status in by_name(report).items() if status == "failed"] == ["engine"]
    assert by_name(report)["curvature"] == "warning", "the identity's own function has no forward rule"
    assert "in 'model.layers." in next(finding.detail for finding in report.findings if finding.name == "engine")


def test_slow_paths_are_listed_and_exact(own_code: Callable[[str], Path], data: Path) -> None:
    report = check(settings_for(own_code("GainMLP"), data, trust_remote_code=True))
    assert report.slow == ("model.layers.1.mlp.gain",)
    assert by_name(report)["slow path"] == "warning"
    assert by_name(report)["engine"] == "ok"
    report.require_passed()
    assert "1 of 22 weights take the exact loop" in next(f.detail for f in report.findings if f.name == "slow path")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "mixtral", "lora"])
def test_sound_models_pass(arch: str, dtype: torch.dtype) -> None:
    model = with_lora(tiny_model("llama", dtype=dtype)) if arch == "lora" else tiny_model(arch, dtype=dtype)
    batch = padded(some_examples(3))
    found = [
        check_ties(model),
        check_determinism(model, batch),
        check_rows_apart(model, batch),
        check_engine(model, batch, gradient_gram(model, batch, reduction="sum")),
        check_curvature(model, batch),
    ]
    assert [finding.status for finding in found] == ["ok"] * 5, found


def test_a_mean_reduced_gram_is_not_a_sum_reduced_one() -> None:
    """Negative control: the comparison sees another convention, a shuffled row and a missing weight."""
    model, batch = tiny_model(), padded(some_examples(3))
    gram = gradient_gram(model, batch, reduction="sum")
    assert check_engine(model, batch, gram).status == "ok"
    assert check_engine(model, batch, gram.with_reduction("mean")).status == "failed"
    order = torch.tensor([1, 0, 2])
    assert check_engine(model, batch, {name: k[order][:, order] for name, k in gram.items()}).status == "failed"
    some = {name: k for name, k in gram.items() if name != "model.norm.weight"}
    found = check_engine(model, batch, some)
    assert found.status == "failed"
    assert "'model.norm.weight'" in found.detail


def test_one_weight_off_is_named() -> None:
    model, batch = tiny_model(), padded(some_examples(3))
    wrong = dict(plain_gram(model, batch))
    wrong["model.layers.0.mlp.up_proj.weight"] = 1.05 * wrong["model.layers.0.mlp.up_proj.weight"]
    found = check_engine(model, batch, wrong)
    assert found.status == "failed"
    assert "'model.layers.0.mlp.up_proj.weight'" in found.detail


def test_a_wrong_second_derivative_is_seen() -> None:
    """Negative control: a backward pass that reads what it saved as plain data."""

    class Square(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x**2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2 * ctx.saved_tensors[0].data

        @staticmethod
        def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
            return 2 * ctx.saved_tensors[0] * tangent

    model = tiny_model(initializer_range=0.5)
    assert check_curvature(model, padded(some_examples(2))).status == "ok"
    model.model.layers[0].mlp.act_fn.forward = Square.apply
    found = check_curvature(model, padded(some_examples(2)))
    assert found.status == "warning"
    assert "wrong second derivative" in found.detail


def test_weights_that_share_memory_but_are_two() -> None:
    model = tiny_model("qwen2")
    assert check_ties(model).detail == "model.embed_tokens.weight = lm_head.weight"
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach())
    found = check_ties(model)
    assert found.status == "failed"
    assert "'model.embed_tokens.weight' and 'lm_head.weight' share memory" in found.detail
    assert check_ties(tiny_model("llama")).detail == "none"


def test_checks_leave_the_model_as_found() -> None:
    model, batch = tiny_model(), padded(some_examples(3))
    model.model.layers[0].train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    check_determinism(model, batch)
    check_rows_apart(model, batch)
    check_engine(model, batch, gradient_gram(model, batch, reduction="sum"))
    check_curvature(model, batch)
    assert all(torch.equal(before[name], weight) and weight.grad is None for name, weight in model.named_parameters())
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_progress_ends_at_its_total(tmp_path: Path, data: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(settings_for(tiny_folder(tmp_path), data), rows=3, progress=lambda _, done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_one_row_is_enough(tmp_path: Path, data: Path) -> None:
    report = check(settings_for(tiny_folder(tmp_path), data, data_limit=1))
    assert by_name(report)["rows apart"] == "warning"
    report.require_passed()


def test_costs_follow_the_settings(tmp_path: Path, data: Path) -> None:
    folder = tiny_folder(tmp_path)
    amounts = {
        name: {cost.name: cost.amount for cost in check(settings_for(folder, data, **changes), rows=2).costs}
        for name, changes in {
            "plain": {},
            "wide": {"batch_size": 4},
            "lora": {"lora": {"rank": 2}},
            "saved": {"save_every": 1},
            "sgd": {"optimizer": "sgd"},
            "off": {"probe_schedule": "off"},
            "patched": {"method": ["ema", "one-shot"]},
        }.items()
    }
    parameters = sum(weight.numel() for weight in tiny_model().parameters())
    plain = amounts["plain"]
    assert plain["memory: weights"] * 2**30 == 4 * parameters
    assert plain["memory: training state"] == pytest.approx(4 * plain["memory: weights"])  # g, m, v, theta_0
    assert amounts["sgd"]["memory: training state"] == pytest.approx(2 * plain["memory: weights"])
    assert amounts["patched"]["memory: training state"] == pytest.approx((4 + 1 + 6) * plain["memory: weights"])
    assert amounts["lora"]["memory: training state"] < plain["memory: weights"]
    assert amounts["wide"]["memory: activations"] == pytest.approx(2 * plain["memory: activations"])
    assert amounts["saved"]["disk: weights"] == pytest.approx(7 * plain["disk: weights"])
    assert (amounts["off"]["disk: captures"], amounts["off"]["time: probes"]) == (0, 0)
    assert all(amount > 0 for amount in plain.values())


def test_the_bytes_of_a_capture() -> None:
    shapes = {"a": torch.Size([10, 4]), "b": torch.Size([4])}
    # Two Gram matrices of 8 x 8 and two sketches of 1024 a weight, two bases of 10 x 20 for the matrix.
    assert costs.capture_bytes([*shapes.values()], 8) == 2 * (2 * 64 * 8 + 2 * 1024 * 4) + 2 * 10 * 20 * 4
    assert len(target_shapes(tiny_model())) == 21


# Gradients, two moments and theta_0 of the tiny Llama, in float32.
TRAINING_STATE = 4 * 4 * sum(weight.numel() for weight in tiny_model().parameters())


@pytest.mark.parametrize(
    ("free", "status", "said"),
    [
        (1 << 40, "ok", "free on cpu"),
        (TRAINING_STATE + 1000, "warning", "lower --batch-size"),
        (0, "failed", "activations aside: train with --lora"),
    ],
)
def test_memory_that_is_short_is_said(
    free: int, status: str, said: str, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "free_bytes", lambda _: free)
    report = check(settings_for(tiny_folder(tmp_path), data), rows=2)
    (found,) = [finding for finding in report.findings if finding.name == "memory"]
    assert found.status == status, found
    assert said in found.detail


def test_a_full_disk_fails(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    report = check(settings_for(folder, data, out=tmp_path / "new" / "run"), rows=2)
    (found,) = [finding for finding in report.findings if finding.name == "disk"]
    assert found.status == "failed"
    assert f"free at '{tmp_path}'" in found.detail


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, stderr = run_here(["check", "no/such-model"], tmp_path, monkeypatch, capfd)
    assert (code, len(stderr.strip().splitlines())) == (2, 1)
    assert "no/such-model" in stderr
