"""A run end to end on tiny models: what it writes, what it refuses, and that its YAML makes it again."""

from __future__ import annotations

import io
import json
import math
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from reference import ema_of_lists
from rich.console import Console
from runs import QUIET, tiny_run
from safetensors.torch import load_file
from tiny import ARCHITECTURES
from transformers import AutoModelForCausalLM, AutoTokenizer

from geomsafe.config import load_config, make_config
from geomsafe.errors import ConfigError, GeomsafeError, RecordError, TrainingError
from geomsafe.methods import MethodsCallback
from geomsafe.records import read_jsonl, read_record
from geomsafe.training import train
from geomsafe.training.record import run_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOMSAFE_CACHE", str(tmp_path / "cache"))


def weights(run: Path, name: str = "final") -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / name / "model.safetensors")


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def whole(folder: Path, **settings: Any) -> Any:
    """Settings with everything on: EMA, probes, saved steps and scoring."""
    paths = {"safety_data": str(folder / "harmful.jsonl"), "utility_data": str(folder / "data.jsonl")}
    everything = {
        "method": ["ema:eta=0.5"],
        "save_weights_at": [2],
        "probe_schedule": "3",
        "probe_examples": 8,
        "evaluate": True,
        "eval_prompts": [f"harmful={folder / 'harmful.jsonl'}"],
    }
    return tiny_run(folder, **(everything | paths | settings))


def test_a_run_leaves_a_complete_directory(tmp_path: Path) -> None:
    run = train(whole(tmp_path, save_every=2), console=QUIET)
    assert run == tmp_path / "run"
    record = read_record(run)
    assert (record.status, record.steps, record.failure) == ("finished", 6, None)
    assert {"config.yaml", "run.json", "steps.jsonl", "captures", "weights", "evaluations"} <= {
        path.name for path in run.iterdir()
    }
    assert not (run / "checkpoint").exists()
    assert [int(path.stem[-6:]) for path in sorted((run / "captures").iterdir())] == [0, 3, 6]
    assert list(record.weights) == ["step-000002", "final", "ema"]
    assert [(row.weights, row.suite) for row in record.evaluations] == [
        (name, "harmful") for name in ("theta_0", "step-000002", "final", "ema")
    ]
    assert all((run / row.file).is_file() and row.n == 12 for row in record.evaluations)
    assert record.methods[0]["effective_window_steps"] == 2 and record.methods[0]["weight_set"] == "ema"
    assert record.model["theta_0_norm"] > 0 and record.model["lora"] is None
    assert record.data["train"]["used"] == 24 and len(record.data["train"]["sha256"]) == 64
    assert record.provenance["packages"]["torch"] == version("torch")
    assert record.provenance["threads"] == torch.get_num_threads()


def test_rows_have_the_stated_keys_and_agree_with_the_record(tmp_path: Path) -> None:
    run = train(tiny_run(tmp_path, method=["ema"], accumulation=2), console=QUIET)
    rows, record = list(read_jsonl(run / "steps.jsonl")), read_record(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert list(rows[0]) == [
        "step", "loss", "lr", "tokens", "examples", "grad_norm", "grad_norm_methods", "grad_norm_clipped",
        "distance", "relative_distance", "seconds", "methods",
    ]  # fmt: skip
    assert rows[-1]["distance"] == pytest.approx(record.weights["final"].distance)
    assert rows[-1]["relative_distance"] == pytest.approx(rows[-1]["distance"] / record.model["theta_0_norm"])
    assert all(row["grad_norm_clipped"] <= 1.0 + 1e-6 and row["methods"]["ema"]["gap"] > 0 for row in rows)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_saved_weights_load_and_lie_where_the_record_says(tmp_path: Path, arch: str, lora: bool) -> None:
    adapters = {"lora": {"rank": 2, "alpha": 4, "targets": "all-linear"}} if lora else {}
    run = train(tiny_run(tmp_path, arch, method=["ema"], save_weights_at=[3], **adapters), console=QUIET)
    record, start = read_record(run), load_file(tmp_path / f"tiny-{arch}" / "model.safetensors")
    moved = {}
    for name, entry in record.weights.items():
        tensors = weights(run, name)
        moved[name] = torch.cat([(tensors[key] - start[key]).flatten().double() for key in sorted(start)])
        assert float(moved[name].norm()) == pytest.approx(entry.distance, rel=1e-4)
        model = AutoModelForCausalLM.from_pretrained(run / entry.path)
        tokenizer = AutoTokenizer.from_pretrained(run / entry.path)
        assert model.config.use_cache is not False
        assert tokenizer.chat_template
        # An average of LoRA products has no factors; an adapter beside it would be another model.
        assert (run / entry.path / "adapter").exists() == (lora and name != "ema")
    for name, entry in record.weights.items():
        cosine = float(moved[name] @ moved["final"] / moved[name].norm() / moved["final"].norm())
        assert entry.alignment == pytest.approx(cosine, abs=1e-4)
    assert record.weights["ema"].distance != record.weights["final"].distance
    assert (record.methods[0]["averaged"] == "product") == lora


def test_the_saved_average_is_that_of_the_saved_steps(tmp_path: Path) -> None:
    run = train(tiny_run(tmp_path, method=["ema:eta=0.3"], save_weights_at=[1, 2, 3, 4, 5, 6]), console=QUIET)
    name = "model.layers.0.mlp.up_proj.weight"
    path = [load_file(tmp_path / "tiny-llama" / "model.safetensors")[name]]
    path += [weights(run, f"step-{step:06d}")[name] for step in range(1, 7)]
    expected = ema_of_lists([point.flatten().tolist() for point in path], 0.3, 1)
    assert weights(run, "ema")[name].flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_probes_and_shadows_leave_the_weights_bitwise_alone(tmp_path: Path) -> None:
    plain = train(tiny_run(tmp_path, arch="gpt2", out=str(tmp_path / "plain")), console=QUIET)
    probed = train(whole(tmp_path, arch="gpt2", out=str(tmp_path / "probed"), probe_schedule="1"), console=QUIET)
    assert len(list((probed / "captures").iterdir())) == 7
    assert same_bits(weights(plain), weights(probed))
    other = train(tiny_run(tmp_path, arch="gpt2", out=str(tmp_path / "other"), seed=1), console=QUIET)
    assert not same_bits(weights(plain), weights(other))


def test_the_yaml_of_a_run_makes_it_again(tmp_path: Path) -> None:
    settings = {"method": ["ema:eta=0.5", "ema:mode=feedback,every=2"], "warmup": 0.2, "schedule": "cosine", "seed": 3}
    run = train(tiny_run(tmp_path, **settings), console=QUIET)
    again = make_config(load_config(run / "config.yaml") | {"out": str(tmp_path / "again")})
    assert again.model_dump(exclude={"out"}) == tiny_run(tmp_path, **settings).model_dump(exclude={"out"})
    repeated = train(again, console=QUIET)
    for name in ("final", "ema", "ema-2"):
        assert same_bits(weights(run, name), weights(repeated, name))
    assert yaml.safe_load((run / "config.yaml").read_text())["method"] == settings["method"]


def test_the_number_of_threads_is_set_recorded_and_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run = train(tiny_run(tmp_path, threads=2, max_steps=1), console=QUIET)
    assert read_record(run).provenance["threads"] == 2
    assert torch.get_num_threads() == before


def test_a_run_names_itself_by_method_and_settings(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, method=["ema:eta=0.5,mode=feedback"], lr=5e-4, accumulation=2, seed=7)
    assert str(run_folder(config.model_copy(update={"out": None}))) == (
        "runs/ema-eta-0.5-mode-feedback-lr0.0005-b4x2-s7"
    )
    assert run_folder(config.model_copy(update={"out": None, "method": []})).name == "baseline-lr0.0005-b4x2-s7"


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, max_steps=1)
    run = train(config, console=QUIET)
    with pytest.raises(RecordError, match="--resume .*or choose another with --out"):
        train(config, console=QUIET)
    said = io.StringIO()
    before = (run / "run.json").read_bytes()
    (run / "checkpoint").mkdir()  # as if killed before it was removed
    assert train(config, resume=run, console=Console(file=said, width=200)) == run
    assert "is finished: nothing to resume" in said.getvalue()
    assert (run / "run.json").read_bytes() == before
    assert not (run / "checkpoint").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": ["ena"]}, "unknown method 'ena'"),
        ({"model": "/nowhere/at/all"}, "nowhere"),
        ({"data": "/nowhere.jsonl"}, "nowhere.jsonl"),
        ({"max_length": 8}, "max-length"),
        ({"save_weights_at": [3, 7]}, "the run has steps 1 to 6, not 7"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = tiny_run(tmp_path, **change)
    with pytest.raises(GeomsafeError, match=message) as caught:
        train(config, console=QUIET)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_launchers_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "2" if variable == "WORLD_SIZE" else "true")
    with pytest.raises(TrainingError, match={"W": "DDP"}.get(variable[0], "FSDP|DeepSpeed")):
        train(tiny_run(tmp_path), console=QUIET)


def test_a_diverging_run_is_recorded_as_failed_with_step_and_layer(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, lr=1e30, optimizer="sgd", clip=0)
    with pytest.raises(TrainingError, match="step 2: the loss is not finite in"):
        train(config, console=QUIET)
    record = read_record(tmp_path / "run")
    assert record.status == "failed"
    assert record.failure is not None and record.failure.step == 2 and record.failure.layer
    assert "not finite" in record.failure.cause
    assert all(math.isfinite(row["loss"]) for row in read_jsonl(tmp_path / "run" / "steps.jsonl"))


def test_a_fault_in_between_is_recorded_too_and_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, save_every=2)
    expected = weights(train(config.model_copy(update={"out": tmp_path / "whole"}), console=QUIET))

    def broken(self: MethodsCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise OSError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(MethodsCallback, "on_optimizer_step", broken)
        patch.setattr(MethodsCallback, "on_step_end", lambda *_, **__: None)
        with pytest.raises(OSError, match="disk gone"):
            train(config, console=QUIET)
    record = read_record(tmp_path / "run")
    assert record.status == "failed" and record.failure is not None
    assert record.failure.cause == "OSError: disk gone" and record.failure.step == 3
    run = train(config, resume=tmp_path / "run", console=QUIET)
    assert read_record(run).status == "finished" and read_record(run).failure is None
    assert same_bits(weights(run), expected)


def test_resume_with_another_setting_names_the_key(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, max_steps=2)
    run = train(config, console=QUIET)
    with pytest.raises(RecordError, match="was started with lr = 0.01, not 0.02"):
        train(config.model_copy(update={"lr": 0.02}), resume=run, console=QUIET)
    with pytest.raises(RecordError, match="not a run directory"):
        train(config, resume=tmp_path / "cache", console=QUIET)


@pytest.fixture
def in_front() -> Iterator[None]:
    """Handle Ctrl-C as a program in front does, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_front")
def test_ctrl_c_writes_a_checkpoint_and_resume_ends_at_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, method=["ema"])
    expected = train(config.model_copy(update={"out": tmp_path / "whole"}), console=QUIET)
    act = MethodsCallback.on_optimizer_step

    def pressed(self: MethodsCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        act(self, args, state, control, **kwargs)
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)

    said = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(MethodsCallback, "on_optimizer_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config, console=Console(file=said, width=200))
    run = tmp_path / "run"
    assert f"stopped at step 3; continue with --resume {run}" in said.getvalue().replace("\n", "")
    assert read_record(run).status == "started"
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["checkpoint-3"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config, resume=run, console=QUIET)
    for name in ("final", "ema"):
        assert same_bits(weights(run, name), weights(expected, name))
    assert [row["step"] for row in read_jsonl(run / "steps.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_while_scoring_scores_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = whole(tmp_path, probe_schedule="off", save_weights_at=[])
    from geomsafe.training import scoring

    real, asked = scoring.evaluate_model, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[3])
        if args[3] == "ema" and asked.count("ema") == 1:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(scoring, "evaluate_model", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, console=QUIET)
    run = tmp_path / "run"
    written = {path.name: path.stat().st_mtime_ns for path in (run / "evaluations").iterdir()}
    assert len(written) == 4 and read_record(run).status == "started"
    steps = (run / "steps.jsonl").read_bytes()
    train(config, resume=run, console=QUIET)
    assert (run / "steps.jsonl").read_bytes() == steps
    for name, moment in written.items():
        assert (run / "evaluations" / name).stat().st_mtime_ns == moment, name
    assert [row.weights for row in read_record(run).evaluations] == ["theta_0", "final", "ema"]


def test_what_is_not_run_is_said(tmp_path: Path) -> None:
    run = train(tiny_run(tmp_path, max_steps=1), console=QUIET)
    assert read_record(run).not_run == {"probes": "probe_schedule is off", "evaluation": "--no-evaluate"}


def test_trackers_get_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback, integrations

    class Tracker(TrainerCallback):
        logs: list[dict[str, float]] = []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.logs.append(dict(kwargs["logs"]))

    monkeypatch.setitem(integrations.integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    train(tiny_run(tmp_path, report_to=["tensorboard"], max_steps=2), console=QUIET)
    assert [{"loss", "lr", "distance", "grad_norm"} <= log.keys() for log in Tracker.logs[:2]] == [True, True]


def test_a_bad_option_of_a_method_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'eta'"):
        train(tiny_run(tmp_path, method=["ema:etha=1"]), console=QUIET)


def test_truncation_is_counted_and_reported(tmp_path: Path) -> None:
    run = train(tiny_run(tmp_path, max_length=32, max_steps=1), console=QUIET)
    record = read_record(run)
    assert 0 < record.data["train"]["truncated"] < 24
    assert any("are cut at 32 tokens" in warning for warning in record.warnings)
    assert json.loads((run / "run.json").read_text())["data"]["train"]["rows"] == 24


@pytest.mark.parametrize("method", ["ema", "ema:mode=feedback,every=2"])
def test_bfloat16_weights_are_trained_averaged_and_saved(tmp_path: Path, method: str) -> None:
    run = train(tiny_run(tmp_path, dtype="bfloat16", method=[method], save_every=3), console=QUIET)
    for name in ("final", "ema"):
        assert {tensor.dtype for tensor in weights(run, name).values()} == {torch.bfloat16}
    assert read_record(run).model["dtype"] == "bfloat16"
    assert 0 < read_record(run).weights["ema"].distance < read_record(run).weights["final"].distance


def test_gradient_checkpointing_takes_the_same_steps(tmp_path: Path) -> None:
    plain = train(tiny_run(tmp_path, out=str(tmp_path / "plain")), console=QUIET)
    saving = train(tiny_run(tmp_path, gradient_checkpointing=True), console=QUIET)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(tensor, weights(saving)[name], rtol=0, atol=1e-5)
    assert json.loads((saving / "weights" / "final" / "config.json").read_text())["use_cache"] is True


def test_a_learning_rate_of_zero_is_a_run_without_a_direction(tmp_path: Path) -> None:
    record = read_record(train(tiny_run(tmp_path, lr=0, method=["ema"]), console=QUIET))
    assert {(entry.distance, entry.alignment) for entry in record.weights.values()} == {(0.0, None)}


@pytest.mark.parametrize("lora", [False, True])
def test_one_fine_tune_carries_any_number_of_weight_sets(tmp_path: Path, lora: bool) -> None:
    methods = ["ema:eta=0.2", "swa:start=0.5", "early-stop:step=4", "interpolate:alpha=0.25", "shrink:to=ema", "random"]
    adapters = {"lora": {"rank": 2, "alpha": 4}} if lora else {}
    run = train(tiny_run(tmp_path, method=methods, save_weights_at=[4], **adapters), console=QUIET)
    entries = read_record(run).weights
    assert set(entries) == {"final", "ema", "swa", "early-stop", "interpolate", "shrink", "random", "step-000004"}
    assert same_bits(weights(run, "early-stop"), weights(run, "step-000004"))
    assert entries["early-stop"].step == 4
    assert entries["interpolate"].distance == pytest.approx(0.25 * entries["final"].distance, rel=1e-4)
    assert entries["shrink"].distance == pytest.approx(entries["ema"].distance, rel=1e-4)
    assert entries["random"].distance == pytest.approx(entries["final"].distance, rel=1e-4)
    assert entries["interpolate"].alignment == pytest.approx(1, abs=1e-6)
    assert abs(entries["random"].alignment or 0) < 0.05
    assert {name: (run / entry.path / "adapter").exists() for name, entry in entries.items()} == {
        name: lora and name in {"final", "early-stop", "step-000004"} for name in entries
    }
    for name in entries:
        AutoModelForCausalLM.from_pretrained(run / "weights" / name)
