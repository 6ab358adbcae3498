"""Sweeps as they are run: skipped, failed, retried, killed, on two workers and on Ray, to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import QUIET, tiny_run
from safetensors.torch import load_file

import geomsafe
from geomsafe.cli import main
from geomsafe.config import make_config
from geomsafe.errors import ConfigError, TrainingError
from geomsafe.records import read_record, read_sweep
from geomsafe.sweeps import Result, make_plan, make_sweep, sweep
from geomsafe.sweeps.execute import Outcome, run_all, run_one
from geomsafe.sweeps.watch import share_done
from geomsafe.training import train
from geomsafe.training.record import create_run


def tiny_spec(folder: Path, arms: dict[str, Any], **more: Any) -> dict[str, Any]:
    config = tiny_run(folder)
    base = {
        key: getattr(config, key)
        for key in ("model", "data", "batch_size", "max_steps", "lr", "max_length", "probe_schedule", "evaluate")
    } | {"device": "cpu", "threads": 1}
    return {"base": base, "arms": arms} | more


def weights_of(result: Result, arm: str, seed: int = 0) -> dict[str, torch.Tensor]:
    point = next(one for one in result.plan.record.points if (one.arm, one.seed) == (arm, seed))
    record = read_record(result.folder / point.run)
    return load_file(result.folder / point.run / record.weights[point.weights].path / "model.safetensors")


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shadow": {"method": ["ema:eta=0.3"]},
    "slow": {"method": ["ema:eta=0.1"]},
    "ray": {"method": ["ema:eta=0.1", "shrink:to=ema"]},
    "tail": {"method": ["swa:start=0.5"]},
    "half": {"method": ["interpolate:alpha=0.5"]},
    "noise": {"method": ["random:to=final"]},
    "clipped": {"method": ["clip:limit=0.1", "ema:eta=0.3"]},
}


def test_a_shared_fine_tune_gives_every_arm_the_bits_of_its_own(tmp_path: Path) -> None:
    """Two fine-tunes instead of eight, and no arm can tell."""
    spec = make_sweep(tiny_spec(tmp_path, ARMS))
    shared = sweep(spec, tmp_path / "sweep", console=QUIET)
    assert (len(shared.plan.runs), len(shared.failed)) == (2, 0)
    for name, arm in ARMS.items():
        config = tiny_run(tmp_path, out=str(tmp_path / "alone" / name), threads=1, **arm)
        run = train(config, console=QUIET)
        own = next(
            one.weights for one in make_plan(make_sweep(tiny_spec(tmp_path, {name: arm})), 1, "cpu").record.points
        )
        alone = load_file(run / read_record(run).weights[own].path / "model.safetensors")
        assert same_bits(weights_of(shared, name), alone), name
    # And the arms do differ, so that the comparison can fail.
    assert not same_bits(weights_of(shared, "plain"), weights_of(shared, "shadow"))
    assert not same_bits(weights_of(shared, "slow"), weights_of(shared, "ray"))


def test_workers_ray_and_one_process_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative, as a user writes them: workers begin in folders of their own."""
    pytest.importorskip("ray", reason="ray is not installed: pip install geomsafe[ray]")
    values = tiny_spec(tmp_path, {"a": {}, "b": {"lr": 1e-3}, "c": {"method": ["ema"]}})
    values["base"] |= {key: os.path.relpath(values["base"][key], tmp_path) for key in ("model", "data")}
    monkeypatch.chdir(tmp_path)
    spec = make_sweep(values)
    results = [
        sweep(spec, Path("one"), workers=1, console=QUIET),
        sweep(spec, Path("loky"), workers=2, console=QUIET),
        sweep(spec, Path("ray"), workers=2, backend="ray", console=QUIET),
    ]
    for result in results:
        assert not result.failed and all(one.ran for one in result.outcomes)
    for arm in ("a", "b", "c"):
        first, *others = (weights_of(result, arm) for result in results)
        assert all(same_bits(first, other) for other in others)


def test_finished_runs_are_skipped_and_an_extended_sweep_runs_only_what_is_new(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    first = sweep(make_sweep(tiny_spec(tmp_path, {"a": {}})), out, console=QUIET)
    before = (out / "runs" / first.outcomes[0].run / "run.json").read_bytes()
    again = sweep(make_sweep(tiny_spec(tmp_path, {"a": {}})), out, console=QUIET)
    assert [(one.status, one.ran) for one in again.outcomes] == [("finished", False)]
    created = read_sweep(out).created
    more = sweep(make_sweep(tiny_spec(tmp_path, {"a": {}, "b": {"lr": 1e-3}})), out, console=QUIET)
    assert [one.ran for one in more.outcomes] == [False, True]
    assert (out / "runs" / first.outcomes[0].run / "run.json").read_bytes() == before
    assert len(read_sweep(out).points) == 2
    assert read_sweep(out).created >= created
    with pytest.raises(ConfigError, match="holds the sweep 'sweep', not 'other'"):
        sweep(make_sweep(tiny_spec(tmp_path, {"a": {}}, name="other")), out, console=QUIET)


def test_failed_runs_are_listed_with_their_cause_and_retried_on_request(tmp_path: Path) -> None:
    """At this rate the loss leaves the finite numbers; the other run goes on."""
    spec = make_sweep(tiny_spec(tmp_path, {"good": {}, "bad": {"lr": 1e30, "clip": 0.0, "optimizer": "sgd"}}))
    out = tmp_path / "sweep"
    result = sweep(spec, out, console=QUIET)
    assert [one.status for one in result.outcomes] == ["finished", "failed"]
    (failed,) = result.failed
    assert "step" in str(failed.cause) or "finite" in str(failed.cause)
    assert read_record(out / "runs" / failed.run).status == "failed"
    left = sweep(spec, out, console=QUIET)
    assert [one.ran for one in left.outcomes] == [False, False]
    assert left.failed[0].cause == read_record(out / "runs" / failed.run).failure.cause  # type: ignore[union-attr]
    retried = sweep(spec, out, retry_failed=True, console=QUIET)
    assert [one.ran for one in retried.outcomes] == [False, True]
    assert len(retried.failed) == 1


def test_a_run_that_cannot_even_begin_is_a_failure_of_its_own(tmp_path: Path) -> None:
    spec = make_sweep(tiny_spec(tmp_path, {"good": {}, "bad": {"data": str(tmp_path / "missing.jsonl")}}))
    result = sweep(spec, tmp_path / "sweep", console=QUIET)
    assert [one.status for one in result.outcomes] == ["finished", "failed"]
    assert "missing.jsonl" in str(result.failed[0].cause)


SCRIPT = """
import sys
from pathlib import Path
from rich.console import Console
from geomsafe.sweeps import load_sweep, sweep
print("ready", flush=True)
sweep(load_sweep(Path(sys.argv[1])), Path(sys.argv[2]), workers=2, console=Console(quiet=True))
"""


def test_a_killed_sweep_continues_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL to the sweep and its workers while runs are under way; the same command then ends them."""
    long = {"max_steps": 60, "save_every": 10}
    arms = {"a": long, "b": long | {"lr": 1e-3}, "c": long | {"method": ["ema"]}}
    path = tmp_path / "sweep.yaml"
    values = tiny_spec(tmp_path, arms, seeds=[0, 1])
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    out = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(path), str(out)]
    child = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE)
    runs = out / "runs"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and sum(1 for _ in runs.glob("*/steps.jsonl")) < 2:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    statuses = {read_record(run.parent).status for run in runs.glob("*/run.json")}
    assert "started" in statuses, "nothing was under way when the sweep was killed"
    spec = make_sweep(values)
    continued = sweep(spec, out, workers=2, console=QUIET)
    whole = sweep(spec, tmp_path / "whole", workers=1, console=QUIET)
    assert not continued.failed and not whole.failed
    for arm in arms:
        for seed in (0, 1):
            assert same_bits(weights_of(continued, arm, seed), weights_of(whole, arm, seed))


def test_a_run_that_kills_its_worker_is_a_failure_and_those_beside_it_go_on(tmp_path: Path) -> None:
    """As the system kills for want of memory; a longer run beside it is under way at every death."""
    arms = {"good": {"max_steps": 200}, "deadly": {"lr": DEADLY}, "also-good": {"lr": 1e-3}}
    spec = make_sweep(tiny_spec(tmp_path, arms))
    runs = make_plan(spec, 1, "cpu").runs
    outcomes = run_all(runs, tmp_path / "runs", workers=2, work=deadly)
    assert [one.status for one in outcomes] == ["finished", "failed", "finished"]
    assert "was killed, alone too" in str(outcomes[1].cause)


DEADLY = 0.123


def deadly(folder: str, settings: dict[str, Any], retry_failed: bool, here: str) -> Outcome:
    """Stand in for `run_one`, killed once the run has begun where the learning rate says so."""
    if settings["lr"] == DEADLY:
        config = make_config(settings | {"out": folder})
        if not Path(folder).exists():
            create_run(Path(folder), config, torch.device("cpu"))
        os.kill(os.getpid(), signal.SIGKILL)
    return run_one(folder, settings, retry_failed, here)


def test_progress_is_read_from_the_records(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    assert share_done(tmp_path / "run") == 0.0
    run = train(config, console=QUIET)
    assert share_done(run) == 1.0
    record = read_record(run)
    assert record.total_steps == 6


def test_workers_and_address_are_checked(tmp_path: Path) -> None:
    spec = make_sweep(tiny_spec(tmp_path, {"a": {}}))
    with pytest.raises(ConfigError, match="--workers 0"):
        sweep(spec, tmp_path / "x", workers=0, console=QUIET)
    with pytest.raises(ConfigError, match="add --backend ray"):
        sweep(spec, tmp_path / "x", address="auto", console=QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        sweep(spec, tmp_path / "file", console=QUIET)
    assert not (tmp_path / "x").exists()


def test_the_same_from_python(tmp_path: Path) -> None:
    design = tiny_spec(tmp_path, {"a": {}})
    out = geomsafe.sweep(design, tmp_path / "sweep")
    assert read_sweep(out).points[0].arm == "a"
    broken = tiny_spec(tmp_path, {"a": {"data": str(tmp_path / "missing.jsonl")}})
    with pytest.raises(TrainingError, match=r"1 of 1 runs failed, first .*missing\.jsonl"):
        geomsafe.sweep(broken, tmp_path / "broken")


def test_the_command_lists_failures_reports_what_it_has_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    values = tiny_spec(tmp_path, {"good": {}, "bad": {"data": str(tmp_path / "missing.jsonl")}}, reference="good")
    (tmp_path / "design.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["geomsafe", "sweep", "design.yaml", "--out", "sweep"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capfd.readouterr()
    assert stop.value.code == 1
    assert "1 of 2 runs finished" in said.out and "report: sweep/report/report.html" in said.out
    assert "missing.jsonl" in said.err and "--retry-failed" in said.err
    assert (tmp_path / "sweep" / "report" / "tables" / "sweep.md").exists()
