"""What a method adds to a training step, as a ratio to the step without it.

    python benchmarks/methods.py --shape 17m --repeats 5
    python benchmarks/methods.py --shape llama-3.2-1b --device cuda --dtype bfloat16

Prints a table of benchmarks/RESULTS.md. A step is forward and backward pass of 16 examples x 48 tokens and AdamW.
The anchor is one of the examples, or its last `--anchor` tokens, and the loss is negated, so that SPF is in conflict
at every step (the table says how often it was). Every contender alternates with the plain step in one process; a
ratio is the median over repeats of (its step) / (the plain step just before it). Beside SPF: the extra one-example
pass that any such method needs, and SPF with the subspaces taken as elsewhere, from the dense gradient of each
weight. Memory: one process each, highest resident memory after two steps, as a ratio to the plain step (CUDA:
highest allocated).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from workload import SHAPES, Batch, random_batch, random_llama, resident_peak

from geomsafe.methods import Method, PcGrad, PcGradOptions, Schedule, Spf, SpfOptions, make_method

EXAMPLES, TOKENS, ANSWER = 16, 48, 32
RANK = 20

Bases = Callable[[Tensor], Tensor]


@dataclass
class Contender:
    """A way to take a step, and how often it acted."""

    name: str
    method: Method | None = None
    bases: Bases | None = None
    alone: bool = False
    fired: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    step = _Step(options)
    if options.memory_of:
        _print_memory(options, step)
        return
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{platform.machine()}, {options.device}, {options.threads} threads, {options.dtype}, {versions}")
    plain = Contender("plain")
    seconds = min(step.timed(plain) for _ in range(4))
    base = _memory(options, "plain")
    print(f"{options.shape}: plain step {seconds:.3f} s, {base / 2**20:.0f} MiB\n")
    print("| step with | time | range | memory | acted |\n|---|--:|--:|--:|--:|")
    for contender in _contenders(step.anchor):
        if options.only not in contender.name:
            continue
        step.timed(contender)
        ratios = sorted((1 / step.timed(plain)) * step.timed(contender) for _ in range(options.repeats))
        acted = f"{statistics.mean(contender.fired):.0%}" if contender.fired else ""
        memory = f"{_memory(options, contender.name) / base:.2f}"
        spread = f"{ratios[0]:.3f} – {ratios[-1]:.3f}"
        print(f"| {contender.name} | {statistics.median(ratios):.3f} | {spread} | {memory} | {acted} |", flush=True)


def _contenders(anchor: Batch) -> list[Contender]:
    return [
        Contender("one-example pass, result unused", alone=True),
        Contender("SPF", Spf(SpfOptions(rank=RANK), anchor=anchor)),
        Contender("SPF, no conflict", Spf(SpfOptions(rank=RANK, sign="flipped"), anchor=anchor)),
        Contender("SPF every 10 steps", Spf(SpfOptions(rank=RANK, refresh=10), anchor=anchor)),
        Contender("SPF by torch.svd_lowrank(q=25, niter=2)", bases=_lowrank),
        Contender("SPF by full SVD", bases=_full),
        Contender("PCGrad", PcGrad(PcGradOptions(), anchor=anchor)),
        Contender("EMA", make_method("ema")),
        Contender("clip", make_method("clip:limit=0.001")),
    ]


def _lowrank(gradient: Tensor) -> Tensor:
    return torch.svd_lowrank(gradient, q=min(RANK + 5, *gradient.shape), niter=2)[0][:, :RANK]


def _full(gradient: Tensor) -> Tensor:
    return torch.linalg.svd(gradient, full_matrices=False)[0][:, :RANK]


class _Step:
    """A model, a batch whose first example is the anchor, and an optimizer that hardly moves."""

    def __init__(self, options: argparse.Namespace) -> None:
        shape = SHAPES[options.shape]
        self.model = random_llama(shape, getattr(torch, options.dtype), options.device)
        self.batch = random_batch(shape.vocabulary, EXAMPLES, TOKENS, ANSWER, options.device)
        self.anchor = {key: value[:1, -options.anchor :] for key, value in self.batch.items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-9)
        self._cuda = options.device.startswith("cuda")
        self._started: set[int] = set()

    def timed(self, contender: Contender) -> float:
        """Take one step and return its seconds."""
        method = contender.method
        if method is not None and id(method) not in self._started:
            method.start(self.model, self.optimizer, Schedule(1000, 1000, 1e-9))
            self._started.add(id(method))
        self._wait()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(**self.batch, use_cache=False).loss.neg().backward()
        if contender.alone:
            self._anchor_gradients()
        if contender.bases is not None:
            contender.fired.append(self._dense(contender.bases))
        log = method.on_gradient(self.model, len(contender.fired) + 1) if method is not None else {}
        self.optimizer.step()
        if method is not None:
            method.after_step(self.model, len(contender.fired) + 1)
            contender.fired.append(log.get("fired", log.get("clipped", 1.0)))
        self._wait()
        return time.perf_counter() - start

    def _anchor_gradients(self) -> tuple[Tensor, ...]:
        loss = self.model(**self.anchor, use_cache=False).loss
        return torch.autograd.grad(loss, list(self.model.parameters()))

    @torch.no_grad()
    def _dense(self, bases: Bases) -> float:
        """Take a step of SPF with the first axis of every dense gradient, and without any log."""  # noqa: DOC201
        with torch.enable_grad():
            safety = self._anchor_gradients()
        weights = list(self.model.parameters())
        dot = sum(float((weight.grad * other).sum()) for weight, other in zip(weights, safety, strict=True))
        if dot >= 0:
            return 0.0
        for weight, other in zip(weights, safety, strict=True):
            gradient: Any = weight.grad
            matrix = gradient.float().reshape(len(gradient), -1)
            basis = bases(other.float().reshape(len(other), -1))
            gradient.copy_((matrix - basis @ (basis.T @ matrix)).reshape(gradient.shape))
        return 1.0

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def _memory(options: argparse.Namespace, name: str) -> float:
    """Return the highest memory of a process of its own, in bytes."""
    command = [sys.executable, __file__, "--shape", options.shape, "--device", options.device]
    command += ["--dtype", options.dtype, "--threads", str(options.threads), "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _print_memory(options: argparse.Namespace, step: _Step) -> None:
    everyone = [Contender("plain"), *_contenders(step.anchor)]
    contender = next(one for one in everyone if one.name == options.memory_of)
    for _ in range(2):
        step.timed(contender)
    print(torch.cuda.max_memory_allocated() if options.device.startswith("cuda") else resident_peak())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="17m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--anchor", type=int, default=TOKENS, help="tokens of the anchor")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
