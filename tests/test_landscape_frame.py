"""Directions, their lengths and angles, and going there and back: against dense vectors in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from geomsafe.errors import ConfigError
from geomsafe.landscape.directions import RandomDirection, start_of
from geomsafe.landscape.frame import EXACT, Frame
from geomsafe.landscape.making import embedding_weights, layer_of, norm_weights
from geomsafe.landscape.placing import Placer

ARCHS = ["llama", "qwen2", "gemma", "gpt2", "mixtral"]


@dataclass
class Fixed:
    """A direction that a test knows."""

    parts: dict[str, Tensor]
    name: str = "fixed"
    kind: str = "finetune"
    options: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def tensor(self, weight: str) -> Tensor | None:
        return self.parts.get(weight)


def noise(model: Any, seed: int, name: str = "noise", scale: float = 0.01) -> Fixed:
    generator = torch.Generator().manual_seed(seed)
    parts = {
        weight: scale * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for weight, value in start_of(model).items()
    }
    return Fixed(parts, name)


def flat(model: Any, parts: dict[str, Tensor]) -> np.ndarray:
    """One long vector, zeros where a direction has no part."""
    whole = [parts.get(name, torch.zeros_like(value)).double().flatten() for name, value in start_of(model).items()]
    return torch.cat(whole).numpy()


def theta(model: Any) -> np.ndarray:
    return flat(model, start_of(model))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_point_is_theta_0_plus_the_dense_displacement_and_the_way_back_is_bitwise(
    arch: str, dtype: torch.dtype
) -> None:
    model = tiny_model(arch, dtype=dtype)
    before = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    origin, (first, second) = theta(model), (noise(model, 1, "a"), noise(model, 2, "b"))
    frame = Frame(model, [first, second], "lines")
    size = np.linalg.norm(origin)
    for line, raw in enumerate((first, second)):
        vector = flat(model, raw.parts)
        assert frame.directions[line].length == pytest.approx(np.linalg.norm(vector) / size, rel=1e-12)
        with Placer(model, frame).at(line, [0.25]) as placed:
            there = theta(model)
        wanted = origin + 0.25 * size * vector / np.linalg.norm(vector)
        assert np.abs(there - wanted).max() < (1e-7 if dtype == torch.float32 else 1e-14)
        assert placed.moved == pytest.approx(0.25, rel=1e-5) and placed.resolved
        assert np.abs(there - origin).max() > 1e-4, "the model was not moved at all"
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_tied_weights_move_once() -> None:
    model = tiny_model("gpt2", dtype=torch.float64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    frame = Frame(model, [noise(model, 1)], "lines")
    with Placer(model, frame).at(0, [0.1]):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert np.linalg.norm(theta(model)) > 0
        moved = theta(model)
    assert np.linalg.norm(moved - theta(model)) / frame.norm == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_plane_is_orthogonal_to_the_last_digits_also_where_its_axes_are_nearly_parallel(arch: str) -> None:
    model = tiny_model(arch, dtype=torch.float64)
    first = noise(model, 1, "a")
    other = noise(model, 2, "b", scale=1e-5)
    near = Fixed({name: 3 * part + other.parts[name] for name, part in first.parts.items()}, "near")
    frame = Frame(model, [first, near], "plane")
    assert abs(frame.gram[0][1]) < EXACT and frame.gram[1][1] == pytest.approx(1, abs=1e-12)
    # Gram and Schmidt on dense vectors.
    u = flat(model, first.parts) / np.linalg.norm(flat(model, first.parts))
    v = flat(model, near.parts) - (flat(model, near.parts) @ u) * u
    v /= np.linalg.norm(v)
    with Placer(model, frame).at(None, [0.1, 0.2]):
        there = theta(model)
    wanted = theta(model) + frame.norm * (0.1 * u + 0.2 * v)
    assert np.abs(there - wanted).max() < 1e-9
    with pytest.raises(ConfigError, match="nearly parallel"):
        Frame(model, [first, Fixed({name: 2 * part for name, part in first.parts.items()}, "same")], "plane")
    with pytest.raises(ConfigError, match="'nothing' is zero"):
        Frame(model, [Fixed({}, "nothing")], "lines")


def test_without_orthogonalising_the_check_would_fail() -> None:
    """The negative control: raw axes are not orthogonal."""
    model = tiny_model("llama", dtype=torch.float64)
    first = noise(model, 1, "a")
    skew = Fixed({name: part + noise(model, 2).parts[name] for name, part in first.parts.items()}, "skew")
    assert abs(Frame(model, [first, skew], "lines").gram[0][1]) > 0.5


def test_what_is_seen_of_a_displacement_is_its_projection() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    raws, moved = [noise(model, 1, "a"), noise(model, 2, "b")], noise(model, 3)
    frame = Frame(model, raws, "plane")
    coordinates, residual, length = frame.seen(moved.tensor)
    basis, _ = np.linalg.qr(np.stack([flat(model, raw.parts) for raw in raws], axis=1))
    vector = flat(model, moved.parts)
    inside = basis @ (basis.T @ vector)
    assert np.hypot(*coordinates) * frame.norm == pytest.approx(np.linalg.norm(inside), rel=1e-9)
    assert residual[0] == pytest.approx(1 - np.linalg.norm(inside) ** 2 / np.linalg.norm(vector) ** 2, rel=1e-9)
    assert length == pytest.approx(np.linalg.norm(vector) / frame.norm, rel=1e-12)
    assert frame.seen(raws[0].tensor)[1][0] == pytest.approx(0, abs=1e-9)


def test_the_model_comes_back_after_an_exception_and_nothing_else_is_touched() -> None:
    model = tiny_model("llama")
    model.train()
    next(iter(model.parameters())).requires_grad_(False)
    before = {name: (weight.data_ptr(), weight.requires_grad) for name, weight in model.named_parameters()}
    with (
        pytest.raises(RuntimeError, match="half-way"),
        Placer(model, Frame(model, [noise(model, 1)], "lines")).at(0, [1]),
    ):
        raise RuntimeError("half-way")
    assert before == {name: (weight.data_ptr(), weight.requires_grad) for name, weight in model.named_parameters()}
    assert model.training


def test_the_origin_is_theta_0_itself() -> None:
    model = tiny_model("llama")
    pointer = next(iter(model.parameters())).data_ptr()
    with Placer(model, Frame(model, [noise(model, 1)], "lines")).at(0, [0.0]) as placed:
        assert next(iter(model.parameters())).data_ptr() == pointer
    assert placed == (0.0, 0.0, True)


def test_in_bfloat16_a_step_below_one_unit_in_the_last_place_is_reported() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    frame = Frame(model, [noise(model, 1)], "lines")
    placer = Placer(model, frame)
    with placer.at(0, [1e-5]) as tiny:
        pass
    with placer.at(0, [0.3]) as long:
        pass
    assert not tiny.resolved and tiny.rounding > 0.5
    assert long.resolved and long.rounding < 0.05
    assert long.moved == pytest.approx(0.3, rel=0.01)


def test_far_points_are_placed_from_theta_0_and_not_step_by_step() -> None:
    """Twenty accumulated bfloat16 steps are off; the placed point is as near as one rounding."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    raw = noise(model, 1)
    frame, origin = Frame(model, [raw], "lines"), theta(model)
    with Placer(model, frame).at(0, [0.1]) as placed:
        pass
    vector = flat(model, raw.parts)
    walked = {name: value.clone() for name, value in start_of(model).items()}
    for _ in range(20):
        for name, value in walked.items():
            step = 0.005 * frame.norm / np.linalg.norm(vector) * raw.parts[name]
            value.copy_((value.double() + step).to(value.dtype))
    wanted = 0.1 * frame.norm * vector / np.linalg.norm(vector)
    error = np.linalg.norm(flat(model, walked) - origin - wanted) / np.linalg.norm(wanted)
    assert error > 2 * placed.rounding


OPTIONS = {"seed": 3, "norms": False, "embeddings": True}


def drawn(model: Any, norm: str, **more: Any) -> RandomDirection:
    options = OPTIONS | {"norm": norm} | more
    left_out = frozenset() if options["norms"] else frozenset(norm_weights(model))
    left_out |= frozenset() if options["embeddings"] else embedding_weights(model)
    group = {"tensor": str, "row": str, "global": lambda _: ""}.get(norm, layer_of)
    return RandomDirection("random", options, start_of(model), left_out, group)


@pytest.mark.parametrize("arch", ARCHS)
def test_random_directions_have_theta_0s_norm_part_by_part(arch: str) -> None:
    model = tiny_model(arch, dtype=torch.float64)
    start = start_of(model)
    by_tensor, by_row, in_all, by_layer = (drawn(model, norm) for norm in ("tensor", "row", "global", "layer"))
    for name, own in start.items():
        if name in by_tensor.left_out:
            assert by_tensor.tensor(name) is None
            continue
        assert torch.linalg.vector_norm(by_tensor.tensor(name)) == pytest.approx(float(own.norm()), rel=1e-9)
        if own.dim() > 1:
            rows = [torch.linalg.vector_norm(one.flatten(1), dim=1) for one in (by_row.tensor(name), own)]
            assert torch.allclose(rows[0], rows[1], rtol=1e-9)
    kept = [name for name in start if name not in in_all.left_out]
    whole = sum(float(in_all.tensor(name).square().sum()) for name in kept) ** 0.5
    assert whole == pytest.approx(sum(float(start[name].square().sum()) for name in kept) ** 0.5, rel=1e-9)
    ratios: dict[str, set[float]] = {}
    for name in kept:
        ratio = float(by_layer.tensor(name).norm() / in_all.tensor(name).norm())
        ratios.setdefault(layer_of(name), set()).add(round(ratio, 9))
    assert all(len(found) == 1 for found in ratios.values()), "one scale a layer"


def test_random_directions_follow_from_the_seed_and_the_name() -> None:
    model, other = tiny_model("llama", seed=0), tiny_model("llama", seed=0)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.manual_seed(7)
    first = drawn(model, "tensor").tensor(name)
    torch.manual_seed(8)
    assert torch.equal(first, drawn(other, "tensor").tensor(name))
    assert not torch.equal(first, drawn(model, "tensor", seed=4).tensor(name))


def test_what_is_left_out_is_left_out() -> None:
    model = tiny_model("gpt2")
    assert {"transformer.ln_f.weight", "transformer.h.0.ln_1.bias"} <= norm_weights(model)
    assert drawn(model, "tensor", norms=True).tensor("transformer.ln_f.weight") is not None
    bare = drawn(model, "tensor", embeddings=False)
    assert bare.tensor("transformer.wte.weight") is None and bare.tensor("transformer.wpe.weight") is None
    assert bare.tensor("transformer.h.0.attn.c_attn.weight") is not None
