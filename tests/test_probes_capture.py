"""Captures hold what they say, checked against slow references; measuring leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from probe_sets import COMPLIANCE, controls_of, probes_of, refusals, utility_rows
from reference import slow_block_gradients, slow_gram, slow_refusal_log_odds, slow_refusal_margin
from safetensors import safe_open
from tiny import tiny_model

from geomsafe.errors import ModelError, RecordError, TrainingError
from geomsafe.gradients import gradient_sketch
from geomsafe.gradients.adam import adam_preconditioner
from geomsafe.models import Anchor
from geomsafe.probes import geometry, probe_steps
from geomsafe.probes.examples import padded
from geomsafe.probes.nulls import untrained_twin
from geomsafe.probes.onesample import MOST, halves_of, overlap


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as stream:
        metadata = {
            key: value if key in {"schema", "convention", "compliance_source"} else json.loads(value)
            for key, value in stream.metadata().items()
        }
        return {name: stream.get_tensor(name) for name in stream.keys()}, metadata  # noqa: SIM118


def moved(model: Any, seed: int = 3) -> dict[str, torch.Tensor]:
    """Shift every trainable weight a little and return by how much."""
    generator = torch.Generator().manual_seed(seed)
    shifts = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                old = weight.clone()
                weight.add_(0.01 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
                shifts[name] = weight - old
    return shifts


def each(model: Any, rows: Sequence[Any]) -> tuple[list[dict[str, torch.Tensor]], list[int], list[float]]:
    """Token-summed gradient, target tokens and loss of every example, one at a time in float64."""
    return slow_block_gradients(model, [(row.input_ids, row.labels) for row in rows], range(len(rows)))


def summed(gradients: Sequence[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    return torch.stack([gradient[name] for gradient in gradients]).sum(dim=0)


def left_space(matrix: torch.Tensor, rank: int, axis: int = 0) -> torch.Tensor:
    vectors, values, _ = torch.linalg.svd(matrix if axis == 0 else matrix.T, full_matrices=False)
    return vectors[:, : min(rank, int((values > 1e-6 * values[0]).sum()))]


def output_axis(arch: str, name: str) -> int:
    """The axis of a weight that faces its layer's output; GPT-2 stores (d_in, d_out), an embedding (ids, d_out)."""
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "wpe.weight")
    return int(name.endswith(turned if arch == "gpt2" else "embed_tokens.weight"))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_capture_equals_slow_references(arch: str, tmp_path: Path) -> None:
    model = tiny_model(arch, dtype=torch.float64, tie_word_embeddings=arch == "gpt2")
    norms = {name: float(weight.detach().norm()) for name, weight in model.named_parameters()}
    probes = probes_of(model, tmp_path, Anchor(model))
    assert probes.steps(5) == {0, 1, 2, 4, 5}
    early = moved(model, seed=4)
    probes.remember()
    updates = moved(model)
    path = probes.measure(5)
    assert path == tmp_path / "step-000005.safetensors"
    tensors, metadata = read(path)
    shifts = {name: early[name] + updates[name] for name in updates}

    sets = {"safety": refusals().rows, "utility": utility_rows()}
    found = {kind: each(model, rows) for kind, rows in sets.items()}
    gradients = [gradient for kind in sets for gradient in found[kind][0]]
    assert tensors["example_tokens"].tolist() == [count for kind in sets for count in found[kind][1]]
    losses = [loss for kind in sets for loss in found[kind][2]]
    assert tensors["example_losses"].tolist() == pytest.approx(losses, rel=1e-9)

    names = metadata["parameters"]
    assert names == list(dict(model.named_parameters()))
    assert metadata["shapes"] == [list(weight.shape) for weight in model.parameters()]
    assert metadata["schema"] == "geomsafe.capture/2" and metadata["convention"] == "token-sum"
    assert metadata["step"] == 5 and metadata["sets"] == ["safety", "utility"]
    assert metadata["set_examples"] == {"safety": 10, "utility": 9} and metadata["nulls"] == []
    assert metadata["clusters"]["safety"] == [row.cluster for row in refusals().rows]
    assert metadata["prompt_ids"] == [row.id for row in refusals().rows]
    assert metadata["refusal_openings"] == [list(opening) for opening in refusals().refusal_openings]
    assert metadata["compliance_openings"] == [list(opening) for opening in COMPLIANCE]
    for index, name in enumerate(names):
        gram = np.array(slow_gram([gradient[name] for gradient in gradients]))
        largest = gram.diagonal().max()
        np.testing.assert_allclose(tensors["example_gram"][index].numpy(), gram, rtol=1e-6, atol=1e-9 * largest)
        assert float(tensors["parameter_norm"][index]) == pytest.approx(norms[name], rel=1e-9)
        for what, change in (("displacement", shifts), ("update", updates)):
            assert float(tensors[f"{what}_norm"][index]) == pytest.approx(float(change[name].norm()), rel=1e-5)
            dots = np.array([float((change[name] * gradient[name]).sum()) for gradient in gradients])
            scale = float(change[name].norm()) * largest**0.5
            np.testing.assert_allclose(tensors[f"{what}_dots"][index].numpy(), dots, atol=1e-5 * scale + 1e-12)
        for kind in sets:
            check_spaces(arch, tensors, kind, name, summed(found[kind][0], name), sum(found[kind][1]), shifts, updates)

    for index, row in enumerate(refusals().rows):
        prompt, openings = row.prompt_tokens, refusals().refusal_openings
        nll = found["safety"][2][index] / len(row.answer)
        assert float(tensors["refusal_nll"][index]) == pytest.approx(nll, rel=1e-6)
        margin = slow_refusal_margin(model, prompt, openings, COMPLIANCE)
        assert float(tensors["refusal_margin"][index]) == pytest.approx(margin, abs=1e-5)
        odds = slow_refusal_log_odds(model, prompt, openings)
        assert float(tensors["refusal_log_odds"][index]) == pytest.approx(odds, abs=1e-4)


def check_spaces(
    arch: str,
    tensors: dict[str, torch.Tensor],
    kind: str,
    name: str,
    total: torch.Tensor,
    tokens: int,
    shifts: dict[str, torch.Tensor],
    updates: dict[str, torch.Tensor],
) -> None:
    """Compare singular values, left space and what of the changes lies inside it with dense SVDs."""
    values, basis = tensors.get(f"{kind}_singular_values/{name}"), tensors.get(f"{kind}_basis/{name}")
    assert (values is None) == (basis is None) == (total.dim() == 1)
    if values is None or basis is None:
        return
    exact = torch.linalg.svdvals(total) / tokens
    assert values.dtype == basis.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-4, atol=1e-6 * float(exact[0]))
    axis = output_axis(arch, name)
    space = left_space(total, 20, axis)
    assert basis.shape[0] == total.shape[axis] and basis.shape[1] <= 20
    leading = min(5, basis.shape[1])
    torch.testing.assert_close(
        basis[:, :leading].double() @ basis[:, :leading].double().T, space[:, :leading] @ space[:, :leading].T,
        atol=1e-4, rtol=0,
    )  # fmt: skip
    for what, change in (("displacement", shifts), ("update", updates)):
        facing = change[name] if axis == 0 else change[name].T
        inside = ((basis.double().T @ facing) ** 2).sum(dim=1)
        torch.testing.assert_close(
            tensors[f"{what}_in/{kind}@t/{name}"], inside, rtol=1e-4, atol=1e-6 * float(inside.sum())
        )


def test_sketches_are_those_of_the_engine(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    tensors, metadata = read(probes_of(model, tmp_path).measure(1))
    dim, seed = metadata["sketch"]["dim"], metadata["sketch"]["seed"]
    whole = gradient_sketch(model, padded(refusals().rows, 0), dim=dim, seed=seed, reduction="sum")
    assert tensors["safety_sketch"].shape == (len(metadata["parameters"]), dim)
    for index, name in enumerate(metadata["parameters"]):
        wanted = whole[name].sum(dim=0).float()
        torch.testing.assert_close(tensors["safety_sketch"][index], wanted, rtol=1e-4, atol=1e-5 * float(wanted.norm()))


def test_preconditioned_products_are_adams(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probes = probes_of(model, tmp_path)
    probes.steps(4)
    assert "preconditioned_gram" not in read(probes.measure(0, optimizer))[0], "Adam has no state yet"
    rows = utility_rows(2, seed=5)
    for row in rows:
        model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    tensors, metadata = read(probes.measure(1, optimizer))
    metric = adam_preconditioner(model, optimizer)
    gradients = each(model, refusals().rows)[0] + each(model, utility_rows())[0]
    for index, name in enumerate(metadata["parameters"]):
        weighed = [gradient[name] * metric[name].double().sqrt() for gradient in gradients]
        gram = np.array(slow_gram(weighed))
        np.testing.assert_allclose(
            tensors["preconditioned_gram"][index].numpy(), gram, rtol=1e-5, atol=1e-6 * gram.diagonal().max()
        )
    assert not torch.equal(tensors["preconditioned_gram"], tensors["example_gram"])


def test_lora_capture_is_of_effective_weights(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    probes = probes_of(model, tmp_path, controls=controls_of())
    probes.steps(4)
    at_start, metadata = read(probes.measure(0))
    assert metadata["parameters"] == [
        f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
    ]
    assert float(at_start["displacement_norm"].sum()) == 0
    assert "untrained" in metadata["nulls"]
    moved(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    later, _ = read(probes.measure(1, optimizer))
    assert bool((later["displacement_norm"] > 0).all())
    assert not torch.equal(later["example_gram"], at_start["example_gram"][:, :19, :19])
    assert "factors" in probes.not_run["preconditioned products"] and "preconditioned_gram" not in later


def test_experts_have_spaces_of_their_own(tmp_path: Path) -> None:
    model = tiny_model("mixtral", dtype=torch.float64)
    model.set_experts_implementation("eager")  # grouped products have no float64
    probes = probes_of(model, tmp_path)
    probes.steps(2)
    tensors, metadata = read(probes.measure(0))
    fused = [name for name, shape in zip(metadata["parameters"], metadata["shapes"], strict=True) if len(shape) == 3]
    gradients, tokens, _ = each(model, refusals().rows)
    for name in fused:
        for expert, total in enumerate(summed(gradients, name)):
            values = tensors[f"safety_singular_values/{name}[{expert}]"]
            exact = torch.linalg.svdvals(total) / sum(tokens)
            torch.testing.assert_close(values.double(), exact, rtol=1e-4, atol=1e-6 * float(exact[0]))
    assert len(fused) == 4


# --- first and last --------------------------------------------------------------------------------------------


def test_controls_and_nulls_stand_in_the_first_and_last_capture(tmp_path: Path) -> None:
    model, controls = tiny_model("llama"), controls_of()
    probes = probes_of(model, tmp_path, controls=controls)
    probes.steps(4)
    seen = {}
    for step in (0, 2, 4):
        seen[step] = read(probes.measure(step))
        moved(model, seed=step)
    for step, (tensors, metadata) in seen.items():
        ends = step in {0, 4}
        sets = ["safety", "utility", "sham", "benign"] if ends else ["safety", "utility"]
        assert metadata["sets"] == sets
        assert len(tensors["example_tokens"]) == sum(metadata["set_examples"][kind] for kind in sets)
        assert len(tensors["example_tokens"]) == (38 if ends else 19)
        assert all(metadata["set_examples"][null] == 10 for null in metadata["nulls"])
        nulls = ["random-tokens", "untrained", "benign-length", "loss-matched"] if step == 0 else []
        nulls = ["random-tokens", "benign-length", "loss-matched"] if step == 4 else nulls
        assert metadata["nulls"] == nulls, "untrained weights do not change: they are measured once"
        assert any(name.startswith("single_phi/") for name in tensors) == ends
        assert any(name.startswith("sham_basis/") for name in tensors) == ends
        assert any("singular" in name for name in tensors) == ends
        assert any(name.startswith("displacement_in/sham@0/") for name in tensors) == (step > 0)
        assert any(name.startswith("displacement_in/safety@t/") for name in tensors) == (step > 0)
    off = probes_of(model, tmp_path / "off", spectra=False)
    off.steps(4)
    assert not any("singular" in name for name in read(off.measure(0))[0])


def test_nulls_are_measured_on_their_own_examples_and_weights(tmp_path: Path) -> None:
    model, controls = tiny_model("llama", dtype=torch.float64), controls_of()
    tensors, metadata = measured_at_start(model, tmp_path, controls)
    twin = untrained_twin(model, 0)
    name = "model.layers.1.mlp.down_proj.weight"
    for kind, on, rows in (
        ("random-tokens", model, controls.sets["random-tokens"]),
        ("loss-matched", model, controls.sets["loss-matched"]),
        ("untrained", twin, refusals().rows),
    ):
        gradients, tokens, losses = each(on, rows)
        exact = torch.linalg.svdvals(summed(gradients, name)) / sum(tokens)
        values = tensors[f"{kind}_singular_values/{name}"].double()
        torch.testing.assert_close(values, exact, rtol=1e-4, atol=1e-6 * float(exact[0]))
        assert metadata["null_losses"][kind] == pytest.approx(sum(losses) / sum(tokens), rel=1e-6)


def measured_at_start(model: Any, folder: Path, controls: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    probes = probes_of(model, folder, controls=controls)
    probes.steps(4)
    return read(probes.measure(0))


def test_single_overlaps_are_those_of_dense_gradients_with_the_single_left_out(tmp_path: Path) -> None:
    model, controls = tiny_model("llama", dtype=torch.float64), controls_of()
    tensors, metadata = measured_at_start(model, tmp_path, controls)
    name, phi = "model.layers.0.self_attn.q_proj.weight", metadata["phi"]
    assert phi["ranks"] == list(range(1, MOST + 1)) and phi["singles"] == [0, 1, 2, 3, 5, 6, 7, 8]
    halves, clusters = phi["halves"], [row.cluster for row in refusals().rows]
    assert {c for c, half in zip(clusters, halves, strict=True) if half}.isdisjoint({
        c for c, half in zip(clusters, halves, strict=True) if not half
    })
    safety, text = each(model, refusals().rows)[0], each(model, controls.sets["same-text"])[0]

    def space(gradients: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        return left_space(summed(gradients, name), 20)

    sides = [[one for one, half in zip(safety, halves, strict=True) if half == side] for side in (0, 1)]
    spaces = [space(side) for side in sides]
    for place, row in enumerate(phi["singles"]):
        for found, single in (("single_phi", safety[row]), ("single_phi_same_text", text[row])):
            wanted = overlap(space([single]), spaces[1 - halves[row]])
            torch.testing.assert_close(tensors[f"{found}/{name}"][place], wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(tensors[f"half_phi/{name}"], overlap(*spaces), atol=2e-3, rtol=0)
    half_text = space([one for one, half in zip(text, halves, strict=True) if half == 0])
    torch.testing.assert_close(tensors[f"half_phi_same_text/{name}"], overlap(half_text, spaces[1]), atol=2e-3, rtol=0)
    contained = overlap(space([safety[0]]), space(safety))
    assert float((contained - tensors[f"single_phi/{name}"][0]).abs().max()) > 0.01, "a batch with the single differs"


def test_overlap_is_one_of_equal_spaces_zero_of_orthogonal_ones_and_k_over_d_of_random_ones() -> None:
    basis, _ = torch.linalg.qr(torch.randn(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert overlap(basis[:, :20], basis[:, :20]).tolist() == pytest.approx([1.0] * MOST)
    assert overlap(basis[:, :20], basis[:, 20:]).tolist() == pytest.approx([0.0] * MOST, abs=1e-12)
    assert overlap(basis[:, :3], basis[:, :20]).tolist() == pytest.approx([1.0] * MOST), "a space inside another"
    random = [torch.linalg.qr(torch.randn(200, 20, generator=torch.Generator().manual_seed(s)))[0] for s in range(2)]
    assert float(overlap(random[0], random[1])[-1]) == pytest.approx(20 / 200, rel=0.2)


def test_halves_never_share_a_cluster() -> None:
    assert halves_of(["a", "a", "b", "b", "c", "c", "d"]) == [0, 0, 0, 0, 1, 1, 1]
    assert halves_of(["a"] * 5) == [0] * 5
    assert halves_of(["a"] * 5 + ["b"]) == [0] * 5 + [1]


def test_examples_of_one_cluster_have_no_single_overlaps(tmp_path: Path) -> None:
    alike = refusals(4)
    rows = [type(row)(row.id, "same", row.prompt, row.completion, row.input_ids, row.labels) for row in alike.rows]
    probes = probes_of(tiny_model("llama"), tmp_path, safety=type(alike)(**(vars(alike) | {"rows": rows})))
    probes.steps(2)
    tensors, _ = read(probes.measure(0))
    assert not any("phi" in name for name in tensors)
    assert any("one cluster" in note for note in probes.notes)


def test_a_resumed_run_has_the_spaces_of_step_0(tmp_path: Path) -> None:
    model = tiny_model("llama")
    anchor = Anchor(model)
    first = probes_of(model, tmp_path, anchor)
    first.steps(4)
    first.measure(0)
    moved(model)
    whole = read(first.measure(2))[0]
    again = probes_of(model, tmp_path, anchor)
    again.steps(4)
    resumed = read(again.measure(2))[0]
    assert whole.keys() == resumed.keys() and any("@0/" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = read(tmp_path / "step-000000.safetensors")[0]
    name = "model.layers.0.mlp.up_proj.weight"
    change = anchor.changes(model)[name].double()
    inside = ((start[f"safety_basis/{name}"].double().T @ change) ** 2).sum(dim=1)
    torch.testing.assert_close(whole[f"displacement_in/safety@0/{name}"], inside, rtol=1e-6, atol=1e-12)


def test_a_capture_of_another_schema_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    probes = probes_of(model, tmp_path)
    monkeypatch.setattr("geomsafe.probes.capture.SCHEMA", "geomsafe.capture/1")
    probes.measure(0)
    with pytest.raises(RecordError, match="start a new run directory"):
        probes.measure(1)


def test_a_small_memory_budget_takes_passes_and_changes_no_number(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    anchor = Anchor(model)
    moved(model)
    captures = []
    for budget in (None, 2_000_000):
        probes = probes_of(model, tmp_path / str(budget), anchor, controls=controls_of(), memory_budget=budget)
        probes.steps(4)
        captures.append(read(probes.measure(4))[0])
    assert any("do not fit into one pass" in note for note in probes.notes)
    both = captures[1].keys()
    assert {name.split("/")[0] for name in captures[0].keys() - both} == {
        "single_phi", "single_phi_same_text", "half_phi", "half_phi_same_text",
    }  # fmt: skip
    for name in both:
        if "_basis/" not in name and "_in/" not in name:
            largest = float(captures[0][name].abs().max())
            torch.testing.assert_close(captures[0][name], captures[1][name], rtol=1e-6, atol=1e-7 * largest)


def test_matrices_that_need_a_gpu_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "AFFORDABLE", 40)
    monkeypatch.setattr(geometry, "EXACT", 20)
    model = tiny_model("llama", hidden_size=48)
    probes = probes_of(model, tmp_path)
    probes.steps(4)
    at_start, metadata = read(probes.measure(0))
    assert "needs a GPU" in metadata["spectra_skipped"]["model.layers.0.mlp.up_proj.weight"]
    assert "safety_basis/model.layers.0.mlp.up_proj.weight" not in at_start
    assert any("up_proj.weight" in note for note in probes.notes)
    assert "safety_basis/model.layers.0.self_attn.k_proj.weight" in at_start
    assert not any("_basis/" in name for name in read(probes.measure(1))[0]), "slow ones wait for the last capture"


# --- harmless ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_training_is_bitwise_the_same_with_and_without_probes(lora: bool, tmp_path: Path) -> None:
    """Dropout is on in training: a measurement that drew random numbers would change every later step."""

    def trained(measured: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = tiny_model("gpt2", resid_pdrop=0.2, attn_pdrop=0.2)
        if lora:
            model = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules=["c_attn", "c_fc"]))
        probes = probes_of(model, tmp_path / str(lora))
        steps = probes.steps(6)
        optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-3)
        model.train()
        rows = utility_rows(12, seed=5)
        for step in range(6):
            if measured and step in steps:
                probes.measure(step)
            for row in rows[2 * step : 2 * step + 2]:
                ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
                model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    plain, probed = trained(False), trained(True)
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    assert len(list((tmp_path / str(lora)).glob("step-*.safetensors"))) == 4
    assert not list((tmp_path / str(lora)).glob(".*"))


# --- what is missing is said -----------------------------------------------------------------------------------


def test_without_usable_refusals_the_utility_set_is_still_measured(tmp_path: Path) -> None:
    probes = probes_of(tiny_model("llama"), tmp_path, safety=refusals(3))
    assert "refuses 3 of 3" in probes.not_run["safety probes"] and probes.sets == ("utility",)
    tensors, metadata = read(probes.measure(0))
    assert metadata["sets"] == ["utility"] and metadata["prompt_ids"] == []
    assert tensors["example_gram"].shape[1:] == (9, 9)
    assert not any("safety" in name or "refusal" in name for name in tensors)


def test_with_no_set_at_all_the_displacement_is_still_measured(tmp_path: Path) -> None:
    model = tiny_model("llama")
    probes = probes_of(model, tmp_path, Anchor(model), safety=None, utility=None)
    assert set(probes.not_run) == {"safety probes", "utility probes"}
    shifts = moved(model)
    tensors, _ = read(probes.measure(1))
    assert set(tensors) == {"parameter_norm", "displacement_norm"}
    assert tensors["displacement_norm"].tolist() == pytest.approx([float(s.norm()) for s in shifts.values()], rel=1e-4)


def test_diverged_weights_stop_the_probe_and_leave_no_file(tmp_path: Path) -> None:
    model = tiny_model("llama")
    probes = probes_of(model, tmp_path)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="diverged"):
        probes.measure(0)
    assert not list(tmp_path.iterdir())


def test_anchor_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    anchor = Anchor(model)
    model.model.embed_tokens.weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"'model\.embed_tokens\.weight'"):
        probes_of(model, tmp_path, anchor)


# --- small parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "total", "steps"),
    [
        ("log", 0, {0}),
        ("log", 1, {0, 1}),
        ("log", 8, {0, 1, 2, 4, 8}),
        ("log", 11, {0, 1, 2, 4, 8, 11}),
        ("4", 10, {0, 4, 8, 10}),
        ("50", 10, {0, 10}),
        ("off", 10, set()),
    ],
)
def test_schedule(schedule: str, total: int, steps: set[int]) -> None:
    assert probe_steps(schedule, total) == steps
