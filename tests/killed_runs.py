"""Kill runs by SIGKILL, at random moments or at the n-th file operation, until one gets through.

A script, so that its processes are forked from one that has no threads and has imported torch once:

    python killed_runs.py FOLDER moments 20     kill at 20 random moments
    python killed_runs.py FOLDER operations 12  kill before 12 file operations spread over a run

Prints one JSON line: how many runs were killed, at which number of steps, and whether every run that
got through has the weights, averages and rows of the run that nobody killed.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import torch
from runs import QUIET, tiny_run
from safetensors.torch import load_file

from geomsafe.config import TrainConfig
from geomsafe.records import read_jsonl, read_record
from geomsafe.training import train


def no_sync(handle: int) -> None:
    """SIGKILL loses nothing that was handed to the operating system; syncing would only take time."""


def attempt(config: TrainConfig, prepare: Callable[[], None], delay: float | None) -> bool:
    """Fork a process that starts or resumes the run; kill it after `delay`. Return whether it finished."""
    run = Path(str(config.out))
    child = os.fork()
    if child == 0:
        prepare()
        try:
            train(config, resume=run if run.exists() else None, console=QUIET)
        except BaseException as error:  # the parent reads only the exit status
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed instead of being killed")
    return os.WIFEXITED(status)


def die_at(number: int) -> Callable[[], None]:
    """Return what makes a process kill itself before its `number`-th rename, sync or write of tensors."""

    def prepare() -> None:
        import safetensors.torch

        count = 0

        def counted(real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        os.replace, os.fsync, torch.save = counted(os.replace), counted(no_sync), counted(torch.save)
        shutil.rmtree, Path.unlink = counted(shutil.rmtree), counted(Path.unlink)
        safetensors.torch.save_file = counted(safetensors.torch.save_file)

    return prepare


def steps_written(run: Path) -> int:
    path = run / "steps.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def facts(run: Path) -> dict[str, Any]:
    """Read what must not depend on when a run was killed."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(run / "steps.jsonl")]
    record = read_record(run)
    return {
        "rows": rows,
        "weights": {name: load_file(run / entry.path / "model.safetensors") for name, entry in record.weights.items()},
        "entries": record.weights,
        "captures": {path.name: load_file(path) for path in (run / "captures").glob("*")},
        "status": record.status,
        "left": sorted(path.name for path in run.iterdir()),
        "scores": [(row.weights, row.scores) for row in record.evaluations],
    }


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


def main() -> None:
    """Run the script."""
    folder, way, wanted = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    os.fsync = no_sync
    os.environ["GEOMSAFE_CACHE"] = str(folder / "cache")
    tiny_run(folder)
    config = tiny_run(
        folder,
        method=["ema:eta=0.1", "ema:mode=feedback,every=2"],
        save_every=2,
        save_weights_at=[3],
        probe_schedule="3",
        utility_data=str(folder / "data.jsonl"),
        probe_examples=8,
        max_steps=7,
        evaluate=True,
        eval_prompts=[f"harmful={folder / 'harmful.jsonl'}"],
        max_new_tokens=2,
    )
    # What is imported by now stays: the children's collectors need not look at it.
    gc.collect()
    gc.freeze()
    attempt(config.model_copy(update={"out": folder / "whole"}), lambda: None, None)
    expected = facts(folder / "whole")
    shutil.rmtree(folder / "whole")
    started = time.perf_counter()
    attempt(config.model_copy(update={"out": folder / "whole"}), lambda: None, None)
    length = time.perf_counter() - started
    moments, run, got_through = [], Path(str(config.out)), []
    dice = random.Random(0)

    def finished() -> None:
        got_through.append(equal(facts(run), expected))
        shutil.rmtree(run)

    number = 0
    while len(moments) < wanted:
        if way == "moments":
            done = attempt(config, lambda: None, dice.uniform(0, 0.6) * length)
        else:
            number += dice.randrange(1, 48)
            done = attempt(config, die_at(number), None)
        if done:
            finished()
            number = 0
        else:
            moments.append(steps_written(run))
            if way == "operations":
                attempt(config, lambda: None, None)
                finished()
    if run.exists():
        attempt(config, lambda: None, None)
        finished()
    print(json.dumps({"killed_after_steps": moments, "equal": got_through}))


if __name__ == "__main__":
    main()
