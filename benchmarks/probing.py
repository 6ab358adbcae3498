"""What probing costs in a real fine-tune of the organism: its share of the run's wall time.

    python benchmarks/probing.py --repeats 3

`geomsafe train` with probes of 16 + 16 examples every 20 steps against the same run without probes, in turn. The
share is (time with - time without) / (time with): the loop over steps only, without loading
and saving the model, which no probe changes. Beside it, by step, the seconds of each measurement.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from rich.console import Console

from geomsafe.config import make_config
from geomsafe.probes import Probes
from geomsafe.training import train


class Clock:
    """Wraps a function of the package and keeps how long each call took."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds: list[float] = []
        original = getattr(owner, name)

        def timed(*args: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **keywords)
            finally:
                self.seconds.append(time.perf_counter() - start)

        setattr(owner, name, timed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    loops, measurements = Clock(transformers.Trainer, "train"), Clock(Probes, "measure")
    shares = []
    for _ in range(options.repeats):
        _run(options, "off")
        _run(options, str(options.every))
        without, with_probes = loops.seconds[-2:]
        shares.append((with_probes - without) / with_probes)
        print(f"without {without:.1f} s, with {with_probes:.1f} s, share {shares[-1]:.1%}", flush=True)
    count = len(measurements.seconds) // options.repeats
    each = [statistics.median(measurements.seconds[step::count]) for step in range(count)]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"\n{date.today()}, {platform.machine()}, {options.threads} threads, {versions}")
    print(f"organism, {options.steps} steps of {options.batch_size} examples, probes of {options.examples} + ", end="")
    print(f"{options.examples} examples every {options.every} steps: median share {statistics.median(shares):.1%}")
    print(f"first measurement {each[0]:.2f} s, last {each[-1]:.2f} s, ", end="")
    print(f"those between {statistics.median(each[1:-1]):.2f} s (medians)")


def _run(options: argparse.Namespace, schedule: str) -> None:
    with TemporaryDirectory() as folder:
        settings = {
            "max_steps": options.steps,
            "batch_size": options.batch_size,
            "threads": options.threads,
            "probe_schedule": schedule,
            "probe_examples": options.examples,
            "evaluate": False,
            "out": Path(folder) / "run",
        }
        train(make_config(settings), console=Console(quiet=True))


if __name__ == "__main__":
    main()
