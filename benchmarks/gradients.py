"""What per-example gradient geometry costs, against one plain batched forward and backward pass.

    python benchmarks/gradients.py --shape 17m --repeats 5
    python benchmarks/gradients.py --shape 97m --repeats 3 --targets all
    python benchmarks/gradients.py --shape llama-3.2-1b --device cuda --examples 64 --tokens 256 --answer 64

Prints a table of benchmarks/RESULTS.md. Time: every contender alternates with the plain pass in one
process; a ratio is the median over repeats of (its time) / (the plain pass just before it). Memory: one process each,
highest resident memory after two passes, less what the process held before the model was made (CUDA: the highest
allocated). Peers take part where they are installed (see peers.py). The last column compares the Gram matrix
in total with ours: the largest difference over the largest entry.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from typing import Any

import torch
import transformers
from contenders import OURS, TEXTBOOK, Contender, Work, plain
from peers import NOT_INSTALLED, PEERS
from workload import SHAPES, Batch, random_batch, random_llama, resident_peak

PLAIN = Contender("plain forward and backward", "the sum of gradients", plain)
ALL = (PLAIN, *OURS, *TEXTBOOK, *PEERS)


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    if options.memory_of:
        _print_memory(options)
        return
    _print_header(options)
    model, batch = _make(options)
    size = sum(weight.numel() for weight in model.parameters())
    chosen = [contender for contender in (*OURS, *TEXTBOOK, *PEERS) if options.only in contender.name]
    base = _memory(options, PLAIN)
    pass_ = plain(model, batch)
    seconds = min(_timed(options, pass_)[0] for _ in range(4))
    print(f"plain pass: {seconds:.3f} s, {base / 2**20:.0f} MiB\n")
    print("| way | gives | time | range | memory | off by |\n|---|---|--:|--:|--:|--:|")
    for contender in chosen:
        reason = _left_out(options, contender, size)
        if reason:
            print(f"| {contender.name} | {contender.gives} | {reason} | | | |", flush=True)
            continue
        memory = f"{_memory(options, contender) / base:.2f}" if base else ""
        try:
            print(_row(options, contender, model, batch, pass_, memory), flush=True)
        except Exception as error:  # a peer that does not run is a result, not the end of the table
            first = str(error).strip().splitlines()[0][:80] if str(error).strip() else type(error).__name__
            print(f"| {contender.name} | {contender.gives} | does not run: {first} | | | |", flush=True)
    if NOT_INSTALLED:
        print(f"\nNot installed: {', '.join(NOT_INSTALLED)}.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="17m")
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--answer", type=int, default=16, help="targets an example, its last tokens")
    parser.add_argument("--targets", choices=["answer", "all"], default="answer", help="all: every token is a target")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: bfloat16 weights")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that others use")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.targets == "all":
        options.answer = options.tokens
    return options


def _make(options: argparse.Namespace) -> tuple[Any, Batch]:
    shape = SHAPES[options.shape]
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = random_llama(shape, dtype, options.device)
    batch = random_batch(shape.vocabulary, options.examples, options.tokens, options.answer, options.device)
    return model, batch


def _print_header(options: argparse.Namespace) -> None:
    count = sum(weight.numel() for weight in random_llama(SHAPES[options.shape], device="meta").parameters())
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
    print(f"{date.today()}, {platform.machine()}, {where}, {options.clock} time, {versions}")
    print(f"random Llama of {count / 1e6:.1f} M parameters, {options.examples} examples of {options.tokens} tokens,")
    print(f"{options.answer} targets an example ({options.answer / options.tokens:.0%} of tokens); ", end="")


def _row(options: argparse.Namespace, contender: Contender, model: Any, batch: Batch, pass_: Work, memory: str) -> str:
    work = contender.make(model, batch)
    found = work()  # once unmeasured: caches fill, lazy imports happen
    ratios, repeats = [], 1 if contender.most_parameters < math.inf else options.repeats
    for _ in range(repeats):
        against, _ = _timed(options, pass_)
        ratios.append(_timed(options, work)[0] / against)
    ratios.sort()
    off = "" if found is None else _difference(found, model, batch, contender)
    spread = f"{ratios[0]:.2f} – {ratios[-1]:.2f}" if repeats > 1 else "once"
    median = statistics.median(ratios)
    return f"| {contender.name} | {contender.gives} | {median:.2f} | {spread} | {memory} | {off} |"


def _timed(options: argparse.Namespace, work: Work) -> tuple[float, Any]:
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    _wait(options)
    start = clock()
    found = work()
    _wait(options)
    return clock() - start, found


def _wait(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def _difference(found: torch.Tensor, model: Any, batch: Batch, contender: Contender) -> str:
    from geomsafe.gradients import gradient_gram

    ours = gradient_gram(model, batch, reduction="sum")
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    names = linear if "Linear" in contender.gives else set(ours)
    wanted = sum(ours[name] for name in names)
    return f"{float((found.cpu().double() - wanted).abs().max() / wanted.max()):.0e}"


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory(options: argparse.Namespace, contender: Contender) -> int:
    """Return the highest memory of two passes in a process of their own, in bytes; 0 where it fails or is not asked."""
    if options.no_memory:
        return 0
    command = [sys.executable, __file__, "--memory-of", contender.name]
    for key in ("shape", "examples", "tokens", "answer", "threads", "device"):
        command += [f"--{key}", str(getattr(options, key))]
    done = subprocess.run(command, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def _print_memory(options: argparse.Namespace) -> None:
    contender = next(contender for contender in ALL if contender.name == options.memory_of)
    before = resident_peak()
    model, batch = _make(options)
    work = contender.make(model, batch)
    work()
    work()
    print(torch.cuda.max_memory_allocated() if options.device == "cuda" else resident_peak() - before)


def _left_out(options: argparse.Namespace, contender: Contender, size: int) -> str:
    """Say why a contender is not run here: too long, or more memory than is free."""
    if size > contender.most_parameters:
        return "not run: minutes a pass"
    needed = contender.gradients_held * options.examples * size * (2 if options.device == "cuda" else 4)
    free = torch.cuda.mem_get_info()[0] if options.device == "cuda" else _free_memory()
    return f"not run: needs about {needed / 2**30:.0f} GiB" if needed > 0.9 * free else ""


def _free_memory() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
