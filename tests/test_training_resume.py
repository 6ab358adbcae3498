"""A run that stopped goes on to the same bits: killed by SIGKILL anywhere, or failed at a chosen step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import QUIET, tiny_run
from safetensors.torch import load_file

from geomsafe.config import TrainConfig
from geomsafe.methods import MethodsCallback
from geomsafe.records import read_jsonl, read_record
from geomsafe.training import train
from geomsafe.training.checkpoint import MANIFEST, is_whole, newest_whole, seal
from geomsafe.training.weights import WeightStore

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
@pytest.mark.parametrize(("way", "count"), [("moments", 20), ("operations", 6)])
def test_killed_runs_end_at_the_weights_of_the_run_that_nobody_killed(tmp_path: Path, way: str, count: int) -> None:
    script = Path(__file__).parent / "killed_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), way, str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said["killed_after_steps"]) == count
    assert said["equal"] and all(said["equal"]), said


class Stop(Exception):
    """What a test raises to end a run."""


def stopped_at(config: TrainConfig, step: int, patch: pytest.MonkeyPatch) -> None:
    """Run until a step has been taken and its checkpoint, if any is due, written; then fail."""
    begin = MethodsCallback.on_pre_optimizer_step

    def broken(self: MethodsCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise Stop
        begin(self, args, state, control, **kwargs)

    with patch.context() as patched:
        patched.setattr(MethodsCallback, "on_pre_optimizer_step", broken)
        with pytest.raises(Stop):
            train(config, console=QUIET)


def assert_same_run(first: Path, second: Path) -> None:
    for name, entry in read_record(first).weights.items():
        ours = load_file(first / entry.path / "model.safetensors")
        theirs = load_file(second / entry.path / "model.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs), name
    assert read_record(first).weights == read_record(second).weights
    rows = [[row | {"seconds": 0} for row in read_jsonl(run / "steps.jsonl")] for run in (first, second)]
    assert rows[0] == rows[1]


LORA = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.2, "targets": "all-linear"}}


@pytest.mark.parametrize("stop", [3, 5, 6, 8])
@pytest.mark.parametrize(
    "settings",
    [{"method": ["ema"]}, {"method": ["ema"], **LORA}, {"method": ["ema:space=factors,every=3"], **LORA}],
    ids=["full", "lora-product", "lora-factors"],
)
def test_dropout_order_and_averages_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], stop: int
) -> None:
    # 24 rows in batches of 4 x 1: an epoch has 6 steps, so the stops lie within, at the end of and beyond one.
    settings = {"arch": "gpt2", "model_overrides": {"resid_pdrop": 0.3}, "save_every": 3, "max_steps": 10} | settings
    whole = train(tiny_run(tmp_path, out=str(tmp_path / "whole"), **settings), console=QUIET)
    config = tiny_run(tmp_path, **settings)
    stopped_at(config, stop, monkeypatch)
    assert read_record(tmp_path / "run").status == "failed"
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == [f"checkpoint-{stop // 3 * 3}"]
    assert_same_run(train(config, resume=tmp_path / "run", console=QUIET), whole)


def test_a_part_of_an_epoch_that_is_over_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": None, "epochs": 1.5, "save_every": 4, "method": ["ema:eta=0.1"]}
    whole = train(tiny_run(tmp_path, out=str(tmp_path / "whole"), **settings), console=QUIET)
    config = tiny_run(tmp_path, **settings)

    def broken(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(WeightStore, "save_last", broken)
        with pytest.raises(Stop):
            train(config, console=QUIET)
    assert (tmp_path / "run" / "checkpoint" / "checkpoint-9").is_dir()
    assert_same_run(train(config, resume=tmp_path / "run", console=QUIET), whole)
    assert read_record(tmp_path / "run").steps == 9


def test_without_any_checkpoint_a_run_starts_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_run(tmp_path, out=str(tmp_path / "whole")), console=QUIET)
    config = tiny_run(tmp_path)
    stopped_at(config, 4, monkeypatch)
    assert_same_run(train(config, resume=tmp_path / "run", console=QUIET), whole)


def test_what_lies_beyond_the_resumed_step_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(
        tmp_path, save_every=3, save_weights_at=[2, 4], probe_schedule="1", utility_data=str(tmp_path / "data.jsonl"),
        probe_examples=8,
    )  # fmt: skip
    stopped_at(config, 5, monkeypatch)
    run = tmp_path / "run"
    assert len(list((run / "captures").iterdir())) == 6 and len(list((run / "weights").iterdir())) == 2
    seen: dict[str, list[str]] = {}

    def look(self: MethodsCallback, *args: Any, **kwargs: Any) -> None:
        seen["captures"] = sorted(path.stem for path in (run / "captures").iterdir())
        seen["weights"] = [path.name for path in (run / "weights").iterdir()]
        seen["rows"] = (run / "steps.jsonl").read_text().splitlines()
        raise Stop

    with (run / "steps.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # torn by the kill
    monkeypatch.setattr(MethodsCallback, "on_train_begin", look)
    with pytest.raises(Stop):
        train(config, resume=run, console=QUIET)
    assert seen["captures"] == [f"step-{step:06d}" for step in range(4)]
    assert seen["weights"] == ["step-000002"] and len(seen["rows"]) == 3
    assert list(read_record(run).weights) == ["step-000002"]


def checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights" * 100)
    (made / "training_args.bin").write_bytes(b"pickle")
    seal(made)
    return made


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "none") is None
    old, new = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert is_whole(new) and newest_whole(tmp_path) == new
    assert not old.exists() and not (new / "training_args.bin").exists()
    for damage in (
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text('{"model.safe'),
        lambda folder: (folder / "model.safetensors").write_bytes(b"weights" * 99),
        lambda folder: (folder / "model.safetensors").write_bytes(b"weighty" * 100),
        lambda folder: (folder / "model.safetensors").unlink(),
    ):
        torn = checkpoint(tmp_path, 11)
        damage(torn)
        assert not is_whole(torn)
        assert newest_whole(tmp_path) == new
        assert not torn.exists()


def test_checkpoints_are_read_without_unpickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(tmp_path, save_every=2)
    stopped_at(config, 4, monkeypatch)
    real, asked = torch.load, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("weights_only"))
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    train(config, resume=tmp_path / "run", console=QUIET)
    assert asked and all(asked)
